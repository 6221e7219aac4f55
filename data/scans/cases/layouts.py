"""Recognises how a dataset of scans lies on disk: a CSV, a ``dataset.json``, or folders."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ...shared.common import listing, number_of
from ...shared.locate import IMAGE_FOLDERS, MASK_FOLDERS, SPLIT_NAMES, DataNotFoundError
from ...shared.storage import on_this_machine
from ..formats.files import scan_stem
from .dataset_json import read_description
from .names import by_stem, group_folder, scans_in, warn_left_out, with_labels
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
        return read_case_table(root / on_this_machine(table, "scans"), missing)
    described = read_description(root / DATASET_FILE, missing)
    if images is None and labels is None and described is not None:
        found = described if described.cases else _beside(root, described, missing)
        _warn_of_numbers(found)
        return found
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
    cases, _ = _folder_cases(root, _nnunet_places(root), None, missing, declared.ending)
    for name, count in ((case.name, len(case.images)) for each in cases.values() for case in each):
        if declared.channels and count not in (1, len(declared.channels)):
            raise CasesError(
                f"{source}: names {number_of(len(declared.channels), 'channel')} "
                f"({', '.join(declared.channels)}), but case {name} has {count} files; each channel is a "
                "file CASE_0000, CASE_0001 and so on"
            )
    return Layout(source, cases, declared)


def _warn_of_numbers(layout: Layout) -> None:
    """Say where a ``dataset.json`` counts other cases than there are."""
    for split, said in layout.declared.numbers.items():
        pooled = ("train", "val") if split == "train" else (split,)
        found = [len(layout.cases[each]) for each in pooled if each in layout.cases]
        if found and said is not None and said not in (found[0], sum(found)):
            key = "numTraining" if split == "train" else "numTest"
            logger.warning(
                "%s: %s is %d, but there are %d %s cases; are files missing, or some too many?",
                layout.source, key, said, sum(found), split,
            )  # fmt: skip


def _image_places(root: Path, images: str | None) -> dict[str, tuple[Path, str]]:
    """Return the folder of each split's scans, and the name that the split has in paths."""
    if images is None:
        usual = next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), None)
        if usual is None:
            return _nnunet_places(root)
        return _split_folders(str(usual)) or {"train": (usual, "")}
    pattern = str(root / on_this_machine(images, "scans"))
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
        path = root / on_this_machine(labels.replace("{split}", written), "scans")
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
    root: Path,
    places: dict[str, tuple[Path, str]],
    labels: str | None,
    missing: Unlabelled,
    ending: str | None = None,
) -> tuple[dict[str, list[Case]], tuple[str, ...]]:
    """Return the cases of each split, and the names of the channels if files tell them."""
    cases: dict[str, list[Case]] = {}
    named: dict[tuple[str, ...], str] = {}
    numbered: bool | None = None
    known: dict[Path, dict[str, Path]] = {}  # the labels in each folder
    for split, (images, written) in places.items():
        if written == "Ts" and not scans_in(images, ending):
            continue  # often left empty
        place = _label_place(root, images, written, labels)
        found = {} if place is None else by_stem(scans_in(place, ending))
        if place is not None:
            known[place] = found
        names = set(found)
        if missing == "skip" and names & set(stems := [scan_stem(path) for path in scans_in(images, ending)]):
            names.update(stems)  # numbers at the ends of these names are not those of channels
        folder = group_folder(images, names or None, numbered, ending)
        numbered = folder.numbered if numbered is None else numbered
        if not folder.images:
            of = "" if ending is None else f" {ending} (the file_ending of {DATASET_FILE})"
            raise DataNotFoundError(
                f"{images}: holds no scans{of}; put the {split} cases there or remove the folder"
            )
        cases[split] = with_labels(folder, found, images, place or root / "labels", split, missing)
        count = len(cases[split][0].images)
        unnamed = tuple(f"channel_{number}" for number in range(count)) if count > 1 else ()
        named.setdefault(folder.channels or unnamed, split)
    _warn_of_strays(cases, known)
    if len(named) > 1:
        texts = [f"{split}: {', '.join(names) or 'one file per case'}" for names, split in named.items()]
        raise CasesError(f"{root}: the splits differ in their channels:\n{listing(texts)}\nmake them alike")
    return cases, next(iter(named))


def _warn_of_strays(cases: dict[str, list[Case]], known: dict[Path, dict[str, Path]]) -> None:
    """Say which files in the folders of labels belong to no case."""
    used = {case.label for each in cases.values() for case in each}
    for place, labels in known.items():
        strays = [path.name for path in labels.values() if str(path) not in used]
        if strays and len(strays) < len(labels):  # else these are the labels of nothing, which is told
            logger.warning(
                "%s: %s without a scan of its name: %s%s",
                place, number_of(len(strays), "label"), ", ".join(strays[:5]), ", ..." * (len(strays) > 5),
            )  # fmt: skip
        if len(strays) < len(labels):
            warn_left_out(place, list(labels.values()), "labels")
