"""A table of images and their classes; ``table_file`` reads it.

Letters in shapes: I images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..shared.common import PackedNames, listing
from ..shared.storage import Location
from .index import ClassIndex
from .names import LabelError, unknown_classes


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

    source: Location
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

    def index(
        self, split: str | None, class_names: Sequence[str] | None, root: Location | None
    ) -> ClassIndex:
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
            names = sorted({name for row in unknown for name in self.labels[row] if name not in number})
            texts = [f"line {self.lines[row]}: {', '.join(self.labels[row])}" for row in unknown]
            raise LabelError(
                f"{self.source}: classes that the training data lack:\n{listing(texts)}\n"
                f"the training data have {', '.join(class_names[:20])}{unknown_classes(names, class_names)}"
            )
        if not self.multi_label:
            return torch.tensor([number[self.labels[row][0]] for row in rows], dtype=torch.int64)
        flags = torch.zeros(len(rows), len(class_names), dtype=torch.int8)  # [I, K]
        for position, row in enumerate(rows):
            flags[position, [number[name] for name in self.labels[row]]] = 1
        return flags

    def _folder(self, rows: list[int], root: Location | None) -> Location:
        near = self.source.parent
        if root is None or not root.is_dir() or not rows or (near / self.paths[rows[0]]).exists():
            return near
        return root if (root / self.paths[rows[0]]).exists() else near
