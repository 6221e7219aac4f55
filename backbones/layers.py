"""Layers by number of spatial axes, and their initialisation, as the trunks use them.

Letters in shapes: B images, C channels, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils.checkpoint import checkpoint

from .constants import WithConstants
from .norms import FrozenBatchNorm, InstanceNorm2d, InstanceNorm3d

Norm = Literal["batch", "frozen_batch", "sync_batch", "group", "instance"]
Activation = Literal["relu", "leaky_relu", "elu", "gelu", "silu"]
Dimensions = Literal[2, 3]
Inflation = Literal["centre", "mean"]
Axes = tuple[int, ...]  # one number per spatial axis
GROUPS = 32


def check_choice(argument: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise a ValueError that names the argument and the allowed values, unless ``value`` is one of them."""
    if value not in allowed:
        raise ValueError(f"{argument} is {value!r}; allowed are {', '.join(map(repr, allowed))}")


def check_layers(ndim: int, norm: str, activation: str, in_channels: int) -> None:
    """Check what every trunk takes; raise a ValueError that names the argument."""
    check_choice("ndim", ndim, get_args(Dimensions))
    check_choice("norm", norm, get_args(Norm))
    check_choice("activation", activation, get_args(Activation))
    if in_channels < 1:
        raise ValueError(f"in_channels is {in_channels}; an image has at least one channel")


def per_axis(argument: str, value: int | Sequence[int], ndim: int) -> Axes:
    """Spell a number out for every spatial axis: 2 becomes (2, 2, 2) in three dimensions.

    Raises:
        ValueError: naming ``argument``, if a sequence has another length than ``ndim`` or holds less than 1.
    """
    axes = (value,) * ndim if isinstance(value, int) else tuple(value)
    if len(axes) != ndim or min(axes) < 1:
        raise ValueError(
            f"{argument} is {value!r}; give one number, or {ndim} (one per axis), at least 1 each"
        )
    return axes


def times(a: Axes, b: Axes) -> Axes:
    """Multiply two strides, axis by axis."""
    return tuple(x * y for x, y in zip(a, b, strict=True))


def check_strides(
    strides: Sequence[int | Sequence[int]] | None, places: tuple[str, ...], ndim: int
) -> list[Axes]:
    """Spell strides out per place and axis; None is 2 everywhere.

    Raises:
        ValueError: naming the place, if there are more or fewer entries than places or one is not 1 or 2.
    """
    given = [2] * len(places) if strides is None else list(strides)
    if len(given) != len(places):
        raise ValueError(f"strides has {len(given)} entries; give {len(places)}: {', '.join(places)}")
    steps = [per_axis(f"strides of the {name}", step, ndim) for name, step in zip(places, given, strict=True)]
    for name, step in zip(places, steps, strict=True):
        if max(step) > 2:
            raise ValueError(f"strides of the {name} is {step}; each must be 1 or 2")
    return steps


def check_kernels(
    argument: str, kernels: Sequence[int | Sequence[int]] | None, places: Sequence[str], ndim: int
) -> list[Axes]:
    """Spell kernel sizes out per place and axis; None is 3 everywhere.

    Args:
        argument: what to name in the error.
        kernels: one entry per place, a number or one per axis.
        places: what the entries are for.
        ndim: number of spatial axes.

    Raises:
        ValueError: if there are more or fewer entries than places, or one is not 1, 3 or 5.
    """
    given = [3] * len(places) if kernels is None else list(kernels)
    if len(given) != len(places):
        raise ValueError(f"{argument} has {len(given)} entries; give {len(places)}: {', '.join(places)}")
    sizes = [per_axis(f"{argument} of {name}", size, ndim) for name, size in zip(places, given, strict=True)]
    for name, size in zip(places, sizes, strict=True):
        if not set(size) <= {1, 3, 5}:
            raise ValueError(f"{argument} of {name} is {size}; each must be 1, 3 or 5")
    return sizes


