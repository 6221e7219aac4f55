"""Small helpers of the data modules: names in one buffer, checks in threads, arguments, loaders.

Letters in shapes: I names, N bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

_CHECKING_THREADS = 8
_SHOW_PROGRESS_FROM = 500  # files
_CHUNK = 64


@dataclass(frozen=True)
class PackedNames:
    """A sequence of strings without a Python object per string, so that worker processes share it.

    Attributes:
        content: ``[N]`` uint8, all names in UTF-8, one after the other.
        offsets: ``[I + 1]`` int64 into ``content``.
    """

    content: Tensor
    offsets: Tensor

    @classmethod
    def pack(cls, names: Iterable[str]) -> PackedNames:
        """Copy the names into one buffer; bytes that are no UTF-8 (in old file names) survive."""
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        lengths = np.array([0] + [len(name) for name in encoded], dtype=np.int64)
        content = np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()  # torch wants writable memory
        return cls(torch.from_numpy(content), torch.from_numpy(lengths.cumsum()))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        start, end = self.offsets[index : index + 2].tolist()
        return self.content[start:end].numpy().tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        content, offsets = self.content.numpy().tobytes(), self.offsets.tolist()
        for start, end in zip(offsets[:-1], offsets[1:], strict=True):
            yield content[start:end].decode("utf-8", "surrogateescape")


def in_threads(function: Callable[[Any], Any], items: Sequence[Any], title: str) -> list[Any]:
    """Map in threads (file access and decoding let others run), with a progress bar for many items.

    Threads take many items at a time: handing one over costs more than a small file.
    """
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    results: list[Any] = []
    with (
        ThreadPoolExecutor(_CHECKING_THREADS) as pool,
        tqdm(total=len(items), desc=title, unit="image", disable=len(items) < _SHOW_PROGRESS_FROM) as bar,
    ):
        for found in pool.map(lambda chunk: [function(item) for item in chunk], chunks):
            results += found
            bar.update(len(found))
    return results


def in_threads_singly(
    function: Callable[[Any], Any], items: Sequence[Any], title: str, workers: int, show_from: int = 1
) -> list[Any]:
    """Map in threads, an item at a time: one may be a volume of a second's work.

    Interrupted, it ends with the items that have begun.

    Args:
        function: of one item.
        items: to map.
        title: of the progress bar.
        workers: threads; 0 counts as 1.
        show_from: how many items need a progress bar.
    """
    results: list[Any] = []
    with (
        ThreadPoolExecutor(max(1, workers)) as pool,
        tqdm(total=len(items), desc=title, unit="case", disable=len(items) < show_from) as bar,
    ):
        try:
            for found in pool.map(function, items):
                results.append(found)
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def require_positive(**values: int | None) -> None:
    """Raise ValueError naming the first of the given numbers that is below 1; None passes."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")


class PlainErrorLoader(DataLoader):
    """A DataLoader whose loader processes fail with the same message as the main process would.

    torch puts the text of a loader process's traceback in place of the message, and raises from its own code.
    """

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches.

        Raises:
            ValueError: (or a subclass) with the message that the data set or ``collate_fn`` gave.
        """
        try:
            yield from super().__iter__()
        except ValueError as error:
            start = f"\n{type(error).__module__}.{type(error).__qualname__}: "
            _, found, message = str(error).rpartition(start)
            if not found:
                raise
            raise type(error)(message.rstrip("\n")) from error


def number_of(count: int, noun: str) -> str:
    """Return ``1 image``, ``2 images`` and so on."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def without_paths(value: Any) -> Any:
    """Turn paths into strings, also inside lists: checkpoints that open with weights_only hold no Path."""
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def capped_workers(wanted: int, batches: int, devices: int = 1) -> int:
    """Return how many loader processes to start: no more than cores per device, nor than batches."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(wanted, max(1, cores // devices), batches)


def global_seed(seed: int | None) -> int:
    """Return the given seed, else the one given to ``seed_everything``, else 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
