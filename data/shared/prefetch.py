"""The next batch is copied to the GPU while a step computes.

A copy on the stream of the step would wait for all that the step has queued. Here it has a stream of its own,
and is started one batch ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import torch
from lightning_fabric.utilities import move_data_to_device

from .batches import tensors_of


def prefetched(batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """Yield batches on a CUDA device; each copy was started before the batch ahead of it was handed out.

    Streams wait for each other, the host for none of them. Copies need page-locked memory for that
    (``pin_memory`` of the loader).

    Args:
        batches: in main memory; of any type that Lightning moves.
        device: a CUDA device.

    Raises:
        Exception: what ``batches`` raises, after the batch ahead of it has been handed out.
    """
    coming: deque[tuple[Any, torch.cuda.Event]] = deque()  # it keeps no batch that was handed out
    side, source = _side_stream(device), iter(batches)
    error: Exception | None = None
    more = True
    while more:
        try:
            coming.append(_started(next(source), device, side))
        except StopIteration:
            more = False
        except Exception as problem:
            more, error = False, problem
        if len(coming) > more:
            yield _ready(*coming.popleft(), device)
    if error is not None:
        raise error


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of all copies to a device: memory is kept for each stream that ever had some."""
    return torch.cuda.Stream(device)


def _started(batch: Any, device: torch.device, side: torch.cuda.Stream) -> tuple[Any, torch.cuda.Event]:
    """Queue the copy of a batch; the event marks its end."""
    with torch.cuda.stream(side):
        return move_data_to_device(batch, device), side.record_event()


def _ready(batch: Any, copied: torch.cuda.Event, device: torch.device) -> Any:
    """Let the stream of the step wait for the copy, and memory be used again only after that stream."""
    current = torch.cuda.current_stream(device)
    current.wait_event(copied)
    for tensor in tensors_of(batch):
        if tensor.is_cuda:  # ids and sizes stay in main memory, too
            tensor.record_stream(current)
    return batch
