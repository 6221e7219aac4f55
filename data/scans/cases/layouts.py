"""Recognises how a dataset of scans lies on disk: a CSV, a ``dataset.json``, or folders."""

from __future__ import annotations

import os
from pathlib import Path

from ...shared.common import listing, number_of
from ...shared.locate import IMAGE_FOLDERS, MASK_ENDINGS, MASK_FOLDERS, SPLIT_NAMES, DataNotFoundError
from .dataset_json import DATASET_FILE, Description, read_description
from .names import Folder, by_stem, group_folder, scans_in
from .table import read_case_table
from .types import Case, CasesError, Declared, Layout

_LOOKED_FOR = (
    f"{DATASET_FILE} of the Medical Segmentation Decathlon or of nnU-Net",
    "images/train, images/val and labels/train, labels/val (or masks)",
    "images and labels (or masks)",
    "imagesTr and labelsTr",
)


def find_layout(root: Path, images: str | None, labels: str | None, table: str | None) -> Layout:
    """Find the cases of a dataset.

    A table goes before ``dataset.json``, and that before folders. With ``images`` or ``labels`` folders are
    read, and ``dataset.json`` tells the classes alone.

    Args:
        root: folder that other paths are relative to.
        images: folder of the scans, may contain ``{split}``; None to look for it.
        labels: folder of the labels, likewise.
        table: a CSV, see ``read_case_table``.

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
        return read_case_table(root / Path(table).expanduser())
    description = read_description(root / DATASET_FILE)
    declared = Declared() if description is None else description.declared
    if images is None and labels is None and description is not None:
        return _described(root, description)
    places = _image_places(root, images)
    if not places:
        looked = "\n".join(f"  {root / place}" for place in _LOOKED_FOR)
        raise DataNotFoundError(
            f"no scans found, looked for\n{looked}\ngive data.images and data.labels, or a CSV as data.table"
        )
    cases, channels = _all_cases(root, places, labels)
    return Layout(str(root), cases, declared._replace(channels=declared.channels or channels))


def _described(root: Path, description: Description) -> Layout:
    """Take the cases that a ``dataset.json`` lists, else those in the folders beside it."""
    source, declared = str(root / DATASET_FILE), description.declared
    if description.cases is not None:
        return Layout(source, description.cases, declared)
    if not (root / "imagesTr").is_dir():
        raise CasesError(
            f"{source}: lists no cases (training), and there is no folder imagesTr beside it; list them, or "
            "give data.images and data.labels"
        )
    cases, _ = _all_cases(root, _nnunet_places(root), None)
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


def _all_cases(
    root: Path, places: dict[str, tuple[Path, str]], labels: str | None
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
        folder = group_folder(images, set(found) or None, numbered)
        numbered = folder.numbered if numbered is None else numbered
        if not folder.images:
            raise DataNotFoundError(
                f"{images}: holds no scans; put the {split} cases there or remove the folder"
            )
        cases[split] = _with_labels(folder, found, images, place or root / "labels", split)
        count = len(cases[split][0].images)
        names = tuple(f"channel_{number}" for number in range(count)) if count > 1 else ()
        named.setdefault(folder.channels or names, split)
    if len(named) > 1:
        texts = [f"{split}: {', '.join(names) or 'one file per case'}" for names, split in named.items()]
        raise CasesError(f"{root}: the splits differ in their channels:\n{listing(texts)}\nmake them alike")
    return cases, next(iter(named))


def _with_labels(
    folder: Folder, labels: dict[str, Path], images: Path, place: Path, split: str
) -> list[Case]:
    """Give each case its label; those to test with may all be without."""
    found = _matched(folder, labels)
    alone = [name for name in folder.images if name not in found]
    if alone and (split != "test" or found):
        strays = sorted(set(map(str, labels.values())) - set(map(str, found.values())))
        also = f"\nlabels without images: {', '.join(strays[:5])}" if strays else ""
        raise CasesError(
            f"{images}: {number_of(len(alone), 'case')} of {len(folder.images)} without labels in {place}:\n"
            f"{listing([f'{name}: no {name}.*' for name in alone])}{also}\n"
            "a label has the name of its case; rename it, move the case elsewhere, or list the cases in a "
            "CSV (data.table)"
        )
    return [
        Case(name, tuple(map(str, files)), str(found[name]) if name in found else None, name)
        for name, files in folder.images.items()
    ]


def _matched(folder: Folder, labels: dict[str, Path]) -> dict[str, Path]:
    """Return the label of each case: of its name, else of its name with an ending that all labels have."""
    exact = {name: labels[name] for name in folder.images if name in labels}
    if exact:
        return exact
    for ending in MASK_ENDINGS:
        if labels and all(name.endswith(ending) for name in labels):
            short = {name.removesuffix(ending): path for name, path in labels.items()}
            return {name: short[name] for name in folder.images if name in short}
    return {}
