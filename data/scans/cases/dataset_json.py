"""Reads ``dataset.json`` of the Medical Segmentation Decathlon, of nnU-Net, and lists like MONAI's.

Sources: Antonelli et al., "The Medical Segmentation Decathlon" (2022); ``dataset_format.md`` and
``region_based_training.md`` of nnU-Net.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from ...shared.coco.fields import AnnotationError
from ...shared.coco.json_file import read_json
from ...shared.common import listing, number_of
from ...shared.inside import REMEDY, outside
from ...shared.io import IMAGE_SUFFIXES
from ...shared.labels.classes import LabelClass
from ..formats.files import SCAN_SUFFIXES, scan_stem
from .names import by_number
from .types import Case, CasesError, Declared, Layout, Unlabelled

logger = logging.getLogger("trunkline")

_LISTS = {"training": "train", "validation": "val", "test": "test", "testing": "test"}
_READ = (
    "labels", "regions_class_order", "channel_names", "modality", "file_ending", "numTraining", "numTest",
    "overwrite_image_reader_writer", "dataset", *_LISTS,
)  # fmt: skip
_TEXTS = (
    "name", "description", "reference", "licence", "license", "release", "tensorImageSize",
    "converted_by", "citation",
)  # fmt: skip
_ALIKE = 0.88  # of two keys, from which one is taken for a misspelt other
# Readers of nnU-Net that give the voxels that ours give; of axes and directions the headers tell.
_READERS = (
    "SimpleITKIO",
    "SimpleITKIOWithReorient",
    "NibabelIO",
    "NibabelIOWithReorient",
    "NaturalImage2DIO",
)


class _Entry(NamedTuple):
    """An entry of a list of cases: what was read, what is wrong with it, the fold in which it validates."""

    case: Case
    problems: list[str]
    fold: int | None


def read_description(source: Path, missing: Unlabelled) -> Layout | None:
    """Read a ``dataset.json``, with or without cases; None if there is none, or none of this kind.

    Classes are ``{"0": "background", "1": "liver"}`` or ``{"background": 0, "liver": 1}``. If the value of
    any is a list of ids, or there is a ``regions_class_order``, all except the background are regions, which
    are written as the ids of ``regions_class_order``. A class is named after the region that consists only
    of it, else ``label_1`` and so on. The value of ``ignore`` becomes the id that is ignored.

    ``numTraining`` and ``numTest`` that differ from the cases, a key that looks misspelt and a reader of
    nnU-Net that is not used are said.

    Raises:
        CasesError: if the file is damaged, an entry has the wrong form, or files that it lists are missing.
    """
    if not source.is_file():
        return None
    try:
        content = read_json(source)
    except (AnnotationError, OSError) as error:
        raise CasesError(str(error) if str(source) in str(error) else f"{source}: {error}") from error
    if not isinstance(content, dict) or not {"labels", "training", "dataset"} & set(content):
        return None
    _warn_of_keys(source, content)
    rows, regions, ignore_id = _classes(source, content)
    written = _region_ids(source, content, regions)
    numbers = {"train": _count(source, content, "numTraining"), "test": _count(source, content, "numTest")}
    channels, ending = _channels(source, content), _ending(source, content)
    declared = Declared(rows, regions, ignore_id, channels, written, ending, numbers)
    cases, folds = _listed_cases(source, content, missing)
    return Layout(str(source), cases, declared, folds)


def _warn_of_keys(source: Path, content: dict[str, Any]) -> None:
    for key in content:
        absent = [known for known in _READ if known not in content]
        near = difflib.get_close_matches(key, absent, 1, _ALIKE)
        if key not in (*_READ, *_TEXTS) and near:
            logger.warning("%s: the key %s has no meaning; is %s meant?", source, key, near[0])
    reader = content.get("overwrite_image_reader_writer")
    if reader not in (None, "None", *_READERS):
        logger.warning(
            "%s: overwrite_image_reader_writer names %s, which is not used: files are read by their suffixes",
            source, reader,
        )  # fmt: skip


def _count(source: Path, content: dict[str, Any], key: str) -> int | None:
    count = content.get(key)
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 0):
        raise CasesError(f"{source}, {key}: is {count!r}, not a number of cases")
    return count


def _ending(source: Path, content: dict[str, Any]) -> str | None:
    """Return the suffix that files of cases have, in small letters."""
    ending = content.get("file_ending")
    if ending is None:
        return None
    known = (*SCAN_SUFFIXES, *IMAGE_SUFFIXES)
    if not isinstance(ending, str) or ending.lower() not in known:
        raise CasesError(f"{source}, file_ending: is {ending!r}, not one of {', '.join(known)}")
    return ending.lower()


# -- classes and channels


def _classes(
    source: Path, content: dict[str, Any]
) -> tuple[list[LabelClass] | None, dict[str, tuple[int, ...]], int | None]:
    """Return the classes, the regions and the id that is ignored."""
    entries = content.get("labels")
    order = content.get("regions_class_order")
    if entries is None:
        if order is not None:
            raise CasesError(f"{source}: has regions_class_order, but no labels; add them")
        return None, {}, None
    if not isinstance(entries, dict) or not entries:
        raise CasesError(f'{source}, labels: is {entries!r}, not {{"background": 0, "liver": 1, ...}}')
    named = {str(name): _ids(source, name, value) for name, value in _by_name(source, entries).items()}
    ignored = named.pop("ignore", None)
    if ignored is not None and len(ignored) > 1:
        raise CasesError(f"{source}, labels: ignore is {list(ignored)}; it has to be one id")
    ignore_id = None if ignored is None else ignored[0]
    if order is None and all(len(ids) == 1 for ids in named.values()):
        return [LabelClass(ids[0], name) for name, ids in named.items()], {}, ignore_id
    regions = {name: ids for name, ids in named.items() if ids != (0,)}
    name_of: dict[tuple[int, ...], str] = {}
    for name, ids in regions.items():
        if name_of.setdefault(ids, name) != name:
            raise CasesError(
                f"{source}, labels: regions {name_of[ids]} and {name} have the same ids "
                f"({', '.join(map(str, ids))}); remove one of them"
            )
    alone = {ids[0]: name for name, ids in named.items() if len(ids) == 1}
    used = sorted({i for ids in named.values() for i in ids})
    return [LabelClass(i, alone.get(i, f"label_{i}")) for i in used], regions, ignore_id


def _region_ids(
    source: Path, content: dict[str, Any], regions: dict[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """Return the id that each region is written as; empty if nothing is said."""
    order = content.get("regions_class_order")
    if order is None:
        return ()
    if not isinstance(order, list) or len(order) != len(regions):
        raise CasesError(
            f"{source}, regions_class_order: is {order!r}; it needs one id for each of the {len(regions)} "
            f"regions ({', '.join(regions)})"
        )
    for (name, ids), written in zip(regions.items(), order, strict=True):
        if isinstance(written, bool) or not isinstance(written, int) or written not in ids:
            raise CasesError(
                f"{source}, regions_class_order: is {order!r}; region {name} would be written as "
                f"{written!r}, which is none of its ids ({', '.join(map(str, ids))}); regions and ids go in "
                "the same order"
            )
    return tuple(order)


def _by_name(source: Path, entries: dict[str, Any]) -> dict[str, Any]:
    """Turn ``{"1": "liver"}`` round; ``{"liver": 1}`` stays."""
    if not all(isinstance(value, str) for value in entries.values()):
        return entries
    names = list(entries.values())
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CasesError(f"{source}, labels: {', '.join(twice)} is there twice; each id needs its own name")
    return {name: int(key) if _is_number(key) else key for key, name in entries.items()}


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*-?\d{1,18}\s*", text) is not None


def _ids(source: Path, name: str, value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    if not ids or any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise CasesError(f"{source}, labels: {name} is {value!r}, not an id or a list of ids")
    return tuple(sorted(set(ids)))


def _channels(source: Path, content: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the channels in the order of their numbers."""
    key = "channel_names" if "channel_names" in content else "modality"
    entries = content.get(key)
    if entries is None:
        return ()
    if isinstance(entries, list):
        entries = dict(enumerate(entries))
    if isinstance(entries, dict) and all(_is_number(str(number)) for number in entries):
        numbered = {int(number): str(name) for number, name in entries.items()}
        if sorted(numbered) == list(range(len(numbered))) and numbered:
            return tuple(numbered[number] for number in range(len(numbered)))
    raise CasesError(f'{source}, {key}: is {entries!r}, not {{"0": "T1", "1": "T2", ...}} numbered from 0')


