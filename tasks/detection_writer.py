"""Writes detections to disk: a COCO results file and overlay pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor

from ..data.io import read_image
from ..evaluation.files import write_json
from ..evaluation.pictures import draw_boxes, save_picture
from .distributed import gather_objects

# Labels would hide the objects of small images: their pictures are enlarged, by a whole factor, to this size.
SMALLEST_PICTURE = 320


class DetectionWriter(BasePredictionWriter):
    """Writes ``results.json`` (COCO results), ``images.json`` (id to file) and ``overlays/``.

    The results file is written once, whole, when all ranks are done; pictures appear as they are made.

    Args:
        folder: where to write; created where needed.
        pictures: whether to draw overlays.
        min_score: detections below this score are written to the results but not drawn.
    """

    def __init__(self, folder: Path, pictures: bool = True, min_score: float = 0.5) -> None:
        super().__init__(write_interval="batch")
        self.folder = Path(folder)
        self.pictures = pictures
        self.min_score = min_score
        self._results: list[dict[str, Any]] = []

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: list[dict[str, Any]],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        for found in prediction:
            self._results.extend(to_coco_results(found))
            if self.pictures:
                self._draw(
                    found, trainer.datamodule.predict_paths[found["image_id"]], pl_module.class_names()
                )

    def _draw(self, found: dict[str, Any], path: Path, names: list[str]) -> None:
        image = read_image(path)  # [h, w, 3]
        factor = -(-SMALLEST_PICTURE // min(image.shape[:2]))  # 1 for all but small images
        enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
        picture = draw_detections(enlarged, found, names, self.min_score, factor)
        # The id keeps files of one name in different folders apart.
        save_picture(self.folder / "overlays" / f"{path.stem}_{found['image_id']}.jpg", picture)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        results = [row for part in gather_objects(self._results) for row in part]
        self._results = []
        if not trainer.is_global_zero:
            return
        results.sort(key=lambda row: (row["image_id"], -row["score"]))
        paths = trainer.datamodule.predict_paths
        write_json(self.folder / "results.json", results)
        write_json(
            self.folder / "images.json",
            [{"id": image_id, "file_name": str(path)} for image_id, path in sorted(paths.items())],
        )
        print(f"{len(results)} detections on {len(paths)} images: {(self.folder / 'results.json').resolve()}")
        if self.pictures:
            print(f"overlay pictures: {(self.folder / 'overlays').resolve()}")


def to_coco_results(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Turn one image's detections into COCO results rows (box as x, y, width, height)."""
    boxes = found["boxes"].double().tolist()
    return [
        {
            "image_id": found["image_id"],
            "category_id": category_id,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for (x1, y1, x2, y2), score, category_id in zip(
            boxes, found["scores"].tolist(), found["category_ids"].tolist(), strict=True
        )
    ]


def draw_detections(
    image: np.ndarray,
    found: dict[str, Any],
    names: list[str],
    min_score: float,
    scale: Tensor | float,
    truth_boxes: Tensor | None = None,
) -> np.ndarray:
    """Draw one image's detections of at least ``min_score``.

    Args:
        image: ``[h, w, 3]`` uint8 RGB.
        found: as ``Detection.to_original`` gives it.
        names: one per class.
        min_score: in 0..1.
        scale: pixels of ``image`` per pixel of the original, one number or one per box coordinate.
        truth_boxes: ``[m, 4]`` in pixels of ``image``, or None.

    Returns:
        A new ``[h, w, 3]`` uint8 image.
    """
    kept = found["scores"] >= min_score
    classes = found["labels"][kept].tolist()
    return draw_boxes(
        image,
        found["boxes"][kept] * scale,
        [names[k] for k in classes],
        scores=found["scores"][kept],
        classes=classes,
        truth_boxes=truth_boxes,
    )
