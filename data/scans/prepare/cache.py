"""Prepared cases, kept on disk or in memory, so that files are decoded and resampled once.

Letters in shapes: C channels, S spatial axes of a prepared scan, n their number, K classes, N voxels.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from ....constants import IGNORE_INDEX
from ...shared.common import in_threads_singly, number_of
from ...shared.labels.classes import LabelClass
from ..cases.types import Case, CasesError
from .prepare import Placement, Preparation, Prepared, prepare_case
from .resample import count_labels, label_boxes

logger = logging.getLogger(__name__)

_VERSION = 1  # of what entries hold: another number leaves older ones unused
_MOST_LOCATIONS = 10_000  # of each label
_MOST_REPORTED = 20
_REMAINS_AFTER = 24 * 3600  # seconds after which an unfinished entry belongs to a process that ended
_UNFINISHED = ".writing-"


class CacheError(ValueError):
    """Prepared cases cannot be written or read."""


@dataclass
class _Entry:
    """A prepared case with what is asked of it in training.

    Attributes:
        prepared: the scan and its labels.
        counts: ``[K + 1]`` int64 voxels of each label; last those that are ignored.
        locations: label to ``[N, n]`` int32 voxels.
    """

    prepared: Prepared
    counts: np.ndarray
    locations: dict[int, np.ndarray]


class PreparedCases:
    """A sequence of prepared cases.

    On disk each case is a folder, named after the case and what decides on its content: paths, sizes and
    times of its files, the preparation, the ids of the classes and the ignored id. If any of them changes,
    the case is prepared again. Entries are written next to their place and then renamed, so they are complete
    or not there at all, and processes that prepare the same case at once do not harm each other. Old entries
    are not deleted; the whole folder may be, at any time when no training runs.

    Args:
        cases: the cases; those without labels have no mask.
        how: the preparation.
        classes: class k has label k.
        ignore_id: the id of voxels to ignore in files of labels.
        cache: ``disk`` writes prepared cases to ``folder``, from where they are memory-mapped; ``memory``
            keeps all of them in RAM; ``none`` prepares a case each time it is asked for.
        folder: for ``disk``; None takes ``trunkline/scans`` in the user's folder for caches
            (``$XDG_CACHE_HOME`` or ``~/.cache``). Different datasets may share it.

    Raises:
        ValueError: if ``cache`` is none of these, or ``folder`` is given without ``disk``.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        how: Preparation,
        classes: Sequence[LabelClass],
        ignore_id: int,
        cache: Literal["memory", "disk", "none"] = "disk",
        folder: str | PathLike[str] | None = None,
    ) -> None:
        if cache not in ("memory", "disk", "none"):
            raise ValueError(f"data.cache is {cache!r}; it is disk, memory or none")
        if folder is not None and cache != "disk":
            raise ValueError(f"data.cache_folder has no effect with data.cache {cache}; leave it out")
        self.cases, self.how = tuple(cases), how
        self.classes, self.ignore_id = tuple(classes), ignore_id
        self.cache = cache
        self.folder = Path(folder) if folder is not None else default_folder()
        self._kept: dict[int, _Entry] = {}  # with cache "memory" all, with "none" the last one
        self._paths: dict[int, Path] = {}
        self._counts: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Prepared:
        """Return a prepared case; with ``disk`` its arrays are memory-mapped and cannot be written.

        Raises:
            ValueError: as ``prepare_case``, if the case has not been prepared before.
            CacheError: if the cache cannot be written.
        """
        return self._entry(index).prepared

    def locations(self, index: int) -> dict[int, np.ndarray]:
        """Return voxels of each label that occurs, except the background and ignored ones.

        Returns:
            Label to ``[N, n]`` int32 indices of voxels of the prepared scan: all, or 10,000 drawn with a
            seed that is the same each time. Empty for a case without labels.
        """
        return self._entry(index).locations

    def counts(self) -> np.ndarray:
        """Return ``[len, K + 1]`` int64 voxels of each label in each case, and last of ignored ones.

        Cases that have not been prepared are prepared for it.
        """
        missing = [index for index in range(len(self)) if index not in self._counts]
        for index in tqdm(missing, "counting labels", unit="case", disable=self.cache != "none"):
            self._counts[index] = self._entry(index).counts
        if not len(self):
            return np.zeros((0, len(self.classes) + 1), dtype=np.int64)
        return np.stack([self._counts[index] for index in range(len(self))])

    def build(self, workers: int = 0) -> None:
        """Prepare what is not there yet, with a progress bar. With ``none`` there is nothing to do.

        Args:
            workers: cases prepared at a time, in threads; 0 is 1. Each holds a few copies of its scan.

        Raises:
            CasesError: if cases cannot be prepared, naming up to 20 of them; the others have been.
            CacheError: if the cache cannot be written.
        """
        if self.cache == "none":
            return
        if self.cache == "disk":
            self._remove_remains()
        missing = [index for index in range(len(self)) if not self._is_there(index)]
        outcomes = in_threads_singly(self._try, missing, "preparing scans", workers)
        problems = [problem for problem in outcomes if problem is not None]
        if problems:
            more = len(problems) - _MOST_REPORTED
            shown = problems[:_MOST_REPORTED] + ([f"and {more} more"] if more > 0 else [])
            raise CasesError(
                f"{number_of(len(problems), 'case')} cannot be prepared; repair or leave out:\n  "
                + "\n  ".join(shown)
            )

    def _try(self, index: int) -> str | None:
        try:
            self._entry(index)
        except CacheError:
            raise
        except ValueError as error:
            name = f"{self.cases[index].name}: "
            return str(error) if str(error).startswith(name) else f"{name}{error}"
        return None

    def _is_there(self, index: int) -> bool:
        if self.cache != "disk":
            return index in self._kept
        try:
            return self._read(index) is not None
        except CasesError:  # a file is missing; told with all other problems
            return False

    def _entry(self, index: int) -> _Entry:
        index = range(len(self))[index]  # IndexError; counts from the end if negative
        if self.cache != "disk":
            if index not in self._kept:
                entry = self._make(index)
                if self.cache == "none":
                    self._kept.clear()
                self._kept[index] = entry
            return self._kept[index]
        stored = self._read(index)
        if stored is None:
            made = self._make(index)
            self._write(index, made)
            stored = self._read(index) or made  # memory-mapped like at any later time
        return stored

    def _make(self, index: int) -> _Entry:
        prepared = prepare_case(self.cases[index], self.how, self.classes, self.ignore_id)
        if prepared.mask is None:
            return _Entry(prepared, np.zeros(len(self.classes) + 1, dtype=np.int64), {})
        counts = count_labels(prepared.mask)
        counts = np.append(counts[: len(self.classes)], counts[IGNORE_INDEX]).astype(np.int64)
        return _Entry(prepared, counts, _locate(prepared.mask, self.cases[index].name))

    def _path(self, index: int) -> Path:
        if index not in self._paths:
            case = self.cases[index]
            decides = {
                "version": _VERSION,
                "images": [_stamp(path) for path in case.images],
                "label": None if case.label is None else _stamp(case.label),
                "how": asdict(self.how),
                "ids": [entry.id for entry in self.classes],
                "ignore_id": self.ignore_id,
            }
            key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:20]
            readable = re.sub(r"[^A-Za-z0-9_.-]", "_", case.name)[:80].lstrip(".")
            self._paths[index] = self.folder / f"{readable}-{key}"
        return self._paths[index]

    def _read(self, index: int) -> _Entry | None:
        """Open an entry; None if it is not there, or damaged."""
        path = self._path(index)
        try:
            meta = json.loads((path / "meta.json").read_text())
            placement = Placement.from_json(meta["placement"])
            image = np.load(path / "image.npy", mmap_mode="r")
            mask = np.load(path / "mask.npy", mmap_mode="r") if meta["mask"] else None
            flat = np.load(path / "locations.npy", mmap_mode="r")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError) as error:
            logger.warning("%s: is damaged (%s); the case is prepared again", path, error)
            return None
        locations = {int(label): flat[start:stop] for label, (start, stop) in meta["locations"].items()}
        return _Entry(Prepared(image, mask, placement), np.array(meta["counts"], dtype=np.int64), locations)

    def _write(self, index: int, entry: _Entry) -> None:
        path = self._path(index)
        unfinished = self.folder / f"{_UNFINISHED}{uuid.uuid4().hex}"
        try:
            unfinished.mkdir(parents=True)
            _write_entry(unfinished, entry)
            try:
                os.rename(unfinished, path)
            except OSError:
                if self._read(index) is None:  # else another process was faster
                    shutil.rmtree(path, ignore_errors=True)  # a damaged entry
                    os.rename(unfinished, path)
        except OSError as error:
            raise CacheError(
                f"{self.folder}: cannot write the prepared case {self.cases[index].name} ({error}); make "
                "room, or set data.cache_folder to another folder, or data.cache to memory or none"
            ) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _remove_remains(self) -> None:
        """Delete what processes that were killed had not finished writing."""
        for path in self.folder.glob(f"{_UNFINISHED}*"):
            try:
                if time.time() - path.stat().st_mtime > _REMAINS_AFTER:
                    shutil.rmtree(path, ignore_errors=True)
            except OSError:  # another process deletes it
                continue


