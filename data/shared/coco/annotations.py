"""Read the records of a COCO instances file and check them; errors name the file and the record ids.

Letters in shapes: I images, N boxes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..common import LISTED, listing
from ..labels.classes import LabelClass
from .outlines import pack_outline

logger = logging.getLogger("trunkline")

OnBadBox = Literal["error", "clip", "drop"]
InstanceKind = Literal["masks", "keypoints"]

ROUNDING_OVERSHOOT = 1.0  # pixels that a box may leave its image by; annotation tools round


class AnnotationError(ValueError):
    """An annotation file is missing, unreadable, or contradicts itself."""


def load_instances(
    source: Path, annotations: bool = True, instances: Sequence[InstanceKind] = ()
) -> dict[str, Any]:
    """Parse a COCO instances file and check that it has the lists that it needs.

    Segmentations and keypoints are most of a file. They are packed or dropped while parsing, so that they
    never exist all at once.

    Args:
        source: the file.
        annotations: whether it has to have a list of them.
        instances: what to keep of them: ``masks`` (``segmentation`` becomes an ``Outline``), ``keypoints``
            (numbers become a float32 array), or nothing.

    Raises:
        AnnotationError: if the file is missing, is no JSON or lacks a list.
    """
    if not source.is_file():
        raise AnnotationError(f"{source}: no such annotation file; check root and the annotation path")
    if (megabytes := source.stat().st_size / 2**20) > 50:
        logger.info("reading %s (%.0f MB)", source, megabytes)
    try:
        content = json.loads(source.read_bytes(), object_hook=partial(_reduced, instances=instances))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AnnotationError(f"{source}: not readable as JSON ({error}); export it again") from error
    if not isinstance(content, dict):
        raise AnnotationError(
            f"{source}: holds a {type(content).__name__}, not a COCO instances object with images, "
            "annotations and categories"
            + ("; this looks like a results file" if isinstance(content, list) else "")
        )
    needed = ("images", "annotations", "categories") if annotations else ("images", "categories")
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
    if isinstance(values, list) and all(type(value) in (int, float) for value in values):
        return np.array(values, dtype=np.float32)
    return values


def read_categories(records: list[dict], source: Path) -> tuple[LabelClass, ...]:
    """Return the categories in ascending id order."""
    _require(records, {"id": int, "name": str}, "category", source)
    if not records:
        raise AnnotationError(f"{source}: the dataset is empty, it lists no categories; add them")
    _require_distinct(np.array([record["id"] for record in records], dtype=np.int64), "category", source)
    return tuple(sorted(LabelClass(record["id"], record["name"]) for record in records))


def read_images(records: list[dict], source: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return ids ``[I]``, sizes ``[I, 2]`` (height, width) and file names."""
    _require(records, {"id": int, "file_name": str, "height": int, "width": int}, "image", source)
    if not records:
        raise AnnotationError(f"{source}: the dataset is empty, it lists no images; check the export")
    image_ids = np.array([record["id"] for record in records], dtype=np.int64)
    _require_distinct(image_ids, "image", source)
    sizes = np.array([(record["height"], record["width"]) for record in records], dtype=np.int64)
    bad = np.flatnonzero((sizes < 1).any(axis=1))
    _raise_if(
        bad,
        lambda i: f"image id {image_ids[i]} ({records[i]['file_name']}): {sizes[i, 0]}x{sizes[i, 1]}",
        f"{source}: images need a height and width of at least 1 pixel; correct these records",
    )
    return image_ids, sizes, [record["file_name"] for record in records]


class BoxColumns(NamedTuple):
    """Annotations by column: ``record`` is the position in the file, ``image`` that of the image.

    ``xywh`` is ``[N, 4]`` float64, the others are ``[N]``.
    """

    record: np.ndarray
    ids: np.ndarray
    image: np.ndarray
    labels: np.ndarray
    xywh: np.ndarray
    crowd: np.ndarray
    area: np.ndarray

    def take(self, rows: np.ndarray) -> BoxColumns:
        return BoxColumns(*(column[rows] for column in self))


