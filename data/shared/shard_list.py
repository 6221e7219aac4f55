"""The list of all members of a set of shards: a few arrays, kept in files that processes share.

Letters in shapes: M members, N bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .common import listing, number_of
from .objects import Info, ObjectError, StorageError
from .shard_members import Members

logger = logging.getLogger("trunkline")

VERSION = 1
_ARRAYS = {
    "names": np.uint8, "starts": np.int64, "shards": np.int32, "offsets": np.int64, "sizes": np.int64,
    "checksums": np.uint32,
}  # fmt: skip
_ABOUT = "about.json"


class ShardList:
    """Where each member lies; names are sorted, so that one is found in a few steps.

    Args:
        shards: paths or addresses.
        arrays: ``names`` ``[N]`` uint8, all in UTF-8, sorted, one after the other; ``starts`` ``[M + 1]``
            int64 into it; and ``[M]`` each: ``shards`` int32, ``offsets`` and ``sizes`` int64 in bytes,
            ``checksums`` uint32 of the headers.
    """

    def __init__(self, shards: Sequence[str], arrays: Mapping[str, np.ndarray]):
        self.shards = tuple(shards)
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays["offsets"])

    def name(self, position: int) -> str:
        """Return the name of a member."""
        return self._key(position).decode("utf-8", "surrogateescape")

    def position(self, name: str) -> int | None:
        """Return the position of a member, or None."""
        key = name.encode("utf-8", "surrogateescape")
        position = bisect_left(range(len(self)), key, key=self._key)
        return position if position < len(self) and self._key(position) == key else None

    def where(self, position: int) -> tuple[str, int, int]:
        """Return the shard of a member, the position of its first byte there, and its size in bytes."""
        shard, offset, size = (int(self.arrays[name][position]) for name in ("shards", "offsets", "sizes"))
        return self.shards[shard], offset, size

    def checksum(self, position: int) -> int:
        """Return the CRC-32 of the header of a member."""
        return int(self.arrays["checksums"][position])

    def below(self, folder: str) -> Iterator[str]:
        """Yield the names of the members in a folder and those inside it, relative to it, sorted."""
        start = f"{folder}/".encode("utf-8", "surrogateescape") if folder else b""
        for position in range(bisect_left(range(len(self)), start, key=self._key), len(self)):
            if not (key := self._key(position)).startswith(start):
                return
            yield key[len(start) :].decode("utf-8", "surrogateescape")

    def _key(self, position: int) -> bytes:
        start, end = self.arrays["starts"][position : position + 2].tolist()
        return self.arrays["names"][start:end].tobytes()


def kept_list(what: str, found: Mapping[str, Info], look: Callable[[], Sequence[Members]]) -> ShardList:
    """Return the list of some shards from the cache, or make it and keep it there.

    One process of a machine makes it, others wait. It is kept by the names of the shards, their sizes and
    tags, so that changed shards are looked through again; a list that is damaged, or of another version of
    this package, is made anew.

    Args:
        what: the shards as the user wrote them, for messages.
        found: what is known of each shard.
        look: looks through the shards, in their order.

    Raises:
        ObjectError: if two members have the same name.
        StorageError: if the list cannot be written.
    """
    key = hashlib.sha256(json.dumps([VERSION, sorted(found.items())]).encode()).hexdigest()[:32]
    folder = cache_folder() / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.with_suffix(".lock")):
            if (known := _read(folder, found)) is not None:
                return known
            logger.info("looking through %s (%s), once", what, number_of(len(found), "shard"))
            arrays = _joined(what, list(found), look())
            if not len(arrays["offsets"]):
                raise ObjectError(f"{what}: hold no files; make them again")
            _write(folder, arrays)
            return _read(folder, found) or ShardList(list(found), arrays)
    except (ObjectError, StorageError):
        raise
    except OSError as error:
        raise StorageError(
            f"the list of the members of {what} cannot be kept in {folder.parent} ({error}); make room "
            "there, or set XDG_CACHE_HOME to a folder that can be written to"
        ) from error


def cache_folder() -> Path:
    """Return where lists are kept: ``$XDG_CACHE_HOME/trunkline/shards``, or below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trunkline" / "shards"


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process of this machine does the same; the system ends the claim of a dead one."""
    with open(path, "ab") as lock:
        with contextlib.suppress(OSError):  # some network disks know no locks: then two do the same work
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _joined(what: str, shards: Sequence[str], found: Sequence[Members]) -> dict[str, np.ndarray]:
    names = [name for members in found for name in members.names]
    order = sorted(range(len(names)), key=names.__getitem__)
    shard = np.repeat(np.arange(len(found), dtype=np.int32), [len(members.names) for members in found])
    twice = [n for n, after in zip(order, order[1:], strict=False) if names[n] == names[after]]
    if twice:
        texts: list[str] = []
        for n in twice:
            both = (
                [shards[shard[m]] for m in range(len(names)) if names[m] == names[n]]
                if len(texts) < 20
                else []
            )
            texts.append(f"{names[n].decode('utf-8', 'replace')}: in {' and '.join(both)}")
        raise ObjectError(
            f"{what}: {number_of(len(twice), 'name')} of members there more than once:\n{listing(texts)}\n"
            "an image belongs to one shard, once; make the shards again"
        )
    lengths = np.array([0] + [len(names[n]) for n in order], dtype=np.int64)

    def column(values: str, kind: Any) -> np.ndarray:
        parts = [np.array(members._asdict()[values], dtype=kind) for members in found]
        return np.concatenate([*parts, np.empty(0, kind)])[order]

    return {
        "names": np.frombuffer(b"".join(names[n] for n in order), dtype=np.uint8),
        "starts": lengths.cumsum(),
        "shards": shard[order],
        "offsets": column("offsets", np.int64),
        "sizes": column("sizes", np.int64),
        "checksums": column("checksums", np.uint32),
    }


def _write(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays into a new folder, and give it its name when all is on the disk."""
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        for name, values in arrays.items():
            with open(part / f"{name}.npy", "xb") as file:
                np.save(file, values, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        about = {
            "version": VERSION,
            "checksums": {name: _checksum(values) for name, values in arrays.items()},
        }
        (part / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # damaged, or it would have been used
        with contextlib.suppress(FileExistsError, OSError):
            os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _read(folder: Path, found: Mapping[str, Info]) -> ShardList | None:
    """Open a list that was kept; None if there is none, or it is damaged."""
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS
        }
        count = len(arrays["offsets"])
        sound = about["version"] == VERSION and all(
            values.dtype == _ARRAYS[name]
            and values.ndim == 1
            and _checksum(values) == about["checksums"][name]
            and (name == "names" or len(values) == count + (name == "starts"))
            for name, values in arrays.items()
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return ShardList(list(found), arrays) if sound else None


def _checksum(values: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(values).view(np.uint8).data) if len(values) else 0
