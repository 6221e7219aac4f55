"""Recognises how a dataset of scans lies on disk: a CSV, a ``dataset.json``, or folders.

Sources of ``dataset.json``: Antonelli et al., "The Medical Segmentation Decathlon" (2022);
``dataset_format.md`` of nnU-Net.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from ...shared.common import listing, number_of
from ...shared.labels.classes import LabelClass
from ...shared.locate import IMAGE_FOLDERS, MASK_FOLDERS, SPLIT_NAMES, DataNotFoundError
from ..formats.files import scan_stem
from .names import by_number, by_stem, group_folder, scans_in, with_labels
from .table import read_case_table
from .types import Case, CasesError, Declared, Layout, Unlabelled

logger = logging.getLogger("trunkline")

DATASET_FILE = "dataset.json"
_LOOKED_FOR = (
    f"{DATASET_FILE} of the Medical Segmentation Decathlon or of nnU-Net",
    "images/train, images/val and labels/train, labels/val (or masks)",
    "images and labels (or masks)",
    "imagesTr and labelsTr",
)


def find_layout(
    root: Path,
    images: str | None = None,
    labels: str | None = None,
    table: str | None = None,
    missing: Unlabelled = "error",
) -> Layout:
    """Find the cases of a dataset.

    A table goes before ``dataset.json``, and that before folders. With ``images`` or ``labels`` folders are
    read, and ``dataset.json`` tells only the classes.

    Args:
        root: folder that other paths are relative to.
        images: folder of the scans, may contain ``{split}``; None to look for it.
        labels: the same for the labels.
        table: a CSV, see ``read_case_table``.
        missing: whether cases of ``train`` and ``val`` without labels are an error, or have None in place of
            them (``skip``).

    Raises:
        DataNotFoundError: naming what was looked for.
        CasesError: if files are missing or do not fit together.
    """
    if not root.is_dir():
        where = "" if root.is_absolute() else f" (in the working directory, {Path.cwd()})"
        raise DataNotFoundError(f"data.root: {root} is no folder{where}")
    if table is not None:
        if images is not None or labels is not None:
            raise CasesError("data.table lists images and labels; leave out data.images and data.labels")
        return read_case_table(root / Path(table).expanduser(), missing)
    described = _described(root / DATASET_FILE, missing)
    if images is None and labels is None and described is not None:
        return described if described.cases else _beside(root, described, missing)
    places = _image_places(root, images)
    if not places:
        looked = "\n".join(f"  {root / place}" for place in _LOOKED_FOR)
        raise DataNotFoundError(
            f"no scans found, looked for\n{looked}\ngive data.images and data.labels, or a CSV as data.table"
        )
    cases, channels = _folder_cases(root, places, labels, missing)
    declared = Declared() if described is None else described.declared
    return Layout(str(root), cases, declared._replace(channels=declared.channels or channels))


def _beside(root: Path, described: Layout, missing: Unlabelled) -> Layout:
    """Find the cases of a ``dataset.json`` that lists none, in the folders next to it."""
    source, declared = described.source, described.declared
    if not (root / "imagesTr").is_dir():
        raise CasesError(
            f"{source}: lists no cases (training), and there is no folder imagesTr next to it; list them, or "
            "give data.images and data.labels"
        )
    cases, _ = _folder_cases(root, _nnunet_places(root), None, missing)
    for name, count in ((case.name, len(case.images)) for each in cases.values() for case in each):
        if declared.channels and count not in (1, len(declared.channels)):
            raise CasesError(
                f"{source}: names {number_of(len(declared.channels), 'channel')} "
                f"({', '.join(declared.channels)}), but case {name} has {count} files; each channel is a "
                "file CASE_0000, CASE_0001 and so on"
            )
    return Layout(source, cases, declared)


def _image_places(root: Path, images: str | None) -> dict[str, tuple[Path, str]]:
    """Return the folder of each split's scans, and the name that the split has in paths."""
    if images is None:
        usual = next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), None)
        if usual is None:
            return _nnunet_places(root)
        return _split_folders(str(usual)) or {"train": (usual, "")}
    pattern = str(root / Path(images).expanduser())
    if "{split}" in pattern:
        found = _split_folders(pattern)
    else:
        found = _split_folders(pattern) or ({"train": (Path(pattern), "")} if Path(pattern).is_dir() else {})
    if not found:
        raise DataNotFoundError(f"data.images: {pattern} is no folder; it is relative to data.root")
    return found


