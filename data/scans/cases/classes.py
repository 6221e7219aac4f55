"""The classes of a dataset of scans, given or found, and labels in place of the ids in files.

Letters in shapes: *S the spatial axes of a scan (2 or 3), K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....constants import IGNORE_INDEX
from ...shared.common import number_of
from ...shared.labels.classes import LabelClass, voc_colour
from ...shared.labels.lists import find_class_file, read_class_rows
from ...shared.labels.table import MOST_CLASSES
from ..formats.files import ScanError, read_labels
from .types import DEFAULT_IGNORE, CasesError, Layout

_LARGEST_TABLE = 2**20  # ids between the smallest and the largest for which a table is made
_LARGEST_ID = 2**31
_CHUNK = 2**20  # voxels at a time: numpy looks up by 64-bit numbers
_UNKNOWN = -1
_LOOKED_INTO = 5  # files of labels, to show the ids in the error


def choose_classes(
    layout: Layout,
    root: Path,
    given: Mapping[int, str] | Sequence[str] | None,
    ignore_id: int | None,
    others: Sequence[Path] = (),
) -> tuple[tuple[LabelClass, ...], int]:
    """Return the classes, that of id 0 first and then by id, and the id that is ignored.

    Args:
        layout: the cases, and what ``dataset.json`` says.
        root: folder that may hold a list of classes; so may those of ``others``.
        given: names by id or in the order of the ids, or None.
        ignore_id: given by the user, or None.
        others: files that are no list of classes whatever their name.

    Raises:
        CasesError: if there are no classes, showing which ids the labels hold; or they contradict each other.
        MaskError: if the list of classes is damaged.
    """
    rows, source = layout.declared.rows, layout.source
    if given is not None:
        rows, source = _given_rows(given), "data.classes"
    elif rows is None:
        places = [find_class_file(folder) for folder in (root, *(path.parent for path in others))]
        path = next((place for place in places if place is not None and place not in others), None)
        if path is not None:
            rows, source = read_class_rows(path), str(path)
    if rows is None:
        raise CasesError(_no_classes(layout, root))
    asked = ignore_id if ignore_id is not None else layout.declared.ignore_id
    ignored = DEFAULT_IGNORE if asked is None else asked
    _check_rows(rows, source, asked, ignored)
    ordered = sorted(rows, key=lambda row: (row.id != 0, row.id))
    colours = [
        row.colour or voc_colour(row.id if row.id >= 0 else label) for label, row in enumerate(ordered)
    ]
    return tuple(
        LabelClass(row.id, row.name, colour) for row, colour in zip(ordered, colours, strict=True)
    ), ignored


def to_labels(ids: np.ndarray, classes: Sequence[LabelClass], ignore_id: int, source: str) -> np.ndarray:
    """Turn the ids of a file into labels.

    Args:
        ids: ``[*S]`` integers.
        classes: K of them, at most 255.
        ignore_id: this id becomes 255, unless a class has it.
        source: the file, for errors.

    Returns:
        ``[*S]`` uint8: 0..K-1, and 255 where ignored.

    Raises:
        CasesError: naming the ids that are no class, and how many voxels have them.
    """
    if ids.dtype.kind not in "biu":
        raise CasesError(f"{source}: labels are {ids.dtype}, not integers; save them as integers")
    label_of = {ignore_id: IGNORE_INDEX} | {entry.id: label for label, entry in enumerate(classes)}
    declared = np.array(sorted(label_of), dtype=np.int64)
    labels_of = np.array([label_of[value] for value in declared.tolist()], dtype=np.int16)
    low, high = (int(ids.min()), int(ids.max())) if ids.size else (0, 0)
    table = np.full(high - low + 1 if high - low < _LARGEST_TABLE else 0, _UNKNOWN, dtype=np.int16)
    inside = (low <= declared) & (declared <= high)
    if len(table):
        table[declared[inside] - low] = labels_of[inside]
    flat, labels = ids.reshape(-1), np.empty(ids.size, dtype=np.uint8)
    unknown = []
    for start in range(0, ids.size, _CHUNK):
        values = flat[start : start + _CHUNK].astype(np.int64)
        if len(table):
            found = table.take(values - low)
        else:
            place = declared.searchsorted(values).clip(max=len(declared) - 1)
            found = np.where(declared[place] == values, labels_of[place], _UNKNOWN)
        if found.min() == _UNKNOWN:
            unknown.append(np.unique(values[found == _UNKNOWN], return_counts=True))
        labels[start : start + _CHUNK] = found
    if unknown:
        raise CasesError(_undeclared(source, unknown, classes, ignore_id))
    return labels.reshape(ids.shape)


def _undeclared(
    source: str,
    unknown: list[tuple[np.ndarray, np.ndarray]],
    classes: Sequence[LabelClass],
    ignore_id: int,
) -> str:
    """Name the ids that are no class, those of most voxels first."""
    found, part = np.unique(np.concatenate([values for values, _ in unknown]), return_inverse=True)
    counts = np.bincount(part, np.concatenate([numbers for _, numbers in unknown]))
    order = np.argsort(-counts, kind="stable")[:10]
    texts = [f"{found[n]} ({number_of(int(counts[n]), 'voxel')})" for n in order]
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    declared = ", ".join(str(entry.id) for entry in classes[:20])
    return (
        f"{source}: ids that are no class: {', '.join(texts)}{more}; declared are {declared} and {ignore_id} "
        "to ignore. Add them to the classes, or correct the file"
    )


def labels_of_regions(
    layout: Layout, classes: Sequence[LabelClass]
) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
    """Return the regions of ``dataset.json`` by labels instead of ids, and the label each is written as.

    Raises:
        CasesError: if a region has an id that is no class.
    """
    label_of = {entry.id: label for label, entry in enumerate(classes)}
    declared = layout.declared
    for name, ids in declared.regions.items():
        missing = [i for i in ids if i not in label_of]
        if missing:
            raise CasesError(
                f"{layout.source}, labels: region {name} has the id {missing[0]}, which is no class (there "
                f"are {', '.join(map(str, label_of))}); add it to data.classes"
            )
    regions = {name: tuple(sorted(label_of[i] for i in ids)) for name, ids in declared.regions.items()}
    return regions, tuple(label_of[i] for i in declared.region_ids)


def _given_rows(given: Mapping[int, str] | Sequence[str]) -> list[LabelClass]:
    if not isinstance(given, Mapping):
        return [LabelClass(number, str(name)) for number, name in enumerate(given)]
    try:
        return [LabelClass(int(number), str(name)) for number, name in given.items()]
    except ValueError:
        raise CasesError(
            f"data.classes: {', '.join(map(str, given))}: ids have to be whole numbers, as in "
            "{0: background, 1: liver}"
        ) from None


def _check_rows(rows: Sequence[LabelClass], source: str, asked: int | None, ignored: int) -> None:
    values: list[tuple[str, list[Any]]] = [
        ("id", [row.id for row in rows]),
        ("name", [row.name for row in rows]),
    ]
    for what, found in values:
        twice = sorted({str(value) for value in found if found.count(value) > 1})
        if twice:
            raise CasesError(
                f"{source}: {what} {', '.join(twice[:20])} is there twice; each class needs its own"
            )
    far = [
        row for row in (*rows, LabelClass(ignored, "to ignore")) if not -_LARGEST_ID <= row.id < _LARGEST_ID
    ]
    if far:
        digits = str(far[0].id) if abs(far[0].id) < 10**20 else "of more than 20 digits"
        raise CasesError(
            f"{source}: class {far[0].name} has the id {digits}; ids are numbers of 32 bits, "
            f"{-_LARGEST_ID} to {_LARGEST_ID - 1}"
        )
    if unnamed := [row.id for row in rows if not row.name.strip()]:
        raise CasesError(f"{source}: the class of id {unnamed[0]} has no name; give it one")
    zero = next((row for row in rows if row.id == 0), None)
    other = next((row for row in rows if row.name.casefold() == "background" and row.id != 0), None)
    if zero is not None and other is not None:
        raise CasesError(
            f"{source}: class {other.name} has the id {other.id}, and {zero.name} the id 0; the class of id "
            "0 is taken as the background, which is not evaluated; exchange the ids, or rename the class"
        )
    if not 2 <= len(rows) <= MOST_CLASSES:
        raise CasesError(
            f"{source}: there {'is 1 class' if len(rows) == 1 else f'are {len(rows)} classes'}; 2 to "
            f"{MOST_CLASSES} can be learned, of which one is the background"
        )
    same = [row for row in rows if asked is not None and row.id == asked]
    if same:
        raise CasesError(
            f"{source}: class {same[0].name} has the id {asked}, which is to be ignored; remove it from the "
            "classes or choose another data.ignore_id"
        )
    if ignored != 0 and all(row.id != 0 for row in rows):
        raise CasesError(
            f"{source}: no class has the id 0, which is the background; declare it (0: background), or set "
            "data.ignore_id to 0 if these voxels are not labelled"
        )


def _no_classes(layout: Layout, root: Path) -> str:
    """Say what to write, from the ids in a few files of labels."""
    found: set[int] = set()
    files = [case.label for cases in layout.cases.values() for case in cases if case.label is not None]
    read = 0
    for path in files[:_LOOKED_INTO]:
        try:
            found |= set(np.unique(read_labels(path)[0]).tolist())
        except ScanError:
            continue  # damaged files are reported once there are classes
        read += 1
    classes = sorted((found | {0}) - {DEFAULT_IGNORE}) if len(found) <= 50 else [0, 1]
    if found <= {0, DEFAULT_IGNORE} and DEFAULT_IGNORE in found:
        classes = [0, DEFAULT_IGNORE]  # the foreground, as in binary masks
    names = [f"{i}: {'background' if i == 0 else f'class_{i}'}" for i in classes]
    seen = f"{read} of {len(files)} label files hold the ids {', '.join(map(str, sorted(found)[:50]))}"
    lines = "\n".join(f"  {name}" for name in names)
    return (
        f"{layout.source}: the classes are not known. {seen if read else 'No label file could be read'}. "
        f"Write\n{lines}\nwith names of your own to {root / 'classes.txt'}, or give data.classes: "
        f"{{{', '.join(names)}}}"
    )
