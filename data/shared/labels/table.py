"""Classes of segmentation data: what the values or colours of a mask stand for.

Letters in shapes: h w height and width of a mask in pixels, K classes.
"""

from __future__ import annotations

import copy
import difflib
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ....constants import IGNORE_INDEX
from .classes import LabelClass, places_by_name, voc_colour

Background = Literal["class", "ignore"]

MOST_CLASSES = 255  # labels are 8-bit numbers, and 255 is for what is ignored
LARGEST_VALUE = 65535  # of a 16-bit mask
UNKNOWN = -1
_CONTROL = ("Cc", "Zl", "Zp")  # categories of characters
_WRITTEN_ID = re.compile(r"-?[0-9]{1,9}")


class MaskError(ValueError):
    """Masks are missing, do not fit their images, or hold something that is no class."""


class ClassTable:
    """The classes that are learned, and the label of every value or colour that a mask may hold.

    Labels are 0..K-1 in the order of ``classes``. The value 255 is ignored unless it is that of a class.

    Args:
        rows: everything that masks may hold, in the order of the labels.
        ignore: names or ids, also ids that are not among the rows, which become 255.
        categories: names or ids of the rows to learn, in the order of their labels; all others become
            background. All that are not ignored if None.
        background: with ``categories``, whether the others become a class (label 0, named background; its id
            is that of a row of this name, else the smallest that no category has) or are ignored.
        source: where the rows come from, for errors.
        numbered: whether the ids are those of the data's author, rather than the places in a list.

    Raises:
        MaskError: if ids or names occur twice, nothing or too much is left to learn, or a name or id in
            ``ignore`` or ``categories`` is not there.

    Attributes:
        classes: K of them.
        coloured: whether every row has a colour of its own; else classes have those of Pascal VOC.
        ignored: ids of what ``ignore`` names.
        rest: with ``categories``, the label of everything else; else 255.
    """

    def __init__(
        self,
        rows: Sequence[LabelClass],
        ignore: Sequence[str | int] = (),
        categories: Sequence[str | int] | None = None,
        background: Background = "class",
        source: str = "the list of classes",
        numbered: bool = True,
    ):
        self.source = source
        self.numbered = numbered
        self.rows = tuple(rows)
        _check_rows(self.rows, source)
        self.coloured = all(row.colour is not None for row in rows)
        ignored = {row_id(self.rows, entry, "ignore", source) for entry in ignore}
        outside = [entry for entry in ignored if not 0 <= entry <= LARGEST_VALUE]
        if outside:
            raise MaskError(f"data.ignore: {min(outside)} is no value of a mask: 0 to {LARGEST_VALUE}")
        self.ignored = frozenset(ignored)
        learned, self.rest = self._chosen(ignored, categories, background)
        if not 0 < len(learned) <= MOST_CLASSES:
            raise MaskError(
                f"{source}: {len(learned)} classes are left to learn; there can be 1 to {MOST_CLASSES}"
            )
        self.classes = tuple(
            LabelClass(row.id, row.name, row.colour or voc_colour(row.id)) for row in learned
        )
        label_of = {row.id: label for label, row in enumerate(learned)}
        labels = [IGNORE_INDEX if row.id in ignored else label_of.get(row.id, self.rest) for row in self.rows]
        self._by_value = np.full(LARGEST_VALUE + 1, UNKNOWN, dtype=np.int16)
        self._by_value[IGNORE_INDEX] = IGNORE_INDEX
        self._by_value[list(ignored)] = IGNORE_INDEX
        self._by_value[[row.id for row in self.rows]] = labels
        self._codes, self._code_labels = self._colour_codes(labels)

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def background(self) -> int | None:
        """The label of the class named background, or None."""
        names = [entry.name.lower() for entry in self.classes]
        return names.index("background") if "background" in names else None

    def renumbered(self, classes: Sequence[LabelClass]) -> tuple[ClassTable, np.ndarray] | None:
        """Give the labels the numbers of other classes of the same names; values and colours stay.

        Args:
            classes: whose ids the classes get, too.

        Returns:
            The table, and ``[256]`` uint8, the new label of each label (255 stays); None if names differ.
        """
        places = places_by_name(self.classes, classes)
        if places is None:
            return None
        new = np.arange(IGNORE_INDEX + 1, dtype=np.uint8)
        new[: len(places)] = places
        made = copy.copy(self)
        own = {entry.name: entry for entry in self.classes}
        made.classes = tuple(entry._replace(colour=own[entry.name].colour) for entry in classes)
        made.rest = int(new[self.rest])
        label = new.astype(np.int16)  # which has room for UNKNOWN
        made._by_value = np.where(self._by_value == UNKNOWN, label.dtype.type(UNKNOWN), label[self._by_value])
        made._code_labels = label[self._code_labels]
        return made, new

    def labels(self, values: np.ndarray) -> np.ndarray:
        """Return the int16 label of each value, or of each colour code if the masks are in colours.

        Args:
            values: integers; 0..65535, or ``65536 R + 256 G + B`` as uint32.

        Returns:
            An array of the same shape: 0..K-1, 255 where ignored, -1 where unknown.
        """
        if values.dtype != np.uint32:
            return self._by_value.take(values)  # twice as fast as indexing
        if not len(self._codes):
            return np.full(values.shape, UNKNOWN, dtype=np.int16)
        nearest = np.searchsorted(self._codes, values).clip(max=len(self._codes) - 1)
        return np.where(self._codes[nearest] == values, self._code_labels[nearest], UNKNOWN).astype(np.int16)

    def _chosen(
        self, ignored: set[int], categories: Sequence[str | int] | None, background: Background
    ) -> tuple[list[LabelClass], int]:
        """Return the rows to learn, and the label of those that are neither learned nor ignored."""
        if categories is None:
            return [row for row in self.rows if row.id not in ignored], IGNORE_INDEX
        by_id = {row.id: row for row in self.rows}
        ids = [row_id(self.rows, entry, "categories", self.source) for entry in categories]
        missing = [i for i in ids if i not in by_id]
        if missing or len(set(ids)) < len(ids) or ignored & set(ids):
            raise MaskError(
                f"{self.source}: categories {list(categories)} have to be different classes of the data that "
                "are not ignored"
            )
        learned = [by_id[i] for i in ids]
        if background == "ignore":
            return learned, IGNORE_INDEX
        for row in self.rows:
            if row.name.lower() == "background":
                return (learned, ids.index(row.id)) if row in learned else ([row, *learned], 0)
        free = next(i for i in range(len(ids) + 1) if i not in ids)
        return [LabelClass(free, "background", voc_colour(0)), *learned], 0

    def _colour_codes(self, labels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the colours as ascending codes, and the label of each."""
        label_of: dict[int, int] = {}
        for row, label in zip(self.rows, labels, strict=True):
            if row.colour is None:
                continue
            code = colour_code(row.colour)
            if label_of.setdefault(code, label) != label:
                raise MaskError(f"{self.source}: {row.name} and another class have the colour {row.colour}")
        codes = np.array(sorted(label_of), dtype=np.uint32)
        return codes, np.array([label_of[code] for code in codes.tolist()], dtype=np.int16)


def has_control(name: str) -> bool:
    """Return whether a name holds a control character, or one that separates lines or paragraphs."""
    return any(unicodedata.category(letter) in _CONTROL for letter in name)


def colour_code(colour: Sequence[int]) -> int:
    """Return ``65536 R + 256 G + B``."""
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def rows_of_names(names: Sequence[str], values: Sequence[int] | None = None) -> list[LabelClass]:
    """Number names by the given values, else 0, 1, 2 and so on.

    Raises:
        MaskError: if there are not as many values as names, or a name is empty or holds a control character.
    """
    unnamed = [name for name in names if not name.strip() or has_control(name)]
    if unnamed:
        raise MaskError(f"data.classes: {unnamed[0]!r} is empty or holds a control character; give a name")
    if values is not None and len(values) != len(names):
        raise MaskError(f"mask_values has {len(values)} values, but there are {len(names)} classes")
    ids = range(len(names)) if values is None else values
    return [LabelClass(value, name) for value, name in zip(ids, names, strict=True)]


def _check_rows(rows: Sequence[LabelClass], source: str) -> None:
    values: list[tuple[str, list[Any]]] = [
        ("id", [row.id for row in rows]),
        ("name", [row.name for row in rows]),
    ]
    for what, found in values:
        twice = sorted({str(value) for value in found if found.count(value) > 1})
        if twice:
            raise MaskError(
                f"{source}: {what} {', '.join(twice[:20])} is there twice; each class needs its own"
            )
    wrong = [row for row in rows if not 0 <= row.id <= LARGEST_VALUE]
    if wrong:
        raise MaskError(f"{source}: {wrong[0].name} has id {wrong[0].id}; ids are 0 to {LARGEST_VALUE}")


def row_id(rows: Sequence[LabelClass], entry: str | int, argument: str, source: str) -> int:
    """Return the id that a name or id means.

    Args:
        rows: the classes there are.
        entry: a name, or an id, which need not be among the rows.
        argument: that of the data module, for the error.
        source: where the rows come from, for the error.

    Raises:
        MaskError: if there is no class of this name.
    """
    names = {row.name: row.id for row in rows}
    if isinstance(entry, str):
        if entry in names:
            return names[entry]
        if not _WRITTEN_ID.fullmatch(entry.strip()):
            near = difflib.get_close_matches(entry, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f" (there are {', '.join(list(names)[:20])})"
            raise MaskError(f"data.{argument}: {source} has no class {entry!r}{hint}")
    return int(entry)
