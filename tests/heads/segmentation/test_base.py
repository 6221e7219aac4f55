"""What segmentation heads share, against torch's own functions, slow loops and numbers by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from trunkline.backbones.base import FeatureLevel
from trunkline.heads.segmentation.base import (
    RawSegmentation,
    SegmentationHead,
    halvings,
    resize,
    stepped_size,
    subsample,
)
from trunkline.heads.segmentation.losses import CrossEntropy, Dice, SegmentationLoss, WeightedSum
from trunkline.heads.segmentation.regions import largest

LEVELS = (FeatureLevel(4, (4, 4)), FeatureLevel(8, (8, 8)))


def labels_of(shape, classes=3):
    mask = torch.randint(0, classes, shape, dtype=torch.uint8)
    mask[torch.rand(shape) < 0.3] = 255
    return mask


# -- losses


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_without_a_loss_it_is_cross_entropy_on_masks_of_any_integer_type(kind, targets):
    logits, mask = torch.randn(2, 3, 5, 7), labels_of((2, 5, 7))
    losses = SegmentationHead(LEVELS, 3).losses(RawSegmentation(logits), targets(mask.to(kind)))
    assert list(losses) == ["cross_entropy"]
    expected = F.cross_entropy(logits, mask.long(), ignore_index=255)
    torch.testing.assert_close(losses["cross_entropy"], expected)


def test_every_term_of_the_loss_has_a_name_and_all_of_them_reach_the_auxiliary_maps(targets):
    loss = WeightedSum([CrossEntropy(), Dice()], [1.0, 0.5])
    logits, mask = torch.randn(2, 3, 6, 8), labels_of((2, 6, 8))
    head = SegmentationHead(LEVELS, 3, loss, aux_weight=0.25)
    losses = head.losses(RawSegmentation(logits, (logits, -logits)), targets(mask))
    assert list(losses) == ["cross_entropy", "dice", "auxiliary"]
    torch.testing.assert_close(losses["dice"], 0.5 * Dice()(logits, mask))
    total = losses["cross_entropy"] + losses["dice"]
    torch.testing.assert_close(losses["auxiliary"], 0.25 * (total + loss(-logits, mask)))


def test_auxiliary_maps_at_another_size_are_compared_with_the_labels_at_their_cells_centres(targets):
    logits, coarse, mask = torch.randn(2, 3, 9, 12), torch.randn(2, 3, 4, 5), labels_of((2, 9, 12))
    losses = SegmentationHead(LEVELS, 3).losses(RawSegmentation(logits, (coarse,)), targets(mask))
    nearest = F.interpolate(mask[:, None].double(), size=(4, 5), mode="nearest-exact")[:, 0].long()
    expected = 0.5 * F.cross_entropy(coarse, nearest, ignore_index=255)
    torch.testing.assert_close(losses["auxiliary"], expected)


class Product(SegmentationLoss):
    """A loss by a matrix product, which autocast would round."""

    def forward(self, logits, mask):
        return (logits.flatten(1) @ logits.flatten(1).T).sum()


@pytest.mark.parametrize("loss", [CrossEntropy(), Dice(), Product()])
def test_losses_are_float32_under_autocast(loss, targets):
    logits, mask = (3 * torch.randn(2, 3, 5, 7)).bfloat16(), labels_of((2, 5, 7))
    head = SegmentationHead(LEVELS, 3, loss)
    raw = RawSegmentation(logits, (logits,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = head.losses(raw, targets(mask))
    for name, value in head.losses(RawSegmentation(logits.float(), (logits.float(),)), targets(mask)).items():
        assert losses[name].dtype == torch.float32 and torch.equal(losses[name], value)


def test_a_batch_without_labels_costs_nothing_and_its_gradients_are_zero(targets):
    logits = torch.randn(2, 3, 5, 7, requires_grad=True)
    mask = torch.full((2, 5, 7), 255, dtype=torch.uint8)
    losses = SegmentationHead(LEVELS, 3).losses(RawSegmentation(logits, (2 * logits,)), targets(mask))
    sum(losses.values()).backward()
    assert [value.item() for value in losses.values()] == [0, 0] and not logits.grad.any()


def test_a_mask_of_another_size_is_an_error(targets):
    head, logits = SegmentationHead(LEVELS, 3), torch.randn(2, 3, 5, 7)
    with pytest.raises(ValueError, match=r"must be \[2, 5, 7\] .* got \[2, 7, 5\]"):
        head.losses(RawSegmentation(logits), targets(torch.zeros(2, 7, 5, dtype=torch.uint8)))


# -- predictions


@pytest.mark.parametrize("size", [(5, 7), (3, 5, 7)])
def test_predictions_equal_a_slow_loop_and_are_255_outside_of_each_image(size):
    logits = torch.randn(2, 4, *size)
    sizes = torch.tensor([size, tuple(n - 2 for n in size)])
    mask = (
        SegmentationHead(
            [FeatureLevel(4, (4,) * len(size))],
            4,
        )
        .predict(RawSegmentation(logits), sizes)
        .mask
    )
    assert mask.dtype == torch.uint8 and mask.shape == (2, *size)
    for place in torch.cartesian_prod(torch.arange(2), *map(torch.arange, size)).tolist():
        image, *cell = place
        inside = all(x < n for x, n in zip(cell, sizes[image].tolist(), strict=True))
        scores = [logits[(image, k, *cell)].item() for k in range(4)]
        assert mask[tuple(place)] == (scores.index(max(scores)) if inside else 255)


def test_of_equal_scores_the_first_class_wins():
    torch.manual_seed(0)
    scores = torch.randint(0, 3, (2, 5, 6, 7)).float()
    head = SegmentationHead([FeatureLevel(4, (1, 1))], 5)
    expected = [
        next(k for k in range(5) if pixel[k] == max(pixel)) for pixel in scores.movedim(1, -1).reshape(-1, 5)
    ]
    assert head.decide(scores).flatten().tolist() == expected


def test_the_largest_label_fits_into_a_byte():
    logits = torch.zeros(1, 255, 1, 2)
    logits[0, 254, 0, 0] = logits[0, 200, 0, 1] = 1
    mask = SegmentationHead(LEVELS, 255).predict(RawSegmentation(logits), torch.tensor([[1, 2]])).mask
    assert mask.tolist() == [[[254, 200]]]


# -- sizes


def test_labels_are_taken_at_the_centres_of_cells():
    mask = torch.arange(9)[None]  # one axis: 9 cells to 3, and to 4
    assert subsample(mask, (3,)).tolist() == [[1, 4, 7]]
    assert subsample(mask, (4,)).tolist() == [[1, 3, 5, 7]]  # centres 1.125, 3.375, 5.625, 7.875
    assert subsample(mask, (9,)) is mask


@pytest.mark.parametrize("size", [(7, 9), (4, 7, 9)])
def test_resizing_is_linear_along_every_axis_without_aligned_corners(size):
    x = torch.randn(2, 3, *(n // 2 for n in size))
    found = resize(x, size)
    for axis, end in enumerate(size):  # separable: one matrix per axis
        start = x.shape[axis + 2]
        matrix = torch.zeros(end, start)
        for index in range(end):
            place = min(max((index + 0.5) * start / end - 0.5, 0), start - 1)
            low = math.floor(place)
            matrix[index, low] += 1 - (place - low)
            matrix[index, min(low + 1, start - 1)] += place - low
        x = torch.tensordot(x, matrix, dims=([axis + 2], [1])).movedim(-1, axis + 2)
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)
    assert resize(found, size) is found


def test_steps_of_upsampling_by_hand():
    assert halvings((4, 4), (32, 32)) == 3 and halvings((4, 4), (4, 4)) == 0
    assert halvings((1, 1, 1), (1, 4, 4)) == 2 and halvings((8, 8), (4, 4)) == 0
    assert halvings((1, 1), (14, 14)) == 4  # no power of two: 8 is too little
    # 64 -> 8 at stride 8, exact: doubled each time
    assert [stepped_size((8, 8), (64, 64), remaining) for remaining in (2, 1, 0)] == [
        (16, 16),
        (32, 32),
        (64, 64),
    ]
    # as convolutions of stride 2 halve 13: 7, 4, 2; an axis that has arrived waits
    assert [stepped_size((2, 13), (13, 13), remaining) for remaining in (2, 1, 0)] == [
        (4, 13),
        (7, 13),
        (13, 13),
    ]


# -- arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, r"num_classes must lie in 2\.\.255, got 1"),
        ({"num_classes": 256}, r"num_classes must lie in 2\.\.255, got 256"),
        ({"num_classes": 3, "aux_weight": -0.1}, "aux_weight must be a number of at least 0, got -0.1"),
        ({"num_classes": 3, "aux_weight": math.nan}, "aux_weight must be a number of at least 0, got nan"),
        ({"num_classes": 3, "loss": CrossEntropy([1.0, 2.0])}, "class_weights has 2 numbers; give one"),
        (
            {"num_classes": 3, "loss": WeightedSum([Dice(), CrossEntropy([1.0, 2.0])])},
            "class_weights has 2 numbers; give one for each of the 3",
        ),
    ],
)
def test_arguments_out_of_range_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        SegmentationHead(LEVELS, **options)


@pytest.mark.parametrize(
    ("strides", "axes"), [([(4, 4), (8, 8, 8)], r"\[2, 3\]"), ([(4,)], r"\[1\]"), ([], "no")]
)
def test_levels_of_different_or_no_axes_are_an_error(strides, axes):
    with pytest.raises(ValueError, match=f"got {len(strides)} levels, of {axes} axes"):
        SegmentationHead([FeatureLevel(8, stride) for stride in strides], 3)


def test_class_weights_are_those_of_the_loss():
    head = SegmentationHead(
        LEVELS, 3, WeightedSum([Dice(), CrossEntropy("balanced"), CrossEntropy([1.0] * 3)])
    )
    assert head.branch == "segmentation" and head.balanced and head.class_weights is None
    head.balance([1, 2, 3])
    assert head.class_weights == head.loss.losses[1].class_weights == pytest.approx([2, 1, 2 / 3])
    head.set_class_weights([1.0, 2.0, 4.0])
    assert head.class_weights == [1, 2, 4] and head.loss.losses[2].class_weights == [1, 1, 1]
    assert not SegmentationHead(LEVELS, 3, CrossEntropy([1.0, 2.0, 3.0])).balanced
    with pytest.raises(ValueError, match="Dice has no class_weights"):
        SegmentationHead(LEVELS, 3, Dice()).balance([1, 2, 3])


def test_a_subclass_must_write_forward():
    with pytest.raises(NotImplementedError, match="SegmentationHead must implement forward"):
        SegmentationHead(LEVELS, 3)([], (4, 4))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 2, 5, 255])
def test_the_largest_score_is_argmaxs_in_any_memory_order(classes, kind):
    scores = torch.randn(2, classes, 5, 12, 8).to(kind).round(decimals=1)  # with equals
    expected = scores.argmax(1)
    for x in (scores, scores.to(memory_format=torch.channels_last_3d), scores[..., 2:6]):
        found = largest(x)
        assert found.dtype == torch.uint8 and torch.equal(found.long(), x.argmax(1))
    assert torch.equal(largest(scores.requires_grad_()).long(), expected)
