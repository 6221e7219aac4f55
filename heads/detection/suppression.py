"""From scored candidates to detections, in whole batches: the best of each level, suppression, padding.

Letters in shapes: B images, N boxes per image, L levels, T candidates per level, D rows of detections per
image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms

from .base import Detections
from .boxes import box_areas, clip, gather_rows, large_enough, pairwise_intersection, runs_on_cpu

# Rounds between two checks of whether anything still changes; each check synchronises the device once.
_ROUNDS = 16
# Pairs of boxes whose intersection is computed at once: 128 MiB in float32.
_PAIRS = 2**25


@torch.no_grad()
def top_candidates(
    scores: Tensor, number: int, per_level: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Choose the highest scores of each image, or of each level of each image.

    Args:
        scores: ``[B, N]``, the levels one after the other. NaN and infinite ones come last.
        number: largest number of candidates of each level.
        per_level: how many of the N scores belong to each level; None for one level.

    Returns:
        scores ``[B, L*T]`` and their places in the input ``[B, L*T]`` int64, level by level, in each by
        falling score. T is ``number``, or less if no level has as many. Levels with fewer are filled up with
        scores of minus infinity.
    """
    # top-k puts NaN first; as the lowest score it cannot take the place of a finite one.
    scores = torch.where(torch.isfinite(scores), scores, -torch.inf)
    per_level = [scores.shape[1]] if per_level is None else per_level
    rows = min(number, max(per_level))
    best, places, start = [], [], 0
    for count in per_level:
        level = scores[:, start : start + count].topk(min(number, count))
        missing = (0, rows - level.values.shape[1])
        best.append(F.pad(level.values, missing, value=-torch.inf))
        places.append(F.pad(level.indices + start, missing))
        start += count
    return torch.cat(best, dim=1), torch.cat(places, dim=1)


@torch.no_grad()
def select_detections(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    image_sizes: Tensor,
    *,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    detections_per_image: int = 100,
    min_box_size: float = 0.0,
) -> Detections:
    """Turn candidates into detections: clip, filter by score and size, suppress within each class.

    Candidates with a NaN or infinite score or box are left out. Time and memory grow with the square of N on
    devices: choose candidates by :func:`top_candidates` first.

    Args:
        boxes: ``[B, N, 4]`` float32 x1 y1 x2 y2 in canvas pixels; they may reach outside.
        scores: ``[B, N]`` float32; minus infinity for rows that are no candidates.
        labels: ``[B, N]`` int64 in 0..K-1.
        image_sizes: ``[B, 2]`` int64 height and width of each image.
        score_threshold: detections need a higher score.
        nms_threshold: of two boxes of a class with a larger IoU, only the better one stays.
        detections_per_image: D.
        min_box_size: boxes with a shorter side, in pixels, are dropped; those without area always.

    Returns:
        The best D boxes that stay.
    """
    # Before clipping, which would turn an infinite corner into one on the border.
    valid = (scores > score_threshold) & torch.isfinite(boxes).all(-1)
    boxes = clip(boxes, image_sizes)
    valid = valid & large_enough(boxes, min_box_size)
    keep = nms_keep(boxes, scores, labels, valid, nms_threshold)
    missing = max(0, detections_per_image - scores.shape[1])
    scores = F.pad(torch.where(keep, scores, -torch.inf), (0, missing), value=-torch.inf)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :detections_per_image], order[:, :detections_per_image]
    filled = scores > -torch.inf
    boxes = gather_rows(F.pad(boxes, (0, 0, 0, missing)), order)
    labels = F.pad(labels, (0, missing)).gather(1, order)
    return Detections(
        boxes=torch.where(filled[..., None], boxes, 0),
        scores=torch.where(filled, scores, 0),
        labels=torch.where(filled, labels, -1),
        count=filled.sum(1),
    )


def nms_keep(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression of all images and groups (levels, classes) together.

    On the CPU by torchvision's kernel. Elsewhere that would run once per image and group, and synchronise the
    device each time; there :func:`suppress` does all in one call.

    Args:
        boxes: ``[B, N, 4]``, x1 y1 at least 0.
        scores: ``[B, N]``.
        groups: ``[B, N]`` int64, at least 0; boxes of different groups do not suppress each other.
        valid: ``[B, N]`` bool; other rows are ignored, and so are rows with a NaN or infinity.
        threshold: of two boxes with a larger IoU, the one with the lower score goes.

    Returns:
        ``[B, N]`` bool, the rows that stay.
    """
    valid = valid & torch.isfinite(scores) & torch.isfinite(boxes).all(-1)
    if runs_on_cpu(boxes):
        return _by_kernel(boxes, scores, groups, valid, threshold)
    order = torch.where(valid, scores, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    kept = suppress(gather_rows(boxes, order), groups.gather(1, order), valid.gather(1, order), threshold)
    return torch.zeros_like(valid).scatter(1, order, kept)


def _by_kernel(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Do it with ``batched_nms``.

    Boxes and scores go in as float64: it may move groups apart by adding a multiple of the image size to
    their coordinates, which in float32 would cost digits when there are many groups.
    """
    images = torch.arange(len(boxes), device=boxes.device)[:, None]
    ids = groups + images * (groups.max() + 1) if groups.numel() else groups
    rows = valid.flatten().nonzero().squeeze(1)
    chosen = boxes.flatten(0, 1)[rows].double(), scores.flatten()[rows].double(), ids.flatten()[rows]
    kept = batched_nms(*chosen, threshold)
    keep = torch.zeros_like(valid).flatten()
    keep[rows[kept]] = True
    return keep.view_as(valid)


def suppress(boxes: Tensor, groups: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Greedy suppression of rows by falling score, with fixed shapes and few synchronisations of the device.

    A box stays if no better box that stays overlaps it. Starting from all boxes, applying this rule to all of
    them at once settles the first box after one round, and every box one round after the last of the better
    boxes that overlap it. The rule has a single fixed point, the result of the greedy algorithm. Chains of
    overlaps are short, so a few rounds are enough, and the end is checked for only after every 16th.

    Args:
        boxes: ``[B, N, 4]``, the best first; finite where valid.
        groups: ``[B, N]``.
        valid: ``[B, N]`` bool.
        threshold: as in :func:`nms_keep`.

    Returns:
        ``[B, N]`` bool.
    """
    over = _suppressors(boxes, groups, threshold)
    keep = valid
    while True:
        for _ in range(_ROUNDS):
            before, keep = keep, valid & ~(over & keep[:, None]).any(2)
        if torch.equal(before, keep):
            return keep


def _suppressors(boxes: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Which boxes overlap which too much: ``[B, N, N]`` bool, true at (j, i) if the better i may drop j."""
    images, number = groups.shape
    areas = box_areas(boxes)
    over = torch.empty((images, number, number), dtype=torch.bool, device=boxes.device)
    step = max(1, _PAIRS // max(1, images * number))
    for start in range(0, number, step):
        block = slice(start, start + step)
        overlap = pairwise_intersection(boxes[:, block], boxes)  # [B, n, N]
        union = areas[:, block, None] + areas[:, None] - overlap
        over[:, block] = (overlap > threshold * union) & (groups[:, block, None] == groups[:, None])
    return over.logical_and_(torch.ones_like(over[0]).tril(-1))
