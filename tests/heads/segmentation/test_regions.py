"""Overlapping classes: losses against torch and MONAI, decisions against a slow loop, errors."""

import pytest
import torch
import torch.nn.functional as F
from monai import losses as monai
from torchvision.ops import sigmoid_focal_loss

from trunkline.backbones.base import FeatureLevel
from trunkline.heads import FCN, DeepLabV3, DeepLabV3Plus, SemanticFPN, UNet
from trunkline.heads.segmentation.base import RawSegmentation, SegmentationHead
from trunkline.heads.segmentation.losses import (
    CrossEntropy,
    Dice,
    Focal,
    Lovasz,
    OnlineHardExampleMining,
    SegmentationLoss,
    Tversky,
    WeightedSum,
)

K = 4
REGIONS = [[1, 2, 3], [2, 3], [3]]
SHAPES = [(6, 7), (4, 5, 6)]
LEVELS = (FeatureLevel(4, (4, 4)), FeatureLevel(8, (8, 8)))
NAN = float("nan")
EVERY = {
    "cross_entropy": CrossEntropy,
    "focal": Focal,
    "dice": Dice,
    "dice_per_image": lambda: Dice(True, True, 0.5, classes="all"),
    "tversky": lambda: Tversky(gamma=0.75),
    "sum": lambda: WeightedSum([Dice(), WeightedSum([Focal(1.0)])], [1.0, 0.5]),
}


def head_of(loss=None, regions=REGIONS, classes=K, levels=LEVELS, **options):
    return SegmentationHead(levels, classes, loss, regions=regions, **options)


def batch(shape=(6, 7), ignored=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, 3, *shape, generator=generator)
    mask = torch.randint(0, K, (2, *shape), generator=generator, dtype=torch.uint8)
    mask[torch.rand(mask.shape, generator=generator) < ignored] = 255
    return logits.requires_grad_(), mask


def inside(mask):
    """Which voxels lie in which region, one voxel at a time."""
    truth = torch.zeros(len(mask), len(REGIONS), *mask.shape[1:])
    for place in torch.nonzero(torch.ones(mask.shape)).tolist():
        for index, region in enumerate(REGIONS):
            truth[(place[0], index, *place[1:])] = mask[tuple(place)].item() in region
    return truth


# -- losses


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64])
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_is_binary_over_regions_and_labelled_voxels(shape, kind):
    logits, mask = batch(shape)
    found = head_of().loss(logits, mask.to(kind))
    valid = mask != 255
    rows = F.binary_cross_entropy_with_logits(logits, inside(mask), reduction="none")
    torch.testing.assert_close(found, rows.movedim(1, -1)[valid].mean())


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_focal_is_torchvisions_sigmoid_focal_loss(shape, gamma):
    logits, mask = batch(shape)
    found = head_of(Focal(gamma)).loss(logits, mask)
    rows = sigmoid_focal_loss(logits, inside(mask), alpha=-1, gamma=gamma)
    torch.testing.assert_close(found, rows.movedim(1, -1)[mask != 255].mean())


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_dice_and_its_sums_equal_monais(shape, squared, per_image):
    logits, mask = batch(shape, ignored=0)
    dice = Dice(per_image, squared, classes="all")
    options = {"sigmoid": True, "squared_pred": squared, "batch": not per_image}
    truth = inside(mask)
    expected = monai.DiceLoss(**options)(logits, truth)
    torch.testing.assert_close(head_of(dice).loss(logits, mask), expected)
    both = head_of(WeightedSum([dice, CrossEntropy()], [1.0, 2.0])).loss.terms(logits, mask)
    crossed = F.binary_cross_entropy_with_logits(logits, truth)
    torch.testing.assert_close(sum(both.values()), expected + 2 * crossed)
    focal = head_of(WeightedSum([dice, Focal()], [1.0, 0.5])).loss(logits, mask)
    peer = monai.DiceFocalLoss(**options, gamma=2.0, lambda_focal=0.5)
    torch.testing.assert_close(focal, peer(logits, truth))


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_without_regions_dice_with_cross_entropy_or_focal_equals_monais(shape, per_image):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, K, *shape, generator=generator)
    mask = torch.randint(0, K, (2, *shape), generator=generator)
    dice, options = (
        Dice(per_image, classes="all"),
        {"to_onehot_y": True, "softmax": True, "batch": not per_image},
    )
    found = WeightedSum([dice, CrossEntropy()])(logits, mask)
    torch.testing.assert_close(found, monai.DiceCELoss(**options)(logits, mask[:, None]))
    # MONAI's mean is over the classes too, of which one in K has a term
    found = WeightedSum([dice, Focal(2.0)], [1.0, 1 / K])(logits, mask)
    peer = monai.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=2.0)(logits, mask[:, None])
    torch.testing.assert_close(found, monai.DiceLoss(**options)(logits, mask[:, None]) + peer)


