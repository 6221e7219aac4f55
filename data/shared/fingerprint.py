"""A short description of the data of a run, by which a resumed run knows whether they are the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from .common import PackedNames, in_threads
from .shards import member_size, place_in_shards

MOST_FILES = 20_000  # whose sizes are asked for: of larger data, some, spread evenly
# Of an index: where it lies, what has been left out of it, and what options say.
_LEFT_OUT = ("folder", "table", "dropped", "source", "overlaps", "background", "verified")


@runtime_checkable
class Fingerprinted(Protocol):
    """An index of images that describes itself."""

    def fingerprint(self) -> dict[str, Any]:
        """Return plain values by what they describe; equal for equal data, wherever they lie."""


@runtime_checkable
class OfFiles(Protocol):
    """An index of images that are files."""

    def __len__(self) -> int: ...

    def path(self, position: int, /) -> Any:
        """Return where an image lies."""


def fingerprint_of(index: Any) -> dict[str, Any]:
    """Return plain values that are equal for equal images, labels and names, wherever they lie.

    They are numbers and digests: of what the index holds, and of the sizes of its files. Pixels are not read.

    Args:
        index: of a split; one that has ``fingerprint`` describes itself.
    """
    if isinstance(index, Fingerprinted):
        return index.fingerprint()
    held = vars(index) if isinstance(index, OfFiles) else {"data": index}
    found: dict[str, Any] = {
        name: digest(*_parts(value)) for name, value in held.items() if _counts(name) and value is not None
    }
    if isinstance(index, OfFiles):
        found["images"] = len(index)
        if found.get("members") is None:  # which have the sizes of files in an archive
            found["files"] = sizes_on_disk([str(index.path(position)) for position in range(len(index))])
    return found


def _counts(name: str) -> bool:
    return not name.startswith("_") and name not in _LEFT_OUT


def _parts(value: Any) -> Iterator[Any]:
    """Yield the tensors, arrays and texts in a value, one after the other."""
    if isinstance(value, Tensor | np.ndarray):
        yield value
    elif isinstance(value, PackedNames):
        yield [os.path.basename(name) if os.path.isabs(name) else name for name in value]
    elif isinstance(value, str | bytes | int | float | None):
        yield [value]
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield [key]
            yield from _parts(value[key])
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _parts(item)
    elif isinstance(value, os.PathLike):
        yield [os.path.basename(value)]
    else:
        try:
            inside = vars(value)
        except TypeError:  # such as a function
            return
        yield from _parts({name: each for name, each in inside.items() if _counts(name)})


def digest(*parts: Tensor | np.ndarray | Iterable[Any] | None) -> str:
    """Return a digest of tensors, or of values as text."""
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            part = part.numpy()
        if isinstance(part, np.ndarray):
            made.update(f"{part.shape} {part.dtype}".encode())
            made.update(np.ascontiguousarray(part).tobytes())
        elif part is not None:
            for value in part:
                made.update(f"{value}\0".encode("utf-8", "surrogateescape"))
        made.update(b"\1")
    return made.hexdigest()


def sizes_on_disk(paths: Sequence[str]) -> str:
    """Return a digest of the sizes of files in bytes; of more than 20,000, of some that are spread evenly.

    Files that are not there count as such; what is at an address (``s3://``) is not asked for.
    """
    count = min(len(paths), MOST_FILES)
    chosen = np.unique(np.linspace(0, max(0, len(paths) - 1), count).round().astype(int)).tolist()
    return digest(in_threads(lambda n: _size(paths[n]), chosen, "looking at file sizes"))


def _size(path: str) -> int:
    if (place := place_in_shards(path)) is not None:
        return member_size(place)  # known without asking, and equal to that of the file
    if "://" in path:
        return -2
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say what differs between two fingerprints of the splits of a dataset.

    What only one of them describes is no difference: another version may describe more.

    Args:
        before: by split, what :func:`fingerprint_of` returned.
        now: the same.
    """
    found = []
    for split in before:
        old, new = before[split], now.get(split, {})
        changed = {what for what in old if what in new and old[what] != new[what]}
        counts = [what for what in old if what in changed and isinstance(old[what], int)]
        numbers = [f"{old[what]} {what} before, {new[what]} now" for what in counts]
        others = [what for what in old if what in changed and what not in counts]
        told = [*numbers, *([f"changed: {', '.join(others)}"] if others else [])]
        found += [f"{split}: {'; '.join(told)}"] if told else []
    return found
