"""The figures of a set of classified images or scans.

Letters in shapes: B images of a batch, N images, K classes, T best guesses per image.
"""

from __future__ import annotations

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

from ..tables import text_table

GUESSES = 5
THRESHOLD = 0.5  # of a probability, from which on a class counts as predicted where there may be several
TITLES = {
    "accuracy": "accuracy",
    "accuracy_top5": "accuracy of the five best guesses",
    "mean_class_accuracy": "mean of the classes' accuracies",
    "mAP": "mean average precision",
    "F1": "mean F1",
    "subset_accuracy": "images with all labels right",
}


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


class ClassFigures(NamedTuple):
    """The figures of one class.

    Attributes:
        name: of the class.
        images: number of evaluated images that have it.
        figures: in 0..1, NaN without images: ``accuracy`` (share of its images that were recognised), or
            ``AP`` and ``F1`` for several labels per image.
    """

    name: str
    images: int
    figures: dict[str, float]


@dataclass(frozen=True)
class ClassificationResult:
    """What an evaluation found.

    Attributes:
        figures: in 0..1, NaN without images. One label per image: ``accuracy``, ``mean_class_accuracy`` and,
            with more than five classes, ``accuracy_top5``. Several: ``mAP``, ``F1`` and ``subset_accuracy``
            (images of which every label is right). Means over classes leave out those without images.
        per_class: one entry per class.
        images: number of images evaluated.
        confusion: ``[K, K]`` int64, images of the class (row) that were taken for a class (column); None for
            several labels per image.
    """

    figures: dict[str, float]
    per_class: tuple[ClassFigures, ...]
    images: int
    confusion: np.ndarray | None

    def summary(self) -> str:
        """Return the figures, one line each."""
        lines = [f" {TITLES[name]:<33} = {value:.4f}" for name, value in self.figures.items()]
        return "\n".join([*lines, f" of {self.images} images"])

    def class_table(self, most: int = 50) -> str:
        """Return the entries of ``per_class`` as aligned text with a header.

        With more than ``most`` classes these are the ones with the lowest figures, lowest first, without
        those that no image has.
        """
        shown = list(self.per_class)
        if len(shown) > most:
            present = [row for row in shown if row.images]
            shown = sorted(present, key=lambda row: next(iter(row.figures.values())))[:most]
        cells = [("class", "images", *self.per_class[0].figures)]
        for row in shown:
            cells.append((row.name, str(row.images), *(f"{value:.3f}" for value in row.figures.values())))
        lines = text_table(cells)
        if len(shown) < len(self.per_class):
            lines.append(f"… the {len(shown)} lowest of {len(self.per_class)} classes")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values for a JSON file."""
        classes = [{"name": row.name, "images": row.images, **row.figures} for row in self.per_class]
        found = {"images": self.images, "figures": self.figures, "classes": classes}
        return found if self.confusion is None else {**found, "confusion": self.confusion}


class ClassificationEvaluator:
    """Collects predictions batch by batch and computes their figures.

    Args:
        class_names: K names.
        multi_label: whether an image may have any number of classes.
    """

    def __init__(self, class_names: Sequence[str], multi_label: bool = False) -> None:
        self.class_names = list(class_names)
        self.multi_label = multi_label
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._parts: list[Rows] = []

    def __len__(self) -> int:
        """Number of images added."""
        return sum(len(part.ids) for part in self._parts)

    def add(self, ids: Tensor, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch; images without label (-1, or -1 anywhere in their row) are left out.

        Args:
            ids: ``[B]`` int64, different for all images.
            probabilities: ``[B, K]`` in 0..1.
            labels: ``[B]`` int64 in 0..K-1, or ``[B, K]`` of zeros and ones.

        Raises:
            ValueError: if shapes or labels do not fit, or a probability is not finite.
        """
        classes = len(self.class_names)
        shape = (len(ids), classes) if self.multi_label else (len(ids),)
        if probabilities.shape != (len(ids), classes) or labels.shape != shape:
            raise ValueError(
                f"probabilities must be {[len(ids), classes]} and labels {list(shape)} (images, classes), "
                f"got {list(probabilities.shape)} and {list(labels.shape)}"
            )
        ids, probabilities, labels = ids.cpu(), probabilities.float().cpu(), labels.cpu()
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

    def rows(self) -> Rows:
        """Return all images added so far."""
        width = len(self.class_names) if self.multi_label else min(GUESSES, len(self.class_names))
        kind, shape = (np.bool_, (0, width)) if self.multi_label else (np.int64, (0,))
        scores = np.float32 if self.multi_label else np.int64
        none = Rows(np.zeros(0, np.int64), np.zeros(shape, kind), np.zeros((0, width), scores))
        return Rows(*(np.concatenate(column) for column in zip(none, *self._parts, strict=True)))

    def merge(self, parts: Sequence[Rows]) -> None:
        """Go on with the images of all ``parts`` instead; those found in several count as in the first."""
        merged = Rows(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        first = np.unique(merged.ids, return_index=True)[1]
        self._parts = [Rows(*(column[first] for column in merged))]

    def compute(self) -> ClassificationResult:
        """Compute the figures of the images added so far."""
        _, labels, predicted = (torch.from_numpy(column) for column in self.rows())
        found = _several_labels if self.multi_label else _one_label
        return found(labels, predicted, self.class_names)


def _one_label(labels: Tensor, guesses: Tensor, names: list[str]) -> ClassificationResult:
    """Figures of ``labels`` ``[N]`` and ``guesses`` ``[N, T]``."""
    confusion = multiclass_confusion_matrix(guesses[:, 0], labels, len(names))  # [K, K]
    counts, right = confusion.sum(1), confusion.diagonal()
    shares = right.double() / counts  # NaN for a class without images
    figures = {"accuracy": float(right.sum().double() / counts.sum())}
    if len(names) > GUESSES:
        figures["accuracy_top5"] = float((guesses == labels[:, None]).any(1).double().mean())
    figures["mean_class_accuracy"] = float(shares.nanmean())
    rows = zip(names, counts.tolist(), shares.tolist(), strict=True)
    per_class = tuple(ClassFigures(name, count, {"accuracy": share}) for name, count, share in rows)
    return ClassificationResult(figures, per_class, len(labels), confusion.numpy())


def _several_labels(labels: Tensor, probabilities: Tensor, names: list[str]) -> ClassificationResult:
    """Figures of ``labels`` ``[N, K]`` bool and ``probabilities`` ``[N, K]``."""
    per_class = []
    for index, name in enumerate(names):
        truth, scores = labels[:, index].long(), probabilities[:, index]
        count = int(truth.sum())
        # Class by class: torchmetrics' multilabel figures take a class without images for one at zero.
        precision = float(binary_average_precision(scores, truth)) if count else math.nan
        f1 = float(binary_f1_score((scores >= THRESHOLD).long(), truth)) if count else math.nan
        per_class.append(ClassFigures(name, count, {"AP": precision, "F1": f1}))
    right = ((probabilities >= THRESHOLD) == labels).all(1)
    figures = {
        "mAP": _mean(row.figures["AP"] for row in per_class),
        "F1": _mean(row.figures["F1"] for row in per_class),
        "subset_accuracy": float(right.double().mean()),
    }
    return ClassificationResult(figures, tuple(per_class), len(labels), None)


def _mean(values: Any) -> float:
    """Mean of the values that are defined, NaN if there are none."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
