"""Exchange of small Python objects between processes."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def gather_objects(item: T) -> list[T]:
    """Return every rank's ``item`` in rank order, on every rank; just ``[item]`` in a single process."""
    if not (dist.is_available() and dist.is_initialized()):
        return [item]
    gathered: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, item)
    return gathered
