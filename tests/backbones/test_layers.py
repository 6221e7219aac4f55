"""Norms against torch's own; constants that nothing may round."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from trunkline.backbones.layers import BlurPool, FrozenBatchNorm, make_avg_pool, make_norm


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


@pytest.mark.parametrize("ndim", [2, 3])
def test_instance_norms_equal_torchs(ndim):
    norm = make_norm("instance", 6, ndim)
    theirs = (nn.InstanceNorm2d if ndim == 2 else nn.InstanceNorm3d)(6, affine=True)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    theirs.load_state_dict(norm.state_dict())
    x = (torch.randn(3, 6, *(4, 5, 7)[:ndim]) * 3 + 5).requires_grad_()
    weight = torch.randn_like(x)
    found, expected = norm(x), theirs(x)
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad((found * weight).sum(), [x, *norm.parameters()])
    others = torch.autograd.grad((expected * weight).sum(), [x, *theirs.parameters()])
    for a, b in zip(ours, others, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(norm.eval()(x), expected)
    assert norm(x[:0]).shape == x[:0].shape
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        norm(torch.randn(3, 6, *[1] * ndim))
    with pytest.raises(ValueError, match="expected"):
        norm(torch.randn(6))


def test_average_pools_leave_out_what_lies_beyond_the_map():
    x = torch.arange(6.0).reshape(1, 1, 1, 2, 3)  # rows 0 1 2 and 3 4 5
    assert make_avg_pool((2, 2, 2))(x).tolist() == [[[[[2.0, 3.5]]]]]  # one plane, where a cell has two
    assert make_avg_pool((2, 2))(x[0, :, :, :1]).tolist() == [[[[0.5, 2.0]]]]
    assert make_avg_pool((2, 2), round_up=False)(x[0]).tolist() == [[[[2.0]]]]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_average_pools_of_volumes_take_half_precision_on_a_cpu(kind):
    x = torch.rand(1, 2, 3, 4, 5).to(kind)
    pooled = make_avg_pool((2, 2, 2))(x)
    assert pooled.dtype == kind
    torch.testing.assert_close(pooled, make_avg_pool((2, 2, 2))(x.float()).to(kind), rtol=0, atol=0)
