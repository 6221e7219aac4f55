"""Faster kernels for 3-D networks that run on a CPU.

Torch hands a 3-D convolution of a single window to oneDNN only where its input is large; the many small ones
deep in a U-Net take a slow path through an unfolded copy. And oneDNN wants channels last: in torch's usual
order every input and output is copied from the one into the other.

Letters in shapes: B windows, C channels, S spatial axes (D, H, W).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

LAYOUT = torch.channels_last_3d


@contextmanager
def faster_kernels(windows: Tensor) -> Iterator[Tensor]:
    """Let 3-D layers take faster kernels on windows ``[B, C, D, H, W]`` in a CPU's memory, inside the block.

    Only without gradients. The results differ by rounding: in channels last torch's instance norms add up
    less carefully, which leaves relative errors of 1e-4 (64^3 voxels) to 1e-3 (128^3), as TF32 does on a GPU.
    All else (other devices and types, 2D images, autocast) runs as before.

    Args:
        windows: for a network.

    Yields:
        The windows in the memory order to give to the network.
    """
    if not torch.backends.mkldnn.is_available() or not _fits(windows):
        yield windows
        return
    # Not contiguous(): it leaves a single channel as it is, which counts as the usual order.
    with HostKernels():
        yield torch.empty_like(windows, memory_format=LAYOUT).copy_(windows)


class HostKernels(TorchFunctionMode):
    """While entered, replaces layers of float32 volumes in a CPU's memory by ones that suit oneDNN."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _KERNELS.get(function, function)(*args, **(kwargs or {}))


def _conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    if not _fits(input) or not _fits(weight) or isinstance(padding, str):
        return F.conv3d(input, weight, bias, stride, padding, dilation, groups)
    steps = [[step] * 3 if isinstance(step, int) else step for step in (padding, stride, dilation)]
    convolve: Any = torch.mkldnn_convolution
    return convolve(input, weight, bias, *steps, groups)


def _fits(x: Tensor) -> bool:
    plain = x.device.type == "cpu" and x.ndim == 5 and x.dtype == torch.float32
    return plain and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def _avg_pool3d(x: Tensor, cell: Any, *more: Any, **options: Any) -> Tensor:
    """Average cells of 1 or 2 along each axis by adding planes; torch's own is slow in channels last."""
    plain = set(options) <= {"ceil_mode"} and more == (cell,) and isinstance(cell, tuple)
    if not plain or not _fits(x) or not set(cell) <= {1, 2} or any(map(operator.mod, x.shape[2:], cell)):
        return F.avg_pool3d(x, cell, *more, **options)
    for axis, size in enumerate(cell, 2):
        if size == 2:
            first, second = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
            x = first + second
    return x / math.prod(cell)


def _conv_transpose3d(x: Tensor, *more: Any, **options: Any) -> Tensor:
    """Keep channels last, which torch leaves where the map is small; the next layers would follow."""
    found = F.conv_transpose3d(x, *more, **options)
    return found.contiguous(memory_format=LAYOUT) if _fits(x) else found


_KERNELS = {F.conv3d: _conv3d, F.conv_transpose3d: _conv_transpose3d, F.avg_pool3d: _avg_pool3d}
