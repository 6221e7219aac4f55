"""SemanticFPN against plain computations, the paper's table of steps, and its 2-D original in 3-D."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trunkline.backbones import FPN, DenseNet, ResNet, TimmBackbone
from trunkline.heads import SemanticFPN

K = 5


def block(x, part):
    conv, norm, _ = part
    x = F.conv2d(x, conv.weight, None, padding=1)
    return F.group_norm(x, norm.num_groups, norm.weight, norm.bias).relu()


def up(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


# Image size, then the sizes that a map passes from each of the strides 4, 8, 16, 32 on.
EXACT = ((64, 96), [[], [(16, 24)], [(8, 12), (16, 24)], [(4, 6), (8, 12), (16, 24)]])
ODD = ((49, 65), [[], [(13, 17)], [(7, 9), (13, 17)], [(4, 5), (7, 9), (13, 17)]])


@pytest.mark.parametrize(("size", "paths"), [EXACT, ODD])
def test_equals_a_plain_computation(size, paths, make_levels, make_maps, randomise, close):
    levels = make_levels(*[6] * 5)
    head = randomise(SemanticFPN(levels, K, 8)).eval()
    maps = make_maps(levels, size)
    total = 0
    assert len(head.towers) == 4
    for x, tower, path in zip(maps, head.towers, paths, strict=False):
        assert len(tower) == max(1, len(path))  # Kirillov et al., figure 3: 1, 1, 2 and 3 convolutions
        for index, part in enumerate(tower):
            x = block(x, part)
            if path:
                x = up(x, path[index])
        total = total + x
    scores = F.conv2d(total, head.predictor.weight, head.predictor.bias)
    close(head(maps, size).logits, up(scores, size))
    assert head(maps, size).aux == ()


def test_at_exact_sizes_every_step_doubles(make_levels, make_maps, close):
    levels = make_levels(6, 6, 6)
    head = SemanticFPN(levels, K, 8, pyramid_levels=3).eval()
    maps = make_maps(levels, (64, 96))
    double = nn.Upsample(scale_factor=2, mode="bilinear")
    x = double(head.towers[2][1](double(head.towers[2][0](maps[2]))))
    total = head.towers[0](maps[0]) + double(head.towers[1](maps[1])) + x
    fourfold = nn.Upsample(scale_factor=4, mode="bilinear")
    close(head(maps, (64, 96)).logits, fourfold(head.predictor(total)))


@pytest.mark.parametrize("read", [1, 2, 4])
def test_only_the_first_levels_are_read(read, make_levels, make_maps):
    levels = make_levels(*[6] * 5)
    head = SemanticFPN(levels, K, 8, pyramid_levels=read).eval()
    maps = make_maps(levels, (49, 65))
    before = head(maps, (49, 65)).logits
    for index in range(5):
        others = [x + (position == index) for position, x in enumerate(maps)]
        assert torch.equal(head(others, (49, 65)).logits, before) == (index >= read)


def test_levels_of_different_channels_and_odd_strides_meet_at_the_finest_size(make_levels, close):
    """Without a neck, and with strides whose ratio (3) is no power of two: two steps, 4 -> 6 -> 11."""
    levels = make_levels(6, 9, strides=[4, 12])
    head = SemanticFPN(levels, K, 8, pyramid_levels=2).eval()
    maps = [torch.randn(1, 6, 11, 11), torch.randn(1, 9, 4, 4)]
    first, second = head.towers[1]
    x = up(second(up(first(maps[1]), (6, 6))), (11, 11))
    close(head(maps, (44, 44)).logits, up(head.predictor(head.towers[0](maps[0]) + x), (44, 44)))


def test_a_centre_inflated_head_gives_every_slice_of_a_constant_volume_its_scores(
    make_levels, make_maps, randomise, inflate, close
):
    flat = randomise(SemanticFPN(make_levels(6, 6, 6), K, 8, 3)).eval()
    levels = make_levels(6, 6, 6, strides=[(1, 4, 4), (2, 8, 8), (2, 16, 16)], ndim=3)
    deep = inflate(SemanticFPN(levels, K, 8, 3), flat).eval()
    maps = make_maps(make_levels(6, 6, 6), (41, 57))
    volumes = [x[:, :, None].repeat(1, 1, depth, 1, 1) for x, depth in zip(maps, (7, 4, 4), strict=True)]
    expected, found = flat(maps, (41, 57)).logits, deep(volumes, (7, 41, 57)).logits
    for index in range(7):
        close(found[:, :, index], expected)


def test_initial_values_follow_he_and_biases_are_zero(make_levels):
    head = SemanticFPN(make_levels(64, 64, 64, 64), K)
    for layer in (layer for layer in head.modules() if isinstance(layer, nn.Conv2d)):
        fan_out = layer.out_channels * layer.weight[0, 0].numel()
        assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
        assert layer.bias is None or not layer.bias.any()


def test_channels_norm_and_dropout_reach_their_layers(make_levels):
    head = SemanticFPN(make_levels(6, 6), K, 10, 2, "batch", dropout=0.25)
    assert {x.num_features for x in head.modules() if isinstance(x, nn.BatchNorm2d)} == {10}
    assert not any(isinstance(x, nn.GroupNorm) for x in head.modules())
    for tower in head.towers:
        nn.init.zeros_(tower[-1][1].weight)
        nn.init.constant_(tower[-1][1].bias, 0.5)  # the sum of two towers: 1
    nn.init.ones_(head.predictor.weight)
    maps = [torch.randn(2, 6, 40, 40), torch.randn(2, 6, 20, 20)]
    kept = head(maps, (40, 40)).logits[:, 0] * 0.75  # survivors of 10, which dropout divides by 0.75
    torch.testing.assert_close(kept, kept.round())
    assert 7.3 < kept.mean() < 7.7
    torch.testing.assert_close(head.eval()(maps, (40, 40)).logits, torch.full((2, K, 40, 40), 10.0))


@pytest.mark.parametrize(
    ("trunk", "read"),
    [
        (lambda: FPN(ResNet(18, width=16), channels=16), 4),
        (lambda: FPN(DenseNet(121), channels=16, extra=None), 4),
        (lambda: TimmBackbone("test_convnext"), 3),
        (lambda: FPN(ResNet(10, output_stride=8, width=16), channels=16), 4),
        (lambda: FPN(ResNet(10, ndim=3, width=8, strides=[1, (1, 2, 2), 2, 2, 2]), channels=16), 4),
    ],
)
def test_any_trunk_fits(trunk, read, targets):
    trunk = trunk().eval()
    size = (49, 65) if len(trunk.levels[0].stride) == 2 else (9, 33, 41)
    head = SemanticFPN(trunk.levels, K, 8, read)
    colours = next(x for x in trunk.modules() if hasattr(x, "in_channels") and x.in_channels in (1, 3))
    raw = head(trunk(torch.randn(1, colours.in_channels, *size)), size)
    assert raw.logits.shape == (1, K, *size)
    sum(head.losses(raw, targets(torch.randint(0, K, (1, *size)))).values()).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in head.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"head\.pyramid_levels is 4, but the pyramid has 2 levels; set it to 1\.\.2"),
        ({"pyramid_levels": 0}, r"head\.pyramid_levels is 0"),
        ({"pyramid_levels": 2, "channels": 0}, r"head\.channels is 0"),
        ({"pyramid_levels": 2, "dropout": 1}, r"head\.dropout must lie in 0 to below 1, got 1"),
        ({"pyramid_levels": 2, "norm": "layer"}, "norm is 'layer'; allowed are"),
    ],
)
def test_arguments_out_of_range_are_errors(options, message, make_levels):
    with pytest.raises(ValueError, match=message):
        SemanticFPN(make_levels(8, 16), K, **options)