def _nnunet_places(root: Path) -> dict[str, tuple[Path, str]]:
    pairs = {"train": (root / "imagesTr", "Tr"), "test": (root / "imagesTs", "Ts")}
    return {split: place for split, place in pairs.items() if place[0].is_dir()}


def _split_folders(pattern: str) -> dict[str, tuple[Path, str]]:
    """Return the folders of splits inside a folder, or where ``{split}`` says."""
    pattern = pattern if "{split}" in pattern else os.path.join(pattern, "{split}")
    found: dict[str, tuple[Path, str]] = {}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            path = Path(pattern.replace("{split}", name))
            if split not in found and path.is_dir():
                found[split] = (path, name)
    return found


def _label_place(root: Path, images: Path, written: str, labels: str | None) -> Path | None:
    """Return the folder of the labels that belong to a folder of scans."""
    if labels is not None:
        path = root / Path(labels.replace("{split}", written)).expanduser()
        if "{split}" not in labels and written and (path / written).is_dir():
            return path / written
        if not path.is_dir() and written not in ("test", "Ts"):
            raise DataNotFoundError(f"data.labels: {path} is no folder; it is relative to data.root")
        return path if path.is_dir() else None
    if written in ("Tr", "Ts"):
        candidates = [root / f"labels{written}"]
    else:
        candidates = [root / name / part for name in MASK_FOLDERS for part in dict.fromkeys((written, ""))]
    return next((path for path in candidates if path.is_dir() and path != images), None)


def _folder_cases(
    root: Path, places: dict[str, tuple[Path, str]], labels: str | None, missing: Unlabelled
) -> tuple[dict[str, list[Case]], tuple[str, ...]]:
    """Return the cases of each split, and the names of the channels if files tell them."""
    cases: dict[str, list[Case]] = {}
    named: dict[tuple[str, ...], str] = {}
    numbered: bool | None = None
    for split, (images, written) in places.items():
        if written == "Ts" and not scans_in(images):
            continue  # often left empty
        place = _label_place(root, images, written, labels)
        found = {} if place is None else by_stem(scans_in(place))
        names = set(found)
        if missing == "skip" and names & set(stems := [scan_stem(path) for path in scans_in(images)]):
            names.update(stems)  # numbers at the ends of these names are not those of channels
        folder = group_folder(images, names or None, numbered)
        numbered = folder.numbered if numbered is None else numbered
        if not folder.images:
            raise DataNotFoundError(
                f"{images}: holds no scans; put the {split} cases there or remove the folder"
            )
        cases[split] = with_labels(folder, found, images, place or root / "labels", split, missing)
        count = len(cases[split][0].images)
        unnamed = tuple(f"channel_{number}" for number in range(count)) if count > 1 else ()
        named.setdefault(folder.channels or unnamed, split)
    if len(named) > 1:
        texts = [f"{split}: {', '.join(names) or 'one file per case'}" for names, split in named.items()]
        raise CasesError(f"{root}: the splits differ in their channels:\n{listing(texts)}\nmake them alike")
    return cases, next(iter(named))


# -- dataset.json


