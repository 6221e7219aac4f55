"""Frozen norms: constants that are kept as long as they are right, and norms inside convolutions."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from trunkline.backbones import CifarResNet, DenseNet, ResidualEncoder, ResNet
from trunkline.backbones.norms import ConvNormSequential, FrozenBatchNorm, conv_then_norm

BUFFERS = ("weight", "bias", "running_mean", "running_var")


def frozen(channels=4, seed=0):
    """A norm with statistics and an affine map."""
    generator = torch.Generator().manual_seed(seed)
    norm = FrozenBatchNorm(channels)
    for name, buffer in norm.named_buffers():
        buffer.uniform_(0.5, 2, generator=generator)
        assert name in BUFFERS
    return norm


def by_hand(norm, x):
    shape = (1, -1) + (1,) * (x.ndim - 2)
    weight, bias, mean, var = (getattr(norm, name).double().view(shape) for name in BUFFERS)
    return ((x.double() - mean) / (var + norm.eps).sqrt() * weight + bias).to(x.dtype)


def numbers(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in ("view", "_unsafe_view", "detach", "promote_types", "device"):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def inference(change):
    def changed(norm, name):
        with torch.inference_mode():
            change(norm, name)

    return changed


def through_data(norm, name):
    """As Lightning swaps averaged weights for a validation."""
    norm.eval()
    getattr(norm, name).data.copy_(torch.full((4,), 3.0))
    norm.train()


CHANGES = {
    "in place": lambda norm, name: getattr(norm, name).mul_(3),
    "copied": lambda norm, name: getattr(norm, name).copy_(torch.full((4,), 3.0)),
    "another tensor": lambda norm, name: setattr(norm, name, torch.full((4,), 3.0)),
    "loaded": lambda norm, name: norm.load_state_dict({**norm.state_dict(), name: torch.full((4,), 3.0)}),
    "assigned": lambda norm, name: norm.load_state_dict(
        {**norm.state_dict(), name: torch.full((4,), 3.0)}, assign=True
    ),
    "averaged": lambda norm, name: torch._foreach_lerp_([getattr(norm, name)], [torch.full((4,), 9.0)], 0.5),
    "cast": lambda norm, name: norm.half(),
    "moved": lambda norm, name: (
        norm.to("meta").to_empty(device="cpu").load_state_dict(frozen(seed=3).state_dict())
    ),
    "through data": through_data,
}
CHANGES |= {
    f"{name}, in inference mode": inference(CHANGES[name]) for name in ("in place", "copied", "loaded")
}


@pytest.mark.parametrize("name", BUFFERS)
@pytest.mark.parametrize("change", CHANGES)
def test_constants_change_with_every_buffer(change, name):
    norm, x = frozen(), numbers(2, 4, 5, 6)
    for _ in range(2):
        torch.testing.assert_close(norm(x), by_hand(norm, x))
    before = norm(x)
    CHANGES[change](norm, name)
    torch.testing.assert_close(norm(x), by_hand(norm, x))
    assert not torch.equal(norm(x), before)


def test_constants_are_computed_once_for_each_type():
    norm = frozen()
    for kind in (torch.float32, torch.bfloat16):
        x = numbers(2, 4, 5, 6).to(kind)
        norm(x)
        with Operators() as seen:
            norm(x)
        assert seen.names == ["addcmul"] and norm(x).dtype == kind


def test_a_copy_has_constants_of_its_own():
    norm, x = frozen(), numbers(2, 4, 3)
    before = norm(x)
    other = copy.deepcopy(norm)
    other.weight.mul_(2)
    torch.testing.assert_close(other(x), by_hand(other, x))
    assert torch.equal(norm(x), before)
    swapped = functional_call(norm, {"weight": torch.full((4,), 5.0)}, (x,))
    norm.weight.fill_(5.0)
    assert torch.equal(swapped, norm(x))


def test_training_works_with_what_a_validation_has_computed():
    conv, norm, x = nn.Conv2d(3, 4, 1), frozen(), numbers(2, 3, 4, 4)
    with torch.inference_mode():
        conv_then_norm(conv, norm, x)
        norm(conv(x))
    (conv_then_norm(conv, norm, x) + norm(conv(x))).sum().backward()
    assert conv.weight.grad.any()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_norm_in_a_convolution_by_hand(ndim, bias):
    conv = (nn.Conv2d if ndim == 2 else nn.Conv3d)(3, 4, 3, 2, 1, bias=bias)
    norm, x = frozen(), numbers(2, 3, *(6, 5, 4)[:ndim]).requires_grad_()
    expected = by_hand(norm, conv(x))
    wanted = torch.autograd.grad(expected.square().sum(), [x, *conv.parameters()])
    found = conv_then_norm(conv, norm, x)
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found.square().sum(), [x, *conv.parameters()])
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_norm_costs_one_product_of_weights_and_no_pass_over_maps():
    conv, norm, x = nn.Conv2d(3, 4, 3, bias=False), frozen(), numbers(2, 3, 8, 8)
    conv_then_norm(conv, norm, x)
    with torch.no_grad(), Operators() as seen:
        conv_then_norm(conv, norm, x)
    assert seen.names == ["mul", "convolution"]


def test_weights_stay_in_their_memory_order():
    conv = nn.Conv2d(8, 4, 3, bias=False).to(memory_format=torch.channels_last)
    norm, x = frozen(), numbers(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    out = conv_then_norm(conv, norm, x)
    assert out.is_contiguous(memory_format=torch.channels_last) and not out.is_contiguous()
    torch.testing.assert_close(out, by_hand(norm, conv(x)))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_types_are_those_of_one_after_the_other(kind):
    conv, norm, x = nn.Conv2d(3, 4, 3), frozen(), numbers(2, 3, 8, 8)
    exact = norm(conv(x))
    with torch.autocast("cpu", kind):
        found = conv_then_norm(conv, norm, x)
        assert found.dtype == norm(conv(x)).dtype == kind
    torch.testing.assert_close(found.float(), exact, rtol=0.02, atol=0.05)
    found = conv_then_norm(conv.to(kind), norm.to(kind), x.to(kind))
    assert found.dtype == kind
    torch.testing.assert_close(found.float(), exact, rtol=0.02, atol=0.05)


TRUNKS = {
    "ResNet": lambda: ResNet(26, norm="frozen_batch", width=8),
    "deep stem": lambda: ResNet(
        26, norm="frozen_batch", width=16, stem="deep", shortcut="average", anti_alias=True
    ),
    "pre-activation": lambda: ResNet(18, norm="frozen_batch", width=8, pre_activation=True),
    "checkpointing": lambda: ResNet(18, norm="frozen_batch", width=8, checkpointing=True),
    "CIFAR": lambda: CifarResNet(8, norm="frozen_batch"),
    "DenseNet": lambda: DenseNet(121, norm="frozen_batch"),
    "encoder": lambda: ResidualEncoder(
        (4, 8), (1, 1), in_channels=3, ndim=2, norm="frozen_batch", zero_init_residual=False
    ),
}


@pytest.mark.parametrize("name", TRUNKS)
@pytest.mark.filterwarnings("ignore:the trunk has no weights")
def test_maps_and_gradients_of_trunks_are_those_of_separate_norms(name):
    trunk, x = TRUNKS[name](), numbers(2, 3, 64, 64)
    for index, module in enumerate(trunk.modules()):
        if isinstance(module, FrozenBatchNorm):
            module.load_state_dict(frozen(len(module.weight), seed=index).state_dict())

    def run():
        maps = trunk(x)
        trunk.zero_grad()
        sum(m.square().mean() for m in maps).backward()
        return maps, [p.grad for p in trunk.parameters()]

    maps, gradients = run()
    seen = []
    hooks = [
        module.register_forward_hook(lambda *_: seen.append(1))
        for module in trunk.modules()
        if isinstance(module, FrozenBatchNorm)
    ]
    separate, wanted = run()  # watched, so called one after the other
    assert len(seen) >= len(hooks)
    for one, other in zip([*maps, *gradients], [*separate, *wanted], strict=True):
        scale = float(other.detach().abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * scale)
    for hook in hooks:
        hook.remove()
    seen.clear()
    run()
    assert not seen


def test_hooks_on_convolutions_see_the_output_before_the_norm():
    conv, norm, x = nn.Conv2d(3, 4, 1), frozen(), numbers(1, 3, 2, 2)
    seen = []
    conv.register_forward_hook(lambda _, __, out: seen.append(out))
    out = ConvNormSequential(conv, norm, nn.ReLU())(x)
    assert torch.equal(out, norm(seen[0]).relu())


def test_a_chain_of_other_layers_is_a_sequential():
    layers = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), frozen(), nn.Conv2d(4, 4, 1), frozen(seed=2)]
    x = numbers(2, 3, 4, 4)
    found = ConvNormSequential(*layers)(x)
    torch.testing.assert_close(found, nn.Sequential(*layers)(x))
    assert list(ConvNormSequential(*layers).state_dict()) == list(nn.Sequential(*layers).state_dict())
