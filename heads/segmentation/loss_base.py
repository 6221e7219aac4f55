"""What the losses of semantic segmentation share.

Letters in shapes: B images, K classes, R regions, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ...backbones.constants import WithConstants
from ...backbones.layers import check_choice
from ...constants import IGNORE_INDEX
from ..base import balanced_weights
from ..totals import divisor
from .pixels import Pixels

ClassWeights = list[float] | Literal["balanced"] | None


class SegmentationLoss(WithConstants):
    """What a segmentation head trains with.

    Attributes:
        ignore_index: the mask value of pixels that take no part.
        balanced: whether class weights must come from :meth:`balance` or :meth:`set_class_weights`.
        region_table: ``[R, 256]`` bool after :meth:`use_regions`, else None.
    """

    ignore_index: int = IGNORE_INDEX
    balanced: bool = False
    region_table: Tensor | None = None
    squared_sums: bool | None = None  # which sums of a :class:`.pixels.Pixels` it asks for; None for none

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            logits: ``[B, K, *S]``; after :meth:`use_regions` ``[B, R, *S]``.
            mask: ``[B, *S]`` of any integer type, 0..K-1 or 255.

        Raises:
            ValueError: if the shapes do not fit, or class weights are missing or not one per class.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement forward(logits, mask)")

    def terms(self, logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the named scalars whose sum is the loss."""
        return {self._name(): self(logits, mask)}

    def shared_terms(self, pixels: Pixels) -> dict[str, Tensor]:
        """Return the :meth:`terms` of pixels of which other losses may have computed something already."""
        return self.terms(pixels.single, pixels.mask)

    def _name(self) -> str:
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    def use_regions(self, table: Tensor) -> None:
        """Compare with regions that may overlap, each by its own sigmoid, from now on.

        Args:
            table: ``[R, 256]`` bool, whether a mask value lies in a region.

        Raises:
            ValueError: if the loss, or one of its options, has no meaning for regions.
        """
        raise ValueError(
            f"head.loss {type(self).__name__} needs classes that do not overlap, so not head.regions; take "
            "CrossEntropy, Focal, Dice, Tversky or a WeightedSum of them"
        )

    @property
    def class_weights(self) -> list[float] | None:
        """The class weights in use; None without, and before ``balanced`` ones are known."""
        return None

    def set_class_weights(self, weights: Sequence[float]) -> None:
        """Weigh the classes by K finite positive numbers."""
        raise ValueError(f"head.loss {type(self).__name__} has no class_weights to set")

    def balance(self, counts: Sequence[int]) -> None:
        """Weigh each class inversely to its number of training pixels, see :func:`.base.balanced_weights`.

        Args:
            counts: labelled pixels per class, K of them.

        Raises:
            ValueError: if there is no pixel at all, or the loss has no class weights.
        """
        if not any(counts):
            raise ValueError(
                "balanced head.loss.class_weights need the number of training pixels of each class, of which "
                f"one is positive, got {list(counts)}"
            )
        self.set_class_weights(balanced_weights(counts))


