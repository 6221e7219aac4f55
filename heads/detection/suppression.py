"""From scored candidates to detections, in whole batches: the best of each level, suppression, padding.

Letters in shapes: B images, N boxes per image, L levels, T candidates per level, D rows of detections per
image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Detections
from .boxes import clip, gather_rows, large_enough
from .nms import nms_keep


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
    # top-k puts NaN first; as the lowest score it cannot take the place of a finite one. One operator.
    scores = scores.nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
    per_level = [scores.shape[1]] if per_level is None else per_level
    rows = min(number, max(per_level))
    best, places, start = [], [], 0
    for count in per_level:
        level = scores[:, start : start + count].topk(min(number, count))
        values, index = level.values, level.indices + start if start else level.indices
        if missing := rows - values.shape[1]:  # padding by nothing would copy
            values, index = F.pad(values, (0, missing), value=-torch.inf), F.pad(index, (0, missing))
        best.append(values)
        places.append(index)
        start += count
    if len(best) == 1:
        return best[0], places[0]
    return torch.cat(best, dim=1), torch.cat(places, dim=1)


def all_finite(boxes: Tensor) -> Tensor:
    """Which boxes ``[..., 4]`` have neither a NaN nor an infinity: ``[...]`` bool."""
    return boxes.abs().amax(-1) < torch.inf  # amax passes NaN on


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

    Candidates with a NaN or infinite score or box are left out. Time grows with the square of N: choose
    candidates by :func:`top_candidates` first.

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
    valid = (scores > score_threshold) & all_finite(boxes)
    boxes = clip(boxes, image_sizes)
    valid = valid & large_enough(boxes, min_box_size)
    keep = nms_keep(boxes, scores, labels, valid, nms_threshold)
    scores = torch.where(keep, scores, -torch.inf)
    if (missing := detections_per_image - scores.shape[1]) > 0:
        scores = F.pad(scores, (0, missing), value=-torch.inf)
        boxes, labels = F.pad(boxes, (0, 0, 0, missing)), F.pad(labels, (0, missing))
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :detections_per_image], order[:, :detections_per_image]
    filled = scores > -torch.inf
    boxes, labels = gather_rows(boxes, order), labels.gather(1, order)
    return Detections(
        boxes=torch.where(filled[..., None], boxes, 0),
        scores=torch.where(filled, scores, 0),
        labels=torch.where(filled, labels, -1),
        count=filled.sum(1),
    )
