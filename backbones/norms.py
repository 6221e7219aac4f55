"""Norms that torch does not have, or has slower.

Letters in shapes: B images, C channels, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with fixed statistics and a fixed affine map, for any number of spatial axes.

    All four vectors are buffers of the usual names, so the state of an ordinary batch norm loads into it
    (its ``num_batches_tracked`` is dropped). The four are folded into one scale and one shift in float32,
    which are kept until one of the four changes; the activations keep their type, and none has to be kept
    for the backward pass. Follows ``FrozenBatchNorm2d`` of torchvision and of detectron2.

    Args:
        channels: number of channels.
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self._kept: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
        self._kept_of: list[tuple[Tensor, int]] = []  # the buffers, and how often they had been changed

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def train(self, mode: bool = True) -> Self:
        """Switch the mode, which changes nothing but that scale and shift are computed again.

        What is written through ``.data``, as callbacks that swap weights for a validation do, is not counted
        as a change of a buffer.
        """
        self._kept_of = []
        return super().train(mode)

    def scale_and_shift(self, kind: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return what the norm multiplies by and then adds, ``[C]`` each, in a floating-point type."""
        buffers = (self.weight, self.bias, self.running_mean, self.running_var)
        # Tensors of inference mode do not count their changes; compiled graphs hold the few operations.
        if torch.compiler.is_compiling() or any(buffer.is_inference() for buffer in buffers):
            scale, shift = self._fold()
            return scale.to(kind), shift.to(kind)
        known = len(self._kept_of) == len(buffers) and all(
            kept is buffer and version == buffer._version
            for (kept, version), buffer in zip(self._kept_of, buffers, strict=True)
        )
        if not known:
            self._kept = {}
            self._kept_of = [(buffer, buffer._version) for buffer in buffers]
        if kind not in self._kept:
            with torch.inference_mode(False), torch.no_grad():  # training may use what a validation has made
                scale, shift = (value.to(kind) for value in self._fold())
            if type(scale) is not type(self.weight):  # traced, by a mode that makes other tensors of these
                return scale, shift
            self._kept[kind] = scale, shift
        return self._kept[kind]

    def _fold(self) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(self.weight.dtype, torch.float32)
        scale = self.weight.to(exact) * (self.running_var.to(exact) + self.eps).rsqrt()
        return scale, torch.addcmul(self.bias.to(exact), self.running_mean.to(exact), scale, value=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, *S]`` to the same shape and type."""
        scale, shift = self.scale_and_shift(x.dtype)
        shape = (1, -1) + (1,) * (x.ndim - 2)  # [C] -> [1, C, 1, ...]
        return torch.addcmul(shift.reshape(shape), x, scale.reshape(shape))

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


class _InstanceNorm(nn.modules.instancenorm._InstanceNorm):
    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, *S]`` to the same shape and type."""
        plain = x.device.type == "cpu" and x.dtype == self.weight.dtype
        if not plain or x.shape[2:].numel() < 2:  # torch says what is wrong with a single value
            return super().forward(x)
        self._check_input_dim(x)
        return F.group_norm(x, self.num_features, self.weight, self.bias, self.eps)


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """``nn.InstanceNorm2d``, computed on a CPU as a group norm of one channel per group.

    Torch's own takes the detour over a batch norm there, which costs up to five times as much forward and
    twice as much in training, and copies maps to channels first.
    """


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """``nn.InstanceNorm3d``, computed on a CPU as :class:`InstanceNorm2d`."""


def conv_then_norm(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """Compute ``norm(conv(x))``, a frozen norm as a part of the convolution.

    Its scale multiplies the weight and its shift is the bias, so that there is no pass over the activations
    for it, forward or backward; gradients of the weight are the same. Modules that somebody watches by
    hooks are called one after the other.

    Args:
        conv: convolution.
        norm: any norm, or what has taken its place.
        x: ``[B, C, *S]``.
    """
    together = type(conv) in (nn.Conv2d, nn.Conv3d) and not _is_watched(conv) and not _is_watched(norm)
    if not together or not isinstance(norm, FrozenBatchNorm):
        return norm(conv(x))
    layer: Any = conv
    kind = layer.weight.dtype
    exact = torch.promote_types(kind, torch.float32)
    device = x.device.type
    if (
        exact == torch.float32
        # torch 2.11 cannot compile the question, whose answer only differs on devices without autocast.
        and (torch.compiler.is_compiling() or torch.amp.is_autocast_available(device))
        and torch.is_autocast_enabled(device)
    ):
        kind = torch.get_autocast_dtype(device)
    scale, shift = norm.scale_and_shift(exact)
    weight = layer.weight * scale.view(-1, *(1,) * (layer.weight.ndim - 1))  # [C, ...]
    if layer.bias is None:
        bias = norm.scale_and_shift(kind)[1]
    else:
        bias = torch.addcmul(shift, layer.bias, scale).to(kind)
    return layer._conv_forward(x, weight.to(kind), bias)


def _is_watched(module: Any) -> bool:
    own = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(own) or _has_any_global_hook()


class ConvNormSequential(nn.Sequential):
    """``nn.Sequential``, with convolutions and norms behind them computed by :func:`conv_then_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """Run the layers one after the other."""
        layers, index = list(self), 0
        while index < len(layers):
            follows = layers[index + 1] if index + 1 < len(layers) else None
            if isinstance(follows, FrozenBatchNorm):
                x = conv_then_norm(layers[index], follows, x)
                index += 2
            else:
                x = layers[index](x)
                index += 1
        return x
