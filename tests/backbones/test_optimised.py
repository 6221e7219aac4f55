"""Copies for inference: same outputs, fewer layers, and the network itself untouched."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from trunkline.backbones import FPN, CifarResNet, DenseNet, ResidualEncoder, ResNet, TimmBackbone
from trunkline.backbones.norms import FrozenBatchNorm
from trunkline.backbones.optimised import optimised

NORMS = (nn.BatchNorm2d, nn.BatchNorm3d, FrozenBatchNorm, nn.GroupNorm, nn.InstanceNorm2d)


def randomised(network):
    """Statistics and affine maps with which folding wrongly would show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, NORMS) and norm.weight is not None:
                norm.weight.uniform_(0.5, 1.5, generator=generator)
                norm.bias.normal_(std=0.2, generator=generator)
                if hasattr(norm, "running_var"):
                    norm.running_mean.normal_(std=0.2, generator=generator)
                    norm.running_var.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


def norms_of(network):
    return sum(isinstance(module, NORMS) for module in network.modules())


def image(channels=3, size=(64, 64)):
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("network", "left"),
    [
        (lambda: ResNet(18), 0),
        (lambda: ResNet(50, norm="frozen_batch", width=8), 0),
        (lambda: ResNet(26, stem="deep", shortcut="average", squeeze_excitation=True, width=8), 0),
        (lambda: ResNet(26, anti_alias=True, width=16), 0),
        # Norms that stand before the convolutions: each block's first reads a sum.
        (lambda: ResNet(18, pre_activation=True), 9),
        (lambda: CifarResNet(20), 0),
        # The stem's and every second norm follow a convolution.
        (lambda: DenseNet(121), 62),
        (lambda: FPN(ResNet(18)), 0),
        (lambda: ResNet(18, norm="group"), 20),
        (lambda: TimmBackbone("resnet18"), 0),
        (lambda: TimmBackbone("mobilenetv3_small_050"), 0),  # norms with activations
    ],
)
def test_outputs_stay_and_norms_behind_convolutions_go(network, left):
    network, example = randomised(network()), image()
    state = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        expected = network(example)
        found = optimised(network, lambda net: net(example))
        # Another example than the one it was made with.
        other = image(size=(96, 64))
        largest = max(float(x.abs().max()) for x in expected)
        for ours, theirs in zip(found(other), network(other), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5 * largest)
    assert norms_of(found) == left
    assert not found.training and not any(p.requires_grad for p in found.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(p.requires_grad for p in network.parameters())


def test_volumes():
    network = randomised(ResidualEncoder(ndim=3, in_channels=2, channels=[4, 8], blocks=[1, 1], norm="batch"))
    example = image(2, (8, 16, 16))
    with torch.no_grad():
        found = optimised(network, lambda net: net(example))
        for ours, theirs in zip(found(example), network(example), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert norms_of(network) > 0 and norms_of(found) == 0


def test_weights_lie_channels_last():
    found = optimised(ResNet(18).eval(), lambda net: net(image()))
    assert found.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not found.layer1[0].conv1.weight.is_contiguous()


class Twice(nn.Module):
    """A convolution whose output a norm reads, and that runs again without it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x)) + self.conv(2 * x)


class Both(Twice):
    """A convolution whose output a norm and something else read."""

    def forward(self, x):
        x = self.conv(x)
        return self.norm(x) + x


def test_a_convolution_that_runs_twice_keeps_its_norm():
    network, example = randomised(Twice()), image()
    found = optimised(network, lambda net: net(example))
    assert norms_of(found) == 1
    with torch.no_grad():
        torch.testing.assert_close(found(example), network(example))


def test_a_copy_that_differs_is_refused():
    with pytest.raises(RuntimeError, match="differs by up to"):
        optimised(randomised(Both()), lambda net: net(image()))


def test_norms_without_statistics_stay():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert norms_of(optimised(network, lambda net: net(image()))) == 1


@pytest.mark.parametrize("transposed", [False, True])
def test_folded_weights_by_hand(transposed):
    conv = (nn.ConvTranspose2d if transposed else nn.Conv2d)(1, 1, 1)
    norm = nn.BatchNorm2d(1, eps=0.0)
    with torch.no_grad():
        conv.weight.fill_(3), conv.bias.fill_(1), norm.weight.fill_(2), norm.bias.fill_(5)
        norm.running_mean.fill_(4), norm.running_var.fill_(16)
    found = optimised(nn.Sequential(conv, norm).eval(), lambda net: net(torch.ones(1, 1, 2, 2)))
    # (3 x + 1 - 4) / 4 * 2 + 5
    assert found[0].weight.item() == 1.5 and found[0].bias.item() == 3.5


def test_eight_bits_are_refused():
    network = nn.Sequential(nn.Linear(4, 4, bias=False))
    network[0].weight.data = network[0].weight.data.to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="float8_e4m3fn; optimise in float32"):
        optimised(network.requires_grad_(False), lambda net: None)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_folded_in_float32(kind):
    """Against the float32 copy of the same weights, rounded once; new biases get the type too."""
    network, example = randomised(ResNet(18, width=16)).to(kind), image()
    found = optimised(network, lambda net: net(example))
    assert {value.dtype for value in found.state_dict().values() if value.is_floating_point()} == {kind}
    assert {value.dtype for value in network.state_dict().values() if value.is_floating_point()} == {kind}
    exact = optimised(copy.deepcopy(network).float(), lambda net: net(example))
    for (name, value), other in zip(found.named_parameters(), exact.parameters(), strict=True):
        assert torch.equal(value, other.to(kind)), name
    assert norms_of(found) == 0 and found(example.to(kind))[0].dtype == kind


def test_parts_that_were_kept_in_float32_stay_so():
    network, example = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))), image()
    network[0].bfloat16()
    found = optimised(network, lambda net: net(example))
    assert found[0].weight.dtype == found[0].bias.dtype == torch.bfloat16
    assert found[1].weight.dtype == torch.float32


class TF32(TorchFunctionMode):
    """Rounds inputs of convolutions to 10 bits, as GPUs do unless the backend's flag forbids it."""

    @staticmethod
    def rounded(x):
        return ((x.detach().contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (F.conv2d, torch.conv2d) and torch.backends.cudnn.conv.fp32_precision == "tf32":
            args = (self.rounded(args[0]), self.rounded(args[1]), *args[2:])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "network", [lambda: FPN(ResNet(50, norm="frozen_batch", width=16)), lambda: ResNet(18)]
)
def test_a_gpu_that_rounds_convolutions_does_not_refuse(network):
    network, example = randomised(network()), image()
    with torch.no_grad():
        exact = network(example)
        with TF32():
            for one, other in zip(exact, network(example), strict=True):  # the mode does round
                assert (one - other).abs().max() > 1e-4 * one.abs().max()
            optimised(network, lambda net: net(example))
            with pytest.raises(RuntimeError, match="differs by up to"):
                optimised(randomised(Both()), lambda net: net(example))
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_precision_that_was_set_comes_back(precision):
    def seen(net):
        assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "ieee"
        return net(image())

    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        allowed = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        optimised(ResNet(18).eval(), seen)
        assert torch.get_float32_matmul_precision() == precision
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == allowed
    finally:
        torch.set_float32_matmul_precision(before)


def test_autocast_does_not_reach_the_comparison():
    with torch.autocast("cpu", torch.bfloat16):
        optimised(randomised(ResNet(50, width=16)), lambda net: net(image()))
        with pytest.raises(RuntimeError, match="differs by up to"):
            optimised(randomised(Both()), lambda net: net(image()))