def test_tversky_equals_monais_and_by_hand():
    logits, mask = batch(ignored=0)
    found = head_of(Tversky(0.3, 0.7, classes="all")).loss(logits, mask)
    peer = monai.TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7, batch=True)
    torch.testing.assert_close(found, peer(logits, inside(mask)))
    # one region, probabilities 0.75 and 0.25; the first voxel lies in it, the second not
    loss = head_of(Tversky(0.5, 1.0, smooth=0.0), [[1]], 2).loss
    value = loss(torch.tensor([[[[1.0, -1.0]]]]) * torch.tensor(3.0).log(), torch.tensor([[[1, 0]]]))
    assert value.item() == pytest.approx(1 - 0.75 / (0.75 + 0.5 * 0.25 + 1.0 * 0.25))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("content", [NAN, float("inf"), 3.0])
def test_what_lies_beneath_ignored_voxels_takes_no_part(name, content, targets):
    logits, mask = batch((3, 4, 5))
    head = head_of(EVERY[name](), levels=[FeatureLevel(4, (4, 4, 4))])
    plain = sum(head.losses(RawSegmentation(logits), targets(mask)).values())
    gradient = torch.autograd.grad(plain, logits)[0]
    assert (gradient.movedim(1, -1)[mask == 255] == 0).all() and gradient.any()
    spoilt = torch.where((mask == 255)[:, None], content, logits.detach()).requires_grad_()
    found = sum(head.losses(RawSegmentation(spoilt, (spoilt,)), targets(mask)).values())
    assert found.item() == pytest.approx(1.5 * plain.item())
    torch.testing.assert_close(torch.autograd.grad(found, spoilt)[0], 1.5 * gradient)
    if "per_image" not in name:  # a mean over images differs from that over their voxels
        valid = mask != 255
        rest = head.loss(logits.movedim(1, -1)[valid].T[None], mask[valid][None])
        torch.testing.assert_close(plain, rest)


@pytest.mark.parametrize("content", [0.0, NAN])
@pytest.mark.parametrize("name", EVERY)
def test_a_patch_without_labels_costs_exactly_nothing(name, content):
    logits = torch.full((2, 3, 3, 5), content, requires_grad=True)
    value = head_of(EVERY[name]()).loss(logits, torch.full((2, 3, 5), 255))
    assert value.item() == 0 and torch.autograd.grad(value, logits)[0].eq(0).all()


@pytest.mark.parametrize("name", EVERY)
def test_gradients_equal_finite_differences_and_nan_shows(name):
    logits, mask = batch((2, 3))
    loss = head_of(EVERY[name]()).loss
    assert torch.autograd.gradcheck(lambda x: loss(x, mask), logits.detach().double().requires_grad_())
    with torch.no_grad():
        logits.masked_fill_((mask == 3)[:, None], NAN)
    assert loss(logits, mask).isnan()


@pytest.mark.parametrize("name", EVERY)
def test_neither_values_nor_shapes_reach_the_host_and_a_network_may_move(name):
    logits, mask = batch()
    head = head_of(EVERY[name]())
    far = logits.detach().to("meta").requires_grad_()
    with torch.inference_mode():
        head.to("meta")
        assert head.loss(far, mask.to("meta")).shape == ()
    tables = [
        part.region_table for part in head.loss.modules() if getattr(part, "region_table", None) is not None
    ]
    assert tables and all(table.device.type == "meta" and not table.is_inference() for table in tables)
    head.loss(far, mask.to("meta")).backward()
    assert far.grad.shape == logits.shape and not head.state_dict()


def test_a_loss_that_got_other_logits_says_so():
    loss = head_of().loss
    with pytest.raises(ValueError, match=r"3 regions need as many logits, got \[2, 4, 5, 6\]"):
        loss(torch.randn(2, 4, 5, 6), torch.zeros(2, 5, 6))


# -- decisions


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("regions", "labels"), [(REGIONS, None), ([[2, 1], [1, 3]], [2, 1]), ([[0, 1], [1]], None)]
)
def test_decisions_equal_a_slow_loop(regions, labels, shape):
    levels = [FeatureLevel(4, (4,) * len(shape))]
    head = head_of(regions=regions, levels=levels, region_labels=labels)
    logits = torch.randn(2, len(regions), *shape)
    own = labels or ([1, 2, 3] if regions is REGIONS else [0, 1])
    assert head.region_labels == tuple(own) and head.num_outputs == len(regions) and head.num_classes == K
    expected = torch.zeros(2, *shape, dtype=torch.uint8)
    for place in torch.nonzero(torch.ones(expected.shape)).tolist():
        for index, label in enumerate(own):
            if logits[(place[0], index, *place[1:])] > 0:
                expected[tuple(place)] = label
    probabilities = head.probabilities(logits)
    torch.testing.assert_close(probabilities, 1 / (1 + (-logits).exp()))
    assert torch.equal(head.decide(probabilities), expected)
    sizes = torch.tensor([shape, [n - 1 for n in shape]])
    found = head.predict(RawSegmentation(logits), sizes).mask
    assert torch.equal(found[0], expected[0]) and (found[1][..., -1] == 255).all()
    kept = tuple(slice(n - 1) for n in shape)
    assert torch.equal(found[1][kept], expected[1][kept])