# -- cases


def _listed_cases(
    source: Path, content: dict[str, Any], missing: Unlabelled
) -> tuple[dict[str, list[Case]], dict[str, int]]:
    """Return the cases that the file lists and their folds; nothing if it lists none."""
    strict = missing == "error"
    entries: dict[str, list[_Entry]] = {}
    folder = source.parent
    if content.get("dataset") is not None:
        listed = content["dataset"]
        if isinstance(listed, dict):
            entries["train"] = [_listed(folder, f"dataset, {k}", v, strict, k) for k, v in listed.items()]
        elif isinstance(listed, list) or not content.get("training"):
            raise CasesError(f'{source}, dataset: is no object {{"CASE": {{"images": [...], "label": ...}}}}')
    if not entries and content.get("training"):
        for key, split in _LISTS.items():
            found = content.get(key) or []
            if not isinstance(found, list):
                raise CasesError(f"{source}, {key}: is no list")
            entries.setdefault(split, []).extend(
                _listed(folder, f"{key}[{n}]", entry, strict and split != "test")
                for n, entry in enumerate(found)
            )
    absent = [text for entry in entries.get("test", ()) for text in entry.problems]
    if absent:
        logger.warning(
            "%s: %s to test with left out:\n%s", source, number_of(len(absent), "case"), listing(absent)
        )
        entries["test"] = [entry for entry in entries["test"] if not entry.problems]
    problems = [text for each in entries.values() for entry in each for text in entry.problems]
    cases = {split: [entry.case for entry in each] for split, each in entries.items() if each}
    problems += repeated(cases)
    if problems:
        raise CasesError(
            f"{source}: wrong entries:\n{listing(problems)}\nrepair the file or add what is missing"
        )
    return cases, _folds(source, entries)


