"""Read a CSV of images and their classes; errors name the file and the line.

Letters in shapes: I images, K classes.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..shared.common import PackedNames, listing, number_of
from ..shared.locate import SPLIT_NAMES
from .index import ClassIndex, LabelError

_SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
_FLAGS = {"0": False, "0.0": False, "1": True, "1.0": True}


@dataclass(frozen=True)
class ImageTable:
    """The rows of a CSV.

    The columns are ``path``; optionally ``split`` (train, val or test); and the classes of an image in one of
    three forms. ``label`` holds one name: each image shows one class. ``labels`` holds any number of names
    with ``;`` between them. Without either, every other column is a class and holds 0 or 1. Next to ``label``
    or ``labels`` other columns are ignored. A path appears once.

    Attributes:
        source: the file.
        paths: as written.
        splits: ``train``, ``val`` or ``test`` of each row; None if the file has no such column.
        labels: the names of each row's classes; exactly one unless ``multi_label``.
        lines: where in the file each row ends; the header is line 1.
        classes: all names: columns in their order, else sorted, as numbers if all are whole numbers.
        multi_label: whether the form is one of the last two.
        named: whether the form is one of the first two.
    """

    source: Path
    paths: list[str]
    splits: list[str] | None
    labels: list[tuple[str, ...]]
    lines: list[int]
    classes: tuple[str, ...]
    multi_label: bool
    named: bool

    def rows(self, split: str | None) -> list[int]:
        """Return the positions of a split's rows; all if ``split`` is None or the file has no such column."""
        if split is None or self.splits is None:
            return list(range(len(self.paths)))
        return [row for row, name in enumerate(self.splits) if name == split]

    def class_names(self, split: str | None) -> tuple[str, ...]:
        """Return the classes that the rows of a split name, in the order of ``classes``; or all columns."""
        if not self.named:
            return self.classes
        named = {name for row in self.rows(split) for name in self.labels[row]}
        return tuple(name for name in self.classes if name in named)

    def index(self, split: str | None, class_names: Sequence[str] | None, root: Path | None) -> ClassIndex:
        """Index the rows of a split.

        Paths are relative to the folder of the CSV, or to ``root`` if the first file is only found there.

        Args:
            split: as in ``rows``.
            class_names: the classes to number labels by; None leaves the labels unknown.
            root: the root of the data module.

        Raises:
            LabelError: if a row names a class that is not among ``class_names``.
        """
        rows = self.rows(split)
        labels = torch.full((len(rows),), -1) if class_names is None else self._numbered(rows, class_names)
        return ClassIndex(
            str(self._folder(rows, root)),
            PackedNames.pack(self.paths[row] for row in rows),
            labels,
            tuple(class_names or ()),
            table=str(self.source),
            lines=torch.tensor([self.lines[row] for row in rows], dtype=torch.int64),
        )

    def _numbered(self, rows: list[int], class_names: Sequence[str]) -> torch.Tensor:
        number = {name: label for label, name in enumerate(class_names)}
        unknown = [row for row in rows if any(name not in number for name in self.labels[row])]
        if unknown:
            texts = [f"line {self.lines[row]}: {', '.join(self.labels[row])}" for row in unknown]
            raise LabelError(
                f"{self.source}: classes that the training data lack:\n{listing(texts)}\n"
                f"the training data have {', '.join(class_names[:20])}"
            )
        if not self.multi_label:
            return torch.tensor([number[self.labels[row][0]] for row in rows], dtype=torch.int64)
        flags = torch.zeros(len(rows), len(class_names), dtype=torch.int8)  # [I, K]
        for position, row in enumerate(rows):
            flags[position, [number[name] for name in self.labels[row]]] = 1
        return flags

    def _folder(self, rows: list[int], root: Path | None) -> Path:
        near = self.source.parent
        if root is None or not root.is_dir() or not rows or (near / self.paths[rows[0]]).exists():
            return near
        return root if (root / self.paths[rows[0]]).exists() else near


