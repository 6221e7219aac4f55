"""Prepared cases, kept on disk or in memory, so that files are decoded and resampled once.

Letters in shapes: C channels, S spatial axes of a prepared scan, n their number, K classes, N voxels.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from ....constants import IGNORE_INDEX
from ...shared.common import in_threads_singly, listing, number_of
from ...shared.faults import SkippedImages
from ...shared.fingerprint import digest, sizes_on_disk
from ...shared.labels.classes import LabelClass
from ..cases.types import Case, CasesError
from .entries import (
    UNFINISHED,
    CacheError,
    DamagedEntry,
    Entry,
    discard_entry,
    is_being_written,
    read_entry,
    store_entry,
    verify_entry,
)
from .prepare import Placement, Preparation, Prepared, prepare_case
from .resample import count_labels, label_boxes
from .stamps import stamp

logger = logging.getLogger("trunkline")

_VERSION = 1  # of what entries hold: another number leaves older ones unused
_MOST_LOCATIONS = 10_000  # of each label
_MOST_CONSTANT = 5
_SHOW_PROGRESS_FROM = 20  # cases
_REMAINS_AFTER = 24 * 3600  # seconds after which an unfinished entry belongs to a process that ended


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
        self._kept: dict[int, Entry] = {}  # with cache "memory" all, with "none" the last one
        self._paths: dict[int, Path] = {}
        self._counts: dict[int, np.ndarray] = {}
        self._looked_into: set[int] = set()
        self._places: dict[int, Placement] = {}
        self._constant: dict[int, list[int]] = {}  # channels of one value, of cases prepared by this process

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

    def known_counts(self) -> np.ndarray | None:
        """Return ``counts()`` if nothing has to be prepared for it, else None."""
        known = self.cache != "none" or len(self._counts) == len(self)
        return self.counts() if known else None

    def placement(self, index: int) -> Placement:
        """Return where a prepared case lies in the grid of its file; it is remembered."""
        return self._places[index] if index in self._places else self._entry(index).prepared.placement

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells these cases from others, see ``Fingerprinted``."""
        counts = self.known_counts()
        labels = [case.label or "" for case in self.cases]
        return {
            "cases": len(self),
            "names of cases": digest(case.name for case in self.cases),
            "files": sizes_on_disk([path for case in self.cases for path in case.images]),
            "label files": sizes_on_disk(labels),
            "classes": digest(f"{each.id} {each.name}" for each in self.classes),
            **({} if counts is None else {"labels": digest(counts)}),
        }

    def named(self, request: Any) -> tuple[int, str]:
        """Return id (the position) and first file of the case that a request of a sampler asks for."""
        return request.index, self.cases[request.index].images[0]

    def built(self, workers: int, skipped: SkippedImages | None) -> PreparedCases:
        """Do ``build``, and return the cases that could be prepared: itself if that is all.

        Args:
            workers: as in ``build``.
            skipped: takes cases that cannot be prepared; None for an error.
        """
        if skipped is None:
            self.build(workers)
            return self
        bad = self._build(workers)
        skipped.found_before(CasesError, list(bad.values()), len(self), "cannot be prepared")
        if not bad:
            return self
        good = [case for number, case in enumerate(self.cases) if number not in bad]
        folder = self.folder if self.cache == "disk" else None
        made = PreparedCases(good, self.how, self.classes, self.ignore_id, self.cache, folder)
        made.build(workers)
        return made

    def build(self, workers: int = 0) -> None:
        """Prepare what is not there yet, with a progress bar. With ``none`` there is nothing to do.

        Args:
            workers: cases prepared at a time, in threads; 0 is 1. Each holds a few copies of its scan.

        Raises:
            CasesError: if cases cannot be prepared, naming up to 20 of them; the others have been.
            CacheError: if the cache cannot be written.
        """
        problems = list(self._build(workers).values())
        if problems:
            raise CasesError(
                f"{number_of(len(problems), 'case')} cannot be prepared; repair or leave out:\n"
                + listing(problems)
            )

    def _build(self, workers: int) -> dict[int, str]:
        """Do ``build``; return what is wrong with the cases that cannot be prepared, by position."""
        if self.cache == "none":
            return {}
        if self.cache == "disk":
            self._remove_remains()
        title = "checking prepared scans"
        there = in_threads_singly(self._is_there, range(len(self)), title, workers, _SHOW_PROGRESS_FROM)
        missing = [index for index, found in enumerate(there) if not found]
        outcomes = in_threads_singly(self._try, missing, "preparing scans", workers)
        self._warn_of_constant()
        found = zip(missing, outcomes, strict=True)
        return {index: problem for index, problem in found if problem is not None}

    def _warn_of_constant(self) -> None:
        """Say which scans hold one value everywhere, of which nothing can be learned."""
        found = [
            f"{self.cases[index].name} (channel {', '.join(map(str, channels))})"
            for index, channels in sorted(self._constant.items())
        ]
        self._constant.clear()
        if found:
            more = ", ..." if len(found) > _MOST_CONSTANT else ""
            logger.warning(
                "%s with a channel of one value everywhere once prepared: %s%s; are these the right files?",
                number_of(len(found), "case"), ", ".join(found[:_MOST_CONSTANT]), more,
            )  # fmt: skip

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
            return self._read(index, verify=True) is not None
        except CasesError:  # a file is missing; told with all other problems
            return False

    def _entry(self, index: int) -> Entry:
        index = range(len(self))[index]  # IndexError; counts from the end if negative
        entry = self._found(index)
        self._places.setdefault(index, entry.prepared.placement)
        self._counts.setdefault(index, entry.counts)
        return entry

    def _found(self, index: int) -> Entry:
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
            store_entry(self._path(index), made, self.cases[index].name)
            stored = self._read(index) or made  # memory-mapped like at any later time
        return stored

    def _make(self, index: int) -> Entry:
        prepared = prepare_case(self.cases[index], self.how, self.classes, self.ignore_id)
        channels = prepared.image.reshape(len(prepared.image), -1)
        if constant := [number for number, each in enumerate(channels) if each.min() == each.max()]:
            self._constant[index] = constant
        if prepared.mask is None:
            return Entry(prepared, np.zeros(len(self.classes) + 1, dtype=np.int64), {})
        counts = count_labels(prepared.mask)
        counts = np.append(counts[: len(self.classes)], counts[IGNORE_INDEX]).astype(np.int64)
        return Entry(prepared, counts, _locate(prepared.mask, self.cases[index].name))

    def _path(self, index: int) -> Path:
        if index not in self._paths:
            case = self.cases[index]
            decides = {
                "version": _VERSION,
                "images": [stamp(path) for path in case.images],
                "label": None if case.label is None else stamp(case.label),
                "how": asdict(self.how),
                "ids": [entry.id for entry in self.classes],
                "ignore_id": self.ignore_id,
            }
            key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:20]
            readable = re.sub(r"[^A-Za-z0-9_.-]", "_", case.name)[:80].lstrip(".")
            self._paths[index] = self.folder / f"{readable}-{key}"
        return self._paths[index]

    def _read(self, index: int, verify: bool = False) -> Entry | None:
        """Open an entry; None if it is not there, or damaged, which is said.

        Args:
            index: of the case.
            verify: also compare its numbers with their checksums, see ``verify_entry``.
        """
        path = self._path(index)
        labelled = self.cases[index].label is not None
        try:
            entry = read_entry(path, len(self.classes), labelled, whole=index not in self._looked_into)
            if verify and entry is not None:
                verify_entry(path)
        except DamagedEntry as error:
            logger.warning("%s: is damaged (%s); the case is prepared again", path, error)
            if verify:  # another look might take it for whole
                discard_entry(path, self.cases[index].name)
            return None
        if entry is not None:
            self._looked_into.add(index)
        return entry

    def _remove_remains(self) -> None:
        """Delete what processes that were killed had not finished writing."""
        for path in self.folder.glob(f"{UNFINISHED}*"):
            try:
                # Clocks may have jumped: a process that is still there has not ended, however old it looks.
                age = abs(time.time() - path.stat().st_mtime)
                if age > _REMAINS_AFTER and not is_being_written(path):
                    shutil.rmtree(path, ignore_errors=True)
            except OSError:  # another process deletes it
                continue


def default_folder() -> Path:
    """Return ``trunkline/scans`` in the user's folder for caches."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "trunkline" / "scans"


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
