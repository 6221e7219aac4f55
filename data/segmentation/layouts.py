"""Finds the images and masks of a split: folders, lists of names, Pascal VOC, Cityscapes, COCO.

Letters in shapes: I images.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from ...constants import IGNORE_INDEX
from ..shared.common import PackedNames, in_threads
from ..shared.inside import require_inside
from ..shared.labels.classes import LabelClass
from ..shared.labels.lists import (
    CITYSCAPES_IGNORED,
    CITYSCAPES_ROWS,
    VOC_BORDER,
    VOC_ROWS,
    cityscapes_train_rows,
    find_class_file,
    has_numbers,
    read_class_rows,
)
from ..shared.labels.table import Background, ClassTable, MaskError, rows_of_names
from ..shared.locate import (
    ANNOTATION_PLACES,
    IMAGE_FOLDERS,
    IMAGE_PLACES,
    MASK_FOLDERS,
    SPLIT_NAMES,
    DataNotFoundError,
    find,
    list_images,
)
from ..shared.storage import Location, joined, located
from .coco_json import read_mask_json
from .coco_masks import Overlaps
from .index import SegmentationIndex
from .masks import MaskFiles, MaskSource, occurring, values_of
from .pairs import (
    CITYSCAPES_MASKS,
    Pairs,
    Unpaired,
    listed_keys,
    pair_folders,
    pair_list,
    pictures_below,
)

logger = logging.getLogger("trunkline")

VOC_FOLDERS = ("", "VOC2012", "VOCdevkit/VOC2012", "VOC2007", "VOCdevkit/VOC2007")
_LOOKED_FOR = (
    "images/{split} with masks/{split} (or labels or annotations; or {split}/images with {split}/masks)",
    "ImageSets/Segmentation/{split}.txt with JPEGImages and SegmentationClass",
    "leftImg8bit/{split} with gtFine/{split}",
    "annotations/instances_{split}.json with images/{split}",
)
VOC_PARTS = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation/{split}.txt")


class SplitPaths(NamedTuple):
    """Where a split is.

    Attributes:
        images: folder of the images.
        masks: folder of the masks, or COCO's JSON.
        listed: a text file with the names of the images, or None for all in the folder.
    """

    images: Location
    masks: Location
    listed: Location | None = None

    def __str__(self) -> str:
        return str(self.listed or self.images)


class Choices(NamedTuple):
    """What the user says about classes and masks, see ``ImageSegmentation``."""

    classes: str | list[str] | None = None
    mask_values: list[int] | None = None
    ignore: Sequence[str | int] = ()
    categories: Sequence[str | int] | None = None
    background: Background = "class"
    overlaps: Overlaps = "smaller"
    missing: Unpaired = "error"


class SegmentationSources:
    """Finds and reads splits.

    Args:
        root: folder that holds the splits; None if every split is given.
        given: the paths that the user names, ``{split}_images`` and ``{split}_masks``, or None.
        choices: about classes and masks.
    """

    def __init__(self, root: str | None, given: dict[str, str | None], choices: Choices):
        self.root = root
        self.given = given
        self.choices = choices
        self._tables: dict[str, ClassTable] = {}  # by where they are from
        self._wanted: tuple[str, tuple[LabelClass, ...]] | None = None  # how all splits are numbered, and why

    def number_like(self, source: str, classes: Sequence[LabelClass]) -> None:
        """Give the classes of splits that are read from now on the numbers of others of the same names."""
        self._wanted = source, tuple(classes)

    def find(self, split: str) -> SplitPaths:
        """Return where a split is.

        Raises:
            DataNotFoundError: naming the places looked at.
        """
        if self.root is not None and not self._base.is_dir():
            raise DataNotFoundError(f"data.root: {self._base} is no folder")
        if self.given[f"{split}_images"] is not None or self.given[f"{split}_masks"] is not None:
            return self._given_paths(split)
        if self.root is None:
            raise DataNotFoundError(f"no {split} data: give data.root, or data.{split}_images and _masks")
        half_there: list[str] = []
        for paths in self._usual_paths(split):
            parts = [part for part in paths if part is not None]
            missing = [str(part) for part in parts if not part.exists()]
            if not missing:
                return paths
            if paths.images.exists() and split in str(paths):
                half_there.append(f"  {paths} is there, but not {' and '.join(missing)}")
        looked = [f"  {self._base / line.format(split=split)}" for line in _LOOKED_FOR]
        raise DataNotFoundError(
            f"no {split} images with masks found, looked for\n"
            + "\n".join([*looked, *half_there[:5]])
            + f"\ngive data.root, or data.{split}_images and data.{split}_masks"
        )

    def index(self, paths: SplitPaths) -> SegmentationIndex:
        """Read a split.

        Raises:
            DataNotFoundError: if there is no image.
            MaskError: if images and masks do not pair, or the classes are wrong.
            AnnotationError: if a COCO file is wrong.
        """
        if _is_json(paths.masks):
            return self._coco_index(paths)
        pairs = self._pairs(paths)
        masks = MaskFiles(pairs.mask_folder, PackedNames.pack(pairs.mask_names), self._table_of(paths, pairs))
        return self._numbered(paths, SegmentationIndex(pairs.folder, PackedNames.pack(pairs.names), masks))

    def index_for_prediction(self, given: Sequence[str]) -> SegmentationIndex:
        """Index images without masks.

        Args:
            given: images and folders of images (not the folders inside them), relative to the working
                directory; or one text file that lists images of the data under root, as in Pascal VOC.

        Raises:
            DataNotFoundError: if something does not exist, or there is no image.
        """
        if len(given) == 1 and given[0].lower().endswith(".txt"):
            source = located(given[0])
            if not source.is_file():
                raise DataNotFoundError(f"data.predict: no such file: {source}")
            folder = self._listed_folder("predict", None, source)
            pictures = pictures_below(folder)
            names = PackedNames.pack(pictures[key] for key in listed_keys(source, folder, pictures))
            return SegmentationIndex(str(folder), names, None)
        return SegmentationIndex("", PackedNames.pack(str(path) for path in list_images(given)), None)

    def _pairs(self, paths: SplitPaths) -> Pairs:
        missing = self.choices.missing
        if paths.listed is None:
            return pair_folders(paths.images, paths.masks, missing)
        return pair_list(paths.listed, paths.images, paths.masks, missing)

    @property
    def _base(self) -> Location:
        return Path() if self.root is None else located(self.root)

    def _usual_paths(self, split: str) -> Iterator[SplitPaths]:
        for folder in VOC_FOLDERS:
            images, masks, listed = (self._base / folder / part.format(split=split) for part in VOC_PARTS)
            if split != "test":  # its masks are not public
                yield SplitPaths(images, masks, listed)
        if split != "test":  # not public either: there are files, but empty ones
            yield SplitPaths(self._base / "leftImg8bit" / split, self._base / "gtFine" / split)
        for name in SPLIT_NAMES[split]:
            for pictures, labels in itertools.product(IMAGE_FOLDERS, MASK_FOLDERS):
                yield SplitPaths(self._base / pictures / name, self._base / labels / name)
                yield SplitPaths(self._base / name / pictures, self._base / name / labels)
            for ending in ("annot", "_masks", "_labels"):
                yield SplitPaths(self._base / name, self._base / f"{name}{ending}")
        for json_place in () if any(self.given.values()) else ANNOTATION_PLACES:
            for place in IMAGE_PLACES:
                yield SplitPaths(
                    self._base / place.format(split=split), self._base / json_place.format(split=split)
                )

    def _given_paths(self, split: str) -> SplitPaths:
        images, masks = self.given[f"{split}_images"], self.given[f"{split}_masks"]
        if masks is not None and _is_json(masks):
            return SplitPaths(
                find(self.root, images, IMAGE_PLACES, split, "images"),
                find(self.root, masks, (), split, "masks"),
            )
        names = SPLIT_NAMES[split]
        mask_places = [f"{m}/{n}" for n in names for m in MASK_FOLDERS]
        mask_places += [f"{n}/{m}" for n in names for m in MASK_FOLDERS]
        if images is not None and images.lower().endswith(".txt"):
            listed = find(self.root, images, (), split, "images")
            folder = self._listed_folder(split, masks, listed)
            near = [str(folder.parent / "SegmentationClass"), *(str(folder.parent / m) for m in MASK_FOLDERS)]
            return SplitPaths(folder, find(self.root, masks, near, split, "masks"), listed)
        image_places = [f"{i}/{n}" for n in names for i in IMAGE_FOLDERS]
        image_places += [f"{n}/{i}" for n in names for i in IMAGE_FOLDERS]
        return SplitPaths(
            find(self.root, images, [*image_places, *IMAGE_FOLDERS], split, "images"),
            find(self.root, masks, [*mask_places, *MASK_FOLDERS], split, "masks"),
        )

    def _listed_folder(self, split: str, masks: str | None, listed: Location) -> Location:
        """Find the folder that the names in a list are relative to."""
        bases = [*(self._base / folder for folder in VOC_FOLDERS), *listed.absolute().parents[:3]]
        names = ("JPEGImages", *IMAGE_FOLDERS)
        folders = [base / name for base in bases for name in names]
        for folder in folders:
            if folder.is_dir():
                return folder
        looked = "\n".join(f"  {folder}" for folder in folders)
        raise DataNotFoundError(f"{listed}: no folder of the listed images found, looked for\n{looked}")

    def _table_of(self, paths: SplitPaths, pairs: Pairs) -> ClassTable:
        """Return the table of classes of a split; those of several may have other values and colours."""
        given = self.choices
        rows: Sequence[LabelClass] = ()
        ignore, numbered = list(given.ignore), True
        if given.mask_values is not None and not isinstance(given.classes, list):
            raise MaskError("data.mask_values goes with a list of names in data.classes")
        if isinstance(given.classes, list):
            rows, source = rows_of_names(given.classes, given.mask_values), "data.classes"
        elif (path := self._class_file(paths)) is not None:
            source = str(path)
            if source not in self._tables:
                rows, numbered = read_class_rows(path), has_numbers(path)
        elif (known := _known_layout(paths, pairs)) is not None:
            rows, source, ignored = known
            ignore += ignored
        elif self._tables:
            return next(iter(self._tables.values()))
        else:
            rows, source = self._rows_of_values(pairs), "the masks"
        if source not in self._tables:
            made = ClassTable(rows, ignore, given.categories, given.background, source, numbered)
            self._tables[source] = made
        return self._tables[source]

    def _numbered(self, paths: SplitPaths, index: SegmentationIndex) -> SegmentationIndex:
        """Give the classes of a split the numbers of those of the split that was read before it."""
        masks = cast(MaskSource, index.masks)
        if self._wanted is None:
            self.number_like(masks.table.source, index.classes)
            return index
        source, classes = self._wanted
        if [row[:2] for row in index.classes] == [row[:2] for row in classes]:
            return index
        same = index.renumbered(classes)
        if same is None:
            raise MaskError(
                f"{masks.table.source}: the classes ({_named(index.classes)}) differ from those of "
                f"{source} ({_named(classes)}); use the same names in both"
            )
        logger.warning(
            "%s: %s numbers the classes otherwise than %s; they are matched by name",
            paths.masks, masks.table.source, source,
        )  # fmt: skip
        return same

    def _class_file(self, paths: SplitPaths) -> Location | None:
        if isinstance(self.choices.classes, str):
            path = self._base / located(self.choices.classes)
            if not path.is_file():
                raise DataNotFoundError(f"data.classes: {path} does not exist; it is relative to data.root")
            return path
        near = [paths.masks, *paths.masks.parents[:2]] if self.root is None else [self._base, paths.masks]
        return next((file for folder in near if (file := find_class_file(folder)) is not None), None)

    def _rows_of_values(self, pairs: Pairs) -> Sequence[LabelClass]:
        """Number the values that occur in training masks."""
        pairs = self._training_pairs() or pairs
        files = [joined(pairs.mask_folder, name) for name in pairs.mask_names]
        found = in_threads(lambda file: occurring(values_of(file))[0], files, "looking for classes in masks")
        values = sorted({int(value) for of_file in found for value in of_file} - {IGNORE_INDEX})
        if not values or values[-1] >= IGNORE_INDEX:
            raise MaskError(
                f"{pairs.mask_folder}: masks hold the values "
                f"{', '.join(map(str, values[-20:])) or IGNORE_INDEX}; "
                "name their classes in data.classes: a CSV with the columns id and name"
            )
        logger.warning(
            "no list of classes (such as classes.txt) in %s: the values 0 to %d become class 0 to %d",
            self.root or pairs.mask_folder, values[-1], values[-1],
        )  # fmt: skip
        return [LabelClass(value, f"class {value}") for value in range(values[-1] + 1)]

    def _training_pairs(self) -> Pairs | None:
        """Pair the training data, so that classes are the same whichever split is read first."""
        try:
            paths = self.find("train")
        except DataNotFoundError:
            return None
        return None if _is_json(paths.masks) else self._pairs(paths)

    def _coco_index(self, paths: SplitPaths) -> SegmentationIndex:
        given = self.choices
        if given.classes is not None:
            said = f"{paths.masks} names its classes; data.categories chooses some"
            raise MaskError(f"data.classes cannot be used: {said}")
        names, masks = read_mask_json(
            paths.masks, given.ignore, given.categories, given.background, given.overlaps, given.missing
        )
        require_inside(names, paths.images, paths.masks)
        index = SegmentationIndex(str(paths.images), PackedNames.pack(names), masks)
        return self._numbered(paths, index)


def _known_layout(paths: SplitPaths, pairs: Pairs) -> tuple[Sequence[LabelClass], str, Sequence[int]] | None:
    """Know classes, and the ids to ignore, by the names of the files; None for other layouts."""
    first = os.path.splitext(os.path.basename(pairs.mask_names[0]))[0]
    if first.endswith(CITYSCAPES_MASKS[0]):
        return CITYSCAPES_ROWS, "Cityscapes", CITYSCAPES_IGNORED
    if first.endswith(CITYSCAPES_MASKS[1]):
        return cityscapes_train_rows(), "Cityscapes (labelTrainIds)", (IGNORE_INDEX,)
    if paths.images.name == "JPEGImages":
        return (*VOC_ROWS, VOC_BORDER), "Pascal VOC", (IGNORE_INDEX,)
    return None


def _named(classes: Sequence[LabelClass]) -> str:
    return ", ".join(entry.name for entry in classes[:20]) + (", ..." if len(classes) > 20 else "")


def _is_json(path: str | Location) -> bool:
    return str(path).lower().endswith(".json")
