"""The metrics of segmented scans: per case and class, in mm and ml.

Letters in shapes: S spatial axes of one scan (2 or 3), n their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from ...constants import IGNORE_INDEX
from ..base import EvaluationContext, Evaluator, Prediction
from ..distributed import gather_objects
from .result import CaseMetrics, VolumeResult, volume_result
from .surfaces import longest_diagonal, sheared, surface_distances


def case_metrics(
    predicted: ArrayLike | Tensor,
    truth: ArrayLike | Tensor,
    regions: Mapping[str, Sequence[int]],
    spacing: Sequence[float],
    tolerance: float = 1.0,
    surfaces: bool = True,
    voxel: float | None = None,
    axes: ArrayLike | None = None,
) -> dict[str, dict[str, float]]:
    """Compare the prediction of one scan with the truth.

    Voxels that the truth ignores are taken out of both, as if nothing were there. The metrics are those of
    MONAI's ``compute_dice``, ``compute_hausdorff_distance`` (95th percentile) and ``compute_surface_dice``
    (voxels of the surfaces, without sub-voxels), see :func:`.surfaces.surface_distances`.

    A class that is absent from truth and prediction has no metric: NaN, left out of every mean. One that is
    absent from only one of the two has Dice 0 and surface Dice 0, and as HD95 the diagonal of the scan. So a
    missed organ makes the mean worse, and the mean stays finite.

    Args:
        predicted: ``[*S]`` uint8 labels.
        truth: ``[*S]`` uint8 labels, 255 where a voxel is ignored.
        regions: the labels, 0..254, of each class by its name; they may overlap. Mostly there is one each.
        spacing: n voxel sizes in mm.
        tolerance: distance in mm up to which a surface counts as met.
        surfaces: whether to measure distances between surfaces, which takes most of the time.
        voxel: mm^3 (mm^2 of two axes) of a voxel; None for the product of the sizes.
        axes: ``[3, n]`` mm, the step in the world from a voxel to the next along each axis (the affine's
            first columns); None for right angles.

    Returns:
        For each region ``Dice``, ``HD95_mm`` and ``surface_Dice`` (these two with ``surfaces``), and
        ``volume_ml`` and ``true_volume_ml``; for two axes ``area_mm2`` and ``true_area_mm2``.

    Raises:
        ValueError: if shapes, types, sizes or regions are not as above.
    """
    _check_regions(regions)
    _check_tolerance(tolerance)
    labels, wanted, sizes = _checked(predicted, truth, spacing)
    kept = None if (wanted != IGNORE_INDEX).all() else wanted != IGNORE_INDEX
    steps = _sheared_axes(axes, labels.ndim)
    diagonal = longest_diagonal(labels.shape, sizes, steps)
    unit, names = math.prod(sizes) if voxel is None else voxel, ("area_mm2", "true_area_mm2")
    if labels.ndim == 3:
        unit, names = unit / 1000, ("volume_ml", "true_volume_ml")
    result: dict[str, dict[str, float]] = {}
    for name, values in regions.items():
        table = np.zeros(256, dtype=bool)
        table[list(values)] = True
        mine, true = table[labels], table[wanted]
        if kept is not None:
            mine &= kept
        counts = int(np.count_nonzero(mine)), int(np.count_nonzero(true))
        result[name] = {"Dice": _dice(mine, true, sum(counts))}
        if surfaces:
            result[name] |= _surface_metrics(mine, true, counts, sizes, steps, tolerance, diagonal)
        result[name] |= {key: count * unit for key, count in zip(names, counts, strict=True)}
    return result


class VolumeEvaluator(Evaluator):
    """Collects the metrics of cases and their means.

    Args:
        regions: the labels of each class by its name, see :func:`case_metrics`; None for those of the
            context, from ``prepare``.
        tolerance: distance in mm up to which a surface counts as met, for the surface Dice.
        surfaces: whether to measure distances between surfaces (HD95 and surface Dice), which take most of
            the time; None for all evaluations but those of a training.

    Raises:
        ValueError: if regions or tolerance are not as above.
    """

    headline = "mean_Dice"

    def __init__(
        self,
        regions: Mapping[str, Sequence[int]] | None = None,
        tolerance: float = 1.0,
        surfaces: bool | None = None,
    ) -> None:
        _check_tolerance(tolerance)
        self._given = regions, surfaces
        self.regions: dict[str, tuple[int, ...]] = {}
        self.tolerance = tolerance
        self.surfaces = surfaces is not False
        self.reset()
        if regions is not None:
            self.prepare(EvaluationContext(class_names=()))

    def prepare(self, context: EvaluationContext) -> None:
        """Take the regions of the context, and whether a training goes on, where the constructor had None.

        Raises:
            ValueError: without a region, or with one that is not as above.
        """
        regions, surfaces = self._given
        regions = context.regions if regions is None else regions
        _check_regions(regions)
        self.regions = {name: tuple(labels) for name, labels in regions.items()}
        self.surfaces = not context.fitting if surfaces is None else surfaces
        self.reset()

    def reset(self) -> None:
        """Forget all cases."""
        self._cases: dict[str, dict[str, dict[str, float]]] = {}

    def __len__(self) -> int:
        """Number of cases added."""
        return len(self._cases)

    def update(self, predictions: Sequence[Prediction], batch: Any) -> None:
        """Add the ``mask`` of the case of a batch, on the grid of the file, see :meth:`add`."""
        grid = batch.placement.grid
        for each in predictions:
            axes = grid.affine[:3, : len(grid.shape)]
            self.add(batch.case.name, each["mask"], batch.truth, grid.spacing, grid.voxel, axes)

    def add(
        self,
        case: str,
        predicted: ArrayLike | Tensor,
        truth: ArrayLike | Tensor,
        spacing: Sequence[float],
        voxel: float | None = None,
        axes: ArrayLike | None = None,
    ) -> None:
        """Add a case; one of that name that was added before stays, and this one is left out.

        Args:
            case: its name.
            predicted: ``[*S]`` uint8 labels.
            truth: ``[*S]`` uint8 labels, 255 where a voxel is ignored.
            spacing: n voxel sizes in mm.
            voxel: see :func:`case_metrics`, as for ``axes``.
            axes: None for right angles.

        Raises:
            ValueError: if shapes or types do not fit; names the case.
        """
        if case in self._cases:
            return
        try:
            metrics = case_metrics(
                predicted, truth, self.regions, spacing, self.tolerance, self.surfaces, voxel, axes
            )
        except ValueError as error:
            raise ValueError(f"{case}: {error}") from error
        self._cases[case] = metrics

    def rows(self) -> list[CaseMetrics]:
        """Return the metrics of the cases as plain values, to be exchanged between processes."""
        return list(self._cases.items())

    def merge(self, parts: Sequence[Sequence[CaseMetrics]]) -> None:
        """Go on with what :meth:`rows` returned in all processes instead; a case in several counts once."""
        self.reset()
        for part in parts:
            for case, metrics in part:
                self._cases.setdefault(case, metrics)

    def gather(self) -> None:
        """Take the cases of all processes; one in several counts as in the lowest rank."""
        self.merge(gather_objects(self.rows()))

    def compute(self) -> VolumeResult:
        """Compute the means over the cases added so far; all metrics are NaN without any."""
        return volume_result(list(self.regions), self.rows(), self.tolerance, self.surfaces)

    def write(  # type: ignore[override]  # its own results
        self, result: VolumeResult, folder: Path
    ) -> dict[str, Path]:
        """Write ``cases.csv``, a row per case and class, see ``VolumeResult.write_csv``."""
        return {"cases": result.write_csv(folder / "cases.csv")}


def _check_regions(regions: Mapping[str, Sequence[int]]) -> None:
    """Raise a ValueError unless there are regions, with labels in 0..254."""
    if not regions:
        raise ValueError("regions is empty; an evaluation needs at least one class")
    for name, labels in regions.items():
        if not len(labels) or not all(0 <= label < IGNORE_INDEX for label in labels):
            raise ValueError(
                f"region {name!r} has the labels {list(labels)}; it needs at least one, all within 0..254"
            )


def _check_tolerance(tolerance: float) -> None:
    """Raise a ValueError unless it is a length."""
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance must be a length of 0 mm or more, got {tolerance}")


def _checked(
    predicted: ArrayLike | Tensor, truth: ArrayLike | Tensor, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Return arrays and voxel sizes as :func:`case_metrics` needs them."""
    arrays = []
    for name, labels in (("prediction", predicted), ("truth", truth)):
        array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            raise ValueError(
                f"the {name} must hold uint8 labels along 2 or 3 axes, got {list(array.shape)} {array.dtype}"
            )
        arrays.append(array)
    predictions, wanted = arrays
    if predictions.shape != wanted.shape:
        raise ValueError(
            f"prediction and truth differ in shape: {list(predictions.shape)} and {list(wanted.shape)}"
        )
    sizes = [float(size) for size in spacing]
    if len(sizes) != predictions.ndim or not all(math.isfinite(size) and size > 0 for size in sizes):
        raise ValueError(f"spacing must be {predictions.ndim} voxel sizes above 0 mm, got {sizes}")
    return predictions, wanted, sizes


