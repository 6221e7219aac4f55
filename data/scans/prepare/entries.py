"""The folder of a prepared case in the cache: written whole, checked when opened, repaired in its place.

Letters in shapes: C channels, S spatial axes of a prepared scan, n their number, K classes, N voxels.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import platform
import re
import shutil
import time
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .prepare import Placement, Prepared

logger = logging.getLogger("trunkline")

UNFINISHED = ".writing-"  # begins the names of folders that are not entries yet, or no longer
_LOCK = ".repair.lock"
_LOCKED = 60  # seconds to wait at most for another process that repairs
_VERIFIED = ".verified"
_AGAIN = 7 * 24 * 3600  # seconds after which an entry is compared with its checksums again
_PART = 2**22  # bytes
_TRIES = 5
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_FOLDER = (errno.ENOTDIR, errno.EEXIST)


class CacheError(ValueError):
    """Prepared cases cannot be written or read."""


class DamagedEntry(ValueError):
    """An entry is there, but is not what was written."""


@dataclass
class Entry:
    """A prepared case with what is asked of it in training.

    Attributes:
        prepared: the scan and its labels.
        counts: ``[K + 1]`` int64 voxels of each label; last those that are ignored.
        locations: label to ``[N, n]`` int32 voxels.
    """

    prepared: Prepared
    counts: np.ndarray
    locations: dict[int, np.ndarray]


def read_entry(path: Path, classes: int, labelled: bool, whole: bool = True) -> Entry | None:
    """Open an entry; its arrays are memory-mapped.

    Args:
        path: folder of the entry.
        classes: K.
        labelled: whether the case has labels.
        whole: also check the places of the locations, for which they are read.

    Returns:
        The entry, or None if there is none.

    Raises:
        DamagedEntry: saying what is wrong with it.
    """
    if not os.path.lexists(path):
        return None
    try:
        return _opened(path, classes, labelled, whole)
    except FileNotFoundError as error:
        if not os.path.lexists(path):  # taken away meanwhile, by a process that repairs it
            return None
        raise DamagedEntry(f"{Path(error.filename or path).name} is missing") from error
    except (MemoryError, DamagedEntry):
        raise
    except Exception as error:  # numpy and json raise EOFError, TokenError, RecursionError and others
        reason = error.strerror if isinstance(error, OSError) and error.strerror else _first_line(error)
        raise DamagedEntry(reason) from error


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _opened(path: Path, classes: int, labelled: bool, whole: bool) -> Entry:
    meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    _require(isinstance(meta, dict), "meta.json holds no object")
    placement = Placement.from_json(meta["placement"])
    shape = placement.shape
    _require(
        all(isinstance(size, int) and size > 0 for size in shape)
        and len(shape) == len(placement.spacing) == len(placement.box) == len(placement.orientation)
        and len(shape) == len(placement.grid.shape)
        and all(math.isfinite(length) and length > 0 for length in placement.spacing)
        and sorted(axis for axis, _ in placement.orientation) == list(range(len(shape)))
        and all(flip in (1, -1) for _, flip in placement.orientation)
        and placement.coarse in (None, *range(len(shape))),
        "meta.json: placement is none",
    )
    image = _array(path / "image.npy", np.float32)
    _require(image.ndim == len(shape) + 1 and len(image) > 0 and image.shape[1:] == shape, "image.npy: shape")
    _require(meta["mask"] is labelled, "meta.json: mask")
    mask = _array(path / "mask.npy", np.uint8) if labelled else None
    _require(mask is None or mask.shape == shape, "mask.npy: shape")
    counts = np.array(meta["counts"])
    _require(
        counts.shape == (classes + 1,)
        and counts.dtype == np.int64
        and bool((counts >= 0).all())
        and int(counts.sum()) == (math.prod(shape) if labelled else 0),
        "meta.json: counts",
    )
    flat = _array(path / "locations.npy", np.int32)
    _require(flat.ndim == 2 and flat.shape[1] == len(shape), "locations.npy: shape")
    locations = {}
    for label, (start, stop) in meta["locations"].items():
        _require(
            isinstance(start, int) and isinstance(stop, int) and 0 <= start <= stop <= len(flat)
            and 0 < int(label) < classes,
            "meta.json: locations",
        )  # fmt: skip
        locations[int(label)] = flat[start:stop]
    if whole and len(flat):
        _require(bool((flat.min(0) >= 0).all() and (flat.max(0) < shape).all()), "locations.npy: voxels")
    return Entry(Prepared(image, mask, placement), counts, locations)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise DamagedEntry(f"{what}, not as it was written")


def _array(path: Path, dtype: Any) -> np.ndarray:
    if not path.is_file():  # a folder, or a FIFO that would be waited for
        raise (DamagedEntry(f"{path.name} is no file") if path.exists() else FileNotFoundError(2, "", path))
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    _require(isinstance(array, np.ndarray) and array.dtype == dtype, f"{path.name}: type")
    return array


def verify_entry(path: Path) -> None:
    """Compare the files of an entry with their checksums, for which they are read whole.

    What was compared less than a week ago, and has not been written to since, is not read again. Entries of
    versions that wrote no checksums pass.

    Raises:
        DamagedEntry: naming the file.
    """
    mark = path / _VERIFIED
    try:
        sums = json.loads((path / "meta.json").read_text(encoding="utf-8")).get("checksums", {})
        files = [path / name for name in sums]
        newest = max([file.stat().st_mtime for file in files], default=0.0)
        if (
            mark.exists()
            and newest <= (marked := mark.stat().st_mtime)
            and abs(time.time() - marked) < _AGAIN
        ):
            return
        for file in files:
            _require(_checksum(file) == sums[file.name], f"{file.name}: numbers")
    except OSError as error:
        raise DamagedEntry(f"{Path(error.filename or path).name}: {error.strerror}") from error
    try:
        mark.touch()
    except OSError as error:  # a cache that others have written may be read
        logger.debug("%s: %s", mark, error)


def _checksum(path: Path) -> int:
    """Return the CRC-32 of a file."""
    found = 0
    with open(path, "rb") as file:
        while part := file.read(_PART):
            found = zlib.crc32(part, found)
    return found


def write_entry(folder: Path, entry: Entry) -> None:
    """Write the files of an entry into a folder, and have them reach the disk."""
    prepared, placement = entry.prepared, entry.prepared.placement
    np.save(folder / "image.npy", prepared.image)
    if prepared.mask is not None:
        np.save(folder / "mask.npy", prepared.mask)
    ranges, start = {}, 0
    for label, found in entry.locations.items():
        ranges[str(label)] = (start, start + len(found))
        start += len(found)
    none = np.zeros((0, len(placement.shape)), dtype=np.int32)
    np.save(folder / "locations.npy", np.concatenate([none, *entry.locations.values()]))
    meta = {
        "placement": placement.to_json(),
        "mask": prepared.mask is not None,
        "counts": entry.counts.tolist(),
        "locations": ranges,
        "checksums": {file.name: _checksum(file) for file in sorted(folder.glob("*.npy"))},
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def store_entry(path: Path, entry: Entry, name: str) -> None:
    """Put an entry in its place in one step, unless another process was faster; a damaged one is replaced.

    Args:
        path: folder of the entry.
        entry: what to write.
        name: of the case, for the error.

    Raises:
        CacheError: if it cannot be written.
    """
    classes, labelled = len(entry.counts) - 1, entry.prepared.mask is not None
    unfinished = path.with_name(f"{UNFINISHED}{_writer()}{uuid.uuid4().hex}")
    try:
        unfinished.mkdir(parents=True)
        write_entry(unfinished, entry)
        try:
            os.rename(unfinished, path)
        except OSError:  # there is something already
            if not _is_good(path, classes, labelled):
                _replace(unfinished, path, classes, labelled)
    except OSError as error:
        raise CacheError(_why_not_written(path, name, error)) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _writer() -> str:
    host = re.sub(r"[^A-Za-z0-9.]", "", platform.node())[:64]
    return f"{host}-{os.getpid()}-"


def is_being_written(unfinished: Path) -> bool:
    """Return whether the process of this machine that began to write an entry is still there."""
    host, _, rest = unfinished.name.removeprefix(UNFINISHED).partition("-")
    pid = rest.partition("-")[0]
    if host != _writer().partition("-")[0] or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except OSError as error:
        return error.errno == errno.EPERM  # of another user
    return True


def discard_entry(path: Path, name: str) -> None:
    """Remove an entry that is damaged.

    Args:
        path: of the entry.
        name: of the case, for the error.

    Raises:
        CacheError: if it cannot be removed.
    """
    try:
        _take_away(path)
    except OSError as error:
        raise CacheError(_why_not_written(path, name, error)) from error


def _is_good(path: Path, classes: int, labelled: bool) -> bool:
    try:
        return read_entry(path, classes, labelled) is not None
    except DamagedEntry:
        return False


def _replace(unfinished: Path, path: Path, classes: int, labelled: bool) -> None:
    """Put an entry in the place of a damaged one, while other processes may do the same.

    One process at a time looks, takes the damaged entry away and puts the new one there. On file systems
    without locks two may; then what one of them puts there is taken away by the other, which puts the same
    there.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(_LOCK), timeout=_LOCKED)
    try:
        lock.acquire()
    except (Timeout, OSError, NotImplementedError) as error:
        logger.debug("%s: repaired without a lock (%s)", path, error)
    try:
        for attempt in range(1, _TRIES + 1):
            if _is_good(path, classes, labelled):  # another process has repaired it meanwhile
                return
            _take_away(path)
            try:
                os.rename(unfinished, path)
                return
            except OSError:
                if attempt == _TRIES:
                    raise
    finally:
        lock.release()


def _take_away(path: Path) -> None:
    """Remove whatever is there; in one step, so that nobody sees a part of it."""
    away = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
    try:
        os.rename(path, away)
    except FileNotFoundError:
        return
    if away.is_dir() and not away.is_symlink():
        shutil.rmtree(away, ignore_errors=True)
    else:
        away.unlink(missing_ok=True)


def _why_not_written(path: Path, name: str, error: OSError) -> str:
    if error.errno in _NO_PERMISSION:
        remedy = "get the permission to write there, or "
    elif error.errno in _NO_FOLDER:
        remedy = "remove the file that is in the place of a folder, or "
    else:
        remedy = "make room, or "
    return (
        f"{path.parent}: cannot write the prepared case {name} ({error}); {remedy}set data.cache_folder to "
        "another folder, or data.cache to memory or none"
    )
