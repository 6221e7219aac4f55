"""Losses of semantic segmentation, for images and volumes.

All are computed in float32 (float64 stays what it is) over the labelled pixels only. A pixel with the mask
255 does not count, even if its logits are not finite. A batch without any labelled pixel costs exactly 0 with
a gradient of 0. Nothing synchronises the device, and no shape depends on the data.

Letters in shapes: B images, K classes, R regions, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .loss_base import ClassWeights, SegmentationLoss, WeightedLoss, check_number
from .pixels import Pixels
from .region_losses import Dice, Lovasz, Tversky

__all__ = [
    "CrossEntropy",
    "Dice",
    "Focal",
    "Lovasz",
    "OnlineHardExampleMining",
    "SegmentationLoss",
    "Tversky",
    "WeightedSum",
]


class CrossEntropy(WeightedLoss):
    """Cross-entropy, the mean over the labelled pixels; with regions binary, the mean over regions too.

    Equals ``torch.nn.functional.cross_entropy(..., ignore_index=255)``, also with class weights and
    smoothing, except for a batch without a labelled pixel, where torch's is NaN.

    Args:
        class_weights: see :class:`WeightedLoss`; the sum is divided by the weights of the pixels.
        label_smoothing: share of each label that goes to all classes alike, 0 to below 1.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, class_weights: ClassWeights = None, label_smoothing: float = 0.0) -> None:
        super().__init__(class_weights)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"head.loss.label_smoothing must lie in 0 to below 1, got {label_smoothing}")
        self.label_smoothing = label_smoothing

    def use_regions(self, table: Tensor) -> None:
        super().use_regions(table)
        if self.label_smoothing > 0:
            raise ValueError(
                "head.loss.label_smoothing spreads a label over classes that do not overlap; leave it out, "
                "or head.regions"
            )

    def compute(self, pixels: Pixels) -> Tensor:
        if self.region_table is not None:
            return self._mean(self._rows(pixels), pixels, None)
        weights = self._weights(pixels)
        if not self.label_smoothing:
            return self._mean(self._weighted(pixels.rows, pixels, weights), pixels, weights)
        rows = F.cross_entropy(
            pixels.logits, pixels.labels, weights, reduction="none", label_smoothing=self.label_smoothing
        )  # [B, *S]
        return self._mean(rows, pixels, weights)


class OnlineHardExampleMining(WeightedLoss):
    """Cross-entropy over the hard pixels only (Shrivastava et al. 2016; for pixels as in HRNet and mmseg).

    Hard are the pixels whose true class has a probability below ``threshold``, and always the hardest ones of
    the batch, as many as ``min_kept`` asks for (and those as hard as the last of them). A share means the
    same at every crop and batch size, which the number of pixels of those two does not.

    Args:
        threshold: probability, 0 to 1.
        min_kept: share of the batch's labelled pixels, above 0 to 1.
        class_weights: see :class:`WeightedLoss`; they weight the hard pixels, but do not choose them.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self, threshold: float = 0.7, min_kept: float = 1 / 16, class_weights: ClassWeights = None
    ) -> None:
        super().__init__(class_weights)
        if not 0 <= threshold <= 1:
            raise ValueError(f"head.loss.threshold must lie in 0 to 1, got {threshold}")
        if not 0 < min_kept <= 1:
            raise ValueError(
                f"head.loss.min_kept is a share of the labelled pixels, above 0 to 1, got {min_kept}"
            )
        self.threshold = threshold
        self.min_kept = min_kept

    def compute(self, pixels: Pixels) -> Tensor:
        weights, rows = self._weights(pixels), pixels.rows
        hard = self._hard(rows.detach(), pixels.valid)
        return self._mean(self._weighted(rows, pixels, weights), pixels, weights, hard)

    def use_regions(self, table: Tensor) -> None:
        SegmentationLoss.use_regions(self, table)  # an error: a pixel has no single true class

    def _hard(self, rows: Tensor, valid: Tensor) -> Tensor:
        """Choose pixels by their cross-entropy: ``[B, *S]`` bool."""
        if not rows.numel():
            return valid
        hardness = torch.where(valid, rows, -1.0)
        most = math.ceil(self.min_kept * rows.numel())  # were all pixels labelled: a shape that never changes
        hardest = hardness.flatten().topk(most).values
        number = (valid.sum() * self.min_kept).ceil().long().clamp(1, most)
        last = hardest.gather(0, number[None] - 1)
        # Not <: a NaN is hard, otherwise the loss would leave it out without a message.
        return valid & (~(torch.exp(-rows) >= self.threshold) | (hardness >= last))


class Focal(WeightedLoss):
    """Focal loss of the softmax probabilities (Lin et al. 2017): (1 - p)^gamma times the cross-entropy.

    The mean over the labelled pixels, weighted as in :class:`CrossEntropy`, which this is with ``gamma`` 0.
    With regions it is the paper's own, of sigmoids: the mean over regions too.

    Args:
        gamma: how much easy pixels lose, 0 or more.
        class_weights: see :class:`WeightedLoss`; the paper's alpha.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, gamma: float = 2.0, class_weights: ClassWeights = None) -> None:
        super().__init__(class_weights)
        check_number("gamma", gamma, zero=True)
        self.gamma = gamma

    def compute(self, pixels: Pixels) -> Tensor:
        weights = self._weights(pixels)
        rows = self._rows(pixels)  # [B, *S] or [B, R, *S]
        # Not 1 - exp(-rows), which loses the digits of easy pixels; at 0 a power below 1 has no derivative.
        rest = (-torch.expm1(-rows)).clamp(min=torch.finfo(rows.dtype).tiny)
        rows = rest.pow(self.gamma) * rows
        return self._mean(self._weighted(rows, pixels, weights), pixels, weights)


