"""What the losses of semantic segmentation share.

Letters in shapes: B images, K classes, R regions, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ...backbones.constants import WithConstants
from ...backbones.layers import check_choice
from ...constants import IGNORE_INDEX
from ..base import balanced_weights

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
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()
        return {name: self(logits, mask)}

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

    def _inside(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return which pixels lie in which region, ``[B, R, *S]`` bool; ignored ones in none.

        Raises:
            ValueError: if there is not one logit per region.
        """
        table = cast(Tensor, self.region_table)
        if logits.shape[1] != len(table):
            raise ValueError(f"{len(table)} regions need as many logits, got {list(logits.shape)}")
        rows = table.index_select(1, mask.flatten().int())  # [R, B * *S]
        return rows.unflatten(1, mask.shape).transpose(0, 1)

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


class WeightedLoss(SegmentationLoss):
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

    def _weights(self, logits: Tensor) -> Tensor | None:
        """Return the class weights ``[K]`` in the type of ``logits`` ``[B, K, *S]``."""
        if self._class_weights is None:
            if self.balanced:
                raise ValueError(
                    "head.loss.class_weights is 'balanced', but the pixel counts of the training data are "
                    "not known; train on a data module that counts them (label_counts), load a checkpoint, "
                    "or give the weights as a list"
                )
            return None
        if len(self._class_weights) != logits.shape[1]:
            raise ValueError(
                f"head.loss.class_weights has {len(self._class_weights)} numbers; give one for each of the "
                f"{logits.shape[1]} classes"
            )
        return self._class_weights.to(logits.dtype)

    def _rows(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Return every pixel's cross-entropy, ``[B, *S]``; with regions the binary ones, ``[B, R, *S]``."""
        if self.region_table is None:
            return F.cross_entropy(logits, labels, reduction="none")
        truth = self._inside(logits, mask).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, truth, reduction="none")

    def _mean(self, rows: Tensor, labels: Tensor, counted: Tensor, weights: Tensor | None) -> Tensor:
        """Sum of the counted ``rows`` ``[B, *S]`` (weighted already) over the sum of their weights.

        With regions ``rows`` is ``[B, R, *S]``, and weights are None.
        """
        if rows.ndim > counted.ndim:
            counted = counted[:, None].expand_as(rows)
        total = counted.sum() if weights is None else torch.where(counted, weights[labels], 0.0).sum()
        # The smallest normal number: 0 / 0 would be NaN.
        return torch.where(counted, rows, 0.0).sum() / total.clamp(min=torch.finfo(rows.dtype).tiny)


def labelled(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits ``[B, K, *S]``, labels ``[B, *S]`` int64 and which pixels have one.

    Labels are 0 where they do not, and logits, float32 at least, get no gradient there.

    Raises:
        ValueError: if the shapes of logits and mask do not fit.
    """
    if mask.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f"logits [B, K, *S] and mask [B, *S] do not fit: {list(logits.shape)} and {list(mask.shape)}"
        )
    valid = mask != IGNORE_INDEX
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if all_labelled(valid):
        return logits, mask.long(), valid
    return _WithoutGradient.apply(logits, ~valid[:, None]), torch.where(valid, mask, 0).long(), valid


def all_labelled(valid: Tensor) -> bool:
    """Whether every pixel of a bool tensor is true; false on devices, which looking would synchronise."""
    return valid.device.type == "cpu" and not torch.compiler.is_compiling() and bool(valid.all())


class _WithoutGradient(torch.autograd.Function):
    """Passes values on as they are, without a copy, and zeros back as the gradient of ignored pixels.

    Such a pixel may hold NaN, and then its gradient is NaN even with a weight of 0.
    """

    @staticmethod
    def forward(context: Any, logits: Tensor, ignored: Tensor) -> Tensor:
        context.save_for_backward(ignored)
        return logits.view_as(logits)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (ignored,) = context.saved_tensors
        # Of finite logits it is 0 already; to look costs less than to copy, but it synchronises a device.
        if gradient.device.type == "cpu" and not torch.compiler.is_compiling():
            if bool(gradient.detach().sum().isfinite()):
                return gradient, None
        return gradient.masked_fill(ignored, 0.0), None


def check_number(name: str, value: float, zero: bool) -> None:
    """Raise a ValueError unless a number is finite and above 0, or 0 where that is allowed."""
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        least = "0 or more" if zero else "above 0"
        raise ValueError(f"head.loss.{name} must be a number {least}, got {value}")
