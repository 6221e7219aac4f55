"""Losses of many classes on large images, one image at a time.

Letters in shapes: B images, K classes, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .loss_base import SegmentationLoss

# Logits whose loss is computed at once: 1 GiB in float32, of which losses and gradients hold several copies.
MOST_AT_ONCE = 2**28


def terms_of(loss: SegmentationLoss, logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return the terms of a loss in float32, with bounded memory where the loss is a mean over pixels.

    Above ``MOST_AT_ONCE`` logits such a loss is computed image by image, and once more for its gradient, so
    that float32 copies of one image are held at a time. The sum is the same up to rounding.

    Args:
        loss: what to compute.
        logits: ``[B, K, *S]`` of any floating-point type.
        mask: ``[B, *S]`` labels.
    """
    if len(logits) < 2 or logits.numel() <= MOST_AT_ONCE:
        return dict(loss.terms(logits.float(), mask))
    weights = [loss.weight_of(part) for part in mask.split(1)]
    if any(weight is None for weight in weights):
        return dict(loss.terms(logits.float(), mask))
    each = torch.stack([weight for weight in weights if weight is not None]).float()
    shares = each / each.sum().clamp(min=torch.finfo(torch.float32).tiny)
    totals: dict[str, Tensor] = {}
    for share, scores, labels in zip(shares.unbind(), logits.split(1), mask.split(1), strict=True):
        # Nothing is random in a loss, and asking for the state of a device's generator synchronises it.
        terms = checkpoint(_terms, loss, scores, labels, use_reentrant=False, preserve_rng_state=False)
        for name, value in terms.items():
            totals[name] = totals[name] + share * value if name in totals else share * value
    return totals


def _terms(loss: SegmentationLoss, logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return dict(loss.terms(logits.float(), mask))
