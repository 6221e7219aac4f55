"""Which anchor or proposal learns which box, and which of them are sampled.

Letters in shapes: B images, M box rows of the ground truth, N anchors or proposals, S sampled ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..base import BoxTargets
from .boxes import box_areas, pairwise_intersection, pairwise_iou, rows_needed, runs_triton

# Pairs of a box and an object that are compared at once by operators of torch, several float32 numbers each;
# memory grows no further with the number of objects. On the CPU they should fit its caches; devices want few
# and large operations (128 MiB per number).
_PAIRS = {"cpu": 2**20}
_PAIRS_ON_DEVICES = 2**25


class Matches(NamedTuple):
    """What every box is to learn; a box that is neither positive nor negative is ignored.

    Attributes:
        index: ``[B, N]`` int64, the row of the ground truth with the highest IoU (any row without one).
        positive: ``[B, N]`` bool.
        negative: ``[B, N]`` bool.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    positive: Tensor
    negative: Tensor


class _Closest(NamedTuple):
    """What is known of each box after a comparison with some objects; each ``[B, N]``.

    Attributes:
        iou: the highest, -1 without an object.
        index: row of the object that has it; the first if several have.
        is_best: whether some object has its highest IoU with this box.
        in_crowd: largest area in one crowd region, in square pixels.
    """

    iou: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    is_best: Tensor
    in_crowd: Tensor


class Sample(NamedTuple):
    """A random choice of fixed size from each image.

    Attributes:
        index: ``[B, S]`` int64; positives first, then negatives, then rows without meaning.
        valid: ``[B, S]`` bool, the rows with a meaning; no index occurs twice among them.
        positive: ``[B, S]`` bool.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    valid: Tensor
    positive: Tensor


def object_rows(targets: BoxTargets) -> Tensor:
    """Rows of the ground truth to learn from, ``[B, M]``: no padding, no crowd region, and with an area.

    The area must be above 0 and finite in float32, as what the boxes are compared by; so no corner is NaN.
    """
    return _object_rows(targets.boxes, targets.labels, targets.crowd)


def _object_rows(truth: Tensor, labels: Tensor, crowd: Tensor) -> Tensor:
    areas = box_areas(truth.float())  # positive too where both sides are below 0
    return (labels >= 0) & ~crowd & (truth[..., 2] > truth[..., 0]) & (areas > 0) & (areas < torch.inf)


class Matcher:
    """Assigns boxes to the ground truth by IoU (Faster R-CNN, section 3.1.2).

    A box is positive from ``fg_iou`` on and negative below ``bg_iou``. With ``low_quality`` the boxes that
    have the highest IoU with some object (all of them in a tie) are positive too, if they touch it. Each
    learns the object with which it itself has the highest IoU, as in torchvision. A negative of which at
    least the share ``crowd_overlap`` lies in one crowd region is ignored instead. So is a box with a NaN or
    an infinity, or with an area that float32 cannot hold; objects and regions like that count for nothing.

    Args:
        fg_iou, bg_iou: thresholds in 0..1, ``bg_iou <= fg_iou``.
        crowd_overlap: share of the box's own area, in 0..1.
        low_quality: whether every object gets a box at any IoU above 0.
    """

    def __init__(self, fg_iou: float, bg_iou: float, crowd_overlap: float, low_quality: bool = False) -> None:
        self.fg_iou = fg_iou
        self.bg_iou = bg_iou
        self.crowd_overlap = crowd_overlap
        self.low_quality = low_quality

    @torch.no_grad()
    def __call__(self, boxes: Tensor, targets: BoxTargets) -> Matches:
        """Match ``[B, N, 4]`` (or ``[1, N, 4]``, the same for every image) boxes to the ground truth."""
        truth = targets.boxes, targets.labels, targets.crowd
        options = self.fg_iou, self.bg_iou, self.crowd_overlap, self.low_quality
        return Matches(*match_boxes(boxes, *truth, *options))


@torch.library.custom_op(
    "trunkline::match_boxes",
    mutates_args=(),
    schema="(Tensor boxes, Tensor truth, Tensor labels, Tensor crowd, float fg_iou, float bg_iou, "
    "float crowd_overlap, bool low_quality) -> (Tensor, Tensor, Tensor)",
)
def match_boxes(
    boxes: Tensor,
    truth: Tensor,
    labels: Tensor,
    crowd: Tensor,
    fg_iou: float,
    bg_iou: float,
    crowd_overlap: float,
    low_quality: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Match boxes to the ground truth, see :class:`Matcher`; one operator to torch.compile.

    Args:
        boxes: ``[B, N, 4]`` or ``[1, N, 4]``.
        truth: ``[B, M, 4]``.
        labels: ``[B, M]``.
        crowd: ``[B, M]``.
        fg_iou, bg_iou, crowd_overlap, low_quality: see :class:`Matcher`.

    Returns:
        The fields of :class:`Matches`.
    """
    if runs_triton(boxes):
        from . import matching_triton

        return matching_triton.match(boxes, truth, labels, crowd, fg_iou, bg_iou, crowd_overlap, low_quality)
    return match_by_torch(boxes, truth, labels, crowd, fg_iou, bg_iou, crowd_overlap, low_quality)


