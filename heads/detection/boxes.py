"""Arithmetic on whole batches of boxes: IoU, coding, clipping, regression losses.

Letters in shapes: B images, M boxes of the ground truth, N any boxes, ``...`` any leading axes.
Boxes are x1 y1 x2 y2 in pixels, float32, whatever the precision of the network.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .options import BoxLoss

Weights = tuple[float, float, float, float]

# No box grows by more than this factor (as a logarithm) in one step: exp() must not overflow.
_LOG_SCALE_LIMIT = math.log(1000 / 16)
# Keeps divisions of the IoU losses finite; torchvision's value.
_EPS = 1e-7


def box_areas(boxes: Tensor) -> Tensor:
    """Areas ``[...]`` of boxes ``[..., 4]``."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_intersection(boxes: Tensor, others: Tensor) -> Tensor:
    """Areas of all intersections within each image.

    Args:
        boxes: ``[B, M, 4]``.
        others: ``[B, N, 4]``, or ``[1, N, 4]`` when every image has the same.

    Returns:
        ``[B, M, N]`` in square pixels.
    """
    left, top, right, bottom = boxes[:, :, None].unbind(-1)  # each [B, M, 1]
    other_left, other_top, other_right, other_bottom = others[:, None].unbind(-1)  # each [B|1, 1, N]
    width = (torch.minimum(right, other_right) - torch.maximum(left, other_left)).clamp(min=0)
    height = (torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)).clamp(min=0)
    return width * height


def pairwise_iou(boxes: Tensor, others: Tensor, intersection: Tensor | None = None) -> Tensor:
    """Intersection over union of all pairs within each image; 0 where both boxes have no area.

    Args:
        boxes: ``[B, M, 4]``.
        others: ``[B, N, 4]`` or ``[1, N, 4]``.
        intersection: ``[B, M, N]`` if it is known already.

    Returns:
        ``[B, M, N]`` in 0..1.
    """
    if intersection is None:
        intersection = pairwise_intersection(boxes, others)
    union = box_areas(boxes)[:, :, None] + box_areas(others)[:, None] - intersection
    return torch.where(union > 0, intersection / union, 0)


def encode(boxes: Tensor, references: Tensor, weights: Weights) -> Tensor:
    """Deltas that turn ``references`` into ``boxes`` (R-CNN, appendix C; torchvision's ``BoxCoder``).

    Args:
        boxes, references: ``[..., 4]`` with positive sides.
        weights: factors on the deltas of x, y, width and height.

    Returns:
        ``[..., 4]``: shift of the centre in units of the reference's sides, logarithm of the growth.
    """
    reference_size = references[..., 2:] - references[..., :2]
    size = boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + 0.5 * size - references[..., :2] - 0.5 * reference_size) / reference_size
    deltas = torch.cat([shift, torch.log(size / reference_size)], dim=-1)
    return torch.stack([deltas[..., axis] * weight for axis, weight in enumerate(weights)], dim=-1)


def decode(deltas: Tensor, references: Tensor, weights: Weights) -> Tensor:
    """Apply deltas to references: the inverse of :func:`encode`.

    Args:
        deltas: ``[..., 4]``; growth is limited to a factor of 1000/16.
        references: ``[..., 4]``.
        weights: those given to :func:`encode`.

    Returns:
        ``[..., 4]`` float32, not clipped.
    """
    deltas = deltas.float()
    wx, wy, ww, wh = weights
    size = references[..., 2:] - references[..., :2]
    center = references[..., :2] + 0.5 * size
    shift = torch.stack([deltas[..., 0] / wx, deltas[..., 1] / wy], dim=-1)
    growth = torch.stack([deltas[..., 2] / ww, deltas[..., 3] / wh], dim=-1).clamp(max=_LOG_SCALE_LIMIT)
    center = center + shift * size
    half = 0.5 * torch.exp(growth) * size
    return torch.cat([center - half, center + half], dim=-1)