class SqueezeExcitation(nn.Module):
    """Scales every channel by a gate computed from all channels' means (Hu et al. 2018).

    Names and rounding follow timm's ``SEModule``: two 1x1 convolutions ``fc1`` and ``fc2`` with biases, the
    inner width a sixteenth of the channels, rounded to a multiple of 8 and at least 8.

    Args:
        channels: number of channels.
        ndim: number of spatial axes.
        activation: between the two convolutions.
    """

    def __init__(self, channels: int, ndim: int, activation: Activation) -> None:
        super().__init__()
        inner = max(8, int(channels / 16 + 4) // 8 * 8)
        self.fc1 = make_conv(ndim, channels, inner, kernel=1, bias=True)
        self.act = make_activation(activation)
        self.fc2 = make_conv(ndim, inner, channels, kernel=1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, *S]`` to the same shape."""
        mean = x.mean(tuple(range(2, x.ndim)), keepdim=True)  # [B, C, 1, ...]
        return x * self.fc2(self.act(self.fc1(mean))).sigmoid()


class BlurPool(WithConstants):
    """Subsamples after a binomial low-pass filter, so that small shifts change little (Zhang 2019).

    Args:
        channels: number of channels.
        stride: per axis; the filter (1, 2, 1) / 4 applies to the axes whose stride is above 1.
    """

    kernel: Tensor

    def __init__(self, channels: int, stride: Axes) -> None:
        super().__init__()
        self.stride = stride
        self.set_constant("kernel", lambda: _binomial(stride).repeat(channels, 1, *(1,) * len(stride)))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, *S]`` to ``[B, C, *S / stride]``, sizes rounded up."""
        padding = [side for step in reversed(self.stride) for side in (int(step > 1),) * 2]
        filtered = [size for size, step in zip(x.shape[2:], self.stride, strict=True) if step > 1]
        mode = "reflect" if min(filtered) > 1 else "replicate"  # a single cell has nothing to reflect
        convolve = F.conv2d if x.ndim == 4 else F.conv3d
        padded = F.pad(x, padding, mode)
        return convolve(padded, self.kernel.to(x.dtype), stride=self.stride, groups=x.shape[1])


def _binomial(stride: Axes) -> Tensor:
    """Return the filter (1, 2, 1) / 4 over the axes whose stride is above 1, ``[k, k]`` or ``[k, k, k]``."""
    kernel = torch.ones(())
    for step in stride:
        kernel = kernel[..., None] * torch.tensor([0.25, 0.5, 0.25] if step > 1 else [1.0])
    return kernel


def make_conv(
    ndim: int,
    inputs: int,
    outputs: int,
    kernel: int | Axes = 3,
    stride: int | Axes = 1,
    dilation: int | Axes = 1,
    groups: int = 1,
    bias: bool = False,
) -> nn.Conv2d | nn.Conv3d:
    """Build a convolution with an odd kernel, padded so that stride 1 keeps the size."""
    spread = per_axis("dilation", dilation, ndim)
    sizes = per_axis("kernel", kernel, ndim)
    padding = tuple(size // 2 * step for size, step in zip(sizes, spread, strict=True))
    kind: Callable[..., nn.Conv2d | nn.Conv3d] = nn.Conv2d if ndim == 2 else nn.Conv3d
    return kind(inputs, outputs, sizes, stride, padding, dilation=spread, groups=groups, bias=bias)


def make_transposed_conv(inputs: int, outputs: int, factors: Axes) -> nn.ConvTranspose2d | nn.ConvTranspose3d:
    """Build a convolution that makes of each cell ``factors`` cells, one number per axis."""
    kind: Callable[..., Any] = nn.ConvTranspose2d if len(factors) == 2 else nn.ConvTranspose3d
    return kind(inputs, outputs, factors, factors)


def make_norm(norm: Norm, channels: int, ndim: int = 2) -> nn.Module:
    """Build the normalisation layer of that name.

    Args:
        norm: ``batch``, ``frozen_batch`` (statistics and affine map fixed), ``sync_batch`` (statistics over
            all processes), ``group`` (32 groups, or the largest power of two below that divides the
            channels) or ``instance`` (every channel by itself, with an affine map and no running
            statistics). The last two do not depend on the batch.
        channels: number of channels.
        ndim: number of spatial axes, 2 or 3.

    Raises:
        ValueError: for any other name.
    """
    check_choice("norm", norm, get_args(Norm))
    if norm == "group":
        return nn.GroupNorm(math.gcd(GROUPS, channels), channels)
    if norm == "instance":
        return (InstanceNorm2d if ndim == 2 else InstanceNorm3d)(channels, affine=True)
    batch = nn.BatchNorm2d if ndim == 2 else nn.BatchNorm3d
    kinds = {"batch": batch, "frozen_batch": FrozenBatchNorm, "sync_batch": nn.SyncBatchNorm}
    return kinds[norm](channels)


def make_activation(activation: Activation) -> nn.Module:
    """Build an activation: ``relu``, ``leaky_relu`` (slope 0.01), ``elu``, ``gelu`` or ``silu``.

    Raises:
        ValueError: for any other name.
    """
    check_choice("activation", activation, get_args(Activation))
    if activation == "gelu":
        return nn.GELU()
    kinds = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "silu": nn.SiLU}
    return kinds[activation](inplace=True)


@dataclass(frozen=True)
class LayerOptions:
    """What all layers of a trunk have in common: number of axes, kind of norm and of activation."""

    ndim: int = 2  # 2 or 3
    norm: Norm = "batch"
    activation: Activation = "relu"

    def make_conv(self, inputs: int, outputs: int, kernel: int | Axes, *more: Any) -> nn.Module:
        return make_conv(self.ndim, inputs, outputs, kernel, *more)

    def make_norm(self, channels: int) -> nn.Module:
        return make_norm(self.norm, channels, self.ndim)

    def make_activation(self) -> nn.Module:
        return make_activation(self.activation)


def make_max_pool(kernel: int, stride: Axes) -> nn.MaxPool2d | nn.MaxPool3d:
    """Build a max pool with an odd kernel that rounds sizes up."""
    kind = nn.MaxPool2d if len(stride) == 2 else nn.MaxPool3d
    return kind(kernel, stride, padding=kernel // 2)


class _CellPool:
    """Averages over cells; one that reaches over the border, or is larger than the whole map, ends there."""

    kernel_size: Any

    def forward(self, x: Tensor) -> Tensor:
        # Torch's own does so too, but refuses maps that are smaller than a cell along any axis.
        cell = tuple(min(step, size) for step, size in zip(self.kernel_size, x.shape[2:], strict=True))
        pool = F.avg_pool2d if len(cell) == 2 else F.avg_pool3d
        if len(cell) == 3 and x.device.type == "cpu" and x.itemsize < 4:  # for which torch has no kernel
            return pool(x.float(), cell, cell, ceil_mode=True).to(x.dtype)
        return pool(x, cell, cell, ceil_mode=True)


class CellPool2d(_CellPool, nn.AvgPool2d):
    """Average pool that rounds sizes up, of images."""


class CellPool3d(_CellPool, nn.AvgPool3d):
    """Average pool that rounds sizes up, of volumes."""


def make_avg_pool(stride: Axes, round_up: bool = True) -> nn.AvgPool2d | nn.AvgPool3d:
    """Build an average pool over cells of ``stride``; what lies outside the map does not count."""
    kinds: tuple[Any, Any] = (CellPool2d, CellPool3d) if round_up else (nn.AvgPool2d, nn.AvgPool3d)
    return kinds[len(stride) - 2](stride, stride, ceil_mode=round_up)


def run_checkpointed(module: nn.Module, *inputs: Tensor | None) -> Tensor:
    """Run a module keeping only its inputs for the backward pass, which runs it again (Chen et al. 2016).

    The second run draws the same random numbers and does not change running statistics: batch
    norms would otherwise count every batch twice.
    """
    if torch.compiler.is_compiling():  # a compiled graph holds each update of the statistics once
        return checkpoint(module, *inputs, use_reentrant=False)
    contexts = lambda: (contextlib.nullcontext(), _StatisticsKept(module))  # noqa: E731
    return checkpoint(module, *inputs, use_reentrant=False, context_fn=contexts)


class _StatisticsKept:
    """Gives batch norms copies of their statistics to update; their own come back untouched.

    It can be entered again: a graph that is kept goes backward, and so runs the module, more than once.
    """

    def __init__(self, module: nn.Module) -> None:
        self.norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
        self.kept: list[dict[str, Tensor | None]] = []

    def __enter__(self) -> None:
        self.kept = [dict(norm._buffers) for norm in self.norms]
        for norm, buffers in zip(self.norms, self.kept, strict=True):
            norm._buffers.update({name: None if x is None else x.clone() for name, x in buffers.items()})

    def __exit__(self, *error: object) -> None:
        for norm, buffers in zip(self.norms, self.kept, strict=True):
            norm._buffers.update(buffers)
        self.kept = []


def initialise_trunk(module: nn.Module) -> None:
    """Draw every convolution from the normal distribution of He et al. 2015 (fan out, ReLU); zero biases."""
    for layer in module.modules():
        if isinstance(layer, _ConvNd):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def initialise_neck(module: nn.Module) -> None:
    """Draw every convolution from the uniform distribution of Glorot and Bengio 2010; zero its bias."""
    for layer in module.modules():
        if isinstance(layer, _ConvNd):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(cast(Tensor, layer.bias))
