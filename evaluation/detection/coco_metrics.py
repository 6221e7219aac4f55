"""The COCO metrics: means of precision and recall, which pycocotools or our own arrays compute.

Letters in shapes: T IoU thresholds, R recall thresholds, K categories, A ranges of area, L limits on the
number of detections per image and category.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..base import Result

BACKENDS = ("faster", "pycocotools")
AREAS = ("all", "small", "medium", "large")
LIMITS = (1, 10, 100)


class _Metric(NamedTuple):
    """The part of precision or recall that a metric is the mean of."""

    recall: bool
    threshold: int | None  # index into the IoU thresholds 0.50, 0.55 ... 0.95; None for all ten
    area: int
    limit: int


_METRICS = {
    "AP": _Metric(False, None, 0, 2),
    "AP50": _Metric(False, 0, 0, 2),
    "AP75": _Metric(False, 5, 0, 2),
    "APs": _Metric(False, None, 1, 2),
    "APm": _Metric(False, None, 2, 2),
    "APl": _Metric(False, None, 3, 2),
    "AR1": _Metric(True, None, 0, 0),
    "AR10": _Metric(True, None, 0, 1),
    "AR100": _Metric(True, None, 0, 2),
    "ARs": _Metric(True, None, 1, 2),
    "ARm": _Metric(True, None, 2, 2),
    "ARl": _Metric(True, None, 3, 2),
}


class ClassResult(NamedTuple):
    """The metrics of one class.

    Attributes:
        category_id: the id in the annotation file.
        name: the name in the annotation file.
        objects: number of its objects in the evaluated images, crowd regions not counted.
        ap: average precision in 0..1, mean over the IoU thresholds 0.50 to 0.95; NaN without objects.
        ap50: average precision in 0..1 at IoU 0.50; NaN without objects.
    """

    category_id: int
    name: str
    objects: int
    ap: float
    ap50: float


@dataclass(frozen=True)
class CocoResult(Result):
    """COCO metrics.

    Attributes:
        metrics: the 12 COCO metrics in 0..1 by the names AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl;
            NaN where there is no object to find (pycocotools says -1).
        per_class: one row per category, ids ascending.
        images: number of images evaluated.
    """

    per_class: tuple[ClassResult, ...]
    images: int
    most_classes = None

    def summary(self) -> str:
        """Return the 12 metrics in COCO's wording, one line each."""
        lines = []
        for name, metric in _METRICS.items():
            title = "Average Recall     (AR)" if metric.recall else "Average Precision  (AP)"
            iou = "0.50:0.95" if metric.threshold is None else f"{0.5 + 0.05 * metric.threshold:.2f}"
            area, limit = AREAS[metric.area], LIMITS[metric.limit]
            value = self.metrics[name]
            lines.append(f" {title} @[ IoU={iou:<9} | area={area:>6} | maxDets={limit:>3} ] = {value:.3f}")
        return "\n".join(lines)

    def class_rows(self) -> list[dict[str, Any]]:
        return [
            {"id": row.category_id, "name": row.name, "objects": row.objects, "AP": row.ap, "AP50": row.ap50}
            for row in self.per_class
        ]

    def as_dict(self) -> dict[str, Any]:
        return {"images": self.images, **super().as_dict()}


def summarise(
    precision: np.ndarray, recall: np.ndarray, categories: dict[int, str], objects: Sequence[int], images: int
) -> CocoResult:
    """Take the means that COCO reports.

    Args:
        precision: ``[T, R, K, A]``, at the highest limit.
        recall: ``[T, K, A, L]``.
        categories: names by category id, in the order of axis K.
        objects: ``[K]``, numbers of objects, crowd regions not counted.
        images: number of images evaluated.
    """
    per_class = tuple(
        ClassResult(
            category_id,
            name,
            int(objects[index]),
            _mean(precision[:, :, index, 0]),
            _mean(precision[0, :, index, 0]),
        )
        for index, (category_id, name) in enumerate(categories.items())
    )
    metrics = {name: _mean(_part(metric, precision, recall)) for name, metric in _METRICS.items()}
    return CocoResult(metrics, per_class, images)


def by_pycocotools(
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    truth: list[dict[str, Any]],
    results: list[dict[str, Any]],
) -> tuple[np.ndarray, np.ndarray]:
    """Let pycocotools compute precision ``[T, R, K, A]`` at the highest limit and recall ``[T, K, A, L]``.

    Args:
        image_ids: ids of the images to evaluate, those without objects or detections too.
        category_ids: ids of the categories, ascending.
        truth: COCO annotations of these images, with ids from 1, ``area`` and ``iscrowd``; written into.
        results: COCO results of these images; written into.
    """
    for index, item in enumerate(results, start=1):
        item.update(id=index, area=item["bbox"][2] * item["bbox"][3], iscrowd=0)
    shared = {
        "images": [{"id": image_id} for image_id in image_ids],
        "categories": [{"id": category_id} for category_id in category_ids],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(
            _indexed({**shared, "annotations": truth}),
            _indexed({**shared, "annotations": results}),
            iouType="bbox",
        )
        run.evaluate()
        run.accumulate()
    return run.eval["precision"][..., -1], run.eval["recall"]


def _indexed(dataset: dict[str, Any]) -> COCO:
    """Build a COCO object from a dict. Its ``loadRes`` would fail on an empty list of results."""
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _part(metric: _Metric, precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    values = recall[..., metric.limit] if metric.recall else precision
    values = values[..., metric.area]
    return values if metric.threshold is None else values[metric.threshold]


def _mean(values: np.ndarray) -> float:
    """Mean of the defined values (-1 marks classes without objects), NaN if there are none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else math.nan