def clip(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Clip boxes to their images.

    Args:
        boxes: ``[B, N, 4]``.
        image_sizes: ``[B, 2]`` height and width in pixels.
    """
    limits = image_sizes.to(boxes).flip(-1).repeat(1, 2)[:, None]  # [B, 2] h w -> [B, 1, 4] w h w h
    return torch.minimum(boxes.clamp(min=0), limits)


def at_least(boxes: Tensor, size: float) -> Tensor:
    """Which boxes ``[..., 4]`` have both sides at least ``size`` long: a mask ``[...]``; never for NaN."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= size).all(-1)


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Pick rows of each image: ``[B, N, c]`` at ``[B, S]`` gives ``[B, S, c]``."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def on_host(x: Tensor) -> bool:
    """Whether shapes may depend on the values in ``x``.

    On the CPU that costs nothing and saves work. On a device the host would have to wait for the values, and
    in a compiled graph shapes are fixed.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def rows_needed(valid: Tensor) -> int:
    """How many leading rows hold everything that is valid in ``[B, N]``, where valid rows come first.

    All N where shapes must not depend on values, see :func:`on_host`.
    """
    if not on_host(valid):
        return valid.shape[1]
    return min(valid.shape[1], max(1, int(valid.sum(1).max())))


def box_loss(
    deltas: Tensor,
    references: Tensor,
    targets: Tensor,
    learns: Tensor,
    *,
    weights: Weights,
    kind: BoxLoss,
    beta: float,
) -> Tensor:
    """Regression loss, summed over the rows that learn a box.

    Args:
        deltas: ``[..., 4]``, predicted.
        references: ``[..., 4]``, the boxes that they apply to.
        targets: ``[..., 4]``, the boxes wanted.
        learns: ``[...]`` bool; what the other rows hold does not matter, short of NaN in ``deltas``.
        weights: the coding's weights.
        kind: ``smooth_l1`` compares deltas and sums over the four; the others compare decoded boxes.
        beta: where smooth L1 turns linear.

    Returns:
        A float32 scalar.
    """
    # Rows that learn nothing turn a unit square into itself: no formula has trouble with that.
    unit = (torch.arange(4, device=deltas.device) // 2).float()  # 0 0 1 1
    references = torch.where(learns[..., None], references, unit)
    targets = torch.where(learns[..., None], targets, unit)
    if kind == "smooth_l1":
        wanted = encode(targets, references, weights)
        loss = F.smooth_l1_loss(deltas.float(), wanted, beta=beta, reduction="none").sum(-1)
    else:
        loss = iou_loss(decode(deltas, references, weights), targets, kind)
    return torch.where(learns, loss, 0).sum()


def iou_loss(boxes: Tensor, targets: Tensor, kind: BoxLoss) -> Tensor:
    """GIoU (Rezatofighi 2019), DIoU or CIoU loss (Zheng 2020) of each pair of boxes.

    The formulas, and the small constant in their divisions, are those of ``torchvision.ops``, whose
    functions select overlapping rows by mask; here every shape is fixed.

    Args:
        boxes, targets: ``[..., 4]`` with positive sides.
        kind: ``giou``, ``diou`` or ``ciou``.

    Returns:
        ``[...]`` from 0 (equal boxes).
    """
    upper_left, lower_right = boxes.split(2, dim=-1)
    target_upper_left, target_lower_right = targets.split(2, dim=-1)
    overlap = torch.minimum(lower_right, target_lower_right) - torch.maximum(upper_left, target_upper_left)
    overlap = overlap.clamp(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    union = box_areas(boxes) + box_areas(targets) - intersection
    iou = intersection / (union + _EPS)
    hull = torch.maximum(lower_right, target_lower_right) - torch.minimum(upper_left, target_upper_left)
    if kind == "giou":
        area = hull[..., 0] * hull[..., 1]
        return 1 - iou + (area - union) / (area + _EPS)
    offset = (upper_left + lower_right - target_upper_left - target_lower_right) / 2
    distance = offset.square().sum(-1) / (hull.square().sum(-1) + _EPS)
    if kind == "diou":
        return 1 - iou + distance
    angles = [torch.atan2(b[..., 2] - b[..., 0], b[..., 3] - b[..., 1]) for b in (targets, boxes)]
    shape = 4 / math.pi**2 * (angles[0] - angles[1]).square()
    weight = (shape / (1 - iou + shape + _EPS)).detach()
    return 1 - iou + distance + weight * shape
