"""FPN against torchvision's on copied weights, and in three dimensions against its two-dimensional twin."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from trunkline.backbones.base import Backbone, FeatureLevel
from trunkline.backbones.densenet import DenseNet
from trunkline.backbones.fpn import FPN
from trunkline.backbones.resnet import ResNet


class Maps(Backbone):
    """A trunk that returns fixed maps, whatever it declares."""

    def __init__(self, maps, channels=None):
        super().__init__()
        self.maps = maps
        channels = channels or [x.shape[1] for x in maps]
        ndim = maps[0].ndim - 2
        self.levels = tuple(FeatureLevel(c, (2**i,) * ndim) for i, c in enumerate(channels, start=2))

    def forward(self, image):
        return self.maps


def odd_maps():
    """Maps whose sizes are no multiples of each other, as odd images give them."""
    sizes = [(25, 19), (13, 10), (7, 5), (4, 3)]
    return [torch.randn(2, c, *size) for c, size in zip((8, 12, 16, 20), sizes, strict=True)]


@pytest.mark.parametrize("extra", ["maxpool", "convs", None])
def test_equals_torchvision(extra):
    maps = odd_maps()
    block = {"maxpool": LastLevelMaxPool(), "convs": LastLevelP6P7(6, 6), None: None}[extra]
    theirs = FeaturePyramidNetwork([8, 12, 16, 20], 6, extra_blocks=block)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    ours = FPN(Maps(maps), channels=6, extra=extra)
    with torch.no_grad():
        for index in range(4):
            ours.lateral[index].load_state_dict(theirs.inner_blocks[index][0].state_dict())
            ours.output[index].load_state_dict(theirs.layer_blocks[index][0].state_dict())
        if extra == "convs":
            ours.p6.load_state_dict(theirs.extra_blocks.p6.state_dict())
            ours.p7.load_state_dict(theirs.extra_blocks.p7.state_dict())
        expected = list(theirs({str(i): x for i, x in enumerate(maps)}).values())
        pyramid = ours(torch.zeros(2, 3, 97, 75))
    assert len(pyramid) == len(expected) == len(ours.levels)
    for x, y in zip(pyramid, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("extra", ["maxpool", "convs", None])
@pytest.mark.parametrize("output_stride", [32, 8])
def test_declared_levels_are_the_measured_ones(extra, output_stride):
    with torch.device("meta"):
        net = FPN(ResNet(18, output_stride=output_stride), channels=24, extra=extra)
        maps = net(torch.empty(1, 3, 256, 384))
    assert len(maps) == len(net.levels) == {"maxpool": 5, "convs": 6, None: 4}[extra]
    for level, x in zip(net.levels, maps, strict=True):
        assert x.shape[1] == level.channels == 24
        assert (256 // x.shape[2], 384 // x.shape[3]) == level.stride


def put_into_the_middle(state, volume):
    """Fill a 3-D net from a 2-D one's state: every kernel zero but in its middle slice."""
    filled = {}
    for name, value in volume.state_dict().items():
        filled[name] = state[name]
        if value.ndim == 5:  # [F, C, kh, kw] -> [F, C, kd, kh, kw]
            side = value.shape[2] // 2
            filled[name] = F.pad(state[name][:, :, None], (0, 0, 0, 0, side, side))
    volume.load_state_dict(filled)
    return volume


@pytest.mark.parametrize("extra", ["maxpool", "convs", None])
@pytest.mark.parametrize("strides", [None, [[1, 2, 2], [1, 2, 2], 2, 2, 2]])
@pytest.mark.parametrize("trunk", [lambda **more: ResNet(18, **more), DenseNet])
def test_volume_constant_in_depth_gives_the_twodimensional_pyramid(trunk, strides, extra, randomise):
    plane = FPN(randomise(trunk()), channels=6, extra=extra).eval()
    for parameter in [*plane.lateral.parameters(), *plane.output.parameters()]:
        nn.init.normal_(parameter, 0, 0.3)
    volume = FPN(trunk(ndim=3, strides=strides), channels=6, extra=extra).eval()
    put_into_the_middle(plane.state_dict(), volume)
    image = torch.randn(1, 3, 45, 39)
    with torch.no_grad():
        flat, deep = plane(image), volume(image[:, :, None].expand(-1, -1, 33, -1, -1))
    assert len(flat) == len(deep) == {"maxpool": 5, "convs": 6, None: 4}[extra]
    for x, y in zip(flat, deep, strict=True):
        assert (y - x[:, :, None]).abs().max() <= 1e-5 * x.abs().max()


