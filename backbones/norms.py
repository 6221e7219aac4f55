"""Norms that torch does not have, or has slower.

Letters in shapes: B images, C channels, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


class InstanceNorm3d(nn.InstanceNorm3d):
    """``nn.InstanceNorm3d``, computed on a CPU as a group norm of one channel per group.

    Torch's own takes the detour over a batch norm there, which costs up to five times as much forward and
    twice as much in training.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, *S]`` to the same shape and type."""
        plain = x.device.type == "cpu" and x.dtype == self.weight.dtype
        if not plain or x.shape[2:].numel() < 2:  # torch says what is wrong with a single value
            return super().forward(x)
        self._check_input_dim(x)
        return F.group_norm(x, self.num_features, self.weight, self.bias, self.eps)
