"""Splits the cases of a dataset for training and validation: k folds by patient, kept in a file.

The file has the format of nnU-Net's ``splits_final.json``: a list with ``{"train": [names], "val": [names]}``
for each fold.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...shared.coco.fields import AnnotationError
from ...shared.coco.json_file import read_json
from ...shared.common import listing, number_of
from .types import Case, CasesError

logger = logging.getLogger("trunkline")

Folds = list[dict[str, list[str]]]


def make_folds(cases: Sequence[Case], folds: int, seed: int) -> Folds:
    """Deal the patients to folds, so that the folds differ little in their numbers of cases.

    Patients are shuffled, and then go, those with the most cases first, to the fold with the fewest.

    Args:
        cases: all to be split; their order does not matter.
        folds: how many, at least 2.
        seed: of the shuffling.

    Returns:
        For each fold the sorted names; every case validates in one fold.

    Raises:
        CasesError: if there are fewer patients than folds.
    """
    patients = sorted({case.patient for case in cases})
    if folds < 2:
        raise CasesError(f"data.folds is {folds}; there have to be at least 2")
    if len(patients) < 2:
        raise CasesError(
            f"there {'is 1 case' if len(cases) == 1 else f'are {len(cases)} cases, all of 1 patient,'} for "
            "training and validation; two patients are the least. Add cases, or say by folders train and val,"
            " or by data.splits, which are for what"
        )
    if folds > len(patients):
        raise CasesError(
            f"data.folds is {folds}, but there {'is' if len(patients) == 1 else 'are'} "
            f"{number_of(len(patients), 'patient')} in {number_of(len(cases), 'case')}; ask for fewer folds"
        )
    random.Random(seed).shuffle(patients)
    count = Counter(case.patient for case in cases)
    sizes = [0] * folds
    fold_of: dict[str, int] = {}
    for patient in sorted(patients, key=lambda name: -count[name]):
        fold_of[patient] = sizes.index(min(sizes))
        sizes[fold_of[patient]] += count[patient]
    return [
        {
            "train": sorted(case.name for case in cases if fold_of[case.patient] != fold),
            "val": sorted(case.name for case in cases if fold_of[case.patient] == fold),
        }
        for fold in range(folds)
    ]


def folds_of_column(numbers: dict[str, int], source: str) -> Folds:
    """Return the folds of cases that each have the number of the fold in which they validate.

    Raises:
        CasesError: if a fold is empty, naming ``source``.
    """
    if max(numbers.values()) >= len(numbers):
        raise CasesError(
            f"{source}: there is a fold {max(numbers.values())}, but only {number_of(len(numbers), 'case')}; "
            "folds are numbered from 0 on, and each needs a case"
        )
    folds = [
        {
            "train": sorted(name for name, number in numbers.items() if number != fold),
            "val": sorted(name for name, number in numbers.items() if number == fold),
        }
        for fold in range(max(numbers.values()) + 1)
    ]
    return [_checked_fold(f"{source}, fold {fold}", entry) for fold, entry in enumerate(folds)]


def write_folds(path: Path, folds: Folds) -> None:
    """Write folds atomically: processes that start together may all write, and read a whole file.

    Raises:
        CasesError: if the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(folds, indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise CasesError(
            f"{path}: the folds cannot be written ({error}); set data.splits to a file elsewhere"
        ) from error


def read_folds(path: Path) -> Folds:
    """Read folds.

    Raises:
        CasesError: naming what is wrong with the file.
    """
    try:
        content = read_json(path)
    except (OSError, AnnotationError) as error:
        raise CasesError(f"{error}; or remove {path.name} to have new folds made") from error
    if not isinstance(content, list) or not content:
        raise CasesError(
            f'{path}: has to be a list of {{"train": [names], "val": [names]}}, one for each fold'
        )
    folds = [_checked_fold(f"{path}, fold {number}", entry) for number, entry in enumerate(content)]
    often = [name for name, count in Counter(n for fold in folds for n in fold["val"]).items() if count > 1]
    if often:
        logger.warning(
            "%s: %s validated in more than one fold (%s%s), which count more than others over all folds",
            path, number_of(len(often), "case"), ", ".join(often[:5]), ", ..." * (len(often) > 5),
        )  # fmt: skip
    return folds


def _checked_fold(place: str, entry: Any) -> dict[str, list[str]]:
    for part in ("train", "val"):
        names = entry.get(part) if isinstance(entry, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise CasesError(f"{place}: {part} is {names!r}, not a list of names of cases")
        if not names:
            raise CasesError(
                f"{place}: {part} is empty; every fold needs cases to train and to validate with"
            )
        twice = sorted(name for name, number in Counter(names).items() if number > 1)
        if twice:
            raise CasesError(f"{place}, {part}: {', '.join(twice[:5])} is there twice; remove one")
    return {part: entry[part] for part in ("train", "val")}


def choose_fold(cases: dict[str, list[Case]], folds: Folds, fold: int, source: str) -> dict[str, list[Case]]:
    """Split the pooled cases of ``train`` and ``val`` as a fold says; those of ``test`` stay.

    Cases that the fold does not name are left out with a warning.

    Args:
        cases: by split.
        folds: all folds.
        fold: number of the one to take.
        source: where the folds come from, for errors.

    Raises:
        CasesError: if there is no such fold, or it names cases that are not there, or some twice.
    """
    if not 0 <= fold < len(folds):
        raise CasesError(f"data.fold is {fold}, but {source} has the folds 0 to {len(folds) - 1}")
    pool = {case.name: case for split in ("train", "val") for case in cases.get(split, [])}
    chosen = folds[fold]
    unknown = sorted({name for names in chosen.values() for name in names if name not in pool})
    if unknown:
        raise CasesError(
            f"{source}, fold {fold}: {number_of(len(unknown), 'name')} without a case to train with:\n"
            f"{listing(unknown)}\ncorrect the names, or remove the file to have new folds made (cases are "
            f"named like {', '.join(list(pool)[:3])})"
        )
    both = sorted(set(chosen["train"]) & set(chosen["val"]))
    if both:
        raise CasesError(f"{source}, fold {fold}: {', '.join(both[:20])} in both train and val; remove one")
    if unused := sorted(set(pool) - set(chosen["train"]) - set(chosen["val"])):
        logger.warning(
            "%s, fold %d: leaves out %s (%s); remove the file to have new folds made of all",
            source,
            fold,
            number_of(len(unused), "case"),
            ", ".join(unused[:5]),
        )
    split = {part: [pool[name] for name in names] for part, names in chosen.items()}
    return split | ({"test": cases["test"]} if "test" in cases else {})


def check_patients(cases: Mapping[str, Sequence[Case]], source: str) -> None:
    """Raise CasesError naming the patients whose cases lie in two splits."""
    seen: dict[str, tuple[str, str]] = {}
    problems: dict[str, str] = {}
    for split, found in cases.items():
        for case in found:
            before, name = seen.setdefault(case.patient, (split, case.name))
            if before != split:
                text = f"patient {case.patient}: case {name} in {before}, case {case.name} in {split}"
                problems.setdefault(case.patient, text)
    if problems:
        raise CasesError(
            f"{source}: {number_of(len(problems), 'patient')} in two splits, so that metrics would be too "
            f"good:\n{listing(list(problems.values()))}\nmove cases so that each patient is in one split "
            "(data.patients, or the column patient of data.table, says whose they are)"
        )