def default_folder() -> Path:
    """Return ``trunkline/scans`` in the user's folder for caches."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "trunkline" / "scans"


def _write_entry(folder: Path, entry: _Entry) -> None:
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
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _stamp(path: str) -> list[Any]:
    """Return path, size and time of change of a file, of its parts, or of the files in a folder."""
    path = os.path.abspath(path)
    files = [path]
    if os.path.isdir(path):
        files = sorted(entry.path for entry in os.scandir(path) if entry.is_file())
    elif path.lower().endswith(".mhd"):  # the voxels lie in a file next to it
        files = sorted(str(part) for part in Path(path).parent.glob(f"{glob.escape(Path(path).stem)}.*"))
    try:
        stats = [(file, os.stat(file)) for file in files]
    except OSError as error:
        raise CasesError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return [path, [[file, stat.st_size, stat.st_mtime_ns] for file, stat in stats]]


def _locate(mask: np.ndarray, name: str) -> dict[int, np.ndarray]:
    """Draw voxels of each label but 0 and 255."""
    seed = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "little")
    rng = np.random.default_rng(seed)
    found = {}
    for label, box in label_boxes(mask).items():
        if label in (0, IGNORE_INDEX):
            continue
        inside = mask[box] == label
        flat = np.flatnonzero(inside)
        if len(flat) > _MOST_LOCATIONS:
            flat = np.sort(rng.choice(flat, _MOST_LOCATIONS, replace=False, shuffle=False))
        start = [side.start for side in box]
        found[label] = (np.stack(np.unravel_index(flat, inside.shape), axis=1) + start).astype(np.int32)
    return found
