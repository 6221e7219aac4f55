"""Checks all files of a dataset of scans before training."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from ....constants import IGNORE_INDEX
from ...shared.common import in_threads_singly, listing, number_of
from ...shared.faults import SkippedImages
from ...shared.loading import capped_workers
from ..formats.files import read_grid, read_labels
from ..formats.scan import Grid, difference
from .classes import to_labels
from .types import Case, CasesError, ScanDataset

logger = logging.getLogger("trunkline")

_THREADS = 4  # each holds one file of labels
_SHOW_PROGRESS_FROM = 20  # files
_ENOUGH = 20  # problems
_SAMPLES, _SAMPLED = 16, 4096  # parts of a file that are compared, and the bytes of each


class Header(NamedTuple):
    """What the headers of a case tell: numbers of channels and spatial axes, and what is wrong."""

    channels: int
    axes: int
    problems: list[str]


def check_cases(dataset: ScanDataset, splits: Sequence[str], skipped: SkippedImages | None = None) -> None:
    """Read the headers of all scans, and then all labels, of some splits.

    Every case of ``train`` and ``val`` needs labels. Channels and labels of a case lie on one grid, to a
    tenth of a voxel at the corners; all cases have the same number of channels and of axes; labels hold only
    declared ids. Classes that no label of ``train`` holds are logged. Whether voxels are finite shows when
    scans are prepared.

    Args:
        dataset: the cases.
        splits: which of ``train``, ``val`` and ``test`` to read.
        skipped: takes files that cannot be read, of cases that are left out later; None for an error.

    Raises:
        CasesError: with all problems, of which 20 are listed: the file, what is wrong with it, what to do.
    """
    problems = [
        f"there are no {split} cases (there are {', '.join(dataset.cases)})"
        for split in splits
        if not dataset.cases.get(split)
    ]
    cases = [(split, case) for split in splits for case in dataset.cases.get(split, ())]
    headers = _mapped(lambda item: _header(*item), cases, "Reading headers")
    bad = [problem for header in headers for problem in header.problems]
    problems += bad if skipped is None else []
    problems += _unlike(dataset, [case for _, case in cases], headers)
    _warn_of_copies(cases)
    if len(problems) < _ENOUGH:
        labelled = [
            (split, case)
            for (split, case), header in zip(cases, headers, strict=True)
            if case.label is not None and not header.problems
        ]
        found = _mapped(lambda item: _label(dataset, item[1]), labelled, "Checking labels")
        bad += (wrong := [problem for _, problem in found if problem is not None])
        problems += wrong if skipped is None else []
        if not problems:
            names = [case.label or case.name for _, case in labelled]
            check_ignored(dataset, names, np.array([held for held, _ in found]))
        if "train" in splits and not problems:
            pairs = zip(labelled, found, strict=True)
            trained = [held for (split, _), (held, _) in pairs if split == "train"]
            _warn_of_absent(dataset, np.any(trained, axis=0)[:-1])
    if skipped is not None:
        skipped.found_before(CasesError, bad, len(cases), "cannot be used")
    if problems:
        raise CasesError(
            f"{number_of(len(problems), 'problem')} in {number_of(len(cases), 'case')}:\n{listing(problems)}"
        )


def _header(split: str, case: Case) -> Header:
    """Read the headers of a case, and compare the grids of its files."""
    problems: list[str] = []
    grids: list[tuple[str, Grid]] = []
    channels = 0
    for path in case.images:
        try:
            grid, count = read_grid(path)
        except ValueError as error:
            problems.append(str(error))
            continue
        grids.append((path, grid))
        channels += count
    if case.label is None:
        if split != "test":
            problems.append(f"case {case.name}: has no labels; add them, or remove the case from {split}")
    elif grids:
        try:
            grids.append((case.label, read_grid(case.label)[0]))
        except ValueError as error:
            problems.append(str(error))
    problems += [
        f"{path}: does not lie on the grid of {grids[0][0]} ({text}); {_remedy(grid, grids[0][1])}"
        for path, grid in grids[1:]
        if (text := difference(grids[0][1], grid)) is not None
    ]
    return Header(channels, len(grids[0][1].shape) if grids else 0, problems)


def _warn_of_copies(cases: Sequence[tuple[str, Case]]) -> None:
    """Say which scans are there under two names: files of one size and of the same bytes in places."""
    sizes: dict[int, list[tuple[str, Case]]] = {}
    for split, case in cases:
        path = Path(case.images[0])
        if path.is_file():
            sizes.setdefault(path.stat().st_size, []).append((split, case))
    copies = []
    for size, found in sizes.items():
        seen: dict[bytes, tuple[str, Case]] = {}
        for split, case in found if len(found) > 1 else ():
            before, other = seen.setdefault(_sample(case.images[0], size), (split, case))
            if other is not case:
                copies.append(f"{other.images[0]} ({before}) and {case.images[0]} ({split})")
    if copies:
        logger.warning(
            "%s there under two names, by their bytes; across splits metrics would be too good, so remove "
            "one of each:\n%s", number_of(len(copies), "scan"), listing(copies),
        )  # fmt: skip


def _sample(path: str, size: int) -> bytes:
    """Return a digest of a few parts of a file, spread evenly."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for number in range(_SAMPLES):
                file.seek(size * number // _SAMPLES)
                digest.update(file.read(_SAMPLED))
    except OSError:
        return path.encode("utf-8", "surrogateescape")  # reported by whoever reads it
    return digest.digest()


def _remedy(grid: Grid, wanted: Grid) -> str:
    if grid.shape == wanted.shape:
        return "resample it, or copy the affine of the other's header if the voxels belong together"
    return "resample it to that grid"


def _unlike(dataset: ScanDataset, cases: Sequence[Case], headers: Sequence[Header]) -> list[str]:
    """Describe cases with other channels or axes than most."""
    whole = [(case, header) for case, header in zip(cases, headers, strict=True) if not header.problems]
    if not whole:
        return []
    problems: list[str] = []
    counts = Counter(header.channels for _, header in whole)
    usual, wanted = counts.most_common(1)[0][0], len(dataset.channels)
    if len(counts) == 1 and usual != wanted:
        problems.append(
            f"all cases have {number_of(usual, 'channel')}, but the dataset names {wanted} "
            f"({', '.join(dataset.channels)}); correct the names of the channels"
        )
    elif len(counts) > 1:
        usual = wanted if wanted in counts else usual
        problems += [
            f"{case.images[0]}: case {case.name} has {number_of(header.channels, 'channel')} where others "
            f"have {usual}; add or remove channels, or the case"
            for case, header in whole
            if header.channels != usual
        ]
    axes = Counter(header.axes for _, header in whole).most_common(1)[0][0]
    problems += [
        f"{case.images[0]}: has {header.axes} spatial axes where others have {axes}; keep 2D images "
        "and volumes in datasets of their own"
        for case, header in whole
        if header.axes != axes
    ]
    return problems


def _label(dataset: ScanDataset, case: Case) -> tuple[np.ndarray, str | None]:
    """Read a case's labels; return which classes, and last ignored voxels, they hold, and what is wrong."""
    held = np.zeros(len(dataset.classes) + 1, dtype=bool)
    try:
        file = cast(str, case.label)
        labels = to_labels(read_labels(file)[0], dataset.classes, dataset.ignore_id, file)
    except ValueError as error:
        return held, str(error)
    for number, label in enumerate([*range(len(dataset.classes)), IGNORE_INDEX]):
        held[number] = (labels == label).any()
    return held, None


def check_ignored(dataset: ScanDataset, names: Sequence[str], held: np.ndarray) -> None:
    """Look whether voxels that are ignored by default are the foreground of some files, or of all.

    Label files often hold 0 and 255 for background and foreground, and 255 is what is ignored unless the
    dataset says otherwise. Nothing is looked for if it does.

    Args:
        dataset: its classes.
        names: N files of labels.
        held: ``[N, K + 1]`` which classes each file holds, and last whether it has ignored voxels.

    Raises:
        CasesError: if no file has a class other than the background, but some have ignored voxels; or some
            files have only the background and ignored voxels, and all others no ignored ones.
    """
    if dataset.ignore_stated or not len(held):
        return
    foreground, ignored = held[:, 1:-1].any(axis=1), held[:, -1]
    alone = ignored & ~foreground
    if not alone.any() or (ignored & foreground).any():
        return
    value = dataset.ignore_id
    first = names[int(alone.argmax())]
    if not foreground.any():
        what = (
            f"no label file has a class other than the background, but {int(alone.sum())} have the id {value}"
        )
        cure = f"declare the class (data.classes: {{0: background, {value}: NAME}})"
    else:
        other = names[int(foreground.argmax())]
        what = (
            f"{number_of(int(alone.sum()), 'label file')} with the id {value} and no class ({first}), "
            f"{int(foreground.sum())} with classes and no {value} ({other})"
        )
        cure = f"write one id for one class in all files, if {value} is a class"
    raise CasesError(
        f"{first}: {what}; {value} is ignored unless it is a class; {cure}, or set data.ignore_id to {value} "
        "if these voxels are to be ignored"
    )


def _warn_of_absent(dataset: ScanDataset, held: np.ndarray) -> None:
    absent = [entry.name for entry, there in zip(dataset.classes, held, strict=True) if not there]
    if absent:
        logger.warning(
            "no training label holds %s; a network cannot learn what it never sees", ", ".join(absent)
        )


def _mapped(function: Callable[[Any], Any], items: Sequence[Any], title: str) -> list[Any]:
    workers = capped_workers(_THREADS, len(items))
    return in_threads_singly(function, items, title, workers, _SHOW_PROGRESS_FROM)
