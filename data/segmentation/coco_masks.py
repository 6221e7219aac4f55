"""Masks out of COCO files: instances (polygons and run lengths) rasterised, and panoptic PNGs.

Letters in shapes: I images, A annotations, G segments of panoptic PNGs; h w height and width of a mask in
pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from ...constants import IGNORE_INDEX
from ..shared.coco.outlines import Outlines
from ..shared.common import PackedNames
from ..shared.io import ImageError, read_mask
from ..shared.labels.classes import LabelClass
from ..shared.labels.table import UNKNOWN, ClassTable, MaskError
from ..shared.storage import Location, located
from .masks import MaskFiles, Survey, described

Overlaps = Literal["smaller", "ignore"]


@dataclass(frozen=True)
class Shapes(Outlines):
    """The outlines of all annotations, by image.

    Attributes:
        rows: ``[I + 1]`` int64; image i has the annotations ``rows[i]:rows[i + 1]``.
        labels: ``[A]`` uint8 in 0..K-1, or 255.
        crowd: ``[A]`` bool.
        area: ``[A]`` float64, as the file gives it.
    """

    rows: Tensor
    labels: Tensor
    crowd: Tensor
    area: Tensor


class DrawnInstances:
    """Objects drawn as their classes.

    Crowd regions come first, then objects from the largest to the smallest, as they are after drawing; equal
    ones in the order of the file. A later one covers an earlier one; or, with ``overlaps`` ``ignore``, what
    two or more cover is ignored.

    Args:
        source: the file, for errors.
        table: of the classes; its ``rest`` is the label of what nothing covers.
        image_ids: ``[I]`` int64.
        sizes: ``[I, 2]`` int64, height and width.
        shapes: of the objects.
        overlaps: see above.
        positions: ``[I']`` int64, the images to have, in order; None for all.
    """

    verified = True

    def __init__(
        self,
        source: Location,
        table: ClassTable,
        image_ids: Tensor,
        sizes: Tensor,
        shapes: Shapes,
        overlaps: Overlaps = "smaller",
        positions: Tensor | None = None,
    ):
        self.source = str(source)
        self.table = table
        self.classes = table.classes
        self.background = table.background
        self.image_ids = image_ids
        self.sizes = sizes
        self.shapes = shapes
        self.overlaps = overlaps
        self.positions = torch.arange(len(image_ids)) if positions is None else positions

    def __len__(self) -> int:
        return len(self.positions)

    def name(self, position: int) -> str:
        """Return the file and the id of the image."""
        return f"{self.source}, image id {int(self.image_ids[self.positions[position]])}"

    def size(self, position: int) -> tuple[int, int]:
        """Return height and width as the file gives them."""
        height, width = self.sizes[self.positions[position]].tolist()
        return height, width

    def mask(self, position: int) -> np.ndarray:
        """Return ``[h, w]`` uint8 labels."""
        size, shapes, rows = self.size(position), self.shapes, self._annotations(position)
        labels = np.full(size, self.table.rest, dtype=np.uint8)
        covered = np.zeros(size, dtype=bool) if self.overlaps == "ignore" else None
        codes = [shapes.run_lengths(row, size) for row in rows]
        # One at a time: pycocotools 2.0.11 fails to take the areas of more than 255 at once.
        areas = np.array([coco_mask.area(code) for code in codes], dtype=np.int64)
        crowd = shapes.crowd[rows.start : rows.stop].numpy()
        for n in np.lexsort((-areas, ~crowd)).tolist():
            x, y, width, height = map(int, coco_mask.toBbox(codes[n]))
            inside = (slice(y, y + height), slice(x, x + width))
            drawn = coco_mask.decode(codes[n])[inside] != 0
            labels[inside][drawn] = int(shapes.labels[rows[n]])
            if covered is not None:
                labels[inside][drawn & covered[inside]] = IGNORE_INDEX
                covered[inside] |= drawn
        return labels

    def survey(self, position: int) -> Survey:
        """Count what a mask holds."""
        labels = self.mask(position)
        counts = np.bincount(labels.reshape(-1), minlength=IGNORE_INDEX + 1)
        return Survey(labels.shape, np.append(counts[: len(self.classes)], counts[IGNORE_INDEX]), {})

    def labelled_pixels(self, position: int) -> float:
        """Return the sum of the areas in the file, in pixels, of objects of a class but the background."""
        rows = self._annotations(position)
        labels = self.shapes.labels[rows.start : rows.stop]
        background = IGNORE_INDEX if self.background is None else self.background
        counted = (labels != IGNORE_INDEX) & (labels != background)
        return float(self.shapes.area[rows.start : rows.stop][counted].sum())

    def present(self) -> np.ndarray:
        """Return ``[K]`` bool, the classes that have an annotation; the background always counts."""
        image = torch.repeat_interleave(torch.arange(len(self.image_ids)), self.shapes.rows.diff())
        labels = self.shapes.labels[torch.isin(image, self.positions)].long()
        found = torch.bincount(labels, minlength=IGNORE_INDEX + 1)[: len(self.classes)] > 0
        if self.background is not None:
            found[self.background] = True
        return found.numpy()

    def subset(self, positions: Sequence[int]) -> DrawnInstances:
        """Return the masks at some positions."""
        chosen = self.positions[torch.as_tensor(positions, dtype=torch.int64)]
        return DrawnInstances(
            located(self.source), self.table, self.image_ids, self.sizes, self.shapes, self.overlaps, chosen
        )

    def renumbered(self, classes: Sequence[LabelClass]) -> DrawnInstances | None:
        """Return the masks with the labels of other classes of the same names; None if names differ."""
        found = self.table.renumbered(classes)
        if found is None:
            return None
        shapes = replace(self.shapes, labels=torch.from_numpy(found[1])[self.shapes.labels.long()])
        return DrawnInstances(
            located(self.source), found[0], self.image_ids, self.sizes, shapes, self.overlaps, self.positions
        )

    def _annotations(self, position: int) -> range:
        image = int(self.positions[position])
        return range(*self.shapes.rows[image : image + 2].tolist())


class PanopticMasks(MaskFiles):
    """COCO panoptic PNGs, in which a colour is the number of a segment and the JSON gives its category.

    Segments that are crowds are pixels of their class like any other. Pixels of no segment (0, black) are
    ignored.

    Args:
        folder: of the PNGs.
        names: of the I files.
        table: of the classes.
        rows: ``[I + 1]`` int64; image i has the segments ``rows[i]:rows[i + 1]``.
        segments: ``[G]`` int64, numbers of the segments (R + 256 G + 65536 B), ascending in each image.
        labels: ``[G]`` uint8, their labels in 0..K-1, or 255.
    """

    def __init__(
        self,
        folder: str,
        names: PackedNames,
        table: ClassTable,
        rows: Tensor,
        segments: Tensor,
        labels: Tensor,
    ):
        super().__init__(folder, names, table)
        self.rows = rows
        self.segments = segments
        self.labels = labels

    def mask(self, position: int) -> np.ndarray:
        """Return ``[h, w]`` uint8 labels.

        Raises:
            ImageError: if the PNG cannot be decoded or is not in colours.
            MaskError: naming the segments that the JSON does not list.
        """
        labels, _ = self._labels(position)
        if labels.min(initial=0) == UNKNOWN:
            raise MaskError(f"{self.name(position)}: {self._told(position)}; data.check_masks finds all")
        return labels.astype(np.uint8)

    def survey(self, position: int) -> Survey:
        """Count what a mask holds; unknown are segments that the JSON does not list."""
        labels, numbers = self._labels(position)
        known = np.where(labels == IGNORE_INDEX, len(self.classes), labels)[labels != UNKNOWN]
        strange, counts = np.unique(numbers[labels == UNKNOWN], return_counts=True)
        unknown = dict(zip(map(str, strange.tolist()), counts.tolist(), strict=True))
        return Survey(labels.shape, np.bincount(known, minlength=len(self.classes) + 1), unknown)

    def subset(self, positions: Sequence[int]) -> PanopticMasks:
        """Return the masks at some positions."""
        chosen = torch.as_tensor(positions, dtype=torch.int64)
        lengths = self.rows.diff()[chosen]
        rows = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        # The segments of an image are neighbours: by how much they move in the new order.
        moved = torch.repeat_interleave(self.rows[:-1][chosen] - rows[:-1], lengths)
        kept = torch.arange(len(moved)) + moved
        names = PackedNames.pack(self.names[n] for n in chosen.tolist())
        return PanopticMasks(self.folder, names, self.table, rows, self.segments[kept], self.labels[kept])

    def renumbered(self, classes: Sequence[LabelClass]) -> PanopticMasks | None:
        """Return the masks with the labels of other classes of the same names; None if names differ."""
        found = self.table.renumbered(classes)
        if found is None:
            return None
        labels = torch.from_numpy(found[1])[self.labels.long()]
        return PanopticMasks(self.folder, self.names, found[0], self.rows, self.segments, labels)

    def _labels(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ``[h, w]`` int16 labels, -1 where unknown, and the numbers of the segments."""
        colours = read_mask(self.name(position))
        if colours.ndim == 2:
            raise ImageError(f"{self.name(position)}: is not in colours, so it is no panoptic PNG of COCO")
        red, green, blue = (colours[..., channel].astype(np.int64) for channel in range(3))
        numbers = red | green << 8 | blue << 16
        mine = slice(*self.rows[position : position + 2].tolist())
        segments = np.append(self.segments[mine].numpy(), np.iinfo(np.int64).max)
        labels = np.append(self.labels[mine].numpy().astype(np.int16), UNKNOWN)
        nearest = np.searchsorted(segments, numbers)
        found = np.where(segments[nearest] == numbers, labels[nearest], UNKNOWN)
        return np.where(numbers == 0, IGNORE_INDEX, found).astype(np.int16), numbers

    def _told(self, position: int) -> str:
        return described(self.survey(position).unknown).replace("no class has", "its segments_info lacks")
