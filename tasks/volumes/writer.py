"""Writes the label volumes that a task predicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter

from ...data.scans.formats.files import prediction_suffix, write_labels
from ...data.scans.prepare.resample import count_labels
from ...evaluation.distributed import gather_objects
from ...evaluation.files import write_csv, write_json
from ...evaluation.pictures.boxes import save_picture
from ..base.branch import Found, require_writable
from .branch import VolumeBranch


class VolumeWriter(BasePredictionWriter):
    """Writes ``labels/NAME.nii.gz`` (or the scan's own format), ``slices/NAME.jpg`` and tables.

    A label volume has the shape, the affine and the number type of its scan, and the ids of the training
    data. ``volumes.csv`` lists how large every region is, ``classes.csv`` what the ids mean, ``cases.json``
    which scan belongs to which name, ``failed.csv`` the scans that could not be read.

    Args:
        folder: where to write; created where needed.
        branch: of the head.
        pictures: whether to draw slices.
    """

    def __init__(self, folder: Path, branch: VolumeBranch, pictures: bool = True) -> None:
        super().__init__(write_interval="batch")
        self.folder = Path(folder)
        self.branch = branch
        self.pictures = pictures
        self._rows: list[tuple[str, str, int, float]] = []
        self._flat = False  # whether scans were pictures
        self._failed: list[tuple[str, str, str]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out before the work whether its result can be written.

        Raises:
            OSError: if the folder, or one above it, is a file or may not be written to.
        """
        require_writable(self.folder)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: list[Found],
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if batch.error is not None:
            self._failed.append((batch.case.name, batch.case.images[0], batch.error))
            return
        scan = batch.case.images[0]
        for found in prediction:
            ids = self.branch.ids()[found["mask"]]
            path = self.folder / "labels" / f"{batch.case.name}{prediction_suffix(scan)}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_labels(path, ids, like=scan)
            self._rows += self._sizes(batch.case.name, found["mask"], batch.placement.grid.voxel)
            if self.pictures:
                save_picture(
                    self.folder / "slices" / f"{batch.case.name}.jpg", self.branch.picture(found, batch)
                )

    def _sizes(self, case: str, mask: np.ndarray, each: float) -> list[tuple[str, str, int, float]]:
        voxels = count_labels(mask)
        self._flat |= mask.ndim == 2
        unit = 1 if mask.ndim == 2 else 1000  # mm^3 in a ml
        return [
            (case, name, int(number), round(number * each / unit, 4))
            for name, labels in self.branch.regions.items()
            for number in [voxels[list(labels)].sum()]
        ]

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the tables.

        Raises:
            ValueError: at the end of all, if there were scans that could not be read.
        """
        parts = gather_objects((self._rows, self._failed, self._flat))
        # With more processes than scans some are there twice.
        rows = sorted({row for some, _, _ in parts for row in some})
        failed = sorted({case for _, some, _ in parts for case in some})
        cases = trainer.datamodule.predict_cases
        if trainer.is_global_zero:
            size = "mm2" if any(flat for _, _, flat in parts) else "ml"
            self._write_tables(rows, failed, cases, size)
        if failed:
            listed = "".join(f"\n  {name}: {error}" for name, _, error in failed[:20])
            raise ValueError(
                f"{len(failed)} of {len(cases)} scans could not be segmented (all of them are in "
                f"{(self.folder / 'failed.csv').resolve()}; the others are done):{listed}"
            )

    def _write_tables(
        self, rows: list[tuple[Any, ...]], failed: list[tuple[str, ...]], cases: Sequence[Any], size: str
    ) -> None:
        write_csv(self.folder / "volumes.csv", ["case", "region", "voxels", size], rows)
        known = zip(self.branch.ids(), self.branch.class_names(), strict=True)
        write_csv(self.folder / "classes.csv", ["id", "name"], [list(row) for row in known])
        (self.folder / "failed.csv").unlink(missing_ok=True)
        if failed:
            write_csv(self.folder / "failed.csv", ["case", "scan", "error"], failed)
        write_json(self.folder / "cases.json", [{"case": c.name, "images": list(c.images)} for c in cases])
        done = len(cases) - len(failed)
        print(f"label volumes of {done} of {len(cases)} scans: {(self.folder / 'labels').resolve()}")
        if self.pictures and done:
            print(f"pictures of slices: {(self.folder / 'slices').resolve()}")
