"""Boxes, outlines and keypoints that were written in another form than COCO's: fractions, corners, centres.

Letters in shapes: N boxes.
"""

from __future__ import annotations

import logging

import numpy as np

from ..storage import Location
from .fields import AnnotationError

logger = logging.getLogger("trunkline")

_FRACTION = 1.1  # what fractions reach, with some overshoot: about the first pixel
_LARGE = 8  # pixels of a side, from which on the first pixel is no place for an object
_FEW = 20  # boxes; fewer may lie in one corner by chance
_CORNER = 0.5  # of the sides of an image
_OFTEN = 0.1  # share of boxes that leave their image
_SLACK = 1.0  # pixels of rounding


def require_pixels(what: str, ends: np.ndarray, sizes: np.ndarray, describe: str, source: Location) -> None:
    """Raise if most of the objects of a file lie within 0..1, as fractions of the image do.

    Args:
        what: of the objects: ``boxes``, ``polygons``, ``keypoints``.
        ends: ``[N]`` their largest coordinates in absolute value.
        sizes: ``[N, 2]`` height and width of their images, in pixels.
        describe: what to do.
        source: the file.

    Raises:
        AnnotationError: if it is half of them or more. Fewer are a warning: files may have been merged.
    """
    tiny = (ends <= _FRACTION) & (sizes.min(axis=1, initial=np.iinfo(np.int64).max) >= _LARGE)
    count, total = int(tiny.sum()), len(ends)
    if not count:
        return
    text = f"{source}: {count:,} of {total:,} {what} lie within 0 and 1, as if in fractions of their image"
    if 2 * count >= total:
        raise AnnotationError(f"{text}; COCO has pixels: {describe}")
    logger.warning("%s; COCO has pixels. Have files of two kinds been merged?", text)


def other_form(xywh: np.ndarray, sizes: np.ndarray) -> str:
    """Return what boxes that leave their images seem to be instead of x, y, width, height; empty if nothing.

    Args:
        xywh: ``[N, 4]`` finite boxes as they stand in the file.
        sizes: ``[N, 2]`` height and width of their images, in pixels.
    """
    limits = sizes[:, ::-1]
    low, last = xywh[:, :2], xywh[:, 2:]
    leaving = int((low + last > limits + _SLACK).any(axis=1).sum())
    if leaving < max(1, _OFTEN * len(xywh)):
        return ""
    inside = (low >= -_SLACK).all(axis=1) & (last <= limits + _SLACK).all(axis=1)
    if (inside & (last > low).all(axis=1)).all():
        form, change = "x1, y1, x2, y2", "[x1, y1, x2 - x1, y2 - y1]"
    elif ((low - last / 2 >= -_SLACK) & (low + last / 2 <= limits + _SLACK)).all():
        form, change = "the centre, width and height", "[x - width / 2, y - height / 2, width, height]"
    else:
        return ""
    return (
        f"{leaving:,} of {len(xywh):,} boxes leave their image, but all fit if the numbers are {form}: "
        f"write {change} if so"
    )


def warn_of_corner(high: np.ndarray, sizes: np.ndarray, source: Location) -> None:
    """Warn if no box reaches beyond the upper left quarter of its image: perhaps they are percentages.

    Args:
        high: ``[N, 2]`` right and lower ends of boxes, in pixels.
        sizes: ``[N, 2]`` height and width of their images, in pixels.
        source: the file.
    """
    if len(high) < _FEW:
        return
    right, lower = (high / sizes[:, ::-1]).max(axis=0).tolist()
    if right < _CORNER and lower < _CORNER:
        logger.warning(
            "%s: all %s boxes lie in the upper left corner of their images: they end at %.0f %% of the "
            "width and %.0f %% of the height, at x %.0f and y %.0f. Are they percentages, or made for "
            "smaller images? COCO has pixels of the image in the file",
            source, f"{len(high):,}", 100 * right, 100 * lower, *high.max(axis=0),
        )  # fmt: skip


def warn_of_areas(areas: np.ndarray, xywh: np.ndarray, source: Location) -> None:
    """Warn if the areas of most objects contradict their boxes: the metrics by size go by the areas.

    Args:
        areas: ``[N]`` square pixels; that of the box where the file gives none.
        xywh: ``[N, 4]`` boxes.
        source: the file.
    """
    box_areas = (xywh[:, 2] + 1) * (xywh[:, 3] + 1)  # some count the pixels at both ends
    wrong = (areas > 1.01 * box_areas) | ((areas == 0) & (box_areas > 4))
    if 2 * wrong.sum() > len(wrong):
        logger.warning(
            "%s: the area of %s of %s annotations is 0, or larger than their box. The metrics of small, "
            "medium and large objects go by it, as in pycocotools; without areas they go by the boxes",
            source, f"{int(wrong.sum()):,}", f"{len(areas):,}",
        )  # fmt: skip


def warn_of_copies(images: np.ndarray, labels: np.ndarray, xywh: np.ndarray, source: Location) -> None:
    """Warn of boxes that are there twice, as after merging files: a second object, which is never found.

    Args:
        images: ``[N]`` positions of the images.
        labels: ``[N]`` labels.
        xywh: ``[N, 4]`` boxes.
        source: the file.
    """
    rows = np.column_stack([images, labels, xywh])
    rows = rows[np.lexsort(rows.T)]
    if copies := int((rows[1:] == rows[:-1]).all(axis=1).sum()):
        logger.warning(
            "%s: %s an exact copy of another one (image, category and box), and counts as an object of its "
            "own; remove copies",
            source, f"{copies:,} annotations are each" if copies > 1 else "1 annotation is",
        )  # fmt: skip
