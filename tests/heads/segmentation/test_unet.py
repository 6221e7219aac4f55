"""UNet against plain computations, in two and three dimensions, on trunks of all kinds."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trunkline.backbones import CifarResNet, DenseNet, ResNet, TimmBackbone
from trunkline.heads import UNet
from trunkline.heads.segmentation.base import RawSegmentation

K = 5


def block(x, part):
    for conv, norm in ((part[0], part[1]), (part[3], part[4])):
        x = F.conv2d(x, conv.weight, None, padding=1)
        x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()
    return x


def up(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def test_equals_a_plain_computation(make_levels, make_maps, randomise, close):
    levels = make_levels(6, 8, 12)
    head = randomise(UNet(levels, K, [10, 9, 7, 5], deep_supervision=True)).eval()
    maps, size = make_maps(levels, (41, 57)), (41, 57)
    x = block(torch.cat([up(maps[2], (6, 8)), maps[1]], 1), head.blocks[0])
    fine = block(torch.cat([up(x, (11, 15)), maps[0]], 1), head.blocks[1])
    half = block(up(fine, (21, 29)), head.blocks[2])
    full = block(up(half, size), head.blocks[3])
    raw = head(maps, size)
    close(raw.logits, F.conv2d(full, head.score.weight, head.score.bias))
    assert len(raw.aux) == 2  # not the full size, which has the logits, and not the coarsest
    for found, x, layer in zip(raw.aux, (half, fine), head.aux_scores, strict=True):
        close(found, F.conv2d(x, layer.weight, layer.bias))


def test_inner_maps_count_by_powers_of_the_weight(make_levels, targets):
    head = UNet(make_levels(6, 8, 12), 3, deep_supervision=True, aux_weight=0.4)
    logits, mask = torch.randn(2, 3, 16, 16), torch.randint(0, 3, (2, 16, 16))
    aux = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4)
    found = head.losses(RawSegmentation(logits, aux), targets(mask))["auxiliary"]
    # centres of cells of 2 and of 4 pixels, rounded up: pixel 1 of 0..1, pixel 2 of 0..3
    coarse = F.cross_entropy(aux[0], mask[:, 1::2, 1::2]), F.cross_entropy(aux[1], mask[:, 2::4, 2::4])
    torch.testing.assert_close(found, 0.4 * coarse[0] + 0.16 * coarse[1])


def test_without_deep_supervision_there_are_no_inner_scores(make_levels, make_maps):
    levels = make_levels(6, 8, 12)
    head = UNet(levels, K).eval()
    assert head(make_maps(levels, (41, 57)), (41, 57)).aux == () and len(head.aux_scores) == 0


def test_levels_of_equal_size_are_merged_without_upsampling(make_levels, randomise, close):
    levels = make_levels(6, 8, 12, strides=[2, 8, 8])
    head = randomise(UNet(levels, K, [10, 9, 7])).eval()
    maps = [torch.randn(2, 6, 21, 29), torch.randn(2, 8, 6, 8), torch.randn(2, 12, 6, 8)]
    x = block(torch.cat([maps[2], maps[1]], 1), head.blocks[0])
    x = block(torch.cat([up(x, (21, 29)), maps[0]], 1), head.blocks[1])
    x = block(up(x, (41, 57)), head.blocks[2])
    close(head(maps, (41, 57)).logits, head.score(x))


def test_widths_halve_from_the_coarsest_level_down_to_16(make_levels):
    def widths(head):
        return [part[0].out_channels for part in head.blocks]

    assert widths(UNet(make_levels(256, 512, 1024, 2048), K)) == [1024, 512, 256, 128, 64]
    assert widths(UNet(make_levels(32, 64, 128), K)) == [64, 32, 16, 16]
    # Ronneberger et al.: from 1024 channels 512, 256, 128, 64; the finest level has the full size
    paper = make_levels(64, 128, 256, 512, 1024, strides=[1, 2, 4, 8, 16])
    assert widths(UNet(paper, K)) == [512, 256, 128, 64]
    assert widths(UNet(make_levels(256, 512), K, [7, 9, 8])) == [7, 9, 8]


def test_at_full_size_nothing_follows_the_finest_level(make_levels, make_maps, randomise, close):
    levels = make_levels(6, 8, strides=[1, 2])
    head = randomise(UNet(levels, K, [7])).eval()
    maps = make_maps(levels, (9, 11))
    x = block(torch.cat([up(maps[1], (9, 11)), maps[0]], 1), head.blocks[0])
    close(head(maps, (9, 11)).logits, head.score(x))


@pytest.mark.parametrize("finest", [(1, 4, 4), (1, 2, 2), (2, 4, 4)])
def test_a_centre_inflated_head_gives_every_slice_of_a_constant_volume_its_scores(
    finest, make_levels, make_maps, randomise, inflate, close
):
    strides = [finest[1], 2 * finest[1], 4 * finest[1]]
    flat_levels = make_levels(6, 8, 12, strides=strides)
    flat = randomise(UNet(flat_levels, K, deep_supervision=True)).eval()
    deeper = [tuple(step * factor for step in finest) for factor in (1, 2, 4)]
    levels = make_levels(6, 8, 12, strides=deeper, ndim=3)
    deep = inflate(UNet(levels, K, deep_supervision=True), flat).eval()
    maps = make_maps(flat_levels, (41, 57))
    volumes = [
        x[:, :, None].repeat(1, 1, -(-7 // level.stride[0]), 1, 1)
        for x, level in zip(maps, levels, strict=True)
    ]
    expected, found = flat(maps, (41, 57)), deep(volumes, (7, 41, 57))
    assert found.logits.shape[2] == 7
    for x, y in zip((found.logits, *found.aux), (expected.logits, *expected.aux), strict=True):
        for index in range(x.shape[2]):
            close(x[:, :, index], y)


def test_an_axis_that_has_arrived_waits_for_the_others(make_levels):
    """Strides (1, 4): two further blocks, of which neither stretches the first axis."""
    levels = make_levels(6, 8, strides=[(1, 4), (1, 8)])
    head = UNet(levels, K, [7, 7, 7]).eval()
    sizes = []
    for part in head.blocks:
        part.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[2:])))
    head([torch.randn(1, 6, 9, 5), torch.randn(1, 8, 9, 3)], (9, 17))
    assert sizes == [(9, 5), (9, 9), (9, 17)]


def test_norm_and_activation_reach_every_block(make_levels, make_maps):
    levels = make_levels(6, 8)
    head = UNet(levels, K, norm="instance", activation="silu")
    assert sum(isinstance(x, nn.InstanceNorm2d) for x in head.modules()) == 2 * len(head.blocks) == 6
    assert sum(isinstance(x, nn.SiLU) for x in head.modules()) == 6
    assert not any(isinstance(x, nn.ReLU | nn.BatchNorm2d) for x in head.modules())
    maps = make_maps(levels, (16, 24), images=1)
    before = head(maps, (16, 24)).logits
    # instance norm makes the scale of what it normalises irrelevant
    head.blocks[0][0].weight.data *= 7
    torch.testing.assert_close(head(maps, (16, 24)).logits, before, rtol=1e-3, atol=1e-3)


def test_initial_values_follow_he_and_biases_are_zero(make_levels):
    head = UNet(make_levels(64, 128, 256), K, deep_supervision=True)
    for layer in (layer for layer in head.modules() if isinstance(layer, nn.Conv2d)):
        fan_out = layer.out_channels * layer.weight[0, 0].numel()
        assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.2)
        assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize(
    "trunk",
    [
        lambda: DenseNet(121),
        lambda: TimmBackbone("test_convnext"),
        lambda: TimmBackbone("test_vit", out_indices=[0, 1]),
        lambda: CifarResNet(20),
        lambda: ResNet(10, output_stride=8, width=16),
        lambda: ResNet(10, ndim=3, width=8, strides=[1, (1, 2, 2), 2, 2, 2]),
    ],
)
def test_any_trunk_fits(trunk, targets):
    trunk = trunk().eval()
    size = (49, 65) if len(trunk.levels[0].stride) == 2 else (9, 33, 41)
    count = len(UNet(trunk.levels, K).blocks)
    head = UNet(trunk.levels, K, [8] * count, deep_supervision=count > 2)
    colours = next(x for x in trunk.modules() if hasattr(x, "in_channels") and x.in_channels in (1, 3))
    raw = head(trunk(torch.randn(2, colours.in_channels, *size)), size)
    assert raw.logits.shape == (2, K, *size) and len(raw.aux) == len(head.blocks) - 2
    sum(head.losses(raw, targets(torch.randint(0, K, (2, *size)))).values()).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in head.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": [8, 8]}, r"head\.channels has 2 widths, but this decoder has 3 blocks"),
        ({"channels": [8, 0, 8]}, r"head\.channels is 0"),
        ({"norm": "layer"}, "norm is 'layer'; allowed are"),
        ({"activation": "tanh"}, "activation is 'tanh'; allowed are"),
    ],
)
def test_arguments_out_of_range_are_errors(options, message, make_levels):
    with pytest.raises(ValueError, match=message):
        UNet(make_levels(8, 16), K, **options)


def test_a_single_level_and_nothing_to_supervise_are_errors(make_levels):
    with pytest.raises(ValueError, match="this one has a single level"):
        UNet(make_levels(8), K)
    with pytest.raises(ValueError, match=r"deep_supervision needs a block .* this decoder has 2"):
        UNet(make_levels(8, 16, strides=[2, 4]), K, deep_supervision=True)