def no_boxes() -> BoxColumns:
    """Return columns without rows."""
    integers = np.zeros(0, dtype=np.int64)
    return BoxColumns(
        integers, integers, integers, integers, np.zeros((0, 4)), np.zeros(0, dtype=bool), np.zeros(0)
    )


def read_annotations(
    records: list[dict], image_ids: np.ndarray, categories: tuple[LabelClass, ...], source: Path
) -> BoxColumns:
    """Return the annotations by column, with positions and labels in place of image and category ids."""
    if not records:
        return no_boxes()
    _require(records, {"id": int, "image_id": int, "category_id": int, "bbox": list}, "annotation", source)
    ids = np.array([record["id"] for record in records], dtype=np.int64)
    _require_distinct(ids, "annotation", source)
    images = np.array([record["image_id"] for record in records], dtype=np.int64)
    _raise_if(
        np.flatnonzero(~np.isin(images, image_ids)),
        lambda n: f"annotation id {ids[n]}: image_id {images[n]}",
        f"{source}: annotations of images that the file does not list; remove them or add the images",
    )
    category_ids = np.array([category.id for category in categories], dtype=np.int64)
    chosen = np.array([record["category_id"] for record in records], dtype=np.int64)
    _raise_if(
        np.flatnonzero(~np.isin(chosen, category_ids)),
        lambda n: f"annotation id {ids[n]}: category_id {chosen[n]}",
        f"{source}: annotations of categories that the file does not list (it has {_first_few(category_ids)}"
        "); add the categories or correct the ids",
    )
    xywh = _box_column(records, ids, source)
    sorter = np.argsort(image_ids)
    return BoxColumns(
        record=np.arange(len(records)),
        ids=ids,
        image=sorter[np.searchsorted(image_ids, images, sorter=sorter)],
        labels=np.searchsorted(category_ids, chosen),
        xywh=xywh,
        crowd=np.array([bool(record.get("iscrowd", 0)) for record in records]),
        area=_area_column(records, xywh, source),
    )


def _area_column(records: list[dict], xywh: np.ndarray, source: Path) -> np.ndarray:
    """The area of the mask, where the file gives it; else of the box."""
    bad = [n for n, record in enumerate(records) if not isinstance(record.get("area"), int | float | None)]
    _raise_if(
        np.array(bad),
        lambda n: f"annotation id {records[n]['id']}: area {records[n]['area']!r}",
        f"{source}: an area is a number; correct or remove it",
    )
    given = np.array([record.get("area") for record in records], dtype=np.float64)  # None becomes nan
    return np.where(np.isnan(given), xywh[:, 2] * xywh[:, 3], given)


def _box_column(records: list[dict], ids: np.ndarray, source: Path) -> np.ndarray:
    try:
        boxes = np.array([record["bbox"] for record in records], dtype=np.float64)
    except (TypeError, ValueError):
        boxes = np.zeros(0)
    if boxes.shape == (len(records), 4):
        return boxes
    bad = [n for n, record in enumerate(records) if not _is_box(record["bbox"])]
    _raise_if(
        np.array(bad),
        lambda n: f"annotation id {ids[n]}: bbox {records[n]['bbox']}",
        f"{source}: a bbox is four numbers [x, y, width, height]; correct these records",
    )
    raise AssertionError("unreachable: some box is malformed")


def _is_box(value: list) -> bool:
    return len(value) == 4 and all(isinstance(number, int | float) for number in value)


