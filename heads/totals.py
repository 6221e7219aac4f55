"""Totals over the processes of a training step, so that they learn from their batches as from one.

DDP and FSDP take the mean of the gradients of all processes. Where a loss is divided by a number that depends
on the data, such as that of the labelled pixels, the mean of the processes' losses is not the loss of all
images together: each process would count alike, however few of its pixels have labels. So what a process
divides by is the number of all processes, divided by how many they are, as in detectron2 (``reduce_mean``)
and mmdetection (``avg_factor``). The device is not synchronised.

Outside of :func:`over_processes`, in evaluation and in a single process, nothing is exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor


class _Step:
    processes = 1  # of a class, not of the module: torch.compile guards on it


@contextmanager
def over_processes(processes: int) -> Iterator[None]:
    """Take totals over all processes of the default group, which must all compute the same losses inside.

    Args:
        processes: their number; 1 for no exchange.
    """
    before, _Step.processes = _Step.processes, processes
    try:
        yield
    finally:
        _Step.processes = before


def divisor(total: Tensor, least: float) -> Tensor:
    """Return what a process divides its sum by, for the mean of all processes to be the mean of all images.

    Args:
        total: what this process would divide by alone, of any shape.
        least: the smallest total that is divided by.

    Returns:
        The total of all processes, at least ``least``, divided by their number. No gradient passes.
    """
    if _Step.processes == 1:
        return total.clamp(min=least)
    return _added(total).clamp(min=least) / _Step.processes


def added(values: Tensor) -> Tensor:
    """Return the sum over the processes of ``values``, of any shape, with its gradient.

    All processes must compute the same loss from it. The gradient is that number times the process's own, so
    that the mean over the processes is the gradient of that loss. (nnU-Net does the same for Dice over
    batches.)
    """
    if _Step.processes == 1:
        return values
    total = _added(values)
    return total + (values - values.detach()) * _Step.processes if values.requires_grad else total


def _added(values: Tensor) -> Tensor:
    total = values.detach().clone()
    dist.all_reduce(total)
    return total
