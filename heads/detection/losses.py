"""Losses on boxes and, for dense heads, on the classes and boxes of all anchors.

Letters in shapes: B images, A anchors of all levels, M box rows of the ground truth, K classes, ``...`` any
leading axes. Boxes are x1 y1 x2 y2 in pixels. Everything is computed in float32 (float64 stays what it is).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import BoxTargets, at_least_float32
from ..totals import divisor
from .boxes import UNIT_WEIGHTS, Weights, box_areas, decode, encode, gather_rows
from .matching import Matches
from .options import BoxLoss

# Keeps divisions of the IoU losses finite; torchvision's value.
_EPS = 1e-7


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of independent classes (Lin et al. 2017, equation 5).

    It equals torchvision's ``sigmoid_focal_loss``.

    Args:
        logits: ``[...]``.
        targets: ``[...]`` bool, true where the class is there.
        alpha: weight of true entries in 0..1, false ones have ``1 - alpha``; -1 for no weights.
        gamma: at least 0; the larger it is, the less do well-classified entries count.

    Returns:
        ``[...]``, one loss per entry.
    """
    # With the sign turned for true entries, both kinds have one formula, -(1-p)^gamma log(p), and 1-p keeps
    # its digits where p is close to 1.
    logits = at_least_float32(logits)
    wrong = torch.where(targets, -logits, logits)
    loss = F.softplus(wrong) * (gamma * F.logsigmoid(wrong)).exp()
    return loss if alpha < 0 else loss * torch.where(targets, alpha, 1 - alpha)


def dense_class_loss(
    logits: Tensor,
    matches: Matches,
    targets: BoxTargets,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    per_image: bool = False,
) -> Tensor:
    """Focal loss of all anchors that are positive or negative, divided by the number of positives.

    Args:
        logits: ``[B, A, K]``.
        matches: of the anchors, from :class:`.matching.Matcher`.
        targets: the ground truth.
        alpha, gamma: see :func:`focal_loss`.
        per_image: see :func:`per_positive`.

    Returns:
        A float32 scalar.
    """
    label = gather_rows(targets.labels[..., None], matches.index).squeeze(-1)
    label = torch.where(matches.positive, label, -1)  # [B, A]
    classes = torch.arange(logits.shape[-1], device=logits.device)
    loss = focal_loss(logits, label[..., None] == classes, alpha, gamma).sum(-1)  # [B, A, K] -> [B, A]
    loss = torch.where(matches.positive | matches.negative, loss, 0)
    return per_positive(loss, matches.positive, per_image)


def dense_box_loss(
    deltas: Tensor,
    anchors: Tensor,
    matches: Matches,
    targets: BoxTargets,
    *,
    weights: Weights = UNIT_WEIGHTS,
    kind: BoxLoss = "smooth_l1",
    beta: float = 0.0,
    per_image: bool = False,
) -> Tensor:
    """Regression loss of all positive anchors, divided by their number.

    Args:
        deltas: ``[B, A, 4]``, predicted.
        anchors: ``[A, 4]``.
        matches: of the anchors, from :class:`.matching.Matcher`.
        targets: the ground truth.
        weights, kind, beta: see :func:`box_losses`; the defaults are RetinaNet's, plain L1.
        per_image: see :func:`per_positive`.

    Returns:
        A float32 scalar.
    """
    wanted = gather_rows(at_least_float32(targets.boxes), matches.index)  # [B, A, 4]
    loss = box_losses(deltas, anchors, wanted, matches.positive, weights=weights, kind=kind, beta=beta)
    return per_positive(loss, matches.positive, per_image)


def per_positive(loss: Tensor, positive: Tensor, per_image: bool = False) -> Tensor:
    """Divide the sum of ``[B, A]`` losses by the number of positives, or by 1 without any.

    Args:
        loss: ``[B, A]``, 0 in rows that do not count.
        positive: ``[B, A]`` bool.
        per_image: divide each image's sum by its own number and return the mean over images (Lin et al. 2017,
            torchvision). Otherwise the batch has one sum and one number (detectron2), so that images without
            objects, and those with few, weigh less.

    Returns:
        A float32 scalar.
    """
    if per_image:
        return (loss.sum(1) / positive.sum(1).clamp(min=1)).mean()
    return loss.sum() / divisor(positive.sum(), 1)


def box_loss(
    deltas: Tensor,
    references: Tensor,
    targets: Tensor,
    positive: Tensor,
    *,
    weights: Weights,
    kind: BoxLoss,
    beta: float,
) -> Tensor:
    """Sum of :func:`box_losses`: a float32 scalar."""
    return box_losses(deltas, references, targets, positive, weights=weights, kind=kind, beta=beta).sum()


def box_losses(
    deltas: Tensor,
    references: Tensor,
    targets: Tensor,
    positive: Tensor,
    *,
    weights: Weights,
    kind: BoxLoss,
    beta: float,
) -> Tensor:
    """Regression loss of each row that learns a box, and 0 for the others.

    Args:
        deltas: ``[..., 4]``, predicted.
        references: ``[..., 4]`` (or with fewer axes), the boxes that they apply to.
        targets: ``[..., 4]``, the boxes wanted.
        positive: ``[...]`` bool, the rows that learn a box. What the others hold does not matter, except for
            NaN in ``deltas``.
        weights: the coding's weights.
        kind: ``smooth_l1`` compares deltas and sums over the four; the others compare decoded boxes.
        beta: error at which smooth L1 turns from quadratic to linear; 0 for L1.

    Returns:
        ``[...]`` float32.
    """
    # Rows that learn nothing turn a unit square into itself, so that all formulas stay finite.
    unit = (torch.arange(4, device=deltas.device) // 2).float()  # 0 0 1 1
    references = torch.where(positive[..., None], references, unit)
    targets = torch.where(positive[..., None], targets, unit)
    if kind == "smooth_l1":
        wanted = encode(targets, references, weights)
        deltas = at_least_float32(deltas)
        loss = F.smooth_l1_loss(deltas, wanted.to(deltas.dtype), beta=beta, reduction="none").sum(-1)
    else:
        loss = iou_loss(decode(deltas, references, weights), targets, kind)
    return torch.where(positive, loss, 0)


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