def test_a_probability_of_one_half_is_outside_and_order_decides():
    head = head_of()
    scores = torch.tensor([[0.5, 0.6, 0.4], [0.6, 0.5, 0.9], [0.6, 0.7, 0.5]]).T[
        None, :, None
    ]  # [1, R, 1, 3]
    assert head.decide(scores).tolist() == [[[2, 3, 2]]] and head.decide(scores).dtype == torch.uint8
    with pytest.raises(ValueError, match=r"3 regions need as many scores, got \[1, 4, 1, 3\]"):
        head.decide(torch.zeros(1, 4, 1, 3))


def test_without_regions_the_largest_wins():
    head = SegmentationHead(LEVELS, 3)
    logits = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(head.probabilities(logits), logits.exp() / logits.exp().sum(1, keepdim=True))
    assert torch.equal(head.decide(head.probabilities(logits)).long(), logits.argmax(1))
    assert head.regions is None and head.region_labels is None and head.num_outputs == 3


# -- every head


@pytest.mark.parametrize(
    "kind",
    [
        lambda levels, **more: FCN(levels, K, aux=0, skips=1, **more),
        lambda levels, **more: UNet(levels, K, [8, 8, 8, 8], deep_supervision=True, **more),
        lambda levels, **more: DeepLabV3(levels, K, (1, 2), 8, aux=0, **more),
        lambda levels, **more: DeepLabV3Plus(levels, K, (1, 2), 8, aux=0, **more),
        lambda levels, **more: SemanticFPN(levels, K, 8, pyramid_levels=3, **more),
    ],
)
def test_every_head_scores_regions_and_learns_them(kind, make_levels, make_maps, targets):
    levels = make_levels(6, 8, 12)
    loss = WeightedSum([CrossEntropy(), Dice()])
    head = kind(levels, regions=[[1, 2], [2, 3]], region_labels=[1, 3], loss=loss)
    maps, mask = make_maps(levels, (24, 32)), torch.randint(0, K, (2, 24, 32), dtype=torch.uint8)
    raw = head(maps, (24, 32))
    assert {x.shape[1] for x in (raw.logits, *raw.aux)} == {2}
    losses = head.losses(raw, targets(mask))
    truth = torch.stack([(mask == 1) | (mask == 2), (mask == 2) | (mask == 3)], 1)
    expected = F.binary_cross_entropy_with_logits(raw.logits, truth.float())
    torch.testing.assert_close(losses["cross_entropy"], expected)
    sum(losses.values()).backward()
    assert all(x.grad is not None for x in head.parameters())
    assert set(head.predict(raw, torch.tensor([[24, 32]] * 2)).mask.unique().tolist()) <= {0, 1, 3}


# -- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regions": []}, r"head\.regions is empty"),
        ({"regions": [[1], []]}, r"head\.regions\[1\] is \[\]; a region is a list"),
        ({"regions": [[1, 4]]}, r"head\.regions\[0\] is \[1, 4\]; .* labels in 0\.\.3"),
        ({"regions": [[1, 255]]}, r"head\.regions\[0\] is \[1, 255\]"),
        ({"regions": [[-1]]}, r"head\.regions\[0\] is \[-1\]"),
        ({"regions": [[1, 1]]}, r"head\.regions\[0\] is \[1, 1\]; .* different labels"),
        ({"regions": [[3], [2, 3]]}, r"regions\[0\], \[3\], has no label that no later region has"),
        (
            {"regions": [[1, 2, 3], [3]]},
            r"regions\[0\], \[1, 2, 3\], has labels \[1, 2\] that .*region_labels",
        ),
        ({"regions": [[1, 2]], "region_labels": [1, 2]}, "region_labels has 2 labels for 1 regions"),
        ({"regions": [[1, 2]], "region_labels": [3]}, r"region_labels\[0\] is 3, which is not in .*\[1, 2\]"),
        ({"regions": None, "region_labels": [1]}, "region_labels says how to write head.regions"),
        (
            {"loss": OnlineHardExampleMining()},
            r"head\.loss OnlineHardExampleMining needs classes that do not",
        ),
        ({"loss": Lovasz()}, r"head\.loss Lovasz needs classes that do not overlap"),
        ({"loss": SegmentationLoss()}, r"head\.loss SegmentationLoss needs classes"),
        ({"loss": WeightedSum([Dice(), WeightedSum([Lovasz()])])}, r"head\.loss Lovasz"),
        ({"loss": CrossEntropy(label_smoothing=0.1)}, r"head\.loss\.label_smoothing spreads"),
        ({"loss": CrossEntropy([1.0] * 4)}, r"head\.loss\.class_weights of CrossEntropy weigh"),
        ({"loss": CrossEntropy("balanced")}, r"head\.loss\.class_weights of CrossEntropy weigh"),
        ({"loss": Focal(2.0, [1.0] * 4)}, r"head\.loss\.class_weights of Focal weigh"),
        ({"loss": Dice(include_background=False)}, r"head\.loss\.include_background of Dice is false"),
        ({"loss": Tversky(include_background=False)}, r"head\.loss\.include_background of Tversky"),
    ],
)
def test_what_regions_cannot_mean_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        head_of(**options)
