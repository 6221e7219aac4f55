"""The result of an evaluation of segmented scans: means, tables and files."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..base import Result, class_table
from ..files import write_csv

CaseMetrics = tuple[str, dict[str, dict[str, float]]]  # name of the case, class -> metric -> value

RULE = (
    "A class absent from truth and prediction of a case has no metric there and is left out of every mean. "
    "One absent from only one of the two has Dice 0, surface Dice 0 and the diagonal of the scan as HD95."
)
SIZES = {"volume_ml": "true_volume_ml", "area_mm2": "true_area_mm2"}  # of the prediction -> of the truth


class ClassCases(NamedTuple):
    """The metrics of one class over the cases.

    Attributes:
        name: of the class.
        cases: number of cases counted: those in which truth or prediction has the class.
        absent: number of cases without it in either, which no mean counts.
        missed: number of cases counted in which only the truth has it.
        invented: number of cases counted in which only the prediction has it.
        means: over the cases counted: ``Dice`` and, if surfaces were measured, ``HD95_mm`` and
            ``surface_Dice``; NaN without a case.
        medians: the same.
        deviations: standard deviations (of the cases as they are, not an estimate for others).
    """

    name: str
    cases: int
    absent: int
    missed: int
    invented: int
    means: dict[str, float]
    medians: dict[str, float]
    deviations: dict[str, float]


@dataclass(frozen=True)
class VolumeResult(Result):
    """Metrics of segmented scans. All cases count alike, however large.

    Attributes:
        metrics: ``mean_Dice`` and, if surfaces were measured, ``mean_HD95_mm`` and ``mean_surface_Dice``:
            means over the classes of their means over the cases; NaN without a case. Classes that no case
            has are left out.
        per_class: one entry per class.
        cases: name of each case and its metrics by class, see :func:`.volumes.case_metrics`, in the order of
            the names.
        tolerance: in mm, of the surface Dice.
    """

    per_class: tuple[ClassCases, ...]
    cases: tuple[CaseMetrics, ...]
    tolerance: float
    titles = {
        "mean_Dice": "mean Dice",
        "mean_HD95_mm": "mean 95 % Hausdorff distance, mm",
        "mean_surface_Dice": "mean surface Dice",
    }

    def summary(self) -> str:
        """Return the metrics, one line each, and the rule for absent classes."""
        of = f" of {len(self.cases)} cases, means over {len(self.per_class)} classes of their means"
        if "mean_surface_Dice" in self.metrics:
            of += f"; surface Dice within {self.tolerance:g} mm"
        return "\n".join([super().summary(), of, f" {RULE}"])

    def class_rows(self) -> list[dict[str, Any]]:
        """Return a row per class: numbers of cases, then means, medians and standard deviations."""
        return [
            {
                **dict(zip(ClassCases._fields[:5], row[:5], strict=True)),  # name and counts
                **row.means,
                **{f"median_{name}": value for name, value in row.medians.items()},
                **{f"deviation_{name}": value for name, value in row.deviations.items()},
            }
            for row in self.per_class
        ]

    def class_table(self, most: int | None = None) -> str:
        """Return all classes as aligned text with a header: means ± standard deviations."""
        rows = []
        for row in self.per_class:
            counts = {"name": row.name, "cases": row.cases, "missed": row.missed, "invented": row.invented}
            means = {name: f"{mean:.3f} ± {row.deviations[name]:.3f}" for name, mean in row.means.items()}
            rows.append({**counts, **means})
        return class_table(rows, most)

    def worst_cases(self, count: int) -> list[str]:
        """Return the names of the cases with the lowest mean Dice over their classes, lowest first.

        Cases without a class in truth or prediction have no Dice and are not among them.

        Args:
            count: how many at most.
        """
        scores = {name: _mean([row["Dice"] for row in classes.values()]) for name, classes in self.cases}
        known = [name for name, score in scores.items() if not math.isnan(score)]
        return sorted(known, key=scores.__getitem__)[:count]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values for a JSON file; ``files.write_json`` writes NaN as null."""
        return {
            "cases": len(self.cases),
            "metrics": self.metrics,
            "surface_tolerance_mm": self.tolerance,
            "absent_classes": RULE,
            "classes": [row._asdict() for row in self.per_class],
            "per_case": [
                {"case": case, "class": name, **metrics}
                for case, classes in self.cases
                for name, metrics in classes.items()
            ],
        }

    def write_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write a table with a row per case and class, atomically.

        Columns: ``case``, ``class``, ``Dice``, ``HD95_mm``, ``surface_Dice`` (the last two if surfaces were
        measured), ``volume_ml`` and ``true_volume_ml`` (or ``area_mm2`` and ``true_area_mm2`` of 2D images).
        A metric that is not defined is left empty.

        Args:
            path: the file to write; missing parent folders are created.

        Raises:
            OSError: if the folder cannot be written.
        """
        present = {key for _, classes in self.cases for metrics in classes.values() for key in metrics}
        sizes = [key for pair in SIZES.items() for key in pair if key in present]
        columns = [*self.per_class[0].means, *(sizes or ["volume_ml", "true_volume_ml"])]
        rows = [
            [case, name, *(_cell(metrics.get(column)) for column in columns)]
            for case, classes in self.cases
            for name, metrics in classes.items()
        ]
        return write_csv(path, ["case", "class", *columns], rows)


def volume_result(
    class_names: Sequence[str], cases: Sequence[CaseMetrics], tolerance: float, surfaces: bool
) -> VolumeResult:
    """Compute the means over cases and classes.

    Args:
        class_names: of the classes or regions, at least one.
        cases: name of each case and its metrics by class.
        tolerance: in mm, of the surface Dice.
        surfaces: whether distances between surfaces were measured.
    """
    names = ("Dice", "HD95_mm", "surface_Dice") if surfaces else ("Dice",)
    cases = tuple(sorted(cases, key=lambda row: row[0]))
    per_class = tuple(_class_cases(name, cases, names) for name in class_names)
    metrics = {f"mean_{name}": _mean([row.means[name] for row in per_class]) for name in names}
    return VolumeResult(metrics, per_class, cases, tolerance)


def _class_cases(name: str, cases: Sequence[CaseMetrics], names: Sequence[str]) -> ClassCases:
    """Compute the metrics of these names of one class."""
    rows = [metrics[name] for _, metrics in cases]
    counted = [row for row in rows if not math.isnan(row["Dice"])]
    sizes = [(row[mine], row[true]) for row in counted for mine, true in SIZES.items() if mine in row]
    columns = {metric: [row[metric] for row in counted] for metric in names}
    return ClassCases(
        name=name,
        cases=len(counted),
        absent=len(rows) - len(counted),
        missed=sum(mine == 0 for mine, _ in sizes),
        invented=sum(true == 0 for _, true in sizes),
        means={metric: _mean(values) for metric, values in columns.items()},
        medians={metric: _of(np.median, values) for metric, values in columns.items()},
        deviations={metric: _of(np.std, values) for metric, values in columns.items()},
    )


def _cell(value: float | None) -> str:
    """Write a number with six digits, and nothing for one that is not defined."""
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def _of(function: Callable[[Sequence[float]], float], values: Sequence[float]) -> float:
    """Apply to numbers, NaN without any."""
    return float(function(values)) if len(values) else math.nan


def _mean(values: Iterable[float]) -> float:
    """Mean of the values that are defined, NaN if there are none."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan
