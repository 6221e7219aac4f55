"""Boxes of one detection head: categories, COCO figures, results file and drawing.

Letters in shapes: B images, D detections per image, h w height and width of a picture in pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...evaluation.detection.evaluator import CocoEvaluator
from ...evaluation.distributed import gather_objects
from ...evaluation.files import write_json
from ...evaluation.pictures.boxes import draw_boxes
from ...heads.base import Head
from ...heads.classification import Classifier
from ...heads.segmentation.base import SegmentationHead
from ..base.branch import Branch, FileWriter, Found


class DetectionBranch(Branch):
    """Serves a detection head; its batches have ``image_ids``, ``image_sizes`` and ``original_sizes``.

    Args:
        head: gives fixed rows of boxes with a count per image.
        backend: of the COCO figures, ``faster`` or ``pycocotools``.
        option: where the head's settings are.
    """

    noun = "categories"
    annotations = "categories"
    headline = "AP"

    def __init__(self, head: Head, backend: str = "faster", option: str = "model.head") -> None:
        if isinstance(head, Classifier | SegmentationHead):
            kind = type(head).__name__
            raise ValueError(f"{option} is a {kind}, which is no head for boxes (FasterRCNN is one)")
        super().__init__(head, option)
        self.backend = backend
        self._evaluator: CocoEvaluator | None = None

    def classes_of(self, data: Any) -> list[dict[str, Any]]:
        return [{"id": c.id, "name": c.name} for c in getattr(data, "categories", None) or ()]

    def label_of(self, known: dict[str, Any]) -> str:
        return f"{known['id']} {known['name']}"

    def prepare(self, data: Any, stage: str) -> None:
        super().prepare(data, stage)
        index = getattr(data, "test_index" if stage == "test" else "val_index", None)
        if stage != "predict" and index is not None:
            self._evaluator = CocoEvaluator(index.as_coco(), backend=self.backend)

    def category_ids(self, labels: Tensor) -> Tensor:
        """Turn class indices into the annotation file's category ids; 1..K where no categories are known."""
        known = [category["id"] for category in self.classes]
        known += [max(known, default=0) + 1 + extra for extra in range(self.head.num_classes - len(known))]
        return torch.tensor(known, dtype=torch.int64)[labels]

    # -- predictions and figures

    def predictions(self, raw: Any, batch: Any) -> list[Found]:
        return self.to_original(self.head.predict(raw, batch.image_sizes), batch)

    def to_original(self, detections: Any, batch: Any) -> list[Found]:
        """Scale boxes from canvas pixels to the original images' pixels and drop empty rows; on the CPU.

        Returns:
            One dictionary per image: ``image_id``, ``size``, ``boxes``, ``scores``, ``labels`` (class
            indices) and ``category_ids``.
        """
        height, width = (batch.original_sizes / batch.image_sizes).unbind(1)  # [B] each
        scale = torch.stack([width, height, width, height], 1)[:, None]  # [B, 1, 4]
        boxes = (detections.boxes.float() * scale).cpu()  # [B, D, 4]
        scores, labels, counts = detections.scores.cpu(), detections.labels.cpu(), detections.count.tolist()
        rows = {"boxes": boxes, "scores": scores, "labels": labels, "category_ids": self.category_ids(labels)}
        images = zip(batch.image_ids.tolist(), batch.original_sizes.tolist(), counts, strict=True)
        found = []
        for i, (image_id, size, n) in enumerate(images):
            kept = {name: values[i, :n] for name, values in rows.items()}
            found.append({"image_id": image_id, "size": tuple(size), **kept})
        return found

    def reset(self) -> None:
        if self._evaluator is not None:
            self._evaluator.reset()

    def evaluate(self, found: list[Found], batch: Any) -> None:
        if self._evaluator is not None:
            for each in found:
                self._evaluator.add(each["image_id"], each["boxes"], each["scores"], each["category_ids"])

    def gather(self) -> None:
        if self._evaluator is not None:
            self._evaluator.gather()

    def compute(self) -> dict[str, float]:
        if self._evaluator is None:
            return {}
        self.result = self._evaluator.compute()
        return self.result.figures

    # -- pictures and files

    def draw(self, picture: np.ndarray, found: Found, min_score: float) -> np.ndarray:
        return self._draw(picture, found, min_score)

    def compare(
        self, picture: np.ndarray, found: Found, batch: Any, index: int, min_score: float
    ) -> np.ndarray:
        real = (batch.labels[index] >= 0).cpu()
        return self._draw(picture, found, min_score, batch.boxes[index].cpu()[real])

    def _draw(
        self, picture: np.ndarray, found: Found, min_score: float, truth_boxes: Tensor | None = None
    ) -> np.ndarray:
        """Draw the detections of at least ``min_score``; truth boxes are in pixels of ``picture``."""
        kept = found["scores"] >= min_score
        classes, names = found["labels"][kept].tolist(), self.class_names()
        scale = torch.tensor([picture.shape[1] / found["size"][1], picture.shape[0] / found["size"][0]] * 2)
        return draw_boxes(
            picture,
            found["boxes"][kept] * scale,
            [names[k] for k in classes],
            scores=found["scores"][kept],
            classes=classes,
            truth_boxes=truth_boxes,
        )

    def file_writer(self, folder: Path) -> FileWriter:
        return DetectionFiles(folder)


class DetectionFiles(FileWriter):
    """Writes ``results.json`` (COCO results), once, when all processes are done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._results: list[dict[str, Any]] = []
        self._images = 0

    def begin(self, paths: dict[int, Path]) -> None:
        self._images = len(paths)

    def add(self, found: Found, path: Path) -> None:
        self._results.extend(to_coco_results(found))

    def finish(self, first_process: bool) -> str:
        results = [row for part in gather_objects(self._results) for row in part]
        self._results = []
        if not first_process:
            return ""
        results.sort(key=lambda row: (row["image_id"], -row["score"]))
        path = write_json(self.folder / "results.json", results)
        return f"{len(results)} detections on {self._images} images: {path.resolve()}"


def to_coco_results(found: Found) -> list[dict[str, Any]]:
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
