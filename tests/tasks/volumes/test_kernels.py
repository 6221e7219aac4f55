"""Faster kernels on the CPU: against torch's own, and where they must keep out of the way."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trunkline.backbones import ResidualEncoder
from trunkline.heads import UNet
from trunkline.tasks.volumes.inference import sliced
from trunkline.tasks.volumes.kernels import LAYOUT, faster_kernels

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


class Network(nn.Module):
    """A U-Net as the shipped configs build it; with strides of 1 or 2 along each axis."""

    def __init__(self, strides, kernels=None, channels=(8, 12, 16)):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = ResidualEncoder(channels, (1,) * len(channels), strides, kernels, in_channels=2)
        self.head = UNet(
            self.trunk.levels, 3, norm="instance", upsampling="transposed", activation="leaky_relu"
        )

    def forward(self, x):
        return self.head(self.trunk(x), tuple(x.shape[2:])).logits


def faster(network):
    def run(windows):
        with faster_kernels(windows) as ordered:
            return network(ordered)

    return run


def replaced(monkeypatch):
    """Count the convolutions that reach oneDNN."""
    calls, own = [], torch.mkldnn_convolution
    monkeypatch.setattr(torch, "mkldnn_convolution", lambda x, *more: calls.append(x) or own(x, *more))
    return calls


@pytest.mark.parametrize("size", [(16, 16, 16), (13, 10, 16)])
@pytest.mark.parametrize("strides", [[1, 2, 2], [2, [1, 2, 2], 2]])
@torch.no_grad()
def test_a_network_computes_the_same(size, strides):
    network, windows = Network(strides, [[1, 3, 3], 3, 3]).eval(), torch.randn(2, 2, *size)
    torch.testing.assert_close(faster(network)(windows), network(windows), atol=2e-4, rtol=2e-4)


@torch.no_grad()
def test_all_its_convolutions_are_replaced_and_run_channels_last(monkeypatch):
    calls = replaced(monkeypatch)
    network = Network([1, 2, 2]).eval()
    faster(network)(torch.randn(1, 2, 16, 16, 16))
    assert len(calls) == sum(isinstance(part, nn.Conv3d) for part in network.modules())
    assert all(x.is_contiguous(memory_format=LAYOUT) for x in calls)


@torch.no_grad()
def test_a_single_channel_counts_as_channels_last_too(monkeypatch):
    network = nn.Conv3d(1, 4, 3, padding=1)
    found = faster(network)(torch.randn(1, 1, 6, 6, 6))
    assert found.is_contiguous(memory_format=LAYOUT)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"stride": (1, 2, 2), "padding": (0, 1, 1), "dilation": (1, 2, 1)},
        {"groups": 2},
        {"padding": "same"},
    ],
)
@torch.no_grad()
def test_convolutions_with_all_options(options):
    conv = nn.Conv3d(4, 6, 3, **options)
    x = torch.randn(2, 4, 7, 8, 9)
    torch.testing.assert_close(faster(conv)(x), conv(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cell", [2, (1, 2, 2), (2, 2, 1), (1, 1, 1), 3])
@pytest.mark.parametrize("size", [(6, 12, 18), (5, 6, 7)])
@torch.no_grad()
def test_average_pools(cell, size):
    pool = nn.AvgPool3d(cell, cell, ceil_mode=True, count_include_pad=False)
    for run in (pool, nn.AvgPool3d(cell, divisor_override=5), lambda x: F.avg_pool3d(x, cell, cell)):
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(faster(run)(x), run(x))


@torch.no_grad()
def test_overlapping_pools_are_left_alone():
    x = torch.randn(1, 3, 6, 6, 6)
    for pool in (nn.AvgPool3d(2, 1), nn.AvgPool3d(2, 2, padding=1)):
        torch.testing.assert_close(faster(pool)(x), pool(x))


def test_keeps_out_of_gradients_other_types_pictures_and_autocast(monkeypatch):
    calls = replaced(monkeypatch)
    volume, picture = nn.Conv3d(2, 3, 3), nn.Conv2d(2, 3, 3)
    x = torch.randn(1, 2, 6, 6, 6)
    faster(volume)(x).sum().backward()
    assert volume.weight.grad is not None
    with torch.no_grad():
        assert faster(volume.double())(x.double()).dtype == torch.float64
        torch.testing.assert_close(faster(picture)(x[:, :, 0]), picture(x[:, :, 0]))
        thin = x[:, :, :1]
        torch.testing.assert_close(sliced(faster(picture), 0)(thin)[:, :, 0], picture(thin[:, :, 0]))
        with torch.autocast("cpu", torch.bfloat16):
            assert faster(volume.float())(x).dtype == torch.bfloat16
    assert not calls


@torch.no_grad()
def test_nothing_is_replaced_after_an_error(monkeypatch):
    def fails(_):
        raise ZeroDivisionError

    calls = replaced(monkeypatch)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            faster(fails)(torch.zeros(1, 1, 2, 2, 2))
    nn.Conv3d(1, 2, 3)(torch.zeros(1, 1, 4, 4, 4))
    assert not calls
