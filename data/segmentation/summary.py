"""What there is to learn in images with masks, counted before training.

Letters in shapes: I images, K classes.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor

from ..shared.summary import SplitSummary
from .index import SegmentationIndex
from .masks import MaskSource

_REMEDY = "all pixels of the masks are ignored: look at data.ignore, data.categories and the masks"


def summarise(index: SegmentationIndex, counts: Tensor | None, left_out: int = 0) -> SplitSummary:
    """Count images and the pixels that the check of the masks has found.

    Args:
        index: the images of a split.
        counts: ``[I, K + 1]`` pixels of each label, last of what is ignored; None where masks were not looked
            through: then there are no numbers of pixels, and each image counts as something to learn, unless
            the annotations are known to hold no class.
        left_out: images that have too few pixels of classes.
    """
    numbers = {"images": len(index)}
    if left_out:
        numbers["images left out: min_pixels"] = left_out
    if counts is not None:
        labelled = int(counts[:, :-1].sum())
        numbers |= {
            "images wholly ignored": int((counts[:, :-1].sum(dim=1) == 0).sum()),
            "labelled pixels": labelled,
            "ignored pixels": int(counts[:, -1].sum()),
            "classes never seen": int((counts[:, :-1].sum(dim=0) == 0).sum()),
        }
        return SplitSummary(numbers, labelled, _REMEDY)
    present = cast(MaskSource, index.masks).present()
    if present is None:
        return SplitSummary(numbers, len(index))
    numbers["classes never seen"] = int((~present).sum())
    return SplitSummary(numbers, len(index) if present.any() else 0, _REMEDY)
