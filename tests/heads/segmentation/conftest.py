"""Helpers of the tests of segmentation heads: networks whose every tensor matters, and feature maps."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from trunkline.backbones.base import FeatureLevel

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.InstanceNorm3d)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def randomise():
    """Give norms random affine maps and statistics, so that a wrong or missing one shows in the output."""

    def apply(module):
        for part in module.modules():
            if getattr(part, "running_var", None) is not None:
                part.running_mean.normal_(0, 0.2)
                part.running_var.uniform_(0.5, 1.5)
            if isinstance(part, NORMS):
                nn.init.uniform_(part.weight, 0.5, 1.2)
                nn.init.normal_(part.bias, 0, 0.2)
        return module

    return apply


@pytest.fixture(scope="session")
def make_levels():
    """Levels of these channels, strides 4, 8, ... (or ``strides``) on each of ``ndim`` axes."""

    def make(*channels, strides=None, ndim=2):
        strides = strides or [4 * 2**index for index in range(len(channels))]
        strides = [step if isinstance(step, tuple) else (step,) * ndim for step in strides]
        return tuple(FeatureLevel(*pair) for pair in zip(channels, strides, strict=True))

    return make


@pytest.fixture(scope="session")
def make_maps():
    """Random maps of ``levels`` for an image of ``size``, rounded up as strided convolutions do."""

    def make(levels, size, images=2):
        return [
            torch.randn(images, x.channels, *(-(-n // step) for n, step in zip(size, x.stride, strict=True)))
            for x in levels
        ]

    return make


@pytest.fixture(scope="session")
def inflate():
    """Fill a 3-D head from its 2-D original, each kernel in the middle slice."""

    def apply(head3, head2):
        state = {}
        for name, value in head2.state_dict().items():
            wanted = head3.state_dict()[name]
            if value.ndim == 4:
                kernel = torch.zeros_like(wanted)
                kernel[:, :, wanted.shape[2] // 2] = value
                value = kernel
            state[name] = value
        head3.load_state_dict(state)
        return head3

    return apply


@pytest.fixture(scope="session")
def close():
    """Assert equality relative to the largest expected value."""

    def check(found, expected, tolerance=1e-5):
        assert found.shape == expected.shape and expected.std() > 0
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()

    return check


@pytest.fixture(scope="session")
def targets():
    return lambda mask: SimpleNamespace(mask=mask)