def check_boxes(
    columns: BoxColumns,
    image_ids: np.ndarray,
    sizes: np.ndarray,
    names: list[str],
    on_bad_box: OnBadBox,
    source: Path,
) -> BoxColumns:
    """Clip, drop or refuse boxes as ``read_coco`` says; counts go to the log."""
    limits = sizes[columns.image][:, ::-1]  # [N, 2] width, height
    low, high = columns.xywh[:, :2], columns.xywh[:, :2] + columns.xywh[:, 2:]
    finite = np.all(np.isfinite(columns.xywh), axis=1)
    flat = np.any(columns.xywh[:, 2:] <= 0, axis=1)
    with np.errstate(invalid="ignore"):
        overshoot = np.maximum(-low, high - limits).max(axis=1, initial=0)
        clipped_low, clipped_high = low.clip(0, limits), high.clip(0, limits)
        # Single precision, because that is what training sees: a sliver can vanish only there.
        left = (clipped_high.astype(np.float32) > clipped_low.astype(np.float32)).all(axis=1)
    outside = finite & ~flat & ((overshoot > ROUNDING_OVERSHOOT) | ~left)
    bad = ~finite | flat | outside

    def describe(n: int) -> str:
        reason = "not finite" if not finite[n] else "width or height <= 0" if flat[n] else "leaves the image"
        image = columns.image[n]
        return (
            f"annotation id {columns.ids[n]}, image id {image_ids[image]} ({names[image]}, "
            f"{sizes[image, 1]}x{sizes[image, 0]} pixels, width x height): "
            f"bbox {columns.xywh[n].tolist()} {reason}"
        )

    if on_bad_box == "error":
        headline = f"{source}: bad boxes; correct them, or set on_bad_box to clip or drop"
        _raise_if(np.flatnonzero(bad), describe, headline)
    kept = ~bad if on_bad_box == "drop" else finite & ~flat & left
    moved = kept & (overshoot > 0)
    rounded = int((moved & ~bad).sum())
    if rounded:
        logger.info("%s: %d boxes left their image by 1 pixel or less and were clipped", source, rounded)
    if bad.any():
        logger.warning(
            "%s: %d bad boxes of %d: %d clipped to their image, %d dropped (on_bad_box: %s)",
            source, int(bad.sum()), len(bad), int((moved & bad).sum()), int((~kept).sum()), on_bad_box,
        )  # fmt: skip
    xywh = columns.xywh.copy()
    xywh[moved] = np.concatenate([clipped_low, clipped_high - clipped_low], axis=1)[moved]
    return columns._replace(xywh=xywh).take(np.flatnonzero(kept))


def _require(records: list[Any], fields: dict[str, type], kind: str, source: Path) -> None:
    """Raise unless every record is a dict with these fields of these types (a bool is no int)."""
    problems = []
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            problems.append(f"{kind} number {number}: is no object")
            continue
        for field, kind_of in fields.items():
            value = record.get(field)
            if type(value) is not kind_of or (isinstance(value, int) and value.bit_length() > 63):
                name = f"{kind} id {record['id']}" if "id" in record else f"{kind} number {number}"
                problems.append(f"{name}: {field} is {'missing' if field not in record else repr(value)}")
    if problems:
        wanted = ", ".join(f"{field} ({kind_of.__name__})" for field, kind_of in fields.items())
        raise AnnotationError(
            f"{source}: {len(problems)} {kind} fields are missing or of the wrong type; every {kind} needs "
            f"{wanted}\n{listing(problems)}"
        )


def _require_distinct(ids: np.ndarray, kind: str, source: Path) -> None:
    values, counts = np.unique(ids, return_counts=True)
    _raise_if(
        np.flatnonzero(counts > 1),
        lambda n: f"{kind} id {values[n]} occurs {counts[n]} times",
        f"{source}: duplicate {kind} ids; every {kind} needs its own, renumber them",
    )


def _raise_if(bad: np.ndarray, describe: Callable[[int], str], headline: str) -> None:
    if len(bad):
        problems = [describe(n) for n in bad[:LISTED]]
        raise AnnotationError(f"{headline} ({len(bad)} in all)\n{listing(problems, len(bad))}")


def _first_few(values: np.ndarray) -> str:
    text = ", ".join(str(value) for value in values[:LISTED])
    return text + (", ..." if len(values) > LISTED else "")
