"""Finds the cases of a dataset of scans, or those to predict on."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...shared.common import listing, number_of
from ...shared.inside import files_of
from ...shared.io import IMAGE_SUFFIXES
from ...shared.locate import DataNotFoundError
from ...shared.storage import on_this_machine
from ..formats.files import SCAN_SUFFIXES, ScanError, is_scan, read_grid, scan_stem
from .classes import choose_classes, labels_of_regions
from .layouts import find_layout
from .names import by_number, folders_in, scans_in, unique_names, warn_left_out
from .splits import check_patients, choose_fold, folds_of_column, make_folds, read_folds, write_folds
from .table import read_rows
from .types import Case, CasesError, Layout, ScanDataset, Unlabelled

__all__ = ["Case", "CasesError", "ScanDataset", "find_cases", "find_dataset"]

logger = logging.getLogger("trunkline")

SPLITS_FILE = "splits.json"


def find_dataset(
    root: str | Path,
    *,
    images: str | None = None,
    labels: str | None = None,
    table: str | None = None,
    classes: Mapping[int, str] | Sequence[str] | None = None,
    ignore_id: int | None = None,
    splits: str | None = None,
    fold: int | None = None,
    folds: int = 5,
    seed: int = 0,
    patients: str | None = None,
    missing: Unlabelled = "error",
    allow_outside_root: bool | None = None,
) -> ScanDataset:
    """Return the cases, classes and splits of a dataset, of the first of these layouts that is there.

    - a CSV, if ``table`` names one: see ``read_case_table``
    - ``dataset.json`` of the Medical Segmentation Decathlon, or of nnU-Net next to imagesTr and labelsTr
    - ``images/{train,val,test}`` and ``labels/...`` (or ``masks``), with or without these folders inside. A
      label has the name of its case: a scan, a DICOM folder, a folder of channels, or ``CASE_0000`` ...

    Cases that nothing splits are split into folds by patient, written to ``splits``. Folders or columns that
    tell train from val stay, unless ``fold`` or ``splits`` is given: then both are pooled, ``test`` is not.

    Args:
        root: folder that other paths are relative to.
        images: folder of the scans, may contain ``{split}``.
        labels: the same for the labels.
        table: a CSV of the cases; its paths are relative to its own folder.
        classes: names by id, or in the order of ids from 0 on; None for ``dataset.json`` or ``classes.csv``.
        ignore_id: id of voxels to leave out. None takes that of ``dataset.json``, else 255.
        splits: a JSON of folds in nnU-Net's format, written if it is absent; ``splits.json`` if None.
        fold: number of the fold, from 0; None for 0, or for the split that folders or columns tell.
        folds: how many to make if the file is not there, 2 or more.
        seed: of the folds.
        patients: a CSV with ``case`` and ``patient``; None for that of ``table``, or one per case.
        missing: ``error`` if a case of train or val has no labels; ``skip`` leaves it out, with a warning.
        allow_outside_root: whether lists may name files outside; None leaves that to ``files_of``.

    Raises:
        DataNotFoundError: if ``root`` or a named file is missing, or there are no scans.
        CasesError: if files, classes, folds or patients do not fit together.
    """
    base = on_this_machine(root, "scans")
    with files_of(base, allow_outside_root):
        layout = find_layout(base, images, labels, table, missing)
    _require_distinct(layout)
    _set_patients(layout, base, patients)
    _leave_out_unlabelled(layout)
    others = [base / name for name in (table, patients) if name is not None]
    known, ignored = choose_classes(layout, base, classes, ignore_id, others)
    regions, written = labels_of_regions(layout, known)
    chosen = _split(layout, base, splits, fold, folds, seed).items()
    cases = {split: tuple(each) for split, each in chosen if each}
    channels = layout.declared.channels or _channel_names(cases)
    stated = (ignore_id, layout.declared.ignore_id) != (None, None)
    return ScanDataset(cases, known, channels, regions, ignored, written, stated)


def find_cases(given: Sequence[str | Path], channels: int | None = None) -> tuple[Case, ...]:
    """Find the scans to predict.

    In a folder with a folder per case, the scans of a case are its channels. Files that end in ``_0000``,
    ``_0001`` and so on are the channels of the cases named in front if at least one of these has all.

    Args:
        given: files, DICOM folders, and folders of either.
        channels: how many a case has; None if this is not known.

    Returns:
        The cases, each scan once, without labels. Names are those of the files without suffix; if a name
        repeats, that of the folder is put before it, or a number after it.

    Raises:
        DataNotFoundError: listing what does not exist, or if there is no scan.
    """
    paths = list(dict.fromkeys(on_this_machine(path, "scans") for path in given))
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise DataNotFoundError(f"data.predict: no such file or folder: {', '.join(missing[:20])}")
    groups: dict[tuple[Path, bool], list[Path]] = {}
    for path in paths:
        key = (path, True) if path.is_dir() and not is_scan(path) else (path.parent, False)
        groups.setdefault(key, []).append(path)
    found: dict[tuple[Path, ...], str] = {}
    for (folder, whole), files in groups.items():
        cases = _cases_inside(folder, channels) if whole else _by_channels(files, channels)
        for name, members in cases:
            found.setdefault(members, name)
    if not found:
        known = ", ".join((*SCAN_SUFFIXES, *IMAGE_SUFFIXES))
        raise DataNotFoundError(
            f"data.predict: no scan in {', '.join(map(str, paths[:20]))} (looked for {known}, and folders of "
            "DICOM files)"
        )
    names = unique_names([files[0] for files in found], list(found.values()))
    return tuple(
        Case(name, tuple(map(str, files)), None, name) for name, files in zip(names, found, strict=True)
    )


def _require_distinct(layout: Layout) -> None:
    """Raise CasesError for names that are there twice."""
    seen: dict[str, str] = {}
    problems = []
    for split, cases in layout.cases.items():
        for case in cases:
            before = seen.setdefault(case.name, split)
            if before != split:
                problems.append(f"{case.name}: in {before} and in {split}")
    if problems:
        raise CasesError(
            f"{layout.source}: {number_of(len(problems), 'name')} in two splits:\n{listing(problems)}\n"
            "names tell cases and patients apart; rename one, or remove it if it is the same scan"
        )


def _leave_out_unlabelled(layout: Layout) -> None:
    """Remove the cases of ``train`` and ``val`` without labels; with ``missing: error`` there are none."""
    for split in ("train", "val"):
        cases = layout.cases.get(split, [])
        alone = [case.name for case in cases if case.label is None]
        if not alone:
            continue
        if len(alone) == len(cases):
            raise CasesError(f"{layout.source}: none of the {len(cases)} {split} cases has labels; add them")
        logger.warning(
            "%s: %d of %d %s cases have no labels and are left out (%s)",
            layout.source, len(alone), len(cases), split, ", ".join(alone[:5]),
        )  # fmt: skip
        layout.cases[split] = [case for case in cases if case.label is not None]
        for name in alone:
            layout.folds.pop(name, None)


def _set_patients(layout: Layout, root: Path, patients: str | None) -> None:
    """Write into all cases whose they are, if a file says so."""
    if patients is None:
        return
    source = root / on_this_machine(patients, "lists of patients")
    header, rows = read_rows(source, "patients")
    for column in ("case", "patient"):
        if column not in header:
            raise CasesError(f"{source}, line 1: no column {column} (there are {', '.join(header)})")
    patient_of: dict[str, str] = {}
    for line, row in rows:
        for column in ("case", "patient"):
            if not row[column]:
                raise CasesError(f"{source}, line {line}: column {column} is empty")
        if patient_of.setdefault(row["case"], row["patient"]) != row["patient"]:
            raise CasesError(f"{source}, line {line}: case {row['case']} has another patient above")
    missing = [case.name for cases in layout.cases.values() for case in cases if case.name not in patient_of]
    if missing:
        raise CasesError(
            f"{source}: {number_of(len(missing), 'case')} without a patient:\n{listing(missing)}\nadd a row "
            "for each (cases are named like their files, without suffix)"
        )
    for split, cases in layout.cases.items():
        layout.cases[split] = [replace(case, patient=patient_of[case.name]) for case in cases]


def _split(
    layout: Layout, root: Path, splits: str | None, fold: int | None, folds: int, seed: int
) -> dict[str, list[Case]]:
    """Split the cases as the arguments, the layout or the file of folds say."""
    cases = layout.cases
    asked = fold is not None or splits is not None
    if not asked and ("val" in cases or "train" not in cases) and not layout.folds:
        check_patients(cases, layout.source)
        return cases
    number = 0 if fold is None else fold
    path = root / (SPLITS_FILE if splits is None else on_this_machine(splits, "lists of splits"))
    pool = [case for split in ("train", "val") for case in cases.get(split, [])]
    if not pool:
        raise CasesError(
            f"{layout.source}: has no cases to split into folds; leave out data.fold and data.splits"
        )
    if "val" in cases:
        logger.warning(
            "%s: its own train and val are set aside: data.fold or data.splits splits all %d cases again",
            layout.source,
            len(pool),
        )
    if layout.folds and splits is None:
        source = f"{layout.source}, {'' if layout.source.endswith('.json') else 'column '}fold"
        made = folds_of_column(layout.folds, source)
    else:
        source = str(path)
        if not path.exists():
            if not 0 <= number < folds:
                raise CasesError(f"data.fold is {number}; of data.folds {folds} it must be 0 to {folds - 1}")
            write_folds(path, make_folds(pool, folds, seed))
            logger.info("%s: wrote %d folds of %d cases by patient (seed %d)", path, folds, len(pool), seed)
        made = read_folds(path)
    chosen = choose_fold(cases, made, number, source)
    check_patients(chosen, f"{source}, fold {number}")
    counts = ", ".join(f"{len(each)} {split}" for split, each in chosen.items())
    logger.info("%s: fold %d of %d (%s)", source, number, len(made), counts)
    return chosen


def _channel_names(cases: dict[str, tuple[Case, ...]]) -> tuple[str, ...]:
    """Name the channels of a dataset that does not: by the number that most of its first cases have."""
    counts: Counter[tuple[int, bool]] = Counter()
    for case in [case for each in cases.values() for case in each][:3]:
        with contextlib.suppress(ScanError):  # check_cases reports it with all others
            counts[read_grid(case.images[0])[1], case.images[0].lower().endswith(IMAGE_SUFFIXES)] += 1
    count, picture = max(counts, key=counts.__getitem__, default=(1, False))
    if count == 3 and picture:
        return ("red", "green", "blue")
    return ("image",) if count == 1 else tuple(f"channel_{number}" for number in range(count))


def _by_channels(files: Sequence[Path], channels: int | None) -> list[tuple[str, tuple[Path, ...]]]:
    """Join files whose names end in the number of a channel; else each is a case."""
    numbered = by_number(files)
    sets = [set(members) for members in numbered.values()]
    whole = [found == set(range(len(found) if channels is None else channels)) for found in sets]
    if numbered and (
        all(found == {0} for found in sets)
        or (channels is None and all(whole) and len({len(found) for found in sets}) == 1)
        or (channels is not None and channels > 1 and any(whole))
    ):
        return [(name, tuple(members[n] for n in sorted(members))) for name, members in numbered.items()]
    return [(scan_stem(path), (path,)) for path in files]


def _cases_inside(folder: Path, channels: int | None) -> list[tuple[str, tuple[Path, ...]]]:
    """Return the names and files of the cases in a folder."""
    files = scans_in(folder)
    if files:
        warn_left_out(folder, files)
        found = _by_channels(files, channels)
        one = channels is not None and channels > 1 and len(files) == channels == len(found)
        return [(folder.absolute().name, tuple(files))] if one and _single(files[0]) else found
    inner = {case: scans_in(case) for case in folders_in(folder)}
    if inner:
        warn_left_out(folder, {path for scans in inner.values() for path in scans})
    alike = len({tuple(scan_stem(path) for path in found) for found in inner.values()}) == 1
    cases: list[tuple[str, tuple[Path, ...]]] = []
    for case, scans in inner.items():
        joined = len(scans) == 1 or alike if channels is None else channels > 1 or len(scans) == 1
        cases += [(case.name, tuple(scans))] if joined else _by_channels(scans, channels)
    return cases


def _single(path: Path) -> bool:
    """Whether a file holds one channel; what cannot be read is left to whoever reads it."""
    try:
        return read_grid(path)[1] == 1
    except ScanError:
        return False
