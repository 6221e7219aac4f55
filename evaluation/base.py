"""The contract of evaluators: predictions in, metrics out.

Letters in shapes: K classes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .files import write_csv, write_json
from .pictures.attempts import Attempts
from .pictures.boxes import save_picture

Prediction = dict[str, Any]
"""What a head predicts on one image, in pixels of the image on disk, by name.

Always ``image_id`` and ``size`` (the image on disk); ``boxes``, ``scores``, ``labels`` and ``category_ids``
of detections, ``mask`` of segmentations, ``probabilities`` of classes.
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
    """The metrics of an evaluation; a subclass may hold more.

    Attributes:
        metrics: value by name; NaN where a metric is not defined.
        titles: what a metric is called in a report, where its name does not say it.
        most_classes: how many classes the report shows, those with the lowest metrics; None for all.
    """

    metrics: dict[str, float]
    titles: ClassVar[Mapping[str, str]] = {}
    most_classes: ClassVar[int | None] = 50

    def summary(self) -> str:
        """Return the metrics, one line each."""
        return "\n".join(
            f" {self.titles.get(name, name):<33} = {value:.4f}" for name, value in self.metrics.items()
        )

    def class_rows(self) -> list[dict[str, Any]]:
        """Return a row per class: its ``name``, and numbers by name; empty without metrics of classes."""
        return []

    def class_table(self) -> str:
        """Return ``class_rows`` as aligned text with a header, see :func:`class_table`."""
        return class_table(self.class_rows(), self.most_classes)

    def text(self) -> str:
        """Return the whole report as text for people."""
        return "\n\n".join(part for part in (self.summary(), self.class_table()) if part)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values for a JSON file, ``metrics`` and ``classes`` among them."""
        return {"metrics": self.metrics, "classes": self.class_rows()}


class Evaluator(ABC):
    """Collects predictions of an evaluation and computes metrics.

    A task calls ``prepare``, then for every evaluation ``reset``, ``update`` batch by batch, ``gather`` and
    ``compute``. Metrics are logged under their names, printed, and written by :func:`write_result`. Choose
    evaluators in YAML by ``model.evaluators``, a list of class paths. An argument that depends on the data
    has a default, and ``prepare`` supplies it.

    Attributes:
        headline: the metric that the progress bar shows; empty for none.
        needs_truth: whether it needs the data module's ``evaluation_truth``, as boxes do; else the truth is
            in the batches.
    """

    headline: str = ""
    needs_truth: bool = False

    def prepare(self, context: EvaluationContext) -> None:  # noqa: B027, many need nothing
        """Take from the context what the constructor was not given, and forget all predictions.

        Raises:
            ValueError: if the context lacks what the metrics need.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forget all predictions."""

    @abstractmethod
    def update(self, predictions: Sequence[Prediction], batch: Any) -> None:
        """Take the predictions on the images of a batch, one for each; the batch holds the labels."""

    @abstractmethod
    def gather(self) -> None:
        """Exchange what was collected with the other processes; all of them call it.

        An image that several processes have seen counts once, where predictions are kept image by image.
        """

    @abstractmethod
    def compute(self) -> Result:
        """Return the metrics of what was collected; the same in all processes after ``gather``."""

    def pictures(self, result: Result) -> dict[str, np.ndarray]:
        """Return pictures of a result for the logger, ``[h, w, 3]`` uint8 by title."""
        return {}

    def write(self, result: Result, folder: Path) -> dict[str, Path]:
        """Write further files of a result under ``folder``: its pictures, unless an evaluator says more.

        Returns:
            The files by what they are.
        """
        attempts = Attempts()
        pictures = attempts.attempt("the results", lambda: self.pictures(result)) or {}
        written = {
            title: attempts.attempt(title, partial(save_picture, folder / f"{title}.png", picture))
            for title, picture in pictures.items()
        }
        return {title: path for title, path in written.items() if path is not None}


def class_table(rows: Sequence[Mapping[str, Any]], most: int | None = 50) -> str:
    """Return rows as aligned text with a header; empty without a row.

    Args:
        rows: ``name``, whole numbers (counts), metrics and texts by name, the same names in each.
        most: with more rows, only those with the lowest first metric, without undefined ones; None for all.
    """
    if not rows:
        return ""
    shown, columns = list(rows), list(rows[0])
    ranked = next((name for name, value in rows[0].items() if isinstance(value, float)), None)
    if most is not None and len(shown) > most and ranked is not None:
        shown = sorted((row for row in shown if row[ranked] == row[ranked]), key=lambda row: row[ranked])[
            :most
        ]
    cells = [["class" if name == "name" else name for name in columns]]
    cells += [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in shown]
    lines = text_table(cells, left=columns.index("name"))
    if len(shown) < len(rows):
        lines.append(f"… the {len(shown)} lowest of {len(rows)} classes")
    return "\n".join(lines)


def merge_metrics(results: Sequence[Result]) -> dict[str, float]:
    """Return the metrics of all results by name.

    Raises:
        ValueError: if two results have a metric of the same name, one is no number, or one is no result.
    """
    merged: dict[str, float] = {}
    for result in results:
        if not isinstance(result, Result):
            raise ValueError(
                f"compute() of an evaluator returned a {type(result).__name__}; return a Result, as in "
                'Result({"name": 0.5})'
            )
        for name, value in result.metrics.items():
            if name in merged:
                raise ValueError(
                    f"two evaluators have a metric named {name!r}; remove one of them from model.evaluators, "
                    "or rename the metric"
                )
            try:
                merged[name] = float(value)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"the metric {name!r} is {value!r}; it has to be a number, NaN where it is not defined"
                ) from error
    return merged


def write_result(results: Sequence[Result], folder: Path) -> dict[str, Path]:
    """Write the results of the evaluators of one head.

    ``metrics.json`` has all ``metrics``, the rows of all ``classes``, joined by the names of the classes, and
    whatever else a result has. Where several have an entry of the same name, the first one is kept. NaN is
    written as null there, and an infinite number as the text ``inf``.
    ``metrics_per_class.csv`` is the joined ``class_rows`` with ``class`` first; a cell is empty where a
    metric is not defined, or an evaluator does not know the class. It is left out if no result has rows.

    Args:
        results: of different evaluators; nothing is written without any.
        folder: created if it is missing.

    Returns:
        The files by what they are.

    Raises:
        ValueError: if two results have a metric of the same name, of all classes or of a class.
        OSError: if the folder cannot be written.
    """
    if not results:
        return {}
    contents = [result.as_dict() for result in results]
    whole = {name: value for content in reversed(contents) for name, value in content.items()}
    whole |= {"metrics": merge_metrics(results), "classes": _joined([c.get("classes", []) for c in contents])}
    rows = _joined([result.class_rows() for result in results])
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "name"))
    written = {"metrics": write_json(folder / "metrics.json", _without_infinities(whole))}
    if rows:
        cells = [[row["name"], *(_cell(row.get(column)) for column in columns)] for row in rows]
        path = write_csv(folder / "metrics_per_class.csv", ["class", *columns], cells)
        written["metrics per class"] = path
    return written


def _without_infinities(value: Any) -> Any:
    """Spell infinite numbers as text, which JSON has no numbers for."""
    if isinstance(value, Mapping):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(item) for item in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _joined(tables: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Join rows by ``name``; of whole numbers (counts) that several tables have, the first one is kept."""
    joined: dict[tuple[str, int], dict[str, Any]] = {}
    for table in tables:
        repeats: Counter[str] = Counter()
        for row in table:
            # Two categories may have the same name: the first of a table belongs to the first of the others.
            known = joined.setdefault((row["name"], repeats[row["name"]]), {})
            repeats[row["name"]] += 1
            for column, value in row.items():
                if column in known and column != "name" and not isinstance(value, int):
                    raise ValueError(
                        f"two evaluators have a metric of classes named {column!r}; remove one of them from "
                        "model.evaluators, or rename the metric"
                    )
                known.setdefault(column, value)
    return list(joined.values())


def _cell(value: Any) -> Any:
    """Return the value of a cell; empty for NaN and for none at all."""
    return "" if value is None or value != value else value


def text_table(cells: Sequence[Sequence[str]], left: int = 0) -> list[str]:
    """Line columns up: one of them, that of the names, to the left, the others to the right.

    Args:
        cells: rows of equally many texts; the first one is the header.
        left: number of the column of the names.
    """
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column == left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
