"""The contract of evaluators: predictions in, metrics out.

Letters in shapes: K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from .tables import text_table

Prediction = dict[str, Any]
"""What a head predicts on one image, in pixels of the image on disk, by name.

Always ``image_id`` and ``size`` (the image on disk); ``boxes``, ``scores``, ``labels`` and ``category_ids`` of
detections, ``mask`` of segmentations, ``probabilities`` of classes.
"""


@dataclass
class EvaluationContext:
    """What an evaluator may have to know before the first prediction.

    Attributes:
        class_names: one name per class of the head.
        truth: the annotations to evaluate against, where they do not travel in the batches: a COCO instances
            dictionary for boxes; else None.
        multi_label: whether an image may have any number of classes.
        regions: the labels of each region that is evaluated, by name; for volumes.
        fitting: whether a training goes on, so that metrics which take long may be left out.
    """

    class_names: Sequence[str]
    truth: Any = None
    multi_label: bool = False
    regions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    fitting: bool = False


@dataclass(frozen=True)
class Result:
    """What an evaluation found; a subclass may hold more.

    Attributes:
        metrics: value by name; NaN where a metric is not defined.
        titles: what a metric is called in a report, where its name does not say it.
    """

    metrics: dict[str, float]
    titles: ClassVar[Mapping[str, str]] = {}

    def summary(self) -> str:
        """Return the metrics, one line each."""
        return "\n".join(
            f" {self.titles.get(name, name):<33} = {value:.4f}" for name, value in self.metrics.items()
        )

    def class_rows(self) -> list[dict[str, Any]]:
        """Return a row per class: its ``name``, and numbers by name; empty without metrics of classes."""
        return []

    def class_table(self, most: int = 50) -> str:
        """Return ``class_rows`` as aligned text with a header, those with the lowest metrics if too many."""
        return class_table(self.class_rows(), most)

    def text(self) -> str:
        """Return the whole report as text for people."""
        return "\n\n".join(part for part in (self.summary(), self.class_table()) if part)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values for a JSON file, ``metrics`` and ``classes`` among them."""
        return {"metrics": self.metrics, "classes": self.class_rows()}


class Evaluator(ABC):
    """Collects predictions of an evaluation and computes metrics.

    A task calls ``prepare``, then for every evaluation ``reset``, ``update`` batch by batch, ``gather`` and
    ``compute``. Metrics are logged under their names, printed, and written to ``metrics.json`` and
    ``metrics_per_class.csv``. Choose evaluators in YAML by ``model.evaluators``, a list of class paths.

    Attributes:
        headline: the metric that the progress bar shows; empty for none.
    """

    headline: str = ""

    def prepare(self, context: EvaluationContext) -> None:  # noqa: B027, many need nothing
        """Learn what there is to evaluate, before an evaluation.

        Raises:
            ValueError: if the context lacks what the metrics need.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forget all predictions."""

    @abstractmethod
    def update(self, predictions: Sequence[Prediction], batch: Any) -> None:
        """Take the predictions on the images of a batch, which holds their labels."""

    @abstractmethod
    def gather(self) -> None:
        """Exchange what was collected with the other processes; all of them call it.

        An image that several processes have seen counts once.
        """

    @abstractmethod
    def compute(self) -> Result:
        """Return the metrics of what was collected; the same in all processes after ``gather``."""

    def write(self, result: Result, folder: Path) -> dict[str, Path]:
        """Write further files of a result, such as pictures, under ``folder``; return them by what they are."""
        return {}


def class_table(rows: Sequence[Mapping[str, Any]], most: int = 50) -> str:
    """Return rows as aligned text with a header.

    Args:
        rows: ``name`` first, then whole numbers (counts) and metrics.
        most: with more rows these are the ones with the lowest first metric, without undefined ones.
    """
    if not rows:
        return ""
    shown = list(rows)
    ranked = next((name for name, value in rows[0].items() if isinstance(value, float)), None)
    if len(shown) > most and ranked is not None:
        shown = sorted((row for row in shown if row[ranked] == row[ranked]), key=lambda row: row[ranked])[:most]
    cells = [("class", *list(rows[0])[1:])]
    for name, *values in (row.values() for row in shown):
        cells.append((name, *(f"{v:.3f}" if isinstance(v, float) else str(v) for v in values)))
    lines = text_table(cells)
    if len(shown) < len(rows):
        lines.append(f"… the {len(shown)} lowest of {len(rows)} classes")
    return "\n".join(lines)