class WeightedSum(SegmentationLoss):
    """Several losses at once, each times its weight.

    Args:
        losses: at least one.
        weights: a positive number per loss; by default 1 each.

    Raises:
        ValueError: without a loss, or if there is not one positive weight per loss.
    """

    def __init__(self, losses: list[SegmentationLoss], weights: list[float] | None = None) -> None:
        super().__init__()
        if not losses:
            raise ValueError("head.loss.losses of a WeightedSum is empty; give at least one loss")
        weights = [1.0] * len(losses) if weights is None else weights
        if len(weights) != len(losses):
            raise ValueError(f"head.loss.weights has {len(weights)} numbers for {len(losses)} losses")
        for weight in weights:
            check_number("weights", weight, zero=False)
        self.losses: Any = nn.ModuleList(losses)  # of SegmentationLoss
        self.weights = list(weights)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        return torch.stack(list(self.terms(logits, mask).values())).sum()

    def use_regions(self, table: Tensor) -> None:
        for loss in self.losses:
            loss.use_regions(table)

    def terms(self, logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms of each loss; a name that comes again gets a number: ``dice_2``."""
        return self._terms(Pixels(logits, mask, self.squared_sums))

    def shared_terms(self, pixels: Pixels) -> dict[str, Tensor]:
        if type(self).terms is not WeightedSum.terms:
            return super().shared_terms(pixels)  # a subclass computes them in another way
        return self._terms(pixels)

    def _terms(self, pixels: Pixels) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for loss, weight in zip(self.losses, self.weights, strict=True):
            for name, value in loss.shared_terms(pixels).items():
                names = (name if count == 1 else f"{name}_{count}" for count in range(1, len(terms) + 2))
                terms[next(name for name in names if name not in terms)] = weight * value
        return terms

    @property
    def squared_sums(self) -> bool | None:  # type: ignore[override]  # an attribute of other losses
        """Which sums the first of the losses that needs some asks for."""
        return next((loss.squared_sums for loss in self.losses if loss.squared_sums is not None), None)

    @property
    def balanced(self) -> bool:  # type: ignore[override]  # the same
        """Whether one of the losses is."""
        return any(loss.balanced for loss in self.losses)

    @property
    def class_weights(self) -> list[float] | None:
        """The weights of the balanced losses, which are the same for all of them; None if there is none."""
        return next((loss.class_weights for loss in self.losses if loss.balanced), None)

    def set_class_weights(self, weights: Sequence[float]) -> None:
        """Set the weights of the balanced losses; those of the others stay as they were given."""
        for loss in self.losses:
            if loss.balanced:
                loss.set_class_weights(weights)
