import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from trunkline.backbones.base import FeatureLevel
from trunkline.heads.detection import AnchorOptions, Anchors, flatten_levels, map_sizes


def test_hand_written_coordinates():
    level = FeatureLevel(8, (4, 6))
    anchors = Anchors([level], AnchorOptions(sizes=(8,), ratios=(1.0, 4.0)))([(2, 2)])
    # Ratio 1 is 8x8; ratio 4 is 4 wide and 16 high. Rows are 4 apart, columns 6.
    expected = [[-4, -4, 4, 4], [-2, -8, 2, 8], [2, -4, 10, 4], [4, -8, 8, 8]]
    expected += [[-4, 0, 4, 8], [-2, -4, 2, 12], [2, 0, 10, 8], [4, -4, 8, 12]]
    assert anchors.dtype == torch.float32
    assert anchors.tolist() == expected


@pytest.mark.parametrize(
    "sizes", [(32, 64, 128, 256, 512), tuple((s, s * 2 ** (1 / 3)) for s in (16, 32, 64, 96, 200))]
)
def test_order_and_rounding_are_torchvisions(levels, make_features, sizes):
    # On a canvas divisible by 64. Elsewhere torchvision's strides, canvas // map, are not the network's:
    # a canvas of 96 gives P6 two cells, which it would set 48 pixels apart instead of 64.
    options = AnchorOptions(sizes=sizes, ratios=(0.5, 1.0, 2.0))
    features = make_features(batch=1)
    theirs = AnchorGenerator(options.sizes_per_level([]), (options.ratios,) * 5)
    (expected,) = theirs(ImageList(torch.zeros(1, 3, 128, 192), [(128, 192)]), features)
    ours = Anchors(levels, options)([tuple(feature.shape[-2:]) for feature in features])
    assert torch.equal(ours, expected)


def test_strides_are_the_declared_ones(levels):
    ours = Anchors(levels, AnchorOptions())([(24, 24), (12, 12), (6, 6), (3, 3), (2, 2)])  # a canvas of 96
    centers = (ours[-12::3, :2] + ours[-12::3, 2:]) / 2
    assert centers.tolist() == [[0, 0], [64, 0], [0, 64], [64, 64]]


def test_unrounded_anchors_by_hand():
    # Ratio 1/2 of side 8: 8 * sqrt(2) wide and 8 / sqrt(2) high, as detectron2's are.
    options = AnchorOptions(sizes=(8,), ratios=(0.5, 1.0, 2.0), rounded=False)
    anchors = Anchors([FeatureLevel(8, (4, 6))], options)([(2, 2)])
    wide, high = 4 * math.sqrt(2), 2 * math.sqrt(2)
    cell = torch.tensor([[-wide, -high, wide, high], [-4, -4, 4, 4], [-high, -wide, high, wide]])
    shifts = torch.tensor([[0, 0, 0, 0], [6, 0, 6, 0], [0, 4, 0, 4], [6, 4, 6, 4]])
    assert torch.equal(anchors, (cell + shifts[:, None]).flatten(0, 1))


