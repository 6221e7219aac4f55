"""Small helpers of the data modules: names in one buffer, checks in threads, arguments, texts of errors.

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
from tqdm import tqdm

from .terminal import one_line

_CHECKING_THREADS = 8
_SHOW_PROGRESS_FROM = 500  # files
_CHUNK = 64
LISTED = 20  # problems that a message names


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


def number_of(count: int, noun: str) -> str:
    """Return ``1 image``, ``2 images`` and so on."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def without_paths(value: Any) -> Any:
    """Turn paths into strings, also inside lists: checkpoints that open with weights_only hold no Path."""
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def listing(problems: Sequence[str], total: int | None = None) -> str:
    """Format up to 20 problems, one a line, and say how many more there are."""
    total = len(problems) if total is None else total
    lines = [f"  {one_line(problem)}" for problem in problems[:LISTED]]
    if total > len(lines):
        lines.append(f"  ... and {total - len(lines)} more")
    return "\n".join(lines)
