"""FCN against torchvision's on copied weights, and skips and options against plain computations."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from trunkline.backbones import DenseNet, ResNet, TimmBackbone
from trunkline.heads import FCN

K = 5


@pytest.mark.parametrize("aux", [None, -2, 0])
def test_head_equals_torchvisions(aux, make_levels, make_maps, randomise, close):
    levels = make_levels(8, 12, 16)
    head = randomise(FCN(levels, K, aux=aux)).eval()
    peer = torchvision.models.segmentation.fcn.FCNHead
    theirs = nn.ModuleDict({"classifier": peer(16, K)})
    if aux is not None:
        theirs["aux_classifier"] = peer(levels[aux].channels, K)
    theirs.load_state_dict(head.state_dict())  # the same names and shapes
    maps = make_maps(levels, (41, 57))
    raw = head(maps, (41, 57))
    options = {"size": (41, 57), "mode": "bilinear", "align_corners": False}
    close(raw.logits, F.interpolate(theirs.eval()["classifier"](maps[-1]), **options))
    assert len(raw.aux) == (aux is not None)
    if aux is not None:
        close(raw.aux[0], F.interpolate(theirs["aux_classifier"](maps[aux]), **options))


def test_initial_values_are_drawn_as_torchvisions(make_levels):
    """The same random numbers in the same order give the same weights."""
    torch.manual_seed(3)
    head = FCN(make_levels(8, 16), K)
    torch.manual_seed(3)
    peer = torchvision.models.segmentation.fcn.FCNHead(16, K)
    for name, value in peer.state_dict().items():
        assert torch.equal(head.classifier.state_dict()[name], value)


@pytest.mark.parametrize("skips", [1, 2])
def test_skips_add_the_scores_of_finer_levels(skips, make_levels, make_maps, randomise, close):
    levels = make_levels(8, 12, 16)
    head = randomise(FCN(levels, K, skips=skips)).eval()
    for layer in head.skip_scores:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    maps = make_maps(levels, (41, 57))  # 11x15, 6x8, 3x4
    scores = head.classifier(maps[2])
    weight, bias = head.skip_scores[0].parameters()
    scores = F.interpolate(scores, size=(6, 8), mode="bilinear") + F.conv2d(maps[1], weight, bias)
    if skips == 2:
        weight, bias = head.skip_scores[1].parameters()
        scores = F.interpolate(scores, size=(11, 15), mode="bilinear") + F.conv2d(maps[0], weight, bias)
    close(head(maps, (41, 57)).logits, F.interpolate(scores, size=(41, 57), mode="bilinear"))


def test_skips_begin_at_zero_and_learn(make_levels, make_maps, targets):
    """At exact factors of two, scores that add nothing leave FCN-32s upsampled in steps."""
    levels = make_levels(8, 12, 16)
    head = FCN(levels, K, skips=2).eval()
    maps = make_maps(levels, (64, 64))
    scores = head.classifier(maps[2])
    for size in (8, 16, 64):
        scores = F.interpolate(scores, size=size, mode="bilinear")
    raw = head(maps, (64, 64))
    torch.testing.assert_close(raw.logits, scores)
    sum(head.losses(raw, targets(torch.randint(0, K, (2, 64, 64)))).values()).backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in head.skip_scores)


@pytest.mark.parametrize("skips", [0, 2])
def test_a_centre_inflated_head_gives_every_slice_of_a_constant_volume_its_scores(
    skips, make_levels, make_maps, randomise, inflate, close
):
    flat = randomise(FCN(make_levels(8, 12, 16), K, aux=-2, skips=skips)).eval()
    for layer in flat.skip_scores:
        nn.init.normal_(layer.weight)
    levels = make_levels(8, 12, 16, strides=[(1, 4, 4), (2, 8, 8), (4, 16, 16)], ndim=3)
    deep = inflate(FCN(levels, K, aux=-2, skips=skips), flat).eval()
    maps = make_maps(make_levels(8, 12, 16), (41, 57))
    volumes = [x[:, :, None].repeat(1, 1, depth, 1, 1) for x, depth in zip(maps, (7, 4, 2), strict=True)]
    expected, found = flat(maps, (41, 57)), deep(volumes, (7, 41, 57))
    for x, y in zip((found.logits, *found.aux), (expected.logits, *expected.aux), strict=True):
        assert x.shape[2] == 7
        for index in range(7):
            close(x[:, :, index], y)


def test_channels_norm_and_dropout_reach_their_layers(make_levels, make_maps, targets):
    levels = make_levels(8, 16)
    head = FCN(levels, K, channels=6, aux=0, norm="group", dropout=0.25)
    assert head.classifier[0].out_channels == 6 and head.aux_classifier[0].out_channels == 2
    assert isinstance(head.classifier[1], nn.GroupNorm) and isinstance(head.aux_classifier[1], nn.GroupNorm)
    nn.init.zeros_(head.classifier[1].weight)
    nn.init.ones_(head.classifier[1].bias)  # hidden values: all 1
    nn.init.ones_(head.classifier[4].weight)
    nn.init.zeros_(head.classifier[4].bias)
    maps = [torch.randn(1, 8, 50, 50), torch.randn(1, 16, 50, 50)]
    kept = head(maps, (50, 50)).logits[:, 0] * 0.75  # survivors of 6, which dropout divides by 0.75
    torch.testing.assert_close(kept, kept.round())
    assert 4.3 < kept.mean() < 4.7 and (head.eval()(maps, (50, 50)).logits == 6).all()


def test_the_auxiliary_loss_counts_by_its_weight(make_levels, make_maps, targets):
    levels = make_levels(8, 16)
    head = FCN(levels, K, aux=0, aux_weight=0.125).eval()
    raw, mask = head(make_maps(levels, (16, 16)), (16, 16)), torch.randint(0, K, (2, 16, 16))
    expected = 0.125 * F.cross_entropy(raw.aux[0], mask)
    torch.testing.assert_close(head.losses(raw, targets(mask))["auxiliary"], expected)


def test_nothing_depends_on_the_mode_but_dropout_and_norms(make_levels, make_maps):
    """The same layers run, and aux maps come, in training and evaluation."""
    levels = make_levels(8, 16)
    head, maps = FCN(levels, K, aux=0, dropout=0.0, norm="group"), make_maps(levels, (16, 16))
    training, evaluation = head.train()(maps, (16, 16)), head.eval()(maps, (16, 16))
    assert torch.equal(training.logits, evaluation.logits)
    assert torch.equal(training.aux[0], evaluation.aux[0])


@pytest.mark.parametrize(
    "trunk",
    [
        lambda: DenseNet(121),
        lambda: TimmBackbone("test_convnext"),
        lambda: ResNet(10, output_stride=8, width=16),
        lambda: ResNet(10, ndim=3, width=8, strides=[2, (1, 2, 2), 2, 2, 2]),
    ],
)
def test_any_trunk_fits(trunk, targets):
    trunk = trunk().eval()
    size = (49, 65) if len(trunk.levels[0].stride) == 2 else (9, 33, 41)
    head = FCN(trunk.levels, K, aux=-2, skips=len(trunk.levels) - 1).eval()
    colours = next(x for x in trunk.modules() if hasattr(x, "in_channels")).in_channels
    raw = head(trunk(torch.randn(1, colours, *size)), size)
    assert raw.logits.shape == raw.aux[0].shape == (1, K, *size)
    sum(head.losses(raw, targets(torch.randint(0, K, (1, *size)))).values()).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in head.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aux": 2}, r"head\.aux is 2, but the trunk has 2 levels: -2 to 1"),
        ({"aux": -3}, r"head\.aux is -3, but the trunk has 2 levels"),
        ({"aux": -1}, r"head\.aux is -1, the level that the classifier itself reads; take one of \[0\]"),
        ({"aux": 1}, r"head\.aux is 1, the level that the classifier itself reads"),
        ({"skips": 2}, r"head\.skips is 2, but of the 2 levels 1 are finer"),
        ({"skips": -1}, r"head\.skips is -1"),
        ({"dropout": 1.0}, r"head\.dropout must lie in 0 to below 1, got 1\.0"),
        ({"channels": 0}, r"head\.channels is 0"),
        ({"norm": "layer"}, "norm is 'layer'; allowed are"),
    ],
)
def test_arguments_out_of_range_are_errors(options, message, make_levels):
    with pytest.raises(ValueError, match=message):
        FCN(make_levels(8, 16), K, **options)