def test_unrounded_anchors_keep_their_area_and_ratio(levels):
    base = Anchors(levels, AnchorOptions(rounded=False)).base.double()
    width, height = base[..., 2] - base[..., 0], base[..., 3] - base[..., 1]
    expected = torch.tensor([32.0, 64, 128, 256, 512]).double()[:, None].square().expand(5, 3)
    torch.testing.assert_close(width * height, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        height / width, torch.tensor([0.5, 1, 2]).double().expand(5, 3), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("rounded", [True, False])
def test_a_network_cast_to_bfloat16_keeps_exact_anchors(levels, rounded):
    sizes = [(2, 2)] * 5
    anchors = Anchors(levels, AnchorOptions(rounded=rounded))
    expected = anchors(sizes)
    assert torch.equal(anchors.to(torch.bfloat16)(sizes), expected)


def test_averaging_a_networks_buffers_keeps_exact_anchors(levels):
    """Lightning's averaging of weights takes the buffers along, and rounds them at every update."""
    net = nn.Sequential(Anchors(levels, AnchorOptions()), nn.Linear(1, 1))
    averaged = AveragedModel(net, avg_fn=get_ema_avg_fn(0.99), use_buffers=True)
    for _ in range(20):
        averaged.update_parameters(net)
    assert torch.equal(averaged.module[0]([(2, 2)] * 5), net[0]([(2, 2)] * 5))


def test_anchors_are_laid_out_where_they_are_wanted(levels):
    anchors = Anchors(levels, AnchorOptions())
    assert anchors([(2, 2)] * 5, torch.device("meta")).device.type == "meta"
    assert anchors([(2, 2)] * 5).device.type == "cpu"  # a call moves nothing for good
    assert anchors.to("meta")([(2, 2)] * 5).device.type == "meta"


def test_number_of_levels_must_match(levels):
    with pytest.raises(ValueError, match=r"anchors.sizes has 2 entries.* gives 5 levels"):
        Anchors(levels, AnchorOptions(sizes=(32, 64)))


def test_volumes_are_refused():
    with pytest.raises(ValueError, match="2-D"):
        Anchors([FeatureLevel(8, (4, 4, 4))], AnchorOptions(sizes=(32,)))


def test_scale_gives_every_level_a_size_by_its_stride(levels):
    by_size = Anchors(levels, AnchorOptions(sizes=(32, 64, 128, 256, 512)))
    assert torch.equal(Anchors(levels, AnchorOptions()).base, by_size.base)
    halved = Anchors(levels[1:4], AnchorOptions(scale=4, rounded=False, ratios=(1.0,)))
    assert (halved.base[:, 0, 2:] - halved.base[:, 0, :2]).tolist() == [[32, 32], [64, 64], [128, 128]]


def test_scales_of_an_octave_are_torchvisions(make_features):
    """The anchors of ``retinanet_resnet50_fpn``, on the strides 4 to 64 of these maps."""
    theirs = AnchorGenerator(
        tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512)),
        ((0.5, 1.0, 2.0),) * 5,
    )
    features = make_features(batch=1)
    (expected,) = theirs(ImageList(torch.zeros(1, 3, 128, 192), [(128, 192)]), features)
    levels = [FeatureLevel(8, (stride, stride)) for stride in (4, 8, 16, 32, 64)]
    for options in (
        AnchorOptions(sizes=(32, 64, 128, 256, 512), octave_scales=3),
        AnchorOptions(octave_scales=3),
    ):
        anchors = Anchors(levels, options)
        assert anchors.per_cell == 9
        assert torch.equal(anchors(map_sizes(features)), expected)


def test_unrounded_scales_of_an_octave_keep_their_fractions():
    options = AnchorOptions(sizes=((8, 20),), ratios=(1.0,), rounded=False, octave_scales=2)
    base = Anchors([FeatureLevel(8, (4, 4))], options).base[0]
    sides = torch.tensor([8, 8 * math.sqrt(2), 20, 20 * math.sqrt(2)])
    torch.testing.assert_close(base, torch.stack([-sides, -sides, sides, sides], dim=-1) / 2)


def test_maps_are_flattened_in_the_anchors_order(levels, make_features):
    features = make_features()
    sizes = map_sizes(features)
    assert sizes == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    anchors = Anchors(levels, AnchorOptions())
    assert anchors.per_level(sizes) == tuple(3 * height * width for height, width in sizes)
    # Each map holds the coordinates of its own anchors, four channels for each of the three per cell.
    laid_out = anchors(sizes).split(anchors.per_level(sizes))
    maps = [
        rows.view(height, width, 12).permute(2, 0, 1)[None]
        for rows, (height, width) in zip(laid_out, sizes, strict=True)
    ]
    assert torch.equal(flatten_levels(maps, 4)[0], anchors(sizes))