def _described(source: Path, missing: Unlabelled) -> Layout | None:
    """Read a ``dataset.json``, with or without cases; None if there is none, or none of this kind.

    Classes are ``{"0": "background", "1": "liver"}`` or ``{"background": 0, "liver": 1}``. If the value of
    any is a list of ids, or there is a ``regions_class_order``, all except the background are regions. A
    class is named after the region that consists only of it, else ``label_1`` and so on. The value of
    ``ignore`` becomes the id that is ignored.

    Raises:
        CasesError: if the file is damaged, an entry has the wrong form, or files that it lists are missing.
    """
    if not source.is_file():
        return None
    try:
        content = json.loads(source.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise CasesError(f"{source}: no readable JSON ({error}); repair or remove it") from error
    if not isinstance(content, dict) or not {"labels", "training", "dataset"} & set(content):
        return None
    rows, regions, ignore_id = _classes(source, content)
    channels = _channels(source, content)
    return Layout(
        str(source), _listed_cases(source, content, missing), Declared(rows, regions, ignore_id, channels)
    )


def _classes(
    source: Path, content: dict[str, Any]
) -> tuple[list[LabelClass] | None, dict[str, tuple[int, ...]], int | None]:
    """Return the classes, the regions and the id that is ignored."""
    entries = content.get("labels")
    if entries is None:
        return None, {}, None
    if not isinstance(entries, dict) or not entries:
        raise CasesError(f'{source}, labels: is {entries!r}, not {{"background": 0, "liver": 1, ...}}')
    named = {str(name): _ids(source, name, value) for name, value in _by_name(source, entries).items()}
    ignored = named.pop("ignore", None)
    if ignored is not None and len(ignored) > 1:
        raise CasesError(f"{source}, labels: ignore is {list(ignored)}; it has to be one id")
    ignore_id = None if ignored is None else ignored[0]
    order = content.get("regions_class_order")
    if order is None and all(len(ids) == 1 for ids in named.values()):
        return [LabelClass(ids[0], name) for name, ids in named.items()], {}, ignore_id
    background = [name for name, ids in named.items() if ids == (0,)]
    regions = {name: ids for name, ids in named.items() if name not in background}
    if order is not None and (not isinstance(order, list) or len(order) != len(regions)):
        raise CasesError(
            f"{source}, regions_class_order: is {order!r}; it needs one id for each of the {len(regions)} "
            f"regions ({', '.join(regions)})"
        )
    alone = {ids[0]: name for name, ids in named.items() if len(ids) == 1}
    used = sorted({i for ids in named.values() for i in ids})
    return [LabelClass(i, alone.get(i, f"label_{i}")) for i in used], regions, ignore_id


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
    return text.strip().lstrip("-").isdecimal()


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


def _listed_cases(source: Path, content: dict[str, Any], missing: Unlabelled) -> dict[str, list[Case]]:
    """Return the cases that the file lists, in the form of either kind; nothing if it lists none."""
    problems: list[str] = []
    strict = missing == "error"
    found: dict[str, list[Case]] = {}
    if isinstance(content.get("dataset"), dict):
        entries = content["dataset"].items()
        found["train"] = [_listed(source.parent, f"dataset, {k}", v, problems, strict, k) for k, v in entries]
    elif content.get("training"):
        for split, key in (("train", "training"), ("val", "validation"), ("test", "test")):
            entries = content.get(key) or []
            if not isinstance(entries, list):
                raise CasesError(f"{source}, {key}: is no list")
            places = [f"{key}[{number}]" for number in range(len(entries))]
            found[split] = []
            for place, entry in zip(places, entries, strict=True):
                wrong: list[str] = []
                case = _listed(source.parent, place, entry, wrong, strict and split != "test")
                if wrong and split == "test":
                    logger.warning("%s: left out of the cases to test with: %s", source, "; ".join(wrong))
                else:
                    found[split].append(case)
                    problems += wrong
    names = [case.name for each in found.values() for case in each]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    problems += [f"{name} is listed twice" for name in twice]
    if problems:
        raise CasesError(
            f"{source}: wrong entries:\n{listing(problems)}\nrepair the file or add what is missing"
        )
    return {split: each for split, each in found.items() if each}


def _listed(
    folder: Path, place: str, entry: Any, problems: list[str], labelled: bool, name: str | None = None
) -> Case:
    """Read ``{image, label}``, ``{images, label}`` or, without labels, the path of an image."""
    record = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(record, dict):
        problems.append(f"{place}: is {entry!r}, not {{image, label}}")
        return Case("", (), None, "")
    written = record.get("images", record.get("image"))
    written = written if isinstance(written, list) else [written]
    label = record.get("label")
    if not written or not all(isinstance(path, str) for path in written):
        problems.append(f"{place}: image is {written!r}, not a path")
        return Case("", (), None, "")
    if labelled and not isinstance(label, str):
        problems.append(f"{place}: no label")
    images = [found for path in written for found in _existing(folder / path, place, problems)]
    path = folder / label if isinstance(label, str) else None
    if path is not None and not path.exists():
        problems.append(f"{place}: {path} does not exist")
    name = scan_stem(folder / written[0]) if name is None else name
    return Case(name, tuple(map(str, images)), None if path is None else str(path), name)


def _existing(path: Path, place: str, problems: list[str]) -> list[Path]:
    """Return the file, or the files ``_0000`` and so on that nnU-Net's first version has in its place."""
    if path.exists():
        return [path]
    stem = scan_stem(path)
    near = sorted(path.parent.glob(f"{stem}_[0-9][0-9][0-9][0-9]{path.name.removeprefix(stem)}"))
    numbered = by_number(near).get(stem, {})
    if not numbered or sorted(numbered) != list(range(len(numbered))):
        problems.append(f"{place}: {path} does not exist")
        return []
    return [numbered[number] for number in range(len(numbered))]
