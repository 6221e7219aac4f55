"""Non-maximum suppression of a whole batch as one operator, with fixed shapes, on every device.

On the CPU it is torchvision's kernel. That would run once per image and group elsewhere, and synchronise the
device each time. On CUDA Triton's kernels in :mod:`.nms_triton` do all in a few launches and synchronise
nothing. Devices without Triton use operators of torch (:func:`suppress`), which synchronise once a slab.

Letters in shapes: B images, N boxes per image, S rows of a slab.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from .boxes import box_areas, gather_rows, pairwise_intersection, runs_on_cpu, runs_triton

# Rounds between two checks of whether anything still changes; each check synchronises the device once.
_ROUNDS = 16
# Pairs of boxes in one slab, of all images: 128 MiB as bool.
_SLAB_PAIRS = 2**27
# Largest coordinate, in pixels, to which boxes are moved in float64: a 2^19th of a pixel is left.
_EXTENT = 2.0**33
# Pairs of boxes whose intersection is computed at once: 128 MiB in float32.
_PAIRS = 2**25


@torch.no_grad()
def nms_keep(
    boxes: Tensor, scores: Tensor | None, groups: Tensor | None, valid: Tensor, threshold: float
) -> Tensor:
    """Non-maximum suppression of all images and groups (levels, classes) together.

    One operator, ``trunkline::nms_keep``, also for ``torch.compile`` and ``torch.export``. Boxes are compared
    in float32, under autocast too.

    Args:
        boxes: ``[B, N, 4]``.
        scores: ``[B, N]``; None if the rows come best first.
        groups: ``[B, N]`` int64, at least 0; boxes of different groups do not suppress each other. None if
            those of an image are one group.
        valid: ``[B, N]`` bool; other rows are ignored, and so are rows with a NaN or infinity, and boxes
            whose area float32 cannot hold.
        threshold: of two boxes with a larger IoU, the one with the lower score goes. A box without area, in
            float32, has none with any: it stays and drops nothing, and so does one with x2 < x1 or y2 < y1.

    Returns:
        ``[B, N]`` bool, the rows that stay.
    """
    return _nms_keep(boxes.float(), scores, groups, valid, threshold)


@torch.library.custom_op(
    "trunkline::nms_keep",
    mutates_args=(),
    schema="(Tensor boxes, Tensor? scores, Tensor? groups, Tensor valid, float threshold) -> Tensor",
)
def _nms_keep(
    boxes: Tensor, scores: Tensor | None, groups: Tensor | None, valid: Tensor, threshold: float
) -> Tensor:
    """See :func:`nms_keep`."""
    if runs_triton(boxes):
        from . import nms_triton

        return nms_triton.suppress(boxes, scores, groups, valid, threshold)
    valid = valid & torch.isfinite(box_areas(boxes))  # which it is only if all corners are
    if groups is None:
        groups = torch.zeros_like(valid, dtype=torch.int64)
    if scores is not None:
        valid = valid & torch.isfinite(scores)
    if runs_on_cpu(boxes):
        if scores is None:
            scores = torch.arange(valid.shape[1], 0, -1).expand(valid.shape)
        return _by_kernel(boxes, scores, groups, valid, threshold)
    return _by_operators(boxes, scores, groups, valid, threshold)


@_nms_keep.register_fake
def _shape(
    boxes: Tensor, scores: Tensor | None, groups: Tensor | None, valid: Tensor, threshold: float
) -> Tensor:
    return valid.new_empty(valid.shape)


def _by_operators(
    boxes: Tensor, scores: Tensor | None, groups: Tensor, valid: Tensor, threshold: float
) -> Tensor:
    """Do it with :func:`suppress`."""
    if scores is None:
        return suppress(boxes, groups, valid, threshold)
    order = torch.where(valid, scores, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    kept = suppress(gather_rows(boxes, order), groups.gather(1, order), valid.gather(1, order), threshold)
    return torch.zeros_like(valid).scatter(1, order, kept)


def _by_kernel(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Do it with ``batched_nms``.

    Boxes and scores go in as float64, and from 0 on: it may move groups apart by adding multiples of the
    largest coordinate, which in float32 would cost digits when there are many groups. Where even float64
    would lose them, operators of torch do it.
    """
    images = torch.arange(len(boxes), device=boxes.device)[:, None]
    ids = groups + images * (groups.max() + 1) if groups.numel() else groups
    solid = box_areas(boxes) > 0  # in float32, as elsewhere
    rows = (valid & solid).flatten().nonzero().squeeze(1)
    corners, ids = boxes.flatten(0, 1)[rows].double(), ids.flatten()[rows]
    if len(rows):
        corners = corners - corners.min()
        if float(corners.max() + 1) * (int(ids.max()) + 1) > _EXTENT:
            return _by_operators(boxes, scores, groups, valid, threshold)
    kept = batched_nms(corners, scores.flatten()[rows].double(), ids, threshold)
    keep = (valid & ~solid).flatten()
    keep[rows[kept]] = True
    return keep.view_as(valid)