def _sheared_axes(axes: ArrayLike | None, count: int) -> np.ndarray | None:
    """Return the axes if they are not at right angles, else None."""
    if axes is None:
        return None
    steps = np.asarray(axes, dtype=np.float64)
    if steps.shape != (3, count) or not np.isfinite(steps).all() or not steps.any(axis=0).all():
        raise ValueError(f"axes must be a step of 3 mm numbers for each of the {count} axes, got {axes}")
    return steps if sheared(steps) else None


def _dice(mine: np.ndarray, true: np.ndarray, total: int) -> float:
    """Twice the common voxels by all; NaN without any."""
    return 2 * int(np.count_nonzero(mine & true)) / total if total else math.nan


def _surface_metrics(
    mine: np.ndarray,
    true: np.ndarray,
    counts: tuple[int, int],
    sizes: Sequence[float],
    axes: np.ndarray | None,
    tolerance: float,
    diagonal: float,
) -> dict[str, float]:
    """HD95 and surface Dice of two masks, given their numbers of voxels, by the rule for absent classes."""
    if not any(counts):
        return {"HD95_mm": math.nan, "surface_Dice": math.nan}
    if not all(counts):
        return {"HD95_mm": diagonal, "surface_Dice": 0.0}
    distances = surface_distances(mine, true, sizes, axes)
    return {"HD95_mm": distances.hausdorff(), "surface_Dice": distances.dice(tolerance)}
