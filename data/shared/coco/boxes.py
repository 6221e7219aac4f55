"""Boxes of a COCO file by column, and the check of each against its image.

Letters in shapes: I images, N boxes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from ..storage import Location
from .fields import raise_if
from .units import other_form, require_pixels, warn_of_areas, warn_of_copies, warn_of_corner

logger = logging.getLogger("trunkline")

OnBadBox = Literal["error", "clip", "drop"]

ROUNDING_OVERSHOOT = 1.0  # pixels that a box may leave its image by; annotation tools round
_FARTHEST = 1e15  # pixels, so that sums and areas of boxes are finite too
NOT_FINITE, NO_AREA, OUTSIDE = "not finite", "no area", "outside"


class BoxColumns(NamedTuple):
    """Annotations by column: ``record`` is the position in the file, ``image`` that of the image.

    ``xywh`` is ``[N, 4]`` float64 as the file gives it, ``inside`` the same clipped to the image; the others
    are ``[N]``.
    """

    record: np.ndarray
    ids: np.ndarray
    image: np.ndarray
    labels: np.ndarray
    xywh: np.ndarray
    inside: np.ndarray
    crowd: np.ndarray
    area: np.ndarray

    def take(self, rows: np.ndarray) -> BoxColumns:
        return BoxColumns(*(column[rows] for column in self))


def no_boxes() -> BoxColumns:
    """Return columns without rows."""
    integers, boxes = np.zeros(0, dtype=np.int64), np.zeros((0, 4))
    return BoxColumns(
        integers, integers, integers, integers, boxes, boxes, np.zeros(0, dtype=bool), np.zeros(0)
    )


class CheckedBoxes(NamedTuple):
    """What ``check_boxes`` found.

    Attributes:
        columns: boxes to train on.
        truth: boxes to evaluate against: all that are finite, as the file gives them.
        dropped: how many are not in ``columns``, by the reason.
    """

    columns: BoxColumns
    truth: BoxColumns
    dropped: Mapping[str, int]


def check_boxes(
    columns: BoxColumns,
    image_ids: np.ndarray,
    sizes: np.ndarray,
    names: list[str],
    on_bad_box: OnBadBox,
    source: Location,
) -> CheckedBoxes:
    """Clip, drop or refuse boxes as ``read_coco`` says; counts go to the log.

    Raises:
        AnnotationError: for bad boxes with ``error``, and for boxes in fractions of their images.
    """
    limits = sizes[columns.image][:, ::-1]  # [N, 2] width, height
    finite = np.all(np.abs(columns.xywh) < _FARTHEST, axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = columns.xywh[:, :2], columns.xywh[:, :2] + columns.xywh[:, 2:]
    flat = np.any(columns.xywh[:, 2:] <= 0, axis=1)
    form = _other_units(columns, sizes, finite & ~flat, source)
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
        raise_if(np.flatnonzero(bad), describe, f"{headline}. {form}" if form else headline)
    kept = ~bad if on_bad_box == "drop" else finite & ~flat & left
    moved = kept & (overshoot > 0)
    if form:
        logger.warning("%s: %s", source, form)
    _report(bad, kept, moved, on_bad_box, source)
    inside = columns.inside.copy()
    inside[moved] = np.concatenate([clipped_low, clipped_high - clipped_low], axis=1)[moved]
    reasons = {NOT_FINITE: ~finite, NO_AREA: finite & flat, OUTSIDE: outside & ~kept}
    return CheckedBoxes(
        columns._replace(inside=inside).take(np.flatnonzero(kept)),
        columns.take(np.flatnonzero(finite)),
        {reason: int(rows.sum()) for reason, rows in reasons.items() if rows.any()},
    )


def _other_units(columns: BoxColumns, sizes: np.ndarray, usable: np.ndarray, source: Location) -> str:
    """Refuse fractions, warn of what is odd about all boxes together, and return a guess at their form."""
    xywh, own = columns.xywh[usable], sizes[columns.image[usable]]
    high = xywh[:, :2] + xywh[:, 2:]
    # Of the numbers themselves: fractions may be those of two corners, or of a centre and a size.
    ends = np.abs(xywh).max(axis=1, initial=0)
    change = "multiply x and width by the image's width, y and height by its height"
    require_pixels("boxes", ends, own, change, source)
    warn_of_corner(high, own, source)
    warn_of_areas(columns.area[usable], xywh, source)
    warn_of_copies(columns.image[usable], columns.labels[usable], xywh, source)
    return other_form(xywh, own)


def _report(
    bad: np.ndarray, kept: np.ndarray, moved: np.ndarray, on_bad_box: OnBadBox, source: Location
) -> None:
    rounded = int((moved & ~bad).sum())
    if rounded:
        logger.info("%s: %d boxes left their image by 1 pixel or less and were clipped", source, rounded)
    if bad.any():
        logger.warning(
            "%s: %d bad boxes of %d: %d clipped to their image, %d dropped (on_bad_box: %s)",
            source, int(bad.sum()), len(bad), int((moved & bad).sum()), int((~kept).sum()), on_bad_box,
        )  # fmt: skip
