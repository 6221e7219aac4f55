"""Non-maximum suppression of whole batches.

Letters in shapes: B images, N boxes per image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from .boxes import box_areas, gather_rows, on_host, pairwise_intersection

# Rounds between two looks at whether anything still changes; each look makes the host wait once.
_ROUNDS = 16
# Pairs of boxes whose intersection is computed at once: 128 MiB in float32.
_PAIRS = 2**25


def nms_keep(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression of all images and groups (levels, classes) together.

    On the CPU by torchvision's kernel. Elsewhere that would run once per image and group, and make the host
    wait each time; there :func:`suppress` does all at once.

    Args:
        boxes: ``[B, N, 4]``, x1 y1 at least 0.
        scores: ``[B, N]``.
        groups: ``[B, N]`` int64, at least 0; boxes of different groups leave each other alone.
        valid: ``[B, N]`` bool; other rows take no part. Neither do rows that hold a NaN or infinity.
        threshold: of two boxes with a larger IoU, the one with the lower score goes.

    Returns:
        ``[B, N]`` bool, the rows that stay.
    """
    valid = valid & torch.isfinite(scores) & torch.isfinite(boxes).all(-1)
    if on_host(boxes):
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
    """Greedy suppression of rows by falling score, with fixed shapes and hardly any waiting for the device.

    A box stays if no better box that stays overlaps it. Starting from all boxes, applying this rule to all of
    them at once settles the first box after one round, and every box one round after the last of the better
    boxes that overlap it; the rule has a single fixed point, the result of the greedy algorithm. Chains of
    overlaps are short, so a few rounds do, and the host looks only after every 16th.

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
        some = slice(start, start + step)
        overlap = pairwise_intersection(boxes[:, some], boxes)  # [B, n, N]
        union = areas[:, some, None] + areas[:, None] - overlap
        over[:, some] = (overlap > threshold * union) & (groups[:, some, None] == groups[:, None])
    return over.logical_and_(torch.ones_like(over[0]).tril(-1))