def read_image_table(source: Path, labelled: bool = True) -> ImageTable:
    """Read a CSV with a header.

    Args:
        source: the file, UTF-8, with commas.
        labelled: whether it has to have classes; if not, only ``path`` is read.

    Raises:
        LabelError: listing the lines where a path or label is empty, a split is none of train, val and test,
            a class column holds something else than 0 and 1, or a path is there for the second time.
            Also if ``path`` or all class columns are missing.
    """
    try:
        with open(source, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            records = [(reader.line_num, record) for record in reader if record]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelError(f"{source}: not readable as CSV ({error}); save it as UTF-8 with commas") from error
    columns = _class_columns(source, header) if labelled else []
    _require_path(source, header)
    if not records:
        raise LabelError(f"{source}: has a header but no rows")
    problems: list[str] = []
    table = _read_rows(source, header, columns, records, problems)
    if problems:
        raise LabelError(f"{source}: {number_of(len(problems), 'wrong row')}:\n{listing(problems)}")
    return table


def _require_path(source: Path, header: list[str]) -> None:
    if "path" not in header:
        hint = (
            "; separate columns by commas" if len(header) == 1 and any(c in header[0] for c in ";\t") else ""
        )
        raise LabelError(f"{source}, line 1: no column path (there are {', '.join(header) or 'none'}){hint}")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise LabelError(f"{source}, line 1: column {', '.join(twice)} is there twice; rename or remove one")


def _class_columns(source: Path, header: list[str]) -> list[str]:
    _require_path(source, header)
    if "label" in header and "labels" in header:
        raise LabelError(f"{source}, line 1: has both label (one class) and labels (several); remove one")
    for name in ("label", "labels"):
        if name in header:
            return [name]
    columns = [name for name in header if name not in ("path", "split")]
    if not columns:
        raise LabelError(
            f"{source}, line 1: no classes; add a column label, or labels (names with ; between them), or "
            "one column of 0 and 1 per class"
        )
    return columns


def _read_rows(
    source: Path,
    header: list[str],
    columns: list[str],
    records: list[tuple[int, list[str]]],
    problems: list[str],
) -> ImageTable:
    """Read all rows, and write down what is wrong with which line."""
    paths: list[str] = []
    splits: list[str] = []
    labels: list[tuple[str, ...]] = []
    lines: list[int] = []
    line_of: dict[str, int] = {}
    for line, record in records:
        if len(record) != len(header):
            problems.append(f"line {line}: {len(record)} fields, the header has {len(header)}")
            continue
        row = {name: value.strip() for name, value in zip(header, record, strict=True)}
        problem = _row_problem(row, columns)
        same = os.path.normpath(row["path"])
        if problem is None and (before := line_of.setdefault(same, line)) != line:
            problem = (
                f"{row['path']} is there already, in line {before}; an image belongs to one split and row"
            )
        if problem is not None:
            problems.append(f"line {line}: {problem}")
            continue
        paths.append(row["path"])
        splits.append(_SPLIT_OF.get(row.get("split", "").lower(), ""))
        labels.append(_labels_of(row, columns))
        lines.append(line)
    named = columns in (["label"], ["labels"])
    classes = _sorted_names({name for names in labels for name in names}) if named else tuple(columns)
    return ImageTable(
        source,
        paths,
        splits if "split" in header else None,
        labels,
        lines,
        classes,
        multi_label=bool(columns) and columns != ["label"],
        named=named,
    )


def _row_problem(row: dict[str, str], columns: list[str]) -> str | None:
    if not row["path"]:
        return "the path is empty"
    if columns and "split" in row and row["split"].lower() not in _SPLIT_OF:
        return f"split is {row['split']!r}, not train, val or test"
    if columns == ["label"]:
        return None if row["label"] else "the label is empty; remove the row or name its class"
    if columns != ["labels"]:
        for name in columns:
            if row[name] not in _FLAGS:
                return f"column {name} holds {row[name]!r}, not 0 or 1; remove columns that are no classes"
    return None


def _labels_of(row: dict[str, str], columns: list[str]) -> tuple[str, ...]:
    if columns == ["label"]:
        return (row["label"],)
    if columns == ["labels"]:
        names = (name.strip() for name in row["labels"].split(";"))
        return tuple(dict.fromkeys(name for name in names if name))
    return tuple(name for name in columns if _FLAGS[row[name]])


def _sorted_names(names: set[str]) -> tuple[str, ...]:
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))