def repeated(cases: dict[str, list[Case]]) -> list[str]:
    """Describe names and scans that cases have in common, and files that a case has twice."""
    every = [case for each in cases.values() for case in each]
    names = Counter(case.name for case in every)
    problems = [f"{name} is listed twice" for name, count in sorted(names.items()) if name and count > 1]
    owner: dict[str, str] = {}
    for case in every:
        for file in case.images:
            before = owner.setdefault(str(Path(file)), case.name)
            if before != case.name:
                problems.append(f"{case.name}: {file} belongs to {before} already")
        if len({*case.images, case.label}) <= len(case.images):
            problems.append(f"{case.name}: has one file twice, among its channels or as image and label")
    return problems


def _folds(source: Path, entries: dict[str, list[_Entry]]) -> dict[str, int]:
    """Return the folds that entries name, as those of MONAI's lists do."""
    pool = [entry for split in ("train", "val") for entry in entries.get(split, ())]
    known = {entry.case.name: entry.fold for entry in pool if entry.fold is not None}
    if known and len(known) < len(pool):
        without = next(entry.case.name for entry in pool if entry.fold is None)
        raise CasesError(f"{source}: some cases have a fold, but {without} has none; give all of them one")
    return known


def _listed(folder: Path, place: str, entry: Any, labelled: bool, name: str | None = None) -> _Entry:
    """Read ``{image, label}``, ``{images, label}`` or, without labels, the path of an image."""
    problems: list[str] = []
    record = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(record, dict):
        return _Entry(Case("", (), None, ""), [f"{place}: is {entry!r}, not {{image, label}}"], None)
    written = record.get("images", record.get("image"))
    written = written if isinstance(written, list) else [written]
    if not written or not all(isinstance(path, str) and path for path in written):
        return _Entry(Case("", (), None, ""), [f"{place}: image is {written!r}, not a path"], None)
    label, fold = record.get("label"), record.get("fold")
    if not (label is None or (isinstance(label, str) and label)):
        problems.append(f"{place}: label is {label!r}, not a path")
    elif labelled and label is None:
        problems.append(f"{place}: no label")
    if fold is not None and (isinstance(fold, bool) or not isinstance(fold, int) or fold < 0):
        problems.append(f"{place}: fold is {fold!r}, not 0, 1, 2 and so on")
    named = [*written, *([label] if isinstance(label, str) else [])]
    if away := [f"{place}: {path} {why}; {REMEDY}" for path in named if (why := outside(path, folder))]:
        return _Entry(Case("", (), None, ""), away, None)
    images = [found for path in written for found in _existing(folder / path, place, problems)]
    path = folder / label if isinstance(label, str) else None
    if path is not None and not os.path.exists(path):  # unlike a Path it takes names of any length
        problems.append(f"{place}: {path} does not exist")
    name = scan_stem(folder / written[0]) if name is None else name
    if not name or {"/", "\\"} & set(name):
        problems.append(f"{place}: is named {name!r}; predictions are named so, without / and \\")
    case = Case(name, tuple(map(str, images)), None if path is None else str(path), name)
    return _Entry(case, problems, fold if isinstance(fold, int) else None)


def _existing(path: Path, place: str, problems: list[str]) -> list[Path]:
    """Return the file, or the files ``_0000`` and so on that nnU-Net's first version has in its place."""
    if os.path.exists(path):
        return [path]
    stem = scan_stem(path)
    near = sorted(path.parent.glob(f"{stem}_[0-9][0-9][0-9][0-9]{path.name.removeprefix(stem)}"))
    numbered = by_number(near).get(stem, {})
    if not numbered or sorted(numbered) != list(range(len(numbered))):
        problems.append(f"{place}: {path} does not exist")
        return []
    return [numbered[number] for number in range(len(numbered))]