def test_pyramid_of_volumes_is_what_loops_compute():
    """Nearest neighbour, addition and convolution cell by cell, where every axis has another size."""
    maps = [torch.randn(1, 2, 5, 7, 6), torch.randn(1, 3, 3, 4, 3), torch.randn(1, 1, 3, 2, 1)]
    net = FPN(Maps(maps), channels=2, extra="maxpool")
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    lateral = []
    for x, layer in zip(maps, net.lateral, strict=True):  # a 1x1x1 convolution is a sum over channels
        kernel = layer.weight.reshape(2, -1)
        lateral.append(torch.einsum("fc,bcdhw->bfdhw", kernel, x) + layer.bias.view(1, 2, 1, 1, 1))
    for index in (1, 0):
        fine, coarse = lateral[index], lateral[index + 1]
        for cell in torch.cartesian_prod(*map(torch.arange, fine.shape[2:])).tolist():
            place = [i * b // a for i, a, b in zip(cell, fine.shape[2:], coarse.shape[2:], strict=True)]
            fine[:, :, cell[0], cell[1], cell[2]] += coarse[:, :, place[0], place[1], place[2]]
    with torch.no_grad():
        pyramid = net(torch.zeros(1, 3, 20, 28, 24))
    for x, layer, found in zip(lateral, net.output, pyramid, strict=False):
        windows = F.pad(x, (1,) * 6).unfold(2, 3, 1).unfold(3, 3, 1).unfold(4, 3, 1)
        expected = torch.einsum("fcijk,bcdhwijk->bfdhw", layer.weight, windows)
        torch.testing.assert_close(found, expected + layer.bias.view(1, 2, 1, 1, 1), rtol=1e-5, atol=1e-5)
    assert torch.equal(pyramid[3], pyramid[2][:, :, ::2, ::2, ::2])


@pytest.mark.parametrize("extra", ["maxpool", "convs"])
@pytest.mark.parametrize("trunk", [ResNet, DenseNet])
def test_levels_of_uneven_strides_are_the_measured_ones(trunk, extra):
    strides = [[1, 2, 2], [1, 2, 2], [1, 2, 2], 2, 2]
    depth = {ResNet: 18, DenseNet: 121}[trunk]
    with torch.device("meta"):
        net = FPN(trunk(depth, ndim=3, strides=strides), channels=8, extra=extra)
        maps = net(torch.empty(1, 3, 16, 128, 256))
    added = {"maxpool": [(8, 64, 64)], "convs": [(8, 64, 64), (16, 128, 128)]}[extra]
    expected = [(1, 4, 4), (1, 8, 8), (2, 16, 16), (4, 32, 32), *added]
    assert [level.stride for level in net.levels] == expected
    for level, x in zip(net.levels, maps, strict=True):
        assert tuple(a // b for a, b in zip((16, 128, 256), x.shape[2:], strict=True)) == level.stride
        assert x.shape[1] == level.channels == 8


def test_initialisation_leaves_the_trunk_alone_and_zeroes_biases():
    trunk = ResNet(18)
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    net = FPN(trunk, extra="convs")
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())
    for layer in [*net.lateral, *net.output, net.p6, net.p7]:
        fan_in = layer.in_channels * layer.kernel_size[0] ** 2
        assert layer.weight.abs().max().item() == pytest.approx((3 / fan_in) ** 0.5, rel=0.01)
        assert not layer.bias.any()


def test_frozen_trunk_stays_frozen_in_training_mode():
    net = FPN(ResNet(18, frozen_stages=5)).train()
    assert not any(part.training for part in net.bottom_up.modules() if isinstance(part, nn.BatchNorm2d))


def test_maps_that_differ_from_the_levels_are_an_error():
    maps = odd_maps()
    for wrong in (FPN(Maps(maps, [8, 12, 16, 24])), FPN(Maps(maps, [8, 12, 16]))):
        with pytest.raises(
            ValueError, match=r"Maps returned maps of \[8, 12, 16, 20\] channels, but its levels"
        ):
            wrong(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"extra": "pool"}, "extra is 'pool'; allowed are 'maxpool', 'convs', None"),
        ({"channels": 0}, "channels is 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        FPN(Maps(odd_maps()), **arguments)


def test_trunk_and_pyramid_compile_to_one_graph():
    net = FPN(ResNet(18, norm="frozen_batch", frozen_stages=2)).train()
    explanation = torch._dynamo.explain(net)(torch.randn(1, 3, 64, 64))
    assert explanation.graph_break_count == 0
    assert explanation.graph_count == 1
