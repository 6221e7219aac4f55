"""Finds the images and classes of a split: in class folders, in a zip of class folders, or in a CSV.

Letters in shapes: I images, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ..shared.common import PackedNames
from ..shared.locate import SPLIT_NAMES, DataNotFoundError, list_images
from ..shared.storage import Location, located, stored
from .archive import Archive, read_archive
from .folders import (
    SUFFIXES,
    Tree,
    check_tree,
    class_folders,
    images_of_archive,
    tree_of_archive,
    tree_of_folder,
)
from .index import ClassIndex, index_of_archive
from .table import ImageTable
from .table_file import read_image_table


class SplitSource(NamedTuple):
    """Where a split is.

    Attributes:
        path: a folder of class folders, a zip, or a CSV.
        inside: the folder inside the zip that holds the class folders; empty for the topmost.
        split: the split that rows of a CSV have to be of; None for all rows.
    """

    path: Location
    inside: str = ""
    split: str | None = None

    @property
    def is_table(self) -> bool:
        """Whether it is a CSV."""
        return self.path.suffix.lower() == ".csv" and not self.path.is_dir()

    @property
    def is_archive(self) -> bool:
        """Whether it is a zip."""
        return self.path.suffix.lower() == ".zip" and not self.path.is_dir()

    def __str__(self) -> str:
        return os.path.join(str(self.path), self.inside) if self.inside else str(self.path)


class ClassSources:
    """Finds and reads splits; what several splits share (a zip, a CSV) is read once.

    Args:
        root: folder, zip or CSV that holds the splits; None if every split is given.
        given: the path of each split that the user names, or None. Relative to ``root``, to its folder if
            that is a CSV, inside it if that is a zip.
    """

    def __init__(self, root: str | None, given: dict[str, str | None]):
        self.root = None if root is None else located(root)
        self.given = given
        self._archives: dict[Location, Archive] = {}
        self._tables: dict[Location, ImageTable] = {}

    def find(self, split: str) -> SplitSource:
        """Return where a split is.

        Raises:
            DataNotFoundError: naming the places looked at.
        """
        if self.root is not None and not self.root.exists():
            raise DataNotFoundError(f"data.root: {self.root} does not exist")
        given = self.given.get(split)
        if given is not None:
            return self._find_given(split, given)
        if self.root is None:
            raise DataNotFoundError(f"no {split} data: give data.root or data.{split}")
        if SplitSource(self.root).is_table:
            return self._find_rows(self.root, split)
        candidates = [str(self.root / name) for name in SPLIT_NAMES[split]]
        if SplitSource(self.root).is_archive:
            for name in SPLIT_NAMES[split]:
                if (inside := self._folder_inside(self.root, name)) is not None:
                    return SplitSource(self.root, inside)
        else:
            for path in (self.root / f"{n}{end}" for n in SPLIT_NAMES[split] for end in (".csv", "", ".zip")):
                if path.exists():
                    return self._source_at(path, split)
            candidates = [f"{name}, {name}.csv or {name}.zip" for name in candidates]
        looked = "\n".join(f"  {candidate}" for candidate in candidates)
        raise DataNotFoundError(
            f"no {split} data found, looked for\n{looked}\ngive data.root or data.{split}"
        )

    def class_names(self, source: SplitSource) -> tuple[tuple[str, ...], bool]:
        """Return the class names of a split, and whether an image may show several.

        Classes of folders are the sorted names of the folders, also of empty ones.
        """
        if source.is_table:
            table = self._table(source.path)
            return table.class_names(source.split), table.multi_label
        if source.is_archive:
            return tuple(self._tree(source).folders), False
        return tuple(class_folders(source.path)), False

    def index(self, source: SplitSource, class_names: Sequence[str]) -> ClassIndex:
        """Read a split, and number its labels by ``class_names``.

        Raises:
            DataNotFoundError: if there is no image.
            LabelError: if an image lies in no class folder, or shows a class not among ``class_names``.
            ImageError: if 2D images and scans are mixed.
        """
        if source.is_table:
            return self._table(source.path).index(source.split, class_names, self.root)
        tree = self._tree(source)
        check_tree(str(source), tree, class_names)
        number = {name: label for label, name in enumerate(class_names)}
        labels = torch.tensor([number[name] for name in tree.classes], dtype=torch.int64)
        if source.is_archive:
            return index_of_archive(self._archive(source.path), tree.chosen, labels, class_names)
        return ClassIndex(str(source.path), PackedNames.pack(tree.chosen), labels, tuple(class_names))

    def index_for_prediction(
        self, given: Sequence[str], class_names: Sequence[str], several: bool
    ) -> ClassIndex:
        """Index images without labels.

        Args:
            given: one zip, one CSV with the column ``path``, or images and folders of images (not the folders
                inside them), relative to the working directory.
            class_names: of the model's training data, as far as they are known.
            several: whether an image may show several classes.

        Raises:
            DataNotFoundError: if something does not exist, or there is no image.
        """
        path = located(given[0])
        if len(given) == 1 and path.exists() and SplitSource(path).is_table:
            index = read_image_table(path, labelled=False).index(None, None, self.root)
        elif len(given) == 1 and path.exists() and SplitSource(path).is_archive:
            archive = self._archive(path)
            chosen = images_of_archive(archive)
            index = index_of_archive(archive, chosen, torch.full((len(chosen),), -1), ())
        else:
            names = PackedNames.pack(str(found) for found in list_images(given, SUFFIXES))
            index = ClassIndex("", names, torch.full((len(names),), -1), ())
        labels = torch.full((len(index), len(class_names)), -1, dtype=torch.int8) if several else index.labels
        return ClassIndex(
            index.folder, index.names, labels, tuple(class_names), index.members, index.table, index.lines
        )

    def _find_given(self, split: str, given: str) -> SplitSource:
        if self.root is not None and SplitSource(self.root).is_archive:
            if (inside := self._folder_inside(self.root, given.strip("/"))) is None:
                raise DataNotFoundError(f"data.{split}: {self.root} has no folder {given}")
            return SplitSource(self.root, inside)
        base = Path() if self.root is None else self.root if self.root.is_dir() else self.root.parent
        path = base / located(given)
        if not path.exists():
            raise DataNotFoundError(f"data.{split}: {path} does not exist; it is relative to data.root")
        return self._source_at(path, split)

    def _source_at(self, path: Location, split: str) -> SplitSource:
        if SplitSource(path).is_table:
            return self._find_rows(path, split) if self._table(path).splits is not None else SplitSource(path)
        if SplitSource(path).is_archive:
            inner = [self._folder_inside(path, name) for name in SPLIT_NAMES[split]]
            # A folder of that name with images right inside it is a class (such as COCO's train).
            holding = (inside for inside in inner if inside and self._has_class_folders(path, inside))
            return SplitSource(path, next(holding, self._top(path)))
        if path.is_dir():
            return SplitSource(path)
        raise DataNotFoundError(f"data.{split}: {path} is neither a folder nor a .zip nor a .csv")

    def _find_rows(self, path: Location, split: str) -> SplitSource:
        table = self._table(path)
        if table.splits is None:
            raise DataNotFoundError(
                f"{path} has no column split; add one (train, val, test), or give the file of each split as "
                "data.train and data.val"
            )
        if split not in table.splits:
            raise DataNotFoundError(f"no {split} data found: {path} has no row whose split is {split}")
        return SplitSource(path, split=split)

    def _tree(self, source: SplitSource) -> Tree:
        if source.is_archive:
            return tree_of_archive(self._archive(source.path), source.inside)
        return tree_of_folder(source.path)

    def _archive(self, path: Location) -> Archive:
        if stored(path) is not None:
            raise DataNotFoundError(
                f"{path}: a zip cannot be read from an address; copy it to a disk, unpack it, or make a tar "
                "of its files"
            )
        if path not in self._archives:
            self._archives[path] = read_archive(Path(str(path)))
        return self._archives[path]

    def _table(self, path: Location) -> ImageTable:
        if path not in self._tables:
            self._tables[path] = read_image_table(path)
        return self._tables[path]

    def _top(self, path: Location) -> str:
        """Return the topmost folder of a zip in which there is a choice: below it lie several, or images."""
        archive, top = self._archive(path), ""
        inner = {os.path.dirname(n) for n in archive.names if n.lower().endswith(SUFFIXES)}
        while True:
            start = f"{top}/" if top else ""
            below = {name[len(start) :].split("/")[0] for name in inner if name.startswith(start)}
            depth = top.count("/") + 2 if top else 1  # folders down to those that may be classes
            deeper = all(name.count("/") >= depth for name in inner)
            if len(below) != 1 or not deeper:
                return top
            top = start + below.pop()

    def _folder_inside(self, path: Location, name: str) -> str | None:
        """Return the complete name of a folder of a zip, also below folders that hold everything."""
        archive = self._archive(path)
        folders = {os.path.dirname(member) for member in archive.names} | set(archive.folders)
        found = set()
        for folder in folders:
            start = f"/{folder}/".find(f"/{name}/")
            if start >= 0:
                found.add(folder[: start + len(name)])
        return min(found, key=lambda folder: (folder.count("/"), folder), default=None)

    def _has_class_folders(self, path: Location, inside: str) -> bool:
        start = f"{inside}/"
        return any("/" in name[len(start) :] for name in self._archive(path).names if name.startswith(start))
