"""Image and scan classification: one row of class scores from the coarsest feature map.

Letters in shapes: B images, F features, K classes, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.base import FeatureLevel
from ..backbones.constants import WithConstants
from ..constants import UNLABELLED
from .base import (
    ClassificationHead,
    ClassProbabilities,
    ClassTargets,
    NumClasses,
    RawClassification,
    at_least_float32,
    balanced_weights,
    class_number,
)
from .totals import divisor

Pool = Literal["average", "max", "average_max"]
Loss = Literal["cross_entropy", "binary_cross_entropy"]


class Classifier(WithConstants, ClassificationHead):
    """Global pooling of the coarsest level, dropout and one linear layer ``fc``, as in torchvision's ResNet.

    Losses are weighted means over the labelled images of a batch, and zero if there is none.

    - ``cross_entropy``: He et al. 2016. Labels may be soft. Without class weights it equals
      ``torch.nn.functional.cross_entropy``. With them the sum is divided by the weights of the labels, for
      soft labels too (torch divides those by the number of rows). So two mixed images of one class have the
      same loss as without mixing.
    - ``binary_cross_entropy``: each class on its own (Wightman et al. 2021, "ResNet strikes back", for
      single labels), the mean over all classes. ``class_weights`` multiply the terms of the images that
      have the class.

    Smoothing (Szegedy et al. 2016) moves the share ``label_smoothing`` of each label to the mean of all
    outcomes: 1/K for a single label, 1/2 where each class is a question of its own (``multi_label``).

    Args:
        levels: what the trunk or neck declares; the last one is pooled.
        num_classes: K; on the command line also ``auto``, for the classes of the data.
        dropout: share of pooled features that training sets to zero, 0 to below 1.
        pool: ``average``, ``max``, or ``average_max`` for the mean of the two.
        loss: by default ``binary_cross_entropy`` for several labels per image, else ``cross_entropy``.
        multi_label: whether an image may have any number of classes.
        label_smoothing: 0 to below 1.
        class_weights: one positive number per class, or ``balanced`` for weights inversely proportional to
            the number of training images, which the task passes to :meth:`balance`.

    Raises:
        ValueError: if an argument is out of its range, or two of them do not fit together.
    """

    _class_weights: Tensor | None = None

    def __init__(
        self,
        levels: Sequence[FeatureLevel],
        num_classes: NumClasses,
        dropout: float = 0.0,
        pool: Pool = "average",
        loss: Loss | None = None,
        multi_label: bool = False,
        label_smoothing: float = 0.0,
        class_weights: list[float] | Literal["balanced"] | None = None,
    ) -> None:
        super().__init__()
        loss = loss or ("binary_cross_entropy" if multi_label else "cross_entropy")
        num_classes = class_number(num_classes)
        _check(num_classes, dropout, pool, loss, multi_label, label_smoothing)
        self.num_classes = num_classes
        self.pool = pool
        self.loss = loss
        self.multi_label = multi_label
        self.label_smoothing = label_smoothing
        self.balanced = class_weights == "balanced"
        if class_weights is not None and class_weights != "balanced":
            self.set_class_weights(class_weights)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(levels[-1].channels, num_classes)

    # -- class weights

    @property
    def class_weights(self) -> Sequence[float] | None:  # type: ignore[override]  # an attribute of other heads
        """The weights in use, one per class; None without, and before ``balanced`` ones are known."""
        return None if self._class_weights is None else self._class_weights.tolist()

    def set_class_weights(self, weights: Sequence[float]) -> None:
        """Weigh the classes by K finite positive numbers.

        Raises:
            ValueError: if there is not one such number per class.
        """
        sound = all(math.isfinite(weight) and weight > 0 for weight in weights)
        if len(weights) != self.num_classes or not sound:
            raise ValueError(
                f"class_weights must be {self.num_classes} positive numbers (one per class), got {weights}"
            )
        numbers = [float(weight) for weight in weights]
        self.set_constant("_class_weights", lambda: torch.tensor(numbers))

    def balance(self, counts: Sequence[int]) -> None:
        """Weigh each class inversely to its number of training images, see :func:`.base.balanced_weights`.

        Args:
            counts: number of training images per class, K of them or fewer.

        Raises:
            ValueError: if there are more counts than classes, or no image at all.
        """
        if len(counts) > self.num_classes or not any(counts):
            raise ValueError(
                "balanced class_weights need the number of training images of each class, at most "
                f"{self.num_classes} numbers of which one is positive, got {list(counts)}"
            )
        self.set_class_weights(balanced_weights(counts) + [1.0] * (self.num_classes - len(counts)))

    def _weights(self) -> Tensor | None:
        if self._class_weights is None:
            if self.balanced:
                raise ValueError(
                    "head.class_weights is 'balanced', but the class counts of the training data are not "
                    "known; train on a data module that counts them (label_counts), load a checkpoint, or "
                    "give the weights as a list"
                )
            return None
        return self._class_weights

    # -- the contract of a head

    def forward(self, features: list[Tensor], image_size: tuple[int, ...]) -> RawClassification:
        """Compute the logits from the last of ``features``, ``[B, F, *S]``; ``image_size`` plays no part."""
        x = features[-1]
        space = tuple(range(2, x.ndim))
        if self.pool == "average":
            pooled = x.mean(space)
        elif self.pool == "max":
            pooled = x.amax(space)
        else:
            pooled = (x.mean(space) + x.amax(space)) / 2
        return RawClassification(self.fc(self.dropout(pooled)))

    def losses(self, raw: RawClassification, targets: ClassTargets) -> dict[str, Tensor]:
        """Return ``{"classification": float32 scalar}``, see the class.

        Raises:
            ValueError: if the labels are neither ``[B]`` nor ``[B, K]``, or class weights are not known yet.
        """
        label, logits = targets.label, at_least_float32(raw.logits)
        if label.ndim != 1 and label.shape != logits.shape:
            raise ValueError(
                f"labels must be [{len(logits)}] or {list(logits.shape)} (images, classes), "
                f"got {list(label.shape)}"
            )
        weights = self._weights()
        if self.loss == "cross_entropy":
            loss = _cross_entropy(logits, label, weights, self.label_smoothing)
        else:
            if label.ndim == 1:
                label = one_hot(label, self.num_classes)
            outcomes = 2 if self.multi_label else self.num_classes
            loss = _binary_cross_entropy(logits, label, weights, self.label_smoothing, outcomes)
        return {"classification": loss}

    def predict(self, raw: RawClassification, image_sizes: Tensor) -> ClassProbabilities:
        """Turn logits into probabilities: by softmax after ``cross_entropy``, else by sigmoid."""
        logits = raw.logits.float()
        return ClassProbabilities(logits.softmax(1) if self.loss == "cross_entropy" else logits.sigmoid())


def one_hot(label: Tensor, num_classes: int) -> Tensor:
    """Spell ``[B]`` int64 labels out as ``[B, K]`` float32; a row of -1 for an image without label."""
    rows = F.one_hot(label.clamp(min=0), num_classes).float()  # [B, K]
    return torch.where((label == UNLABELLED)[:, None], float(UNLABELLED), rows)


def _cross_entropy(logits: Tensor, label: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    """Weighted mean over the labelled rows of ``logits`` ``[B, K]``; labels are ``[B]`` or ``[B, K]``."""
    known = label >= 0 if label.ndim == 1 else (label >= 0).all(1)  # [B]
    label = label.clamp(min=0)
    # Where, not times: a row without label may hold anything, NaN too, whose gradient would be NaN.
    logits = torch.where(known[:, None], logits, 0.0)
    weights = None if weights is None else weights.to(logits.dtype)
    if label.ndim == 2:
        label = label.to(logits.dtype)
    rows = F.cross_entropy(logits, label, weights, reduction="none", label_smoothing=smoothing)  # [B]
    if weights is None:
        total = known.sum()
    else:
        # A sum of products, not a matrix product, which autocast would compute in half precision.
        of_rows = weights[label] if label.ndim == 1 else (label * weights).sum(1)  # [B]
        total = torch.where(known, of_rows, 0.0).sum()
    # The smallest normal number: 0 / 0 would be NaN.
    return torch.where(known, rows, 0.0).sum() / divisor(total, torch.finfo(torch.float32).tiny)


def _binary_cross_entropy(
    logits: Tensor, label: Tensor, weights: Tensor | None, smoothing: float, outcomes: int
) -> Tensor:
    """Mean over the labelled rows and all classes; logits and labels are ``[B, K]``."""
    known = (label >= 0).all(1, keepdim=True)  # [B, 1]
    logits = torch.where(known, logits, 0.0)  # see _cross_entropy
    label = label.to(logits.dtype).clamp(min=0) * (1 - smoothing) + smoothing / outcomes
    weights = None if weights is None else weights.to(logits.dtype)
    terms = F.binary_cross_entropy_with_logits(logits, label, pos_weight=weights, reduction="none")  # [B, K]
    return torch.where(known, terms, 0.0).sum() / divisor(known.sum() * logits.shape[1], 1)


def _check(
    num_classes: int, dropout: float, pool: Pool, loss: Loss, multi_label: bool, label_smoothing: float
) -> None:
    """Raise a ValueError for arguments of ``Classifier`` that are out of range or do not fit together."""
    for name, value, choices in (("pool", pool, get_args(Pool)), ("loss", loss, get_args(Loss))):
        if value not in choices:
            raise ValueError(f"head.{name} is {value!r}; allowed are {', '.join(map(repr, choices))}")
    if multi_label and loss == "cross_entropy":
        raise ValueError(
            "head.loss cross_entropy allows one class per image; with head.multi_label true use "
            "binary_cross_entropy, or leave the loss out"
        )
    least = 1 if loss == "binary_cross_entropy" else 2
    if num_classes < least:
        raise ValueError(f"head.num_classes must be at least {least} for the loss {loss}, got {num_classes}")
    for name, share in (("dropout", dropout), ("label_smoothing", label_smoothing)):
        if not 0 <= share < 1:
            raise ValueError(f"head.{name} must lie in 0 to below 1, got {share}")
