"""The metrics of classified images or scans.

Letters in shapes: B images of a batch, N images, K classes, T best guesses per image.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_average_precision,
    binary_f1_score,
    multiclass_confusion_matrix,
)

from ..base import EvaluationContext, Evaluator, Prediction, Result
from ..distributed import gather_objects
from ..pictures.confusion import confusion_picture

logger = logging.getLogger("trunkline")

GUESSES = 5
THRESHOLD = 0.5  # of a probability, from which on a class counts as predicted where there may be several


class Rows(NamedTuple):
    """What is kept of every image, small enough to be exchanged between processes.

    Attributes:
        ids: ``[N]`` int64.
        labels: ``[N]`` int64, or ``[N, K]`` bool for several labels per image.
        predicted: ``[N, T]`` int64, the best guess first, or ``[N, K]`` float32 probabilities.
    """

    ids: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray


class ClassMetrics(NamedTuple):
    """The metrics of one class.

    Attributes:
        name: of the class.
        images: number of evaluated images that have it.
        metrics: in 0..1, NaN without images: ``accuracy`` (share of its images that were recognised), or
            ``AP`` and ``F1`` for several labels per image.
    """

    name: str
    images: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class ClassificationResult(Result):
    """Metrics of classifications.

    Attributes:
        metrics: in 0..1, NaN without images. One label per image: ``accuracy``, ``mean_class_accuracy`` and,
            with more than five classes, ``accuracy_top5``. Several: ``mAP``, ``F1`` and ``subset_accuracy``
            (images of which every label is right). Means over classes leave out those without images.
        per_class: one entry per class.
        images: number of images evaluated.
        confusion: ``[K, K]`` int64, images of the class (row) that were taken for a class (column); None for
            several labels per image.
    """

    per_class: tuple[ClassMetrics, ...]
    images: int
    confusion: np.ndarray | None
    titles = {
        "accuracy_top5": "accuracy of the five best guesses",
        "mean_class_accuracy": "mean of the classes' accuracies",
        "mAP": "mean average precision",
        "F1": "mean F1",
        "subset_accuracy": "images with all labels right",
    }

    def summary(self) -> str:
        return f"{super().summary()}\n of {self.images} images"

    def class_rows(self) -> list[dict[str, Any]]:
        return [{"name": row.name, "images": row.images, **row.metrics} for row in self.per_class]

    def as_dict(self) -> dict[str, Any]:
        content = {"images": self.images, **super().as_dict()}
        return content if self.confusion is None else {**content, "confusion": self.confusion}


class ClassificationEvaluator(Evaluator):
    """Collects predictions batch by batch and computes their metrics.

    Args:
        class_names: K names; None for those of the context, from ``prepare``.
        multi_label: whether an image may have any number of classes; ``prepare`` takes that of the context.
    """

    def __init__(self, class_names: Sequence[str] | None = None, multi_label: bool = False) -> None:
        self._given = class_names
        self.prepare(EvaluationContext(class_names or (), multi_label=multi_label))

    def prepare(self, context: EvaluationContext) -> None:
        """Take ``multi_label`` of the context, and its class names unless the constructor was given some."""
        self.class_names = list(context.class_names if self._given is None else self._given)
        self.multi_label = context.multi_label
        self.headline = "mAP" if self.multi_label else "accuracy"
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._parts: list[Rows] = []

    def __len__(self) -> int:
        """Number of images added."""
        return sum(len(part.ids) for part in self._parts)

    def update(self, predictions: Sequence[Prediction], batch: Any) -> None:
        """Add the ``probabilities`` ``[K]`` of each prediction with its label in ``batch.label``."""
        probabilities = torch.stack([each["probabilities"] for each in predictions])
        self.add(batch.image_ids, probabilities, batch.label)

    def add(self, ids: Tensor, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch; images without label (-1, or -1 anywhere in their row) are left out.

        Args:
            ids: ``[B]`` int64, different for all images.
            probabilities: ``[B, K]`` in 0..1.
            labels: ``[B]`` int64 in 0..K-1, or ``[B, K]`` of zeros and ones.

        Raises:
            ValueError: if shapes or labels do not fit, a label is NaN or a fraction, or a probability is not
                finite.
        """
        classes = len(self.class_names)
        shape = (len(ids), classes) if self.multi_label else (len(ids),)
        if probabilities.shape != (len(ids), classes) or labels.shape != shape:
            raise ValueError(
                f"probabilities must be {[len(ids), classes]} and labels {list(shape)} (images, classes), "
                f"got {list(probabilities.shape)} and {list(labels.shape)}"
            )
        ids, probabilities, labels = ids.cpu(), probabilities.float().cpu(), labels.cpu()
        self._check_labels(ids, labels)
        known = (labels >= 0).all(1) if self.multi_label else labels >= 0
        ids, probabilities, labels = ids[known], probabilities[known], labels[known]
        if not bool(torch.isfinite(probabilities).all()):
            raise ValueError(f"a probability of the images with ids {ids.tolist()} is not finite")
        if self.multi_label:
            self._parts.append(Rows(ids.numpy(), labels.numpy() > 0, probabilities.numpy()))
            return
        if labels.numel() and int(labels.max()) >= classes:
            raise ValueError(f"label {int(labels.max())} does not lie in 0..{classes - 1}")
        guesses = probabilities.topk(min(GUESSES, classes), dim=1).indices  # [B, T]
        self._parts.append(Rows(ids.numpy(), labels.numpy(), guesses.numpy()))

    def _check_labels(self, ids: Tensor, labels: Tensor) -> None:
        """Refuse what is no label: NaN, fractions, and anything above 1 where there may be several."""
        wrong = ~(labels >= 0) & ~(labels < 0)
        wrong |= labels != labels.round() if labels.is_floating_point() else torch.zeros_like(wrong)
        if self.multi_label:
            wrong |= labels > 1
        if bool(wrong.any()):
            row = wrong.nonzero()[0].tolist()
            meant = "0, 1 or, if unknown, -1" if self.multi_label else "a whole number"
            value = labels[tuple(row)].item()
            raise ValueError(f"the label {value} of the image with id {int(ids[row[0]])} is not {meant}")

    def rows(self) -> Rows:
        """Return all images added so far."""
        width = len(self.class_names) if self.multi_label else min(GUESSES, len(self.class_names))
        kind, shape = (np.bool_, (0, width)) if self.multi_label else (np.int64, (0,))
        scores = np.float32 if self.multi_label else np.int64
        none = Rows(np.zeros(0, np.int64), np.zeros(shape, kind), np.zeros((0, width), scores))
        return Rows(*(np.concatenate(column) for column in zip(none, *self._parts, strict=True)))

    def merge(self, parts: Sequence[Rows]) -> None:
        """Go on with the images of all ``parts`` instead; those in several count as in the first."""
        merged = Rows(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        first = np.unique(merged.ids, return_index=True)[1]
        self._parts = [Rows(*(column[first] for column in merged))]

    def gather(self) -> None:
        """Take the images of all processes; those in several count as in the lowest rank."""
        self.merge(gather_objects(self.rows()))

    def compute(self) -> ClassificationResult:
        """Compute the metrics of the images added so far."""
        _, labels, predicted = (torch.from_numpy(column) for column in self.rows())
        if not len(labels):
            logger.warning("no image with a label was evaluated, so the metrics are NaN")
        elif self.multi_label and not bool(labels.any()):
            logger.warning("no evaluated image shows any class, so mAP and F1 are NaN")
        measure = _several_labels if self.multi_label else _one_label
        return measure(labels, predicted, self.class_names)

    def pictures(  # type: ignore[override]  # of its own results
        self, result: ClassificationResult
    ) -> dict[str, np.ndarray]:
        """Return ``confusion``, a picture of the confusion matrix, if there is one of up to 2000 classes."""
        if result.confusion is None:
            return {}
        return confusion_picture(result.confusion, [row.name for row in result.per_class])


def _one_label(labels: Tensor, guesses: Tensor, names: list[str]) -> ClassificationResult:
    """Metrics of ``labels`` ``[N]`` and ``guesses`` ``[N, T]``."""
    confusion = multiclass_confusion_matrix(guesses[:, 0], labels, len(names))  # [K, K]
    counts, right = confusion.sum(1), confusion.diagonal()
    shares = right.double() / counts  # NaN for a class without images
    metrics = {"accuracy": float(right.sum().double() / counts.sum())}
    if len(names) > GUESSES:
        metrics["accuracy_top5"] = float((guesses == labels[:, None]).any(1).double().mean())
    metrics["mean_class_accuracy"] = float(shares.nanmean())
    rows = zip(names, counts.tolist(), shares.tolist(), strict=True)
    per_class = tuple(ClassMetrics(name, count, {"accuracy": share}) for name, count, share in rows)
    return ClassificationResult(metrics, per_class, len(labels), confusion.numpy())


def _several_labels(labels: Tensor, probabilities: Tensor, names: list[str]) -> ClassificationResult:
    """Metrics of ``labels`` ``[N, K]`` bool and ``probabilities`` ``[N, K]``."""
    per_class = []
    for index, name in enumerate(names):
        truth, scores = labels[:, index].long(), probabilities[:, index]
        count = int(truth.sum())
        # Class by class: torchmetrics' multilabel metrics take a class without images for one at zero.
        precision = float(binary_average_precision(scores, truth)) if count else math.nan
        f1 = float(binary_f1_score((scores >= THRESHOLD).long(), truth)) if count else math.nan
        per_class.append(ClassMetrics(name, count, {"AP": precision, "F1": f1}))
    right = ((probabilities >= THRESHOLD) == labels).all(1)
    metrics = {
        "mAP": _mean(row.metrics["AP"] for row in per_class),
        "F1": _mean(row.metrics["F1"] for row in per_class),
        "subset_accuracy": float(right.double().mean()),
    }
    return ClassificationResult(metrics, tuple(per_class), len(labels), None)


def _mean(values: Any) -> float:
    """Mean of the values that are defined, NaN if there are none."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
