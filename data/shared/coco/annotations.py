"""Read the records of a COCO instances file and check them; errors name the file and the record ids.

Fields and what they may be. What is not listed is not read, and may be anything.

- every ``id``: an integer of 63 bits, each once in its list; of categories, less than 2**53.
- images: ``file_name``, a text that is not blank; ``width`` and ``height``, integers from 1.
- categories: ``name``, a text in one line that is not blank; ``keypoints`` and ``skeleton`` if keypoints are
  asked for; ``color`` where masks are read.
- annotations: ``image_id`` and ``category_id`` of the lists above; ``bbox``, four numbers in pixels;
  ``iscrowd``, 0 or 1 (also true and false), 0 if missing; ``area``, a number of square pixels, that of the
  box if missing; ``segmentation`` and ``keypoints`` if they are asked for (``num_keypoints`` is counted).

Letters in shapes: I images, N boxes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal

import numpy as np

from ..common import number_of
from ..labels.classes import LabelClass
from ..limits import PIXELS, most_pixels
from ..storage import Location
from .boxes import BoxColumns, no_boxes
from .fields import (
    LARGEST_ID,
    AnnotationError,
    are_numbers,
    areas,
    first_few,
    flags,
    raise_if,
    require,
    require_distinct,
    require_each,
    require_texts,
    shown,
)
from .json_file import read_json
from .outlines import pack_outline

logger = logging.getLogger("trunkline")

InstanceKind = Literal["masks", "keypoints"]


def load_instances(
    source: Location, annotations: bool = True, instances: Sequence[InstanceKind] = ()
) -> dict[str, Any]:
    """Parse a COCO instances file and check that it has the lists that it needs.

    Segmentations and keypoints are most of a file. They are packed or dropped while parsing, so that they
    never exist all at once.

    Args:
        source: the file.
        annotations: whether it has to have annotations and categories, or only images.
        instances: what to keep of them: ``masks`` (``segmentation`` becomes an ``Outline``), ``keypoints``
            (numbers become a float32 array), or nothing.

    Raises:
        AnnotationError: if the file is missing, is no JSON or lacks a list.
    """
    content = read_json(source, partial(_reduced, instances=instances))
    if not isinstance(content, dict):
        raise AnnotationError(
            f"{source}: holds a {type(content).__name__}, not a COCO instances object with images, "
            "annotations and categories"
            + ("; this looks like a results file" if isinstance(content, list) else "")
        )
    needed = ["images", "annotations", "categories"] if annotations else ["images"]
    if not annotations and "categories" in content:
        needed.append("categories")
    missing = [key for key in needed if not isinstance(content.get(key), list)]
    if missing:
        names = " and no list ".join(missing)
        raise AnnotationError(f"{source}: has no list {names}; is it a COCO instances file?")
    return content


def _reduced(record: dict[str, Any], instances: Sequence[InstanceKind]) -> dict[str, Any]:
    if "segmentation" in record:
        outline = record.pop("segmentation")
        if "masks" in instances:
            record["segmentation"] = pack_outline(outline)
    if "keypoints" in record:
        given = record.pop("keypoints")
        if "keypoints" in instances:
            record["keypoints"] = _packed_numbers(given)
    return record


def _packed_numbers(values: Any) -> Any:
    """Return a list of numbers as float32; anything else (the names of a category) as it is."""
    if isinstance(values, list) and are_numbers(values):
        with np.errstate(over="ignore"):  # what is no float32 becomes infinite, which is refused later
            return np.array(values, dtype=np.float64).astype(np.float32)
    return values


def read_categories(records: list[dict], source: Location) -> tuple[LabelClass, ...]:
    """Return the categories in ascending id order. Two of one name are allowed, with a warning."""
    require(records, {"id": int, "name": str}, "category", source)
    if not records:
        raise AnnotationError(f"{source}: the dataset is empty, it lists no categories; add them")
    require_texts(records, "name", "category", source, one_line=True)
    require_each(
        records,
        "id",
        lambda number: abs(number) < LARGEST_ID,
        "category",
        f"{source}: ids of categories have to be below 2**53; renumber them",
    )
    require_distinct(np.array([record["id"] for record in records], dtype=np.int64), "category", source)
    names = Counter(record["name"] for record in records)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        logger.warning(
            "%s: categories of the same name: %s. They are classes of their own; rename one, or merge them",
            source,
            first_few([shown(name) for name in twice]),
        )
    return tuple(sorted(LabelClass(record["id"], record["name"]) for record in records))


def read_images(records: list[dict], source: Location) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return ids ``[I]``, sizes ``[I, 2]`` (height, width) and file names."""
    require(records, {"id": int, "file_name": str, "height": int, "width": int}, "image", source)
    if not records:
        raise AnnotationError(f"{source}: the dataset is empty, it lists no images; check the export")
    require_texts(records, "file_name", "image", source, one_line=False)
    image_ids = np.array([record["id"] for record in records], dtype=np.int64)
    require_distinct(image_ids, "image", source)
    sizes = np.array([(record["height"], record["width"]) for record in records], dtype=np.int64)

    def describe(i: int) -> str:
        return f"image id {image_ids[i]} ({records[i]['file_name']}): {sizes[i, 0]}x{sizes[i, 1]}"

    raise_if(
        np.flatnonzero((sizes < 1).any(axis=1)),
        describe,
        f"{source}: images need a height and width of at least 1 pixel; correct these records",
    )
    if (most := most_pixels()) is not None:
        raise_if(
            np.flatnonzero(sizes[:, 0].astype(np.float64) * sizes[:, 1] > most),
            describe,
            f"{source}: images of more than {most:,} pixels (height x width) are not read; correct these "
            f"records, cut the images into tiles, or set {PIXELS} in the environment to a larger number",
        )
    names = [record["file_name"] for record in records]
    if repeated := len(names) - len(set(names)):
        logger.warning(
            "%s: %s of a file that an earlier image has too; objects of the one are background of the other. "
            "Merge them if they are one image",
            source,
            number_of(repeated, "image"),
        )
    return image_ids, sizes, names


