"""FrozenBatchNorm against torch's batch norm in evaluation mode; constants that nothing may round."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from trunkline.backbones.layers import BlurPool, FrozenBatchNorm


@pytest.fixture
def pair(randomise):
    """A trained-looking batch norm and a frozen one with its state."""
    norm = randomise(nn.BatchNorm2d(8)).eval()
    frozen = FrozenBatchNorm(8)
    frozen.load_state_dict(norm.state_dict())
    return norm, frozen


def test_equals_batch_norm_in_evaluation_mode(pair):
    norm, frozen = pair
    x = torch.randn(2, 8, 5, 7, requires_grad=True)
    torch.testing.assert_close(frozen.train()(x), norm(x))
    ours, theirs = (torch.autograd.grad(layer(x).square().sum(), x)[0] for layer in (frozen, norm))
    torch.testing.assert_close(ours, theirs)


def test_equals_batch_norm_in_three_dimensions(pair):
    norm, frozen = pair
    volume = nn.BatchNorm3d(8).eval()
    volume.load_state_dict(norm.state_dict())
    x = torch.randn(2, 8, 3, 4, 5)
    torch.testing.assert_close(frozen(x), volume(x))


def test_has_nothing_to_train_and_keeps_its_statistics(pair):
    _, frozen = pair
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    frozen.train()(torch.randn(4, 8, 3, 3))
    assert list(frozen.parameters()) == []
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())


def test_state_returns_to_a_batch_norm(pair):
    norm, frozen = pair
    back = nn.BatchNorm2d(8).eval()
    back.load_state_dict(frozen.state_dict())
    x = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(back(x), norm(x))


def test_eps_counts():
    tiny = FrozenBatchNorm(1, eps=0.0), FrozenBatchNorm(1, eps=3.0)
    x = torch.full((1, 1, 1, 1), 6.0)
    assert [layer(x).item() for layer in tiny] == [6.0, 3.0]  # 6 / sqrt(1 + 3)


def test_neither_averaging_nor_a_cast_rounds_the_blur():
    net = nn.Sequential(BlurPool(2, (2, 1)), nn.Conv2d(2, 2, 1))
    averaged = AveragedModel(net, avg_fn=get_ema_avg_fn(0.99), use_buffers=True)
    for _ in range(20):
        averaged.update_parameters(net)
    pulse = torch.zeros(1, 2, 5, 3)
    pulse[:, :, 2] = 1.0
    for module in (averaged.module[0], net.to(torch.bfloat16)[0]):
        assert module(pulse)[0, 0, :, 0].tolist() == [0.0, 0.5, 0.0]
    assert net[0].state_dict() == {} and net[0](pulse.to("meta")).shape == (1, 2, 3, 3)
