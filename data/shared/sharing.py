"""Annotations that the processes of a run on one machine hold once, in the memory of all of them."""

from __future__ import annotations

import io
import logging
import mmap
import os
import pickle
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

logger = logging.getLogger("trunkline")

T = TypeVar("T")

LEAST = 4096  # bytes of a tensor; smaller ones stay with each process
ALIGNED = 64  # bytes


def shared_on_machine(index: T, trainer: Any) -> T:
    """Return an index whose large tensors lie in memory that all processes of a machine share.

    Every process has read the index. The first one of each machine writes its tensors into a temporary file,
    which all of them map, and which is removed at once. Pages that a process writes to become its own.

    Args:
        index: of plain objects, tensors and arrays, the same in all processes.
        trainer: Lightning's; without one, and in a single process, the index is returned as it is. Else all
            processes must call this.

    Returns:
        An equal index; the given one where it cannot be shared, which a warning says.
    """
    if trainer is None or trainer.world_size == 1 or not (dist.is_available() and dist.is_initialized()):
        return index
    content, tensors = _apart(index)
    kinds = [(str(tensor.dtype), tuple(tensor.shape)) for tensor in tensors]
    path, problem = None, ""
    if trainer.local_rank == 0:
        try:
            path = _written(tensors)
        except OSError as error:
            problem = str(error)
    offers = _gathered((trainer.node_rank, path, kinds, problem))
    mine = next((offer for offer in offers if offer[0] == trainer.node_rank and offer[1]), None)
    shared: T | None = None
    if mine is not None and mine[2] == kinds:
        shared = _joined(content, _mapped(mine[1], tensors))
    elif trainer.local_rank == 0 or mine is not None:
        why = problem or "the processes have read different annotations"
        logger.warning("annotations take memory in each process, as they cannot be shared: %s", why)
    _gathered(None)  # all have mapped it
    if path is not None:
        os.unlink(path)
    return index if shared is None else shared


def _gathered(item: Any) -> list[Any]:
    items: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(items, item)
    return items


def _large(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.device.type == "cpu"
        and value.is_contiguous()
        and value.numel() * value.element_size() >= LEAST
    )


def _apart(index: Any) -> tuple[bytes, list[Tensor]]:
    """Return an index without its large tensors, and these."""
    tensors: list[Tensor] = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> int | None:
            if not _large(value):
                return None
            tensors.append(value)
            return len(tensors) - 1

    file = io.BytesIO()
    Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(index)
    return file.getvalue(), tensors


def _joined(content: bytes, tensors: Sequence[Tensor]) -> Any:
    """Put an index together again; the content is that of this process."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, number: Any) -> Tensor:
            return tensors[number]

    return Unpickler(io.BytesIO(content)).load()


def _starts(tensors: Sequence[Tensor]) -> list[int]:
    """Return where each tensor begins in the file, and the size of the file."""
    starts = [0]
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        starts.append(starts[-1] + -(-size // ALIGNED) * ALIGNED)
    return starts


def _written(tensors: Sequence[Tensor]) -> str:
    """Write tensors into a new file that only the user can read; return its path.

    Raises:
        OSError: if there is no room.
    """
    handle, path = tempfile.mkstemp(prefix="trunkline-annotations-")
    try:
        with open(handle, "wb") as file:
            for start, tensor in zip(_starts(tensors), tensors, strict=False):
                file.seek(start)
                file.write(_bytes(tensor))
            file.truncate(_starts(tensors)[-1])
    except OSError:
        Path(path).unlink(missing_ok=True)
        raise
    return path


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(cast(Any, tensor.detach().flatten().view(torch.uint8).numpy()))


def _mapped(path: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors equal to the given ones in the mapped file."""
    starts = _starts(tensors)
    if not starts[-1]:
        return list(tensors)
    with open(path, "rb") as file:
        # A copy of what is written to, not of what is read: torch wants memory that it may write to.
        memory = mmap.mmap(file.fileno(), starts[-1], access=mmap.ACCESS_COPY)
    found = []
    for start, tensor in zip(starts, tensors, strict=False):
        size = tensor.numel() * tensor.element_size()
        raw = torch.from_numpy(np.frombuffer(cast(Any, memory), dtype=np.uint8, count=size, offset=start))
        found.append(raw.view(tensor.dtype).view(tensor.shape))
    return found