def suppress(boxes: Tensor, groups: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Greedy suppression of rows by falling score, with operators of torch; memory does not grow with N.

    Rows are settled in slabs, the best first; what a slab keeps drops rows after it.

    Args:
        boxes: ``[B, N, 4]``, the best first; finite where valid.
        groups: ``[B, N]``.
        valid: ``[B, N]`` bool.
        threshold: as in :func:`nms_keep`.

    Returns:
        ``[B, N]`` bool.
    """
    images, number = groups.shape
    keep = valid.clone()
    step = max(1, math.isqrt(_SLAB_PAIRS // max(1, images)))
    for start in range(0, number, step):
        slab = slice(start, start + step)
        keep[:, slab] = _settle(boxes[:, slab], groups[:, slab], keep[:, slab], threshold)
        for later in range(start + step, number, step):
            rest = slice(later, later + step)
            over = _overlaps(boxes[:, rest], groups[:, rest], boxes[:, slab], groups[:, slab], threshold)
            keep[:, rest] &= ~(over & keep[:, None, slab]).any(2)
    return keep


def _settle(boxes: Tensor, groups: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Settle the rows ``[B, S]`` of a slab by rounds.

    A box stays if no better box that stays overlaps it. Starting from all boxes, applying this rule to all of
    them at once settles the first box after one round, and every box one round after the last of the better
    boxes that overlap it. The rule has a single fixed point, the result of the greedy algorithm. Chains of
    overlaps are short, so a few rounds are enough, and the end is checked for only after every 16th.
    """
    over = _overlaps(boxes, groups, boxes, groups, threshold)
    over.logical_and_(torch.ones_like(over[0]).tril(-1))
    keep = valid
    while True:
        for _ in range(_ROUNDS):
            before, keep = keep, valid & ~(over & keep[:, None]).any(2)
        if torch.equal(before, keep):
            return keep


def _overlaps(
    boxes: Tensor, groups: Tensor, others: Tensor, other_groups: Tensor, threshold: float
) -> Tensor:
    """Which boxes ``[B, R, 4]`` overlap which others ``[B, S, 4]`` of their group too much: ``[B, R, S]``."""
    (images, rows), columns = groups.shape, other_groups.shape[1]
    # An area below 0 would make the union so.
    areas, other_areas = box_areas(boxes).clamp(min=0), box_areas(others).clamp(min=0)
    over = torch.empty((images, rows, columns), dtype=torch.bool, device=boxes.device)
    step = max(1, _PAIRS // max(1, images * columns))
    for start in range(0, rows, step):
        block = slice(start, start + step)
        overlap = pairwise_intersection(boxes[:, block], others)  # [B, r, S]
        union = areas[:, block, None] + other_areas[:, None] - overlap
        over[:, block] = (overlap > threshold * union) & (groups[:, block, None] == other_groups[:, None])
    return over
