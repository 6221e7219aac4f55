"""Exchange of small Python objects between processes."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def process_count() -> int:
    """Return the number of processes that share the work."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_objects(item: T) -> list[T]:
    """Return every rank's ``item`` in rank order, on every rank; just ``[item]`` in a single process."""
    if process_count() == 1:
        return [item]
    gathered: list[Any] = [None] * process_count()
    dist.all_gather_object(gathered, item)
    return gathered