def read_annotations(
    records: list[dict], image_ids: np.ndarray, categories: tuple[LabelClass, ...], source: Location
) -> BoxColumns:
    """Return the annotations by column, with positions and labels in place of image and category ids."""
    if not records:
        return no_boxes()
    require(records, {"id": int, "image_id": int, "category_id": int, "bbox": list}, "annotation", source)
    ids = np.array([record["id"] for record in records], dtype=np.int64)
    require_distinct(ids, "annotation", source)
    images = np.array([record["image_id"] for record in records], dtype=np.int64)
    raise_if(
        np.flatnonzero(~np.isin(images, image_ids)),
        lambda n: f"annotation id {ids[n]}: image_id {images[n]}",
        f"{source}: annotations of images that the file does not list; remove them or add the images",
    )
    category_ids = np.array([category.id for category in categories], dtype=np.int64)
    chosen = np.array([record["category_id"] for record in records], dtype=np.int64)
    raise_if(
        np.flatnonzero(~np.isin(chosen, category_ids)),
        lambda n: f"annotation id {ids[n]}: category_id {chosen[n]}",
        f"{source}: annotations of categories that the file does not list (it has {first_few(category_ids)}"
        "); add the categories or correct the ids",
    )
    xywh = _box_column(records, source)
    given = areas(records, source)
    with np.errstate(over="ignore", invalid="ignore"):  # boxes that are not finite are told of later
        area = np.where(np.isnan(given), xywh[:, 2] * xywh[:, 3], given)
    if ignored := sum(bool(record.get("ignore")) for record in records):
        logger.warning(
            '%s: %s "ignore", which neither training nor the COCO metrics read; set iscrowd to 1 to have '
            "such regions ignored",
            source,
            f"{ignored:,} annotations say" if ignored > 1 else "1 annotation says",
        )
    sorter = np.argsort(image_ids)
    return BoxColumns(
        record=np.arange(len(records)),
        ids=ids,
        image=sorter[np.searchsorted(image_ids, images, sorter=sorter)],
        labels=np.searchsorted(category_ids, chosen),
        xywh=xywh,
        inside=xywh,
        crowd=flags(records, source),
        area=area,
    )


def _box_column(records: list[dict], source: Location) -> np.ndarray:
    """Return ``[N, 4]`` float64 boxes."""
    require_each(
        records,
        "bbox",
        lambda box: len(box) == 4 and are_numbers(box),
        "annotation",
        f"{source}: a bbox is four numbers [x, y, width, height]; correct these records",
    )
    numbers = chain.from_iterable(record["bbox"] for record in records)
    return np.fromiter(numbers, dtype=np.float64, count=4 * len(records)).reshape(-1, 4)