@match_boxes.register_fake
def _shapes(boxes: Tensor, truth: Tensor, labels: Tensor, *options: float) -> tuple[Tensor, Tensor, Tensor]:
    index = labels.new_empty((labels.shape[0], boxes.shape[1]), dtype=torch.int64)
    return index, torch.empty_like(index, dtype=torch.bool), torch.empty_like(index, dtype=torch.bool)


def match_by_torch(
    boxes: Tensor,
    truth: Tensor,
    labels: Tensor,
    crowd: Tensor,
    fg_iou: float,
    bg_iou: float,
    crowd_overlap: float,
    low_quality: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what :func:`match_boxes` says by operators of torch, a block of objects at a time."""
    boxes, truth = boxes.float(), truth.float()
    areas = box_areas(boxes)
    sound = torch.isfinite(areas)  # which they are only if all corners are
    boxes = torch.where(sound[..., None], boxes, 0)
    objects = _object_rows(truth, labels, crowd)
    regions = crowd & (labels >= 0) & torch.isfinite(box_areas(truth))
    images, number = labels.shape[0], boxes.shape[1]
    rows = rows_needed(objects | regions) if number else 0
    most = _PAIRS.get(boxes.device.type, _PAIRS_ON_DEVICES)
    step = max(1, most // max(1, images * number))
    closest = None
    for start in range(0, rows, step):
        block = slice(start, min(start + step, rows))
        more = _closest(boxes, truth[:, block], objects[:, block], regions[:, block], low_quality)
        closest = more if closest is None else _closer(closest, more, start)
    if closest is None:  # no rows, or no boxes
        index = labels.new_zeros((images, number))
        return index, index.bool(), sound.expand_as(index).clone()
    positive = ((closest.iou >= fg_iou) | closest.is_best) & sound
    # A box without area is in no crowd region: 0 >= 0 must not count.
    in_crowd = (closest.in_crowd >= crowd_overlap * areas) & (closest.in_crowd > 0)
    return closest.index, positive, (closest.iou < bg_iou) & ~positive & ~in_crowd & sound


def _closest(boxes: Tensor, truth: Tensor, objects: Tensor, regions: Tensor, low_quality: bool) -> _Closest:
    """Compare all boxes with a block of m rows of the ground truth.

    Args:
        boxes: ``[B, N, 4]`` or ``[1, N, 4]``.
        truth: ``[B, m, 4]``.
        objects: ``[B, m]`` bool.
        regions: ``[B, m]`` bool, crowd regions.
        low_quality: whether ``is_best`` is wanted.
    """
    intersection = pairwise_intersection(truth, boxes)  # [B, m, N]
    in_crowd = torch.where(regions[..., None], intersection, 0).amax(dim=1)
    iou = torch.where(objects[..., None], pairwise_iou(truth, boxes, intersection), -1)
    best, index = iou.max(dim=1)
    is_best = torch.zeros_like(best, dtype=torch.bool)
    if low_quality:
        best_of_object = iou.amax(dim=2, keepdim=True)  # [B, m, 1]
        is_best = ((iou == best_of_object) & (best_of_object > 0)).any(dim=1)
    return _Closest(best, index, is_best, in_crowd)


def _closer(known: _Closest, more: _Closest, start: int) -> _Closest:
    """Join what is known of two runs of objects, of which the second begins at row ``start``."""
    nearer = more.iou > known.iou
    return _Closest(
        torch.where(nearer, more.iou, known.iou),
        torch.where(nearer, more.index + start, known.index),
        known.is_best | more.is_best,
        torch.maximum(known.in_crowd, more.in_crowd),
    )


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
    both = torch.stack([positive, negative], dim=1)  # [B, 2, N]
    best = torch.where(both, keys[:, None], -1).topk(rows, dim=2).indices  # [B, 2, S]
    number_positive, number_negative = both.sum(2, keepdim=True).unbind(1)
    positives = number_positive.clamp(max=quota)  # [B, 1]
    negatives = torch.minimum(number_negative, size - positives)
    slot = torch.arange(rows, device=positive.device)[None]  # [1, S]
    # Row j holds positive j while there are some, then negative j - positives.
    is_positive = slot < positives
    place = torch.where(is_positive, slot, rows + slot - positives)
    index = best.flatten(1).gather(1, place)  # [B, 2, S] -> [B, 2*S]
    return Sample(index, slot < positives + negatives, is_positive)
