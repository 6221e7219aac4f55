"""The metrics of segmented images or volumes.

Letters in shapes: S spatial axes of one image (h, w or d, h, w), N pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ...constants import IGNORE_INDEX
from ..base import EvaluationContext, Evaluator, Prediction, Result
from ..distributed import gather_objects
from ..pictures.confusion import confusion_picture


class ClassMetrics(NamedTuple):
    """The metrics of one class.

    Attributes:
        name: of the class.
        pixels: number of evaluated pixels that belong to it.
        metrics: in 0..1. ``IoU`` and ``Dice``: NaN for a class that is neither in the truth nor predicted, 0
            for one that is only predicted. ``accuracy``: share of its pixels that were recognised, NaN
            without any. ``precision``: share of the pixels predicted as it that belong to it, NaN without
            any.
    """

    name: str
    pixels: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class SegmentationResult(Result):
    """Metrics of segmentations. All pixels of all images count alike, as in VOC and Cityscapes.

    Attributes:
        metrics: in 0..1, NaN without pixels: ``mIoU``, ``pixel_accuracy``, ``mean_class_accuracy``,
            ``mean_Dice`` and ``frequency_weighted_IoU`` (each class by its share of the pixels). Means over
            classes leave out those whose metric is NaN.
        per_class: one entry per class.
        confusion: ``[K, K]`` int64, pixels of the class (row) that were taken for a class (column).
        images: number of images evaluated.
    """

    per_class: tuple[ClassMetrics, ...]
    confusion: np.ndarray
    images: int
    titles = {
        "mIoU": "mean intersection over union",
        "pixel_accuracy": "pixel accuracy",
        "mean_class_accuracy": "mean of the classes' accuracies",
        "mean_Dice": "mean Dice",
        "frequency_weighted_IoU": "IoU weighted by frequency",
    }

    def summary(self) -> str:
        return f"{super().summary()}\n of {self.images} images, {int(self.confusion.sum())} labelled pixels"

    def class_rows(self) -> list[dict[str, Any]]:
        return [{"name": row.name, "pixels": row.pixels, **row.metrics} for row in self.per_class]

    def as_dict(self) -> dict[str, Any]:
        return {"images": self.images, **super().as_dict(), "confusion": self.confusion}


class SegmentationEvaluator(Evaluator):
    """Counts pixels image by image, on their device, and computes metrics from the counts.

    Args:
        class_names: K names; None for those of the context, from ``prepare``.
        ignore_index: the value of pixels in the truth that are not evaluated.

    Raises:
        ValueError: if there are names, but none in them.
    """

    headline = "mIoU"

    def __init__(self, class_names: Sequence[str] | None = None, ignore_index: int = IGNORE_INDEX) -> None:
        self._given = class_names
        self.class_names: list[str] = []
        self.ignore_index = ignore_index
        self.reset()
        if class_names is not None:
            self.prepare(EvaluationContext(class_names))

    def prepare(self, context: EvaluationContext) -> None:
        """Take the class names of the context, unless the constructor was given some.

        Raises:
            ValueError: without a class.
        """
        self.class_names = list(context.class_names if self._given is None else self._given)
        if not self.class_names:
            raise ValueError("class_names is empty; an evaluation needs at least one class")
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.images = 0
        # Row by row the confusion matrix, then pixels ignored, of no class in the truth, of none predicted.
        self._table = torch.zeros(len(self.class_names) ** 2 + 3, dtype=torch.int64)

    def __len__(self) -> int:
        """Number of images added."""
        return self.images

    def update(self, predictions: Sequence[Prediction], batch: Any) -> None:
        """Add the ``mask`` of each prediction with its mask in ``batch.truth``, see :meth:`add`."""
        for each, truth in zip(predictions, batch.truth, strict=True):
            self.add(each["mask"], truth)

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        """Add an image, without synchronising the device.

        Args:
            predicted: ``[*S]`` integers; what they are where the truth is ignored plays no part.
            truth: ``[*S]`` integers, 0..K-1 or ``ignore_index``. Other values are an error in :meth:`counts`.

        Raises:
            ValueError: if shapes differ, a tensor does not hold integers, or there are no classes yet.
        """
        if not self.class_names:
            raise ValueError("SegmentationEvaluator has no classes; give class_names, or call prepare first")
        if predicted.shape != truth.shape:
            raise ValueError(
                f"prediction and truth differ in shape: {list(predicted.shape)} and {list(truth.shape)}"
            )
        for name, labels in (("prediction", predicted), ("truth", truth)):
            if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
                raise ValueError(f"the {name} must hold integers, got {labels.dtype}")
        classes = len(self.class_names)
        rows, columns = truth.flatten().long(), predicted.flatten().long()  # [N]
        place = rows * classes + columns
        place = torch.where((columns < 0) | (columns >= classes), classes**2 + 2, place)
        place = torch.where((rows < 0) | (rows >= classes), classes**2 + 1, place)
        place = torch.where(rows == self.ignore_index, classes**2, place)
        # Not bincount, which synchronises the device to learn the largest number.
        one = torch.ones(1, dtype=torch.int64, device=place.device)
        self._table = self._table.to(place.device).scatter_add_(0, place, one.expand_as(place))
        self.images += 1

    def counts(self) -> Tensor:
        """Return the confusion matrix ``[K, K]`` int64 (rows truth, columns prediction) on the CPU.

        Raises:
            ValueError: if a pixel held neither a class nor ``ignore_index``.
        """
        classes = len(self.class_names)
        table = self._table.cpu()
        for position, name in ((1, "truth"), (2, "prediction")):
            if pixels := int(table[classes**2 + position]):
                raise ValueError(
                    f"{pixels} pixels of the {name} of {self.images} images hold a number outside "
                    f"0..{classes - 1}"
                    + (f" that is not {self.ignore_index} either" if position == 1 else "")
                )
        return table[: classes**2].reshape(classes, classes).clone()

    def rows(self) -> tuple[Tensor, int]:
        """Return :meth:`counts` and the number of images, to be exchanged between processes."""
        return self.counts(), self.images

    def merge(self, parts: Sequence[tuple[Tensor, int]]) -> None:
        """Go on with the sum of what :meth:`rows` returned in all processes instead."""
        self.reset()
        for counts, images in parts:
            self._table[: len(self.class_names) ** 2] += counts.flatten()
            self.images += images

    def gather(self) -> None:
        """Add up the counts of all processes.

        Nothing is kept of single images: an image that two processes have seen counts twice. The data modules
        of this package give each image to one process.
        """
        self.merge(gather_objects(self.rows()))

    def compute(self) -> SegmentationResult:
        """Compute the metrics of the images added so far.

        Raises:
            ValueError: if a pixel held neither a class nor ``ignore_index``.
        """
        confusion = self.counts().numpy()
        right = confusion.diagonal().astype(np.float64)
        pixels, predicted = confusion.sum(1), confusion.sum(0)
        columns = {
            "IoU": _shares(right, pixels + predicted - right),
            "Dice": _shares(2 * right, pixels + predicted),
            "accuracy": _shares(right, pixels),
            "precision": _shares(right, predicted),
        }
        frequency = _shares(pixels, np.full_like(pixels, pixels.sum()))
        metrics = {
            "mIoU": _mean(columns["IoU"]),
            "pixel_accuracy": float(_shares(right.sum(), pixels.sum())),
            "mean_class_accuracy": _mean(columns["accuracy"]),
            "mean_Dice": _mean(columns["Dice"]),
            "frequency_weighted_IoU": float(np.nansum(frequency * columns["IoU"]))
            if pixels.any()
            else float("nan"),
        }
        per_class = tuple(
            ClassMetrics(
                name, int(pixels[k]), {metric: float(column[k]) for metric, column in columns.items()}
            )
            for k, name in enumerate(self.class_names)
        )
        return SegmentationResult(metrics, per_class, confusion, self.images)

    def pictures(  # type: ignore[override]  # of its own results
        self, result: SegmentationResult
    ) -> dict[str, np.ndarray]:
        """Return ``confusion``, a picture of the confusion matrix; nothing with more than 2000 classes."""
        return confusion_picture(result.confusion, [row.name for row in result.per_class])


def _shares(part: ArrayLike, whole: ArrayLike) -> np.ndarray:
    """Divide; NaN for a share of nothing."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    """Mean of the values that are defined, NaN if there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
