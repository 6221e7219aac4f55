"""Which anchor or proposal learns which box, and which of them are sampled.

Letters in shapes: B images, M box rows of the ground truth, N anchors or proposals, S sampled ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..base import BoxTargets
from .boxes import box_areas, pairwise_intersection, pairwise_iou


class Matches(NamedTuple):
    """What every box is to learn; a box that is neither positive nor negative is ignored.

    Attributes:
        index: ``[B, N]`` int64, the row of the ground truth with the highest IoU (any row without one).
        positive: ``[B, N]`` bool.
        negative: ``[B, N]`` bool.
    """

    index: Tensor
    positive: Tensor
    negative: Tensor


class Sample(NamedTuple):
    """A random choice of fixed size from each image.

    Attributes:
        index: ``[B, S]`` int64; positives first, then negatives, then rows without meaning.
        valid: ``[B, S]`` bool, the rows with a meaning; no index occurs twice among them.
        positive: ``[B, S]`` bool.
    """

    index: Tensor
    valid: Tensor
    positive: Tensor


def object_rows(targets: BoxTargets) -> Tensor:
    """Rows of the ground truth to learn from, ``[B, M]``: no padding, no crowd region, and with an area."""
    return (targets.labels >= 0) & ~targets.crowd & (targets.boxes[..., 2:] > targets.boxes[..., :2]).all(-1)


class Matcher:
    """Assigns boxes to the ground truth by IoU (Faster R-CNN, section 3.1.2).

    A box is positive from ``fg_iou`` on and negative below ``bg_iou``. With ``low_quality`` the boxes that
    have the highest IoU with some object (all of them in a tie) are positive too, if they touch it; each
    learns the object with which it itself has the highest IoU, as in torchvision. A negative of which at
    least the share ``crowd_overlap`` lies in one crowd region is ignored instead.

    Args:
        fg_iou, bg_iou: thresholds in 0..1, ``bg_iou <= fg_iou``.
        crowd_overlap: share of the box's own area, in 0..1.
        low_quality: whether every object gets a box whatever the IoU.
    """

    def __init__(self, fg_iou: float, bg_iou: float, crowd_overlap: float, low_quality: bool = False) -> None:
        self.fg_iou = fg_iou
        self.bg_iou = bg_iou
        self.crowd_overlap = crowd_overlap
        self.low_quality = low_quality

    @torch.no_grad()
    def __call__(self, boxes: Tensor, targets: BoxTargets) -> Matches:
        """Match ``[B, N, 4]`` (or ``[1, N, 4]``, the same for every image) boxes to the ground truth."""
        intersection = pairwise_intersection(targets.boxes, boxes)  # [B, M, N]
        iou = pairwise_iou(targets.boxes, boxes, intersection)
        iou = torch.where(object_rows(targets)[..., None], iou, -1)
        best, index = iou.max(dim=1)
        positive = best >= self.fg_iou
        if self.low_quality:
            best_of_object = iou.amax(dim=2, keepdim=True)  # [B, M, 1]
            positive = positive | ((iou == best_of_object) & (best_of_object > 0)).any(dim=1)
        crowd = (targets.crowd & (targets.labels >= 0))[..., None]
        in_crowd = torch.where(crowd, intersection, 0).amax(dim=1)  # [B, N]
        # A box without area is in no crowd region: 0 >= 0 must not count.
        in_crowd = (in_crowd >= self.crowd_overlap * box_areas(boxes)) & (in_crowd > 0)
        return Matches(index, positive, (best < self.bg_iou) & ~positive & ~in_crowd)


@torch.no_grad()
def sample(positive: Tensor, negative: Tensor, keys: Tensor, size: int, positive_fraction: float) -> Sample:
    """Choose positives up to their share, then negatives up to ``size``, at random.

    Args:
        positive, negative: ``[B, N]`` bool, disjoint.
        keys: ``[B, N]`` uniform random numbers in 0..1; the rows with the largest are taken.
        size: number wanted per image.
        positive_fraction: at most ``int(size * positive_fraction)`` are positives.

    Returns:
        A sample of S = ``min(size, N)`` rows.
    """
    count = positive.shape[1]
    rows = min(size, count)
    quota = min(int(size * positive_fraction), count)
    best_positive = torch.where(positive, keys, -1).topk(quota).indices
    best_negative = torch.where(negative, keys, -1).topk(rows).indices
    positives = positive.sum(1, keepdim=True).clamp(max=quota)  # [B, 1]
    negatives = torch.minimum(negative.sum(1, keepdim=True), size - positives)
    slot = torch.arange(rows, device=positive.device)[None]  # [1, S]
    # Row j holds positive j while there are some, then negative j - positives.
    candidates = torch.cat([best_positive, best_negative], dim=1)
    is_positive = slot < positives
    index = candidates.gather(1, torch.where(is_positive, slot, quota + (slot - positives).clamp(min=0)))
    return Sample(index, slot < positives + negatives, is_positive)
