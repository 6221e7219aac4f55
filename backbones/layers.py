"""Convolutions, normalisation layers and their initialisation, as the trunks use them.

Letters in shapes: B images, C channels, S spatial axes.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

Norm = Literal["batch", "frozen_batch", "sync_batch", "group"]
GROUPS = 32


def check_choice(argument: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise a ValueError that names the argument and the allowed values, unless ``value`` is one of them."""
    if value not in allowed:
        raise ValueError(f"{argument} is {value!r}; allowed are {', '.join(map(repr, allowed))}")


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with fixed statistics and a fixed affine map, for any number of spatial axes.

    All four vectors are buffers of the usual names, so the state of an ordinary batch norm loads into it
    (its ``num_batches_tracked`` is dropped). The four are folded into one scale and one shift in float32;
    the activations keep their type, and none has to be kept for the backward pass. Follows
    ``FrozenBatchNorm2d`` of torchvision and of detectron2.

    Args:
        channels: number of channels.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, *S]`` to the same shape and type."""
        scale = self.weight.float() * (self.running_var.float() + self.eps).rsqrt()
        shift = self.bias.float() - self.running_mean.float() * scale
        shape = (1, -1) + (1,) * (x.ndim - 2)  # [C] -> [1, C, 1, ...]
        return torch.addcmul(shift.to(x.dtype).reshape(shape), x, scale.to(x.dtype).reshape(shape))

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """Build the normalisation layer of that name.

    Args:
        norm: ``batch``, ``frozen_batch`` (statistics and affine map fixed), ``sync_batch`` (statistics over
            all processes) or ``group`` (32 groups; independent of the batch size).
        channels: number of channels; a multiple of 32 for ``group``.

    Raises:
        ValueError: for any other name.
    """
    check_choice("norm", norm, get_args(Norm))
    if norm == "group":
        return nn.GroupNorm(GROUPS, channels)
    kinds = {"batch": nn.BatchNorm2d, "frozen_batch": FrozenBatchNorm, "sync_batch": nn.SyncBatchNorm}
    return kinds[norm](channels)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """1x1 convolution without bias."""
    return nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)


def conv3x3(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """3x3 convolution without bias, padded so that stride 1 keeps the size."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)


def initialise_trunk(module: nn.Module) -> None:
    """Draw every convolution from the normal distribution of He et al. 2015 (fan out, ReLU)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def initialise_neck(module: nn.Module) -> None:
    """Draw every convolution from the uniform distribution of Glorot and Bengio 2010; zero its bias."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
