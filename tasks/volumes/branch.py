"""Label volumes of a segmentation head: regions, metrics in mm on the scans' own grids, files, slices.

Letters in shapes: K classes, S spatial axes of a scan as it lies on disk (2 or 3).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...constants import IGNORE_INDEX
from ...data.scans.batches import EvaluationCase
from ...data.scans.formats.files import prediction_suffix, read_scan, write_labels
from ...data.scans.prepare.resample import count_labels
from ...data.scans.summary import far_spacing
from ...data.shared.module import TrunklineData, VolumeSettings
from ...data.shared.storage import Location
from ...evaluation.base import EvaluationContext, Evaluator, Prediction
from ...evaluation.distributed import gather_objects
from ...evaluation.files import write_csv, write_json
from ...evaluation.names import safe_name
from ...evaluation.pictures import save_picture
from ...evaluation.pictures.attempts import Attempts
from ...evaluation.pictures.volumes import slice_picture
from ...evaluation.volumes import VolumeEvaluator
from ..base.writer import FileWriter
from ..segmentation.branch import SegmentationBranch

logger = logging.getLogger("trunkline")


class VolumeBranch(SegmentationBranch):
    """Serves a segmentation head on scans; batches are whole cases.

    Metrics compare label volumes on the grid of the file, voxel by voxel as they were annotated. They are per
    region: every class except the first (the background), or what ``regions`` of the head or of the data
        names.

    Attributes:
        regions: labels of each region, by name.
        patch: voxels that the network was trained with.
        slice_axis: along which a 2D network goes through volumes.
        spacing: mm between voxels, per axis of prepared scans, that the network was trained with; empty if
            not known.
    """

    kind = "volumes"
    takes_regions = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.regions: dict[str, tuple[int, ...]] = {}
        self.patch: list[int] = []
        self.slice_axis: int | None = None
        self.spacing: list[float] = []
        self._attempts = Attempts()
        self._folder: Path | None = None  # of the pictures of the evaluation at hand
        self._far: set[str] = set()  # cases of which was said that their voxels are unlike those of training
        self._labels: np.ndarray | None = None  # [256], label of the checkpoint for each label of the data

    def default_evaluators(self, **options: Any) -> list[Evaluator]:
        return [VolumeEvaluator(**options)]

    # -- what the data say

    def prepare(self, data: TrunklineData, stage: str, fitting: bool = False) -> None:
        super().prepare(data, stage, fitting)
        settings = data.volume_settings()
        regions = settings.regions
        if self._labels is not None:  # the data number their labels in another way
            regions = {name: self._labels[list(labels)].tolist() for name, labels in regions.items()}
        self.regions = self.named_regions(regions) or self.regions
        self.patch = [int(size) for size in settings.patch] or self.patch
        self.spacing = [float(mm) for mm in settings.spacing] or self.spacing
        if stage == "fit":
            self.slice_axis = settings.slice_axis
            self._compare_written(settings)

    def _compare_written(self, settings: VolumeSettings) -> None:
        """Say where the head writes a region as another label than the dataset does."""
        label_of = {frozenset(settings.regions[name]): k for name, k in settings.region_labels.items()}
        ids = self.ids()
        for labels, written in zip(self.head.regions or (), self.head.region_labels or (), strict=True):
            wanted = label_of.get(frozenset(labels), written)
            if wanted != written:
                logger.warning(
                    "region %s is written as id %d, but the dataset (regions_class_order) writes it as %d; "
                    "set %s.region_labels to write it so",
                    _joined(self.class_names, labels), ids[written], ids[wanted], self.option,
                )  # fmt: skip

    def named_regions(self, known: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """Return the labels of each region that is evaluated, by name.

        Args:
            known: the data's regions, which name those of the head.
        """
        if self.head.regions:
            names = {frozenset(labels): name for name, labels in known.items()}
            return {
                names.get(frozenset(r), _joined(self.class_names, r)): tuple(r) for r in self.head.regions
            }
        found = {name: tuple(labels) for name, labels in known.items()}
        return found or {name: (k,) for k, name in enumerate(self.class_names) if k}

    def state(self) -> dict[str, Any]:
        regions = {name: list(labels) for name, labels in self.regions.items()}
        known = {"regions": regions, "patch": self.patch, "slice_axis": self.slice_axis}
        return {**super().state(), **known, "spacing": self.spacing}

    def restore(self, state: dict[str, Any], predicting: bool) -> None:
        super().restore(state, predicting)
        stored = {name: tuple(labels) for name, labels in state.get("regions", {}).items()}
        if predicting or not self.regions or self._labels is not None:
            self.regions = stored or self.regions
        self.spacing = state.get("spacing") or self.spacing
        self.patch = self.patch or state.get("patch", [])
        self.slice_axis = state.get("slice_axis") if self.slice_axis is None else self.slice_axis

    def adopt(self, classes: list[dict[str, Any]]) -> None:
        """Take over the data's classes; an evaluation may have the checkpoint's under other ids.

        Raises:
            ValueError: as that of the base class.
        """
        self._labels = None
        known, given = ([row["name"] for row in rows] for rows in (self.classes, classes))
        ids = [[row["id"] for row in rows] for rows in (self.classes, classes)]
        same = sorted(known) == sorted(given) and len(set(given)) == len(given)
        if self.fitting or not same or (known == given and ids[0] == ids[1]):
            super().adopt(classes)
            return
        logger.info("the classes of the data have other ids than those of the checkpoint: matched by name")
        self._labels = np.full(256, IGNORE_INDEX, dtype=np.uint8)
        self._labels[: len(given)] = [known.index(name) for name in given]

    # -- metrics

    def _as_trained(self, batch: Any) -> Any:
        """Return a batch whose truth has the labels of the checkpoint."""
        if self._labels is None or batch.truth is None:
            return batch
        truth = self._labels[batch.truth]
        return EvaluationCase(batch.image, batch.placement, batch.case, truth, batch.image_ids)

    def compare_spacing(self, batch: Any) -> None:
        """Say once of each case if its voxels are far from those that the network was trained with."""
        name = batch.case.name
        if batch.placement is not None and name not in self._far:
            text = far_spacing(batch.placement, self.spacing)
            if text is not None:
                self._far.add(name)
                logger.warning("%s: %s", batch.case.images[0], text)

    def context(self) -> EvaluationContext:
        return replace(super().context(), regions=self.regions or self.named_regions({}))

    def reset(self, folder: Path | None = None) -> None:
        super().reset(folder)
        self._folder = None if folder is None or self.fitting else folder / "pictures"

    def update(self, predictions: Sequence[Prediction], batch: Any) -> None:
        self.compare_spacing(batch)
        super().update(predictions, self._as_trained(batch))
        if self._folder is not None:
            for prediction in predictions:
                self._attempts.attempt(batch.case.name, partial(self._save_slices, prediction, batch))

    def _save_slices(self, prediction: Prediction, batch: Any) -> None:
        name = f"{safe_name(batch.case.name)}.jpg"
        save_picture(cast(Path, self._folder) / name, self._slices(prediction, batch))

    def write_report(self, folder: Path) -> dict[str, Path]:
        self._attempts.finish()
        written = super().write_report(folder)
        if self._folder is not None and self._folder.exists():
            written["pictures of slices"] = self._folder
        return written

    # -- pictures and files

    def _slices(self, prediction: Prediction, batch: Any) -> np.ndarray:
        """Draw the middle and the worst slice of a scan with contours: ``[h, w, 3]`` uint8."""
        scan = read_scan(batch.case.images[0])
        return slice_picture(
            scan.voxels[0],
            prediction["mask"],
            self._as_trained(batch).truth,
            self.class_names,
            self.colours(),
            scan.grid.spacing,
            affine=scan.grid.affine,
        )

    def picture_title(self, batch: Any, index: int) -> str:
        return batch.case.name

    def evaluation_picture(
        self, prediction: Prediction, batch: Any, index: int, min_score: float
    ) -> np.ndarray | None:
        return self._slices(prediction, batch)

    def prediction_picture(
        self, prediction: Prediction, path: Location, batch: Any, min_score: float
    ) -> tuple[str, np.ndarray] | None:
        return None if "error" in prediction else (batch.case.name, self._slices(prediction, batch))

    def file_writer(self, folder: Path, min_score: float, pictures: bool) -> FileWriter:
        return VolumeFiles(folder, self)


class VolumeFiles(FileWriter):
    """Writes ``labels/NAME.nii.gz`` (or the scan's own format) and tables.

    A label volume has the shape, the affine and the number type of its scan, and the ids of the training
    data. ``predictions.csv`` lists how large every region is, ``classes.csv`` what the ids mean,
    ``cases.json`` which scan belongs to which name.

    Args:
        folder: where to write; created where needed.
        branch: of the head.
    """

    def __init__(self, folder: Path, branch: VolumeBranch) -> None:
        self.folder = folder
        self.branch = branch
        self._rows: list[tuple[str, str, int, float]] = []
        self._flat = False  # whether scans were 2D images
        self._failed: set[str] = set()
        self._cases: dict[str, list[str]] = {}

    def add(self, prediction: Prediction, path: Location, batch: Any, index: int) -> None:
        name, scan = batch.case.name, batch.case.images[0]
        self._cases[name] = [str(image) for image in batch.case.images]
        if "error" in prediction:
            self._failed.add(name)
            return
        self.branch.compare_spacing(batch)
        target = self.folder / "labels" / f"{safe_name(name)}{prediction_suffix(scan)}"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_labels(target, self.branch.ids()[prediction["mask"]], like=scan)
        self._rows += self._sizes(name, prediction["mask"], batch.placement.grid.voxel)

    def _sizes(self, case: str, mask: np.ndarray, each: float) -> list[tuple[str, str, int, float]]:
        voxels = count_labels(mask)
        self._flat |= mask.ndim == 2
        unit = 1 if mask.ndim == 2 else 1000  # mm^3 in a ml
        return [
            (case, name, int(number), round(number * each / unit, 4))
            for name, labels in self.branch.regions.items()
            for number in [voxels[list(labels)].sum()]
        ]

    def finish(self, first_process: bool) -> str:
        parts = gather_objects((self._rows, self._failed, self._flat, self._cases))
        if not first_process:
            return ""
        # With more processes than scans some are there twice.
        rows = sorted({row for sizes, _, _, _ in parts for row in sizes})
        failed = {name for _, names, _, _ in parts for name in names}
        cases = {name: images for *_, known in parts for name, images in known.items()}
        size = "mm2" if any(flat for _, _, flat, _ in parts) else "ml"
        write_csv(self.folder / "predictions.csv", ["case", "region", "voxels", size], rows)
        known = zip(self.branch.ids(), self.branch.class_names, strict=True)
        write_csv(self.folder / "classes.csv", ["id", "name"], [list(row) for row in known])
        listed = [{"case": name, "images": images} for name, images in sorted(cases.items())]
        write_json(self.folder / "cases.json", listed)
        done = len(cases) - len(failed)
        return f"label volumes of {done} of {len(cases)} scans: {(self.folder / 'labels').resolve()}"


def _joined(names: Sequence[str], labels: Sequence[int]) -> str:
    return "+".join(names[k] for k in labels)
