"""Residual trunks on volumes: equal to their 2-D twins where they must be, strides per axis."""

import itertools

import pytest
import torch
from torch import nn

from trunkline.backbones import CifarResNet, ResNet

FAMILIES = {
    "basic": lambda ndim: ResNet(18, width=8, ndim=ndim),
    "bottleneck": lambda ndim: ResNet(50, width=8, ndim=ndim),
    "ResNeXt": lambda ndim: ResNet(26, groups=4, width_per_group=16, width=8, ndim=ndim),
    "wide": lambda ndim: ResNet(26, width_per_group=128, width=8, ndim=ndim),
    "D": lambda ndim: ResNet(26, width=8, stem="deep", shortcut="average", ndim=ndim),
    "v2": lambda ndim: ResNet(26, width=8, pre_activation=True, ndim=ndim),
    "SE": lambda ndim: ResNet(18, width=8, squeeze_excitation=True, ndim=ndim),
    "blurred": lambda ndim: ResNet(18, width=8, anti_alias=True, ndim=ndim),
    "MSRA": lambda ndim: ResNet(26, width=8, stride_in_1x1=True, ndim=ndim),
    "dilated": lambda ndim: ResNet(26, width=8, output_stride=8, ndim=ndim),
    "group norm": lambda ndim: ResNet(18, width=8, norm="group", ndim=ndim),
    "instance norm": lambda ndim: ResNet(18, width=8, norm="instance", ndim=ndim),
    "CIFAR": lambda ndim: CifarResNet(20, ndim=ndim),
    "CIFAR, plain": lambda ndim: CifarResNet(20, shortcut="none", ndim=ndim),
    "CIFAR, projections, v2": lambda ndim: CifarResNet(
        20, shortcut="projection", pre_activation=True, ndim=ndim
    ),
}


def centred(state, target):
    """Put every 2-D kernel into the middle slice of a 3-D one that is zero elsewhere."""
    inflated = {}
    for name, value in state.items():
        wanted = target[name].shape
        if value.ndim == 4:
            whole = torch.zeros(wanted)
            whole[:, :, wanted[2] // 2] = value
            value = whole
        inflated[name] = value
    return inflated


@pytest.mark.parametrize("name", FAMILIES)
def test_centre_inflated_net_on_a_depth_constant_volume_is_the_2d_net(name, randomise):
    flat = randomise(FAMILIES[name](2)).eval()
    deep = FAMILIES[name](3).eval()
    deep.load_state_dict(centred(flat.state_dict(), deep.state_dict()))
    image = torch.randn(2, 3, 45, 38)
    with torch.no_grad():
        maps, expected = deep(image[:, :, None].expand(-1, -1, 21, -1, -1).contiguous()), flat(image)
    for x, y in zip(maps, expected, strict=True):
        assert x.shape[3:] == y.shape[2:]
        wide = y[:, :, None].expand_as(x)
        assert (x - wide).abs().max() <= 1e-5 * y.abs().max()


def outputs(size, strides):
    """Size behind layers that each round up, per axis."""
    for step in strides:
        size = -(-size // step)
    return size


@pytest.mark.parametrize(
    "options", [{}, {"anti_alias": True}, {"shortcut": "average"}, {"pre_activation": True}]
)
@pytest.mark.parametrize(
    "strides",
    [
        [2, 2, 2, 2, 2],
        [[1, 2, 2], [1, 2, 2], [2, 2, 2], 2, 2],
        [[1, 2, 2], 1, [2, 1, 2], 2, [2, 2, 1]],
        [1, 1, 2, 2, 2],
    ],
)
def test_strides_are_per_axis_and_declared_as_measured(strides, options):
    net = ResNet(10, ndim=3, width=8, in_channels=1, strides=strides, **options).eval()
    spelt = [(step,) * 3 if isinstance(step, int) else step for step in strides]
    for size in ((32, 32, 64), (19, 33, 21)):
        with torch.no_grad():
            maps = net(torch.randn(1, 1, *size))
        for index, (level, x) in enumerate(zip(net.levels, maps, strict=True)):
            steps = spelt[: 2 + index]
            assert level.channels == x.shape[1]
            assert level.stride == tuple(torch.tensor(steps).prod(0).tolist())
            for axis in range(3):
                assert x.shape[2 + axis] == outputs(size[axis], [step[axis] for step in steps])


def test_strides_work_in_two_dimensions_and_a_pool_of_stride_1_is_left_out():
    net = ResNet(18, width=8, strides=[1, 1, 2, 2, 2])
    assert [level.stride for level in net.levels] == [(1, 1), (2, 2), (4, 4), (8, 8)]
    assert not any(isinstance(module, nn.MaxPool2d) for module in net.modules())
    assert isinstance(ResNet(18, width=8, strides=[1, 2, 2, 2, 2]).maxpool, nn.MaxPool2d)


def test_output_stride_limits_each_axis_by_itself():
    strides = [[1, 2, 2], [1, 2, 2], 2, 2, 2]
    net = ResNet(10, ndim=3, width=8, strides=strides, output_stride=8).eval()
    assert [level.stride for level in net.levels] == [(1, 4, 4), (2, 8, 8), (4, 8, 8), (8, 8, 8)]
    assert net.layer3[0].conv1.dilation == (1, 1, 1) and net.layer3[0].conv2.dilation == (1, 2, 2)
    assert net.layer4[0].conv1.dilation == (1, 2, 2) and net.layer4[0].conv2.dilation == (1, 4, 4)
    whole = ResNet(10, ndim=3, width=8, strides=strides).eval()
    whole.load_state_dict(net.state_dict())
    image = torch.randn(1, 3, 16, 65, 33)
    with torch.no_grad():
        for x, y, step in zip(net(image), whole(image), (1, 1, 2, 4), strict=True):
            torch.testing.assert_close(x[..., ::step, ::step], y, atol=1e-5, rtol=1e-4)


def test_a_volume_trains_every_parameter():
    net = ResNet(10, ndim=3, width=8, in_channels=4, norm="instance", squeeze_excitation=True)
    sum(x.square().mean() for x in net(torch.randn(2, 4, 16, 64, 64))).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in net.parameters())


def test_axes_are_not_exchanged():
    """A net with strides in one axis only acts on that axis: the transposed net on the transposed volume."""
    for axis, other in itertools.combinations(range(3), 2):
        first = [1 + (i == axis) for i in range(3)]
        second = [1 + (i == other) for i in range(3)]
        net = ResNet(10, ndim=3, width=8, strides=[first] * 5).eval()
        twin = ResNet(10, ndim=3, width=8, strides=[second] * 5).eval()
        swap = lambda x, a=axis, b=other: x.transpose(2 + a, 2 + b)  # noqa: E731
        state = {k: swap(v) if v.ndim == 5 else v for k, v in net.state_dict().items()}
        twin.load_state_dict(state)
        volume = torch.randn(1, 3, 8, 9, 10)
        with torch.no_grad():
            for x, y in zip(net(volume), twin(swap(volume)), strict=True):
                torch.testing.assert_close(swap(x), y, atol=1e-5, rtol=1e-4)
