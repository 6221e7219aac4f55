"""What there is to learn in an index of boxes, counted before training.

Letters in shapes: I images, N boxes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..shared.canvas import Size, scaled_sizes
from ..shared.common import LISTED
from ..shared.labels.classes import LabelClass
from ..shared.summary import SplitSummary
from .index import CocoIndex

logger = logging.getLogger("trunkline")

_MANY = 0.05  # share of boxes below a pixel
_ROUNDING = 1e-3  # pixels; boxes are float32


class Scale(NamedTuple):
    """How large images become at most.

    Attributes:
        short_side: the largest length of the shorter side, in pixels.
        long_side: the limit of the longer side.
        canvases: heights and widths that resized images have to fit; none for any.
    """

    short_side: int
    long_side: int
    canvases: Sequence[Size] = ()


def summarise(index: CocoIndex, scale: Scale) -> SplitSummary:
    """Count images and boxes; a box of which even ``scale`` shows no whole pixel is nothing to learn from."""
    single = ~index.crowd
    images = torch.repeat_interleave(torch.arange(len(index)), index.offsets.diff())
    small = below_pixel(index, scale) & single.numpy()
    boxes = int(single.sum())
    counts = {
        "images": len(index),
        "boxes": boxes,
        "crowd regions": len(single) - boxes,
        "images without boxes": len(index) - len(images[single].unique()),
        "boxes below 1 pixel": int(small.sum()),
        "classes without boxes": len(unused_classes(index)),
    }
    counts |= {f"boxes dropped: {reason}": count for reason, count in index.dropped.items()}
    remedy = "look at the annotations: every image is background"
    if small.sum() == boxes > 0:
        remedy = "all boxes are below 1 pixel in the file, or when images are resized; set data.short_side "
        remedy += f"above {scale.short_side}, if the boxes are right"
    elif boxes < len(single):
        remedy = "all boxes have iscrowd 1, which marks regions to ignore; set it to 0 for single objects"
    elif index.dropped:
        remedy = "all boxes were dropped; on_bad_box error lists them"
    return SplitSummary(counts, learnable=boxes - int(small.sum()), remedy=remedy)


def below_pixel(index: CocoIndex, scale: Scale) -> np.ndarray:
    """Return ``[N]`` bool: boxes of which a side is shorter than a pixel, of the file or when it is resized.

    Training leaves out what is below a pixel of the file.
    """
    if not len(index):
        return np.zeros(0, dtype=bool)
    sizes = index.sizes.numpy()
    resized = [scaled_sizes(sizes, scale.short_side, scale.long_side, each) for each in scale.canvases]
    resized = resized or [scaled_sizes(sizes, scale.short_side, scale.long_side)]
    factors = np.max(resized, axis=0) / sizes  # [I, 2] height, width, on the canvas that shrinks least
    factors = np.repeat(factors, index.offsets.diff().numpy(), axis=0)[:, ::-1]  # [N, 2] width, height
    boxes = index.boxes.numpy()
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.asarray((np.minimum(sides, sides * factors) < 1 - _ROUNDING).any(axis=1))


def unused_classes(index: CocoIndex) -> Sequence[LabelClass]:
    """Return the categories without a box that is no crowd region."""
    count = torch.bincount(index.labels[~index.crowd], minlength=len(index.categories)).tolist()
    return [category for category, number in zip(index.categories, count, strict=True) if not number]


def tell_unlearned(train: CocoIndex, val: CocoIndex) -> None:
    """Warn of classes that are evaluated and that training never sees."""
    never, absent = set(unused_classes(train)), set(unused_classes(val))
    surprises = [category for category in val.categories if category in never - absent]
    if surprises and len(train.labels):
        logger.warning(
            "the val data have boxes of %s without any in the train data, so none can be learned: %s",
            "1 class" if len(surprises) == 1 else f"{len(surprises)} classes",
            _named(surprises),
        )


def _named(classes: Sequence[LabelClass]) -> str:
    text = ", ".join(f"{category.name} (id {category.id})" for category in classes[:LISTED])
    return text + (f" and {len(classes) - LISTED} more" if len(classes) > LISTED else "")


def tell(index: CocoIndex, split: str, scale: Scale) -> None:
    """Log what is odd about a split as a whole: classes without boxes, boxes that resizing makes vanish."""
    unused = unused_classes(index)
    if unused and len(index.labels):
        logger.info(
            "the %s data have no box of %d of %d classes, which the metrics leave out: %s",
            split,
            len(unused),
            len(index.categories),
            _named(unused),
        )
    small = below_pixel(index, scale) & ~index.crowd.numpy()
    if small.sum() > _MANY * len(small):
        logger.warning(
            "%s of %d in the %s data are below 1 pixel in the file, or when images are resized to a short "
            "side of %d; set data.short_side and data.long_side higher, or cut the images into tiles",
            f"{int(small.sum())} boxes" if small.sum() > 1 else "1 box", len(small), split, scale.short_side,
        )  # fmt: skip
