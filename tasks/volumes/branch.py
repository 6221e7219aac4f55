"""Label volumes of a segmentation head: regions, figures in mm on the scans' own grids, pictures of slices.

Letters in shapes: K classes, S spatial axes of a scan as it lies on disk (2 or 3).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...data.scans.formats.files import read_scan
from ...evaluation.distributed import gather_objects
from ...evaluation.files import write_json
from ...evaluation.pictures.boxes import save_picture
from ...evaluation.pictures.volumes import slice_picture
from ...evaluation.volumes.evaluator import VolumeEvaluator
from ...heads.base import Head
from ..base.branch import FileWriter, Found
from ..segmentation.branch import SegmentationBranch

logger = logging.getLogger("trunkline")


class VolumeBranch(SegmentationBranch):
    """Serves a segmentation head on scans.

    Figures compare label volumes on the grid of the file, voxel by voxel as they were annotated, per region:
    every class but the first (the background), or what ``regions`` of the head or of the data names.

    Args:
        head: a segmentation head.
        tolerance: of the surface Dice, in mm.

    Attributes:
        regions: labels of each region, by name.
        patch: voxels that the network was trained with.
        slice_axis: along which a network for pictures goes through volumes.
        surfaces: whether to compute surface distances, which take longer than all other figures.
        folder: where to put a picture of every evaluated scan, or None.
    """

    headline = "mean_Dice"

    def __init__(self, head: Head, tolerance: float = 1.0) -> None:
        self.tolerance = tolerance
        self.regions: dict[str, tuple[int, ...]] = {}
        self.patch: list[int] = []
        self.slice_axis: int | None = None
        self.surfaces = True
        self.folder: Path | None = None
        super().__init__(head)

    # -- what the data says

    def require_kind(self, data: Any) -> None:
        if not hasattr(data, "slice_axis"):
            raise ValueError(
                f"VolumeSegmentation segments scans, which {type(data).__name__} does not read; set --data "
                "to ScanSegmentation, or --model to SemanticSegmentation"
            )

    def prepare(self, data: Any, stage: str) -> None:
        super().prepare(data, stage)
        self.regions = self.named_regions(getattr(data, "regions", None) or {}) or self.regions
        self.patch = [int(size) for size in data.patch or ()] or self.patch
        if stage == "fit":
            self.slice_axis = data.slice_axis

    def named_regions(self, known: dict[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """Return the labels of each region that is evaluated, by name.

        Args:
            known: the data's regions, which name those of the head.
        """
        known = {name: tuple(labels) for name, labels in known.items()}
        if self.head.regions:
            names = {frozenset(labels): name for name, labels in known.items()}
            return {
                names.get(frozenset(r), _joined(self.class_names(), r)): tuple(r) for r in self.head.regions
            }
        return known or {name: (k,) for k, name in enumerate(self.class_names()) if k}

    def state(self) -> dict[str, Any]:
        regions = {name: list(labels) for name, labels in self.regions.items()}
        return {**super().state(), "regions": regions, "patch": self.patch, "slice_axis": self.slice_axis}

    def restore(self, state: dict[str, Any], predicting: bool) -> None:
        super().restore(state, predicting)
        stored = {name: tuple(labels) for name, labels in state.get("regions", {}).items()}
        if predicting or not self.regions:
            self.regions = stored or self.regions
        self.patch = self.patch or state.get("patch", [])
        self.slice_axis = state.get("slice_axis") if self.slice_axis is None else self.slice_axis

    # -- figures

    def reset(self) -> None:
        regions = self.regions or self.named_regions({})
        self._evaluator = VolumeEvaluator(regions, tolerance=self.tolerance, surfaces=self.surfaces)

    def evaluate(self, found: list[Found], batch: Any) -> None:
        for each in found:
            grid = batch.placement.grid
            self._evaluator.add(batch.case.name, each["mask"], batch.truth, grid.spacing, grid.voxel)

    def gather(self) -> None:
        self._evaluator.merge(gather_objects(self._evaluator.rows()))

    def write_report(self, folder: Path, stage: str) -> dict[str, Path]:
        table = folder / f"{stage}_cases.csv"
        self.result.write_csv(table)
        written = {
            "figures": write_json(folder / f"{stage}_figures.json", self.result.as_dict()),
            "cases": table,
        }
        if self.folder is not None and self.folder.exists():
            written["pictures of slices"] = self.folder
        return written

    # -- pictures and files

    def picture(self, found: Found, batch: Any) -> np.ndarray:
        """Draw the middle and the worst slice of a scan with contours: ``[h, w, 3]`` uint8."""
        scan = read_scan(batch.case.images[0])
        return slice_picture(
            scan.voxels[0],
            found["mask"],
            batch.truth,
            self.class_names(),
            self.colours(),
            scan.grid.spacing,
            affine=scan.grid.affine,
        )

    def save_pictures(self, found: list[Found], batch: Any) -> None:
        """Write a picture of every scan to ``folder``, if there is one."""
        if self.folder is not None:
            for each in found:
                save_picture(self.folder / f"{batch.case.name}.jpg", self.picture(each, batch))

    def file_writer(self, folder: Path) -> FileWriter:
        raise NotImplementedError("volumes are written by VolumeWriter")


def _joined(names: Sequence[str], labels: Sequence[int]) -> str:
    return "+".join(names[k] for k in labels)