class SharedLoss(SegmentationLoss):
    """A loss that is computed from :class:`.pixels.Pixels`, which several of them can share."""

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        return self.compute(Pixels(logits, mask, self.squared_sums))

    def compute(self, pixels: Pixels) -> Tensor:
        """Return the loss, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} must implement compute(pixels)")

    def shared_terms(self, pixels: Pixels) -> dict[str, Tensor]:
        kind = type(self)
        if kind.forward is not SharedLoss.forward or kind.terms is not SegmentationLoss.terms:
            return super().shared_terms(pixels)  # a subclass computes it in another way
        return {self._name(): self.compute(pixels)}

    def _inside(self, pixels: Pixels) -> Tensor:
        """Return which pixels lie in which region, ``[B, R, *S]`` bool; ignored ones in none.

        Raises:
            ValueError: if there is not one logit per region.
        """
        table, logits, mask = cast(Tensor, self.region_table), pixels.given, pixels.mask
        if logits.shape[1] != len(table):
            raise ValueError(f"{len(table)} regions need as many logits, got {list(logits.shape)}")
        rows = table.index_select(1, mask.flatten().int())  # [R, B * *S]
        return rows.unflatten(1, mask.shape).transpose(0, 1)


class WeightedLoss(SharedLoss):
    """A mean over pixels in which each pixel counts by the weight of its class.

    Args:
        class_weights: one positive number per class, or ``balanced`` for weights inversely proportional to
            the number of training pixels, which the task passes to :meth:`balance`.

    Raises:
        ValueError: if a weight is not a positive number.
    """

    _class_weights: Tensor | None = None

    def __init__(self, class_weights: ClassWeights = None) -> None:
        super().__init__()
        if isinstance(class_weights, str):
            check_choice("head.loss.class_weights", class_weights, ("balanced",))
        self.balanced = class_weights == "balanced"
        if class_weights is not None and class_weights != "balanced":
            self.set_class_weights(class_weights)

    @property
    def class_weights(self) -> list[float] | None:
        return None if self._class_weights is None else self._class_weights.tolist()

    def set_class_weights(self, weights: Sequence[float]) -> None:
        if not len(weights) or not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise ValueError(
                f"head.loss.class_weights must be positive numbers, one per class, got {weights}"
            )
        numbers = [float(weight) for weight in weights]
        self.set_constant("_class_weights", lambda: torch.tensor(numbers))

    def use_regions(self, table: Tensor) -> None:
        if self.balanced or self._class_weights is not None:
            raise ValueError(
                f"head.loss.class_weights of {type(self).__name__} weigh classes that do not overlap; leave "
                "them out, or head.regions"
            )
        self.set_constant("region_table", lambda: table)

    def _weights(self, pixels: Pixels) -> Tensor | None:
        """Return the class weights ``[K]`` in the type that is computed in."""
        if self._class_weights is None:
            if self.balanced:
                raise ValueError(
                    "head.loss.class_weights is 'balanced', but the pixel counts of the training data are "
                    "not known; train on a data module that counts them (label_counts), load a checkpoint, "
                    "or give the weights as a list"
                )
            return None
        classes = pixels.given.shape[1]
        if len(self._class_weights) != classes:
            raise ValueError(
                f"head.loss.class_weights has {len(self._class_weights)} numbers; give one for each of the "
                f"{classes} classes"
            )
        return self._class_weights.to(pixels.dtype)

    def _rows(self, pixels: Pixels) -> Tensor:
        """Return every pixel's cross-entropy, ``[B, *S]``; with regions the binary ones, ``[B, R, *S]``."""
        if self.region_table is None:
            return pixels.rows
        truth = self._inside(pixels).to(pixels.dtype)
        return F.binary_cross_entropy_with_logits(pixels.logits, truth, reduction="none")

    def _weighted(self, rows: Tensor, pixels: Pixels, weights: Tensor | None) -> Tensor:
        """Multiply each pixel of ``[B, *S]`` by the weight of its class."""
        return rows if weights is None else rows * weights[pixels.labels]

    def _mean(
        self, rows: Tensor, pixels: Pixels, weights: Tensor | None, counted: Tensor | None = None
    ) -> Tensor:
        """Divide the sum of ``rows`` ``[B, *S]`` (weighted already) by the sum of their weights.

        The sum of the weights is that of all processes in a training step, see :mod:`..totals`.
        With regions ``rows`` is ``[B, R, *S]``, and weights are None. Pixels that are not ``counted`` are
        left out; without it, those that are not labelled.
        """
        if counted is None:
            if pixels.complete and weights is None:
                return rows.sum() / divisor(torch.tensor(rows.numel(), device=rows.device), 1)
            counted = pixels.valid
        if rows.ndim > counted.ndim:
            counted = counted[:, None].expand_as(rows)
        share = None if weights is None else torch.where(counted, weights[pixels.labels], 0.0)
        total = counted.sum() if share is None else share.sum()
        # The smallest normal number: 0 / 0 would be NaN.
        return torch.where(counted, rows, 0.0).sum() / divisor(total, torch.finfo(rows.dtype).tiny)


def check_number(name: str, value: float, zero: bool) -> None:
    """Raise a ValueError unless a number is finite and above 0, or 0 where that is allowed."""
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        least = "0 or more" if zero else "above 0"
        raise ValueError(f"head.loss.{name} must be a number {least}, got {value}")
