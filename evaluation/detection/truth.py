"""The ground truth of an evaluation of boxes.

Letters in shapes: N annotations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from reprlib import repr as shown
from typing import Any, NamedTuple, SupportsFloat

import numpy as np

from .coco_arrays import Objects

_LARGEST = 1e150  # beyond which areas are infinite


class Truth(NamedTuple):
    """Annotations in compact arrays, in the order of the file."""

    image_ids: np.ndarray  # [N] int64
    category_ids: np.ndarray  # [N] int64
    boxes: np.ndarray  # [N, 4] float64, x y width height
    areas: np.ndarray  # [N] float64
    crowd: np.ndarray  # [N] int64, 0 or 1

    @classmethod
    def read(cls, annotations: Sequence[dict[str, Any]]) -> Truth:
        """Read annotations of a COCO instances dictionary.

        Raises:
            ValueError: for a field that is no number, or an ``iscrowd`` that is neither 0 nor 1.
        """
        for number, item in enumerate(annotations):
            if problem := _problem(item):
                raise ValueError(f"ground truth: annotation number {number}: {problem}")
        boxes = np.array([item["bbox"] for item in annotations], dtype=np.float64).reshape(-1, 4)
        areas = np.array([item.get("area") for item in annotations], dtype=np.float64)  # None becomes nan
        return cls(
            np.array([item["image_id"] for item in annotations], dtype=np.int64),
            np.array([item["category_id"] for item in annotations], dtype=np.int64),
            boxes,
            np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas),
            np.array([bool(item.get("iscrowd")) for item in annotations], dtype=np.int64),
        )

    def of_images(self, image_ids: np.ndarray) -> Truth:
        wanted = np.isin(self.image_ids, image_ids)
        return Truth(*(column[wanted] for column in self))

    def objects(self, image_ids: np.ndarray, category_ids: np.ndarray) -> Objects:
        """Replace ids by their places in the given ascending ids."""
        images = np.searchsorted(image_ids, self.image_ids)
        classes = np.searchsorted(category_ids, self.category_ids)
        return Objects(images, classes, self.boxes, self.areas, self.crowd.astype(bool))

    def annotations(self) -> list[dict[str, Any]]:
        """Return fresh dicts with ids 1..N (pycocotools writes into them)."""
        columns = zip(*(column.tolist() for column in self), strict=True)
        names = ("image_id", "category_id", "bbox", "area", "iscrowd")
        return [dict(zip(names, row, strict=True), id=index) for index, row in enumerate(columns, start=1)]


def _problem(item: dict[str, Any]) -> str:
    for key in ("image_id", "category_id"):
        if not isinstance(item.get(key), int | np.integer):
            return f"{key} is {shown(item.get(key))}; it is the integer id of an image or a category"
    box = item.get("bbox")
    if not isinstance(box, Iterable) or len(numbers := list(box)) != 4 or not all(map(_is_number, numbers)):
        return f"bbox is {shown(box)}; it is four finite numbers: x, y, width and height in pixels"
    area, crowd = item.get("area"), item.get("iscrowd")
    if area is not None and not (_is_number(area) and area >= 0):
        return f"area is {shown(area)}; it is a number of square pixels, or not there"
    if crowd is not None and not (_is_number(crowd) and crowd in (0, 1)):
        return f"iscrowd is {shown(crowd)}; it is 0 or 1, or not there"
    return ""


def _is_number(value: Any) -> bool:
    if type(value) not in (int, float):  # a text does not support float
        return isinstance(value, SupportsFloat) and abs(float(value)) < _LARGEST
    return abs(value) < _LARGEST
