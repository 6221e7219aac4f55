"""Finds the images and classes of a split: in class folders, in a zip of class folders, or in a CSV.

Letters in shapes: I images, K classes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..shared.common import PackedNames, listing, number_of
from ..shared.io import IMAGE_SUFFIXES
from ..shared.locate import SPLIT_NAMES, DataNotFoundError, list_images
from .archive import Archive, read_archive
from .index import ClassIndex, LabelError, index_of_archive
from .scans import SCAN_SUFFIXES
from .table import ImageTable
from .table_file import read_image_table

logger = logging.getLogger("trunkline")

SUFFIXES = (*IMAGE_SUFFIXES, *SCAN_SUFFIXES)


class SplitSource(NamedTuple):
    """Where a split is.

    Attributes:
        path: a folder of class folders, a zip, or a CSV.
        inside: the folder inside the zip that holds the class folders; empty for the topmost.
        split: the split that rows of a CSV have to be of; None for all rows.
    """

    path: Path
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
        return os.path.join(self.path, self.inside) if self.inside else str(self.path)


class _Tree(NamedTuple):
    """Class folders: images as (class, position), names of all folders, and images in no folder."""

    folders: list[str]
    classes: list[str]  # of each image
    chosen: list[Any]  # names below the folder, or positions in the archive
    stray: list[str]


class ClassSources:
    """Finds and reads splits; what several splits share (a zip, a CSV) is read once.

    Args:
        root: folder, zip or CSV that holds the splits; None if every split is given.
        given: the path of each split that the user names, or None. Relative to ``root``, to its folder if
            that is a CSV, inside it if that is a zip.
    """

    def __init__(self, root: str | None, given: dict[str, str | None]):
        self.root = None if root is None else Path(root).expanduser()
        self.given = given
        self._archives: dict[Path, Archive] = {}
        self._tables: dict[Path, ImageTable] = {}

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
            return tuple(self._tree_of_archive(source).folders), False
        folders = (e.name for e in os.scandir(source.path) if e.is_dir() and not e.name.startswith("."))
        return tuple(sorted(folders)), False

    def index(self, source: SplitSource, class_names: Sequence[str]) -> ClassIndex:
        """Read a split, and number its labels by ``class_names``.

        Raises:
            DataNotFoundError: if there is no image.
            LabelError: if an image lies in no class folder, or shows a class not among ``class_names``.
            ImageError: if 2D images and scans are mixed.
        """
        if source.is_table:
            return self._table(source.path).index(source.split, class_names, self.root)
        inside_zip = source.is_archive
        tree = self._tree_of_archive(source) if inside_zip else _tree_of_folder(source.path)
        _check_tree(source, tree, class_names)
        number = {name: label for label, name in enumerate(class_names)}
        labels = torch.tensor([number[name] for name in tree.classes], dtype=torch.int64)
        if inside_zip:
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
        path = Path(given[0]).expanduser()
        if len(given) == 1 and path.exists() and SplitSource(path).is_table:
            index = read_image_table(path, labelled=False).index(None, None, self.root)
        elif len(given) == 1 and path.exists() and SplitSource(path).is_archive:
            archive = self._archive(path)
            chosen = [n for n, name in enumerate(archive.names) if name.lower().endswith(SUFFIXES)]
            chosen.sort(key=archive.names.__getitem__)
            if not chosen:
                raise DataNotFoundError(
                    f"data.predict: no image in {path} (looked for {', '.join(SUFFIXES)})"
                )
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
        path = base / Path(given).expanduser()
        if not path.exists():
            raise DataNotFoundError(f"data.{split}: {path} does not exist; it is relative to data.root")
        return self._source_at(path, split)

    def _source_at(self, path: Path, split: str) -> SplitSource:
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

    def _find_rows(self, path: Path, split: str) -> SplitSource:
        table = self._table(path)
        if table.splits is None:
            raise DataNotFoundError(
                f"{path} has no column split; add one (train, val, test), or give the file of each split as "
                "data.train and data.val"
            )
        if split not in table.splits:
            raise DataNotFoundError(f"no {split} data found: {path} has no row whose split is {split}")
        return SplitSource(path, split=split)

    def _archive(self, path: Path) -> Archive:
        if path not in self._archives:
            self._archives[path] = read_archive(path)
        return self._archives[path]

    def _table(self, path: Path) -> ImageTable:
        if path not in self._tables:
            self._tables[path] = read_image_table(path)
        return self._tables[path]

    def _top(self, path: Path) -> str:
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

    def _folder_inside(self, path: Path, name: str) -> str | None:
        """Return the complete name of a folder of a zip, also below folders that hold everything."""
        archive = self._archive(path)
        folders = {os.path.dirname(member) for member in archive.names} | set(archive.folders)
        found = set()
        for folder in folders:
            start = f"/{folder}/".find(f"/{name}/")
            if start >= 0:
                found.add(folder[: start + len(name)])
        return min(found, key=lambda folder: (folder.count("/"), folder), default=None)

    def _has_class_folders(self, path: Path, inside: str) -> bool:
        start = f"{inside}/"
        return any("/" in name[len(start) :] for name in self._archive(path).names if name.startswith(start))

    def _tree_of_archive(self, source: SplitSource) -> _Tree:
        archive = self._archive(source.path)
        start = f"{source.inside}/" if source.inside else ""
        folders = {name[len(start) :].split("/")[0] for name in archive.folders if name.startswith(start)}
        found: list[tuple[str, str, int]] = []
        stray: list[str] = []
        for position, name in enumerate(archive.names):
            if not name.startswith(start):
                continue
            below = name[len(start) :]
            first, slash, _ = below.partition("/")
            if slash:
                folders.add(first)
            if below.lower().endswith(SUFFIXES):
                found.append((first, below, position)) if slash else stray.append(below)
        found.sort()
        folders.discard("")
        return _Tree(sorted(folders), [row[0] for row in found], [row[2] for row in found], stray)


def _tree_of_folder(folder: Path) -> _Tree:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    visible = [entry for entry in entries if not entry.name.startswith(".")]
    folders = [entry.name for entry in visible if entry.is_dir()]
    stray = [e.name for e in visible if e.name.lower().endswith(SUFFIXES) and not e.is_dir()]
    classes: list[str] = []
    names: list[str] = []
    for name in folders:
        found: list[str] = []
        for parent, inner, files in os.walk(folder / name, followlinks=True):
            inner[:] = [entry for entry in inner if not entry.startswith(".")]
            below = os.path.relpath(parent, folder)
            found += [
                f"{below}/{file}" for file in files if file.lower().endswith(SUFFIXES) and file[0] != "."
            ]
        names += sorted(found)
        classes += [name] * len(found)
    return _Tree(folders, classes, names, stray)


def _check_tree(source: SplitSource, tree: _Tree, class_names: Sequence[str]) -> None:
    if tree.stray:
        raise LabelError(
            f"{source}: {number_of(len(tree.stray), 'image')} in no class folder:\n{listing(tree.stray)}\n"
            "move each into a folder with the name of its class, or list them in a CSV"
        )
    if not tree.classes:
        raise DataNotFoundError(
            f"no images found in class folders in {source} (there are {len(tree.folders)} folders; "
            f"looked for {', '.join(SUFFIXES)} below each)"
        )
    filled = set(tree.classes)
    if unknown := sorted(filled - set(class_names)):
        raise LabelError(
            f"{source}: the training data lack the class{'es' if len(unknown) > 1 else ''} "
            f"{', '.join(unknown[:20])}; they have {', '.join(class_names[:20])}"
        )
    if empty := [name for name in tree.folders if name not in filled]:
        logger.warning("%s: no images in the class folders %s", source, ", ".join(empty[:20]))
