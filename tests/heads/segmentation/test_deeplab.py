"""DeepLabV3 against torchvision's on copied weights, DeepLabV3+ against plain computations."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from trunkline.backbones import DenseNet, ResNet, TimmBackbone
from trunkline.heads import DeepLabV3, DeepLabV3Plus

K = 5
Peer = torchvision.models.segmentation.deeplabv3.DeepLabHead


def score_layer(head):
    return head.classifier[-1] if isinstance(head, DeepLabV3) else head.classifier


def aspp_of(head):
    return head.classifier[0] if isinstance(head, DeepLabV3) else head.aspp


@pytest.mark.parametrize("rates", [(12, 24, 36), (1, 2), (3,)])
def test_head_equals_torchvisions(rates, make_levels, make_maps, randomise, close):
    levels = make_levels(8, 12)
    head = randomise(DeepLabV3(levels, K, rates, aux=0)).eval()
    theirs = nn.ModuleDict({"classifier": Peer(12, K, rates)})
    theirs["aux_classifier"] = torchvision.models.segmentation.fcn.FCNHead(8, K)
    theirs.load_state_dict(head.state_dict())  # the same names and shapes
    theirs.eval()
    maps = make_maps(levels, (41, 57))
    raw = head(maps, (41, 57))
    options = {"size": (41, 57), "mode": "bilinear", "align_corners": False}
    close(raw.logits, F.interpolate(theirs["classifier"](maps[1]), **options))
    close(raw.aux[0], F.interpolate(theirs["aux_classifier"](maps[0]), **options))


def test_initial_values_are_drawn_as_torchvisions(make_levels):
    torch.manual_seed(3)
    head = DeepLabV3(make_levels(8, 12), K)
    torch.manual_seed(3)
    for name, value in Peer(12, K).state_dict().items():
        assert torch.equal(head.classifier.state_dict()[name], value)


def block(x, part, **options):
    conv, norm, _ = part
    x = F.conv2d(x, conv.weight, None, **options)
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()


@pytest.mark.parametrize(("low_level", "size"), [(0, (11, 15)), (1, (6, 8))])
def test_plus_equals_a_plain_computation(low_level, size, make_levels, make_maps, randomise, close):
    levels = make_levels(8, 10, 12)
    head = DeepLabV3Plus(levels, K, (1, 2), 16, aux=-2, low_level=low_level, low_channels=7)
    head = randomise(head).eval()
    maps = make_maps(levels, (41, 57))
    high = F.interpolate(head.aspp(maps[2]), size=size, mode="bilinear")
    both = torch.cat([high, block(maps[low_level], head.reduce)], 1)
    assert both.shape[1] == 16 + 7
    x = block(block(both, head.refine[0], padding=1), head.refine[1], padding=1)
    x = F.conv2d(x, head.classifier.weight, head.classifier.bias)
    raw = head(maps, (41, 57))
    close(raw.logits, F.interpolate(x, size=(41, 57), mode="bilinear"))
    aux = torchvision.models.segmentation.fcn.FCNHead(10, K).eval()
    aux.load_state_dict(head.aux_classifier.state_dict())
    close(raw.aux[0], F.interpolate(aux(maps[1]), size=(41, 57), mode="bilinear"))


def test_pluss_aspp_is_torchvisions(make_levels, randomise, close):
    head = randomise(DeepLabV3Plus(make_levels(8, 12), K)).eval()
    theirs = torchvision.models.segmentation.deeplabv3.ASPP(12, (12, 24, 36)).eval()
    theirs.load_state_dict(head.aspp.state_dict())
    x = torch.randn(2, 12, 5, 7)
    close(head.aspp(x), theirs(x))
    assert head.reduce[0].out_channels == 48


@pytest.mark.parametrize("kind", [DeepLabV3, DeepLabV3Plus])
def test_a_centre_inflated_head_gives_every_slice_of_a_constant_volume_its_scores(
    kind, make_levels, make_maps, randomise, inflate, close
):
    flat = randomise(kind(make_levels(8, 12), K, (1, 2), 16, aux=0)).eval()
    levels = make_levels(8, 12, strides=[(1, 4, 4), (2, 8, 8)], ndim=3)
    deep = inflate(kind(levels, K, (1, 2), 16, aux=0), flat).eval()
    maps = make_maps(make_levels(8, 12), (41, 57))
    volumes = [x[:, :, None].repeat(1, 1, depth, 1, 1) for x, depth in zip(maps, (7, 4), strict=True)]
    expected, found = flat(maps, (41, 57)), deep(volumes, (7, 41, 57))
    for x, y in zip((found.logits, *found.aux), (expected.logits, *expected.aux), strict=True):
        for index in range(7):
            close(x[:, :, index], y)


def test_the_pooled_branch_of_a_volume_takes_the_mean_of_all_of_it(make_levels):
    head = DeepLabV3(make_levels(8, strides=[(1, 8, 8)], ndim=3), K, (1,), 16).eval()
    pool, conv, *_ = head.classifier[0].convs[-1]
    x = torch.randn(2, 8, 3, 5, 7)
    expected = (x.mean((2, 3, 4)) @ conv.weight.flatten(1).T)[:, :, None, None, None]
    torch.testing.assert_close(conv(pool(x)), expected, rtol=1e-5, atol=1e-6)


# -- arguments


@pytest.mark.parametrize("kind", [DeepLabV3, DeepLabV3Plus])
def test_channels_norm_and_dropout_reach_their_layers(kind, make_levels):
    levels = make_levels(8, 16)
    head = kind(levels, K, (1,), 64, aux=0, norm="group", dropout=0.25)
    assert score_layer(head).in_channels == 64 and head.aux_classifier[0].out_channels == 2
    assert not any(isinstance(x, nn.modules.batchnorm._BatchNorm) for x in head.modules())
    aspp = aspp_of(head)
    nn.init.zeros_(aspp.project[1].weight)
    nn.init.ones_(aspp.project[1].bias)  # ASPP's output: all 1
    x = torch.randn(1, 16, 20, 20)
    found = aspp(x)
    assert set(found.unique().tolist()) == {0, torch.tensor(1 / 0.75).item()}
    assert 0.7 < (found > 0).float().mean() < 0.8 and (head.eval() and aspp(x) == 1).all()


@pytest.mark.parametrize("kind", [DeepLabV3, DeepLabV3Plus])
def test_the_auxiliary_loss_counts_by_its_weight(kind, make_levels, make_maps, targets):
    levels = make_levels(8, 16)
    head = kind(levels, K, (1,), 16, aux=0, aux_weight=0.125).eval()
    raw, mask = head(make_maps(levels, (16, 16)), (16, 16)), torch.randint(0, K, (2, 16, 16))
    expected = 0.125 * F.cross_entropy(raw.aux[0], mask)
    torch.testing.assert_close(head.losses(raw, targets(mask))["auxiliary"], expected)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", [DeepLabV3, DeepLabV3Plus])
def test_batch_norm_of_one_pooled_value_is_a_clear_error(kind, ndim, make_levels, make_maps):
    strides = [(1, 4, 4), (1, 8, 8)] if ndim == 3 else None
    levels = make_levels(8, 16, strides=strides, ndim=ndim)
    size = (1, 16, 16)[-ndim:]
    head = kind(levels, K, (1,), 16)
    one, two = make_maps(levels, size, 1), make_maps(levels, size, 2)
    with pytest.raises(ValueError, match="batch size of at least 2 .*, or set the head's norm to group"):
        head(one, size)
    assert head(two, size).logits.isfinite().all()
    assert head.eval()(one, size).logits.isfinite().all()
    for norm in ("group", "frozen_batch"):
        assert kind(levels, K, (1,), 64, norm=norm)(one, size).logits.isfinite().all()
    with pytest.raises(ValueError, match="batch size of at least 2"):
        kind(levels, K, (1,), 16, norm="sync_batch")(one, size)  # alone: no process shares its statistics


@pytest.mark.parametrize("kind", [DeepLabV3, DeepLabV3Plus])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aux": 2}, r"head\.aux is 2, but the trunk has 2 levels"),
        ({"aux": -1}, r"head\.aux is -1, the level that the classifier itself reads"),
        ({"rates": ()}, r"head\.rates must be one or more numbers of at least 1, got \(\)"),
        ({"rates": (6, 0)}, r"head\.rates .* got \(6, 0\)"),
        ({"dropout": -0.1}, r"head\.dropout must lie in 0 to below 1, got -0\.1"),
        ({"channels": 0}, r"head\.channels is 0"),
        ({"norm": "instance"}, "would blank the pooled branch"),
        ({"norm": "group", "channels": 32}, "one channel per group"),
    ],
)
def test_arguments_out_of_range_are_errors(kind, options, message, make_levels):
    with pytest.raises(ValueError, match=message):
        kind(make_levels(8, 16), K, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low_level": 2}, r"head\.low_level is 2, but the trunk has 2 levels"),
        ({"low_level": -1}, r"head\.low_level is -1, the level that the classifier itself reads"),
        ({"low_channels": 0}, r"head\.low_channels is 0"),
    ],
)
def test_levels_that_plus_cannot_read_are_errors(options, message, make_levels):
    with pytest.raises(ValueError, match=message):
        DeepLabV3Plus(make_levels(8, 16), K, **options)


@pytest.mark.parametrize("kind", [DeepLabV3, DeepLabV3Plus])
@pytest.mark.parametrize(
    "trunk",
    [
        lambda: DenseNet(121),
        lambda: TimmBackbone("test_convnext"),
        lambda: ResNet(10, output_stride=8, width=16),
        lambda: ResNet(10, ndim=3, width=8, strides=[2, (1, 2, 2), 2, 2, 2]),
    ],
)
def test_any_trunk_fits(kind, trunk, targets):
    trunk = trunk().eval()
    size = (49, 65) if len(trunk.levels[0].stride) == 2 else (9, 33, 41)
    head = kind(trunk.levels, K, (2, 4), 16, aux=-2).eval()
    colours = next(x for x in trunk.modules() if hasattr(x, "in_channels")).in_channels
    raw = head(trunk(torch.randn(1, colours, *size)), size)
    assert raw.logits.shape == raw.aux[0].shape == (1, K, *size)
    sum(head.losses(raw, targets(torch.randint(0, K, (1, *size)))).values()).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in head.parameters())
