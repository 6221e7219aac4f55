"""Results of a device, copied to main memory together."""

from __future__ import annotations

import torch
from torch import Tensor


def to_main_memory(*tensors: Tensor) -> list[Tensor]:
    """Copy tensors to main memory, and synchronise the device once for all of them.

    Args:
        *tensors: of any shapes and types, all on one device.

    Returns:
        The same values on the CPU, in the same order; tensors that are there come as they are.
    """
    if not tensors or not tensors[0].is_cuda:
        return [tensor.cpu() for tensor in tensors]
    # Copies to memory that is not page-locked would synchronise one by one.
    copies = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor.detach(), non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    copied.synchronize()
    return copies
