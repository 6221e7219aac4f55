"""FPN against torchvision's on copied weights."""

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from trunkline.backbones.base import Backbone, FeatureLevel
from trunkline.backbones.fpn import FPN
from trunkline.backbones.resnet import ResNet


class Maps(Backbone):
    """A trunk that returns fixed maps, whatever it declares."""

    def __init__(self, maps, channels=None):
        super().__init__()
        self.maps = maps
        channels = channels or [x.shape[1] for x in maps]
        self.levels = tuple(FeatureLevel(c, (2**i, 2**i)) for i, c in enumerate(channels, start=2))

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
