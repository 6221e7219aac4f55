"""Boxes of one detection head: category ids, COCO metrics, results file and drawing.

Letters in shapes: B images, D detections per image, h w height and width of an image in pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.shared.labels import LabelClass
from ...data.shared.module import TrunklineData
from ...data.shared.storage import Location
from ...evaluation.base import Evaluator, Prediction
from ...evaluation.detection import CocoEvaluator
from ...evaluation.distributed import gather_objects
from ...evaluation.files import write_json
from ...evaluation.pictures.boxes import draw_boxes
from ..base.branch import Branch
from ..base.transfer import to_main_memory
from ..base.writer import FileWriter

logger = logging.getLogger("trunkline")


class DetectionBranch(Branch):
    """Serves a detection head; its batches have ``image_ids``, ``image_sizes`` and ``original_sizes``."""

    kind = "detection"
    _data: TrunklineData | None = None
    _stage: str = ""
    _written_ids: list[int] | None = None

    def default_evaluators(self, **options: Any) -> list[Evaluator]:
        return [CocoEvaluator(**options)]

    def prepare(self, data: TrunklineData, stage: str, fitting: bool = False) -> None:
        """Take over what the data say; classes of other ids than the checkpoint's are matched by name."""
        self._data, self._stage, self._written_ids = data, stage, None
        super().prepare(data, stage, fitting)
        if stage == "predict":
            self._written_ids = written_ids(self.classes, data.prediction_classes(self.kind, self.name))

    def restore(self, state: dict[str, Any], predicting: bool) -> None:
        super().restore(state, predicting)
        if predicting and self._data is not None:
            self._written_ids = written_ids(self.classes, self._data.prediction_classes(self.kind, self.name))

    def adopt(self, classes: list[dict[str, Any]]) -> None:
        known = [LabelClass(row["id"], row["name"]) for row in self.classes]
        differ = known and [(row["id"], row["name"]) for row in classes] != [row[:2] for row in known]
        if differ and self._data is not None and self._data.take_classes(self.kind, known, self.name):
            classes = self.classes_of(self._data)
            if self.truth is not None:  # which was asked for before the checkpoint was read
                self.truth = self._data.evaluation_truth(self.kind, self._stage, self.name)
        super().adopt(classes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_data": None}  # copies of the network, and other processes, have their own

    def category_ids(self, labels: Tensor) -> Tensor:
        """Turn class indices into the annotation file's category ids; 1..K where no categories are known."""
        known = self._written_ids or [category["id"] for category in self.classes]
        known += [max(known, default=0) + 1 + extra for extra in range(self.head.num_classes - len(known))]
        return torch.tensor(known, dtype=torch.int64)[labels]

    def predictions(self, raw: Any, batch: Any) -> list[Prediction]:
        return self.to_original(self.head.predict(raw, batch.image_sizes), batch)

    def to_original(self, detections: Any, batch: Any) -> list[Prediction]:
        """Scale boxes from canvas pixels to the original images' pixels and drop empty rows; on the CPU.

        Returns:
            One dictionary per image: ``image_id``, ``size``, ``boxes``, ``scores``, ``labels`` (class
            indices) and ``category_ids``.
        """
        boxes, scores, labels, counts = to_main_memory(
            detections.boxes, detections.scores, detections.labels, detections.count
        )
        originals = batch.in_main_memory("original_sizes")
        height, width = (originals / batch.in_main_memory("image_sizes")).unbind(1)  # [B] each
        scale = torch.stack([width, height, width, height], 1)[:, None]  # [B, 1, 4]
        boxes = boxes.float() * scale  # [B, D, 4]
        rows = {"boxes": boxes, "scores": scores, "labels": labels, "category_ids": self.category_ids(labels)}
        ids = batch.in_main_memory("image_ids").tolist()
        images = zip(ids, originals.tolist(), counts.tolist(), strict=True)
        predictions = []
        for i, (image_id, size, n) in enumerate(images):
            kept = {name: values[i, :n] for name, values in rows.items()}
            predictions.append({"image_id": image_id, "size": tuple(size), **kept})
        return predictions

    # -- pictures and files

    def draw(self, picture: np.ndarray, prediction: Prediction, min_score: float) -> np.ndarray:
        return self._draw(picture, prediction, min_score)

    def compare(
        self, picture: np.ndarray, prediction: Prediction, batch: Any, index: int, min_score: float
    ) -> np.ndarray:
        labels, boxes = to_main_memory(batch.labels[index], batch.boxes[index])
        return self._draw(picture, prediction, min_score, boxes[labels >= 0])

    def _draw(
        self, picture: np.ndarray, prediction: Prediction, min_score: float, truth_boxes: Tensor | None = None
    ) -> np.ndarray:
        """Draw the detections of at least ``min_score``; truth boxes are in pixels of ``picture``."""
        kept = prediction["scores"] >= min_score
        classes, names = prediction["labels"][kept].tolist(), self.class_names
        scale = torch.tensor(
            [picture.shape[1] / prediction["size"][1], picture.shape[0] / prediction["size"][0]] * 2
        )
        return draw_boxes(
            picture,
            prediction["boxes"][kept] * scale,
            [names[k] for k in classes],
            scores=prediction["scores"][kept],
            classes=classes,
            truth_boxes=truth_boxes,
        )

    def file_writer(self, folder: Path, min_score: float, pictures: bool) -> FileWriter:
        return DetectionFiles(folder)


def written_ids(classes: Sequence[Mapping[str, Any]], given: Sequence[LabelClass]) -> list[int]:
    """Return the category ids to write predictions with: those of the file to predict on, by name.

    Classes that the file does not have keep the ids of the checkpoint, if at least one name is there.

    Args:
        classes: of the model, as plain dictionaries.
        given: of the file; none for those of the model.

    Raises:
        ValueError: if the names do not say which id belongs to which class.
    """
    own = [(row["id"], row["name"]) for row in classes]
    listed = [(category.id, category.name) for category in given]
    if not given or set(own) <= set(listed):
        return [number for number, _ in own]
    by_name = {name: number for number, name in listed}
    ids = [by_name.get(name, number) for number, name in own]
    others = dict(listed)
    clashes = [
        f"{name!r} (id {number} in the checkpoint)"
        for (number, name), new in zip(own, ids, strict=True)
        if others.get(new, name) != name
    ]
    absent = [f"{name!r} (id {number})" for number, name in own if name not in by_name]
    if clashes or len(set(ids)) < len(ids) or len(by_name) < len(listed) or len(absent) == len(own):
        raise ValueError(
            "the JSON to predict on numbers its categories otherwise than the checkpoint, and the names do "
            f"not say which is which: the checkpoint has {own[:8]}, the JSON {listed[:8]}; give each class "
            "of the checkpoint the same name in the JSON, or take the categories out of it"
            + (f" (no id is left for {', '.join(clashes[:8])})" if clashes else "")
        )
    logger.warning(
        "predictions are written with the category ids of the JSON to predict on, by name%s",
        f"; it lacks {', '.join(absent[:8])}, which keep the ids of the checkpoint" if absent else "",
    )
    return ids


class DetectionFiles(FileWriter):
    """Writes ``predictions.json`` (COCO results), once, when all processes are done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._results: list[dict[str, Any]] = []
        self._done: set[Location] = set()

    def add(self, prediction: Prediction, path: Location, batch: Any, index: int) -> None:
        self._results.extend(to_coco_results(prediction))
        self._done.add(path)

    def finish(self, first_process: bool) -> str:
        results = [row for part in gather_objects(self._results) for row in part]
        images = set().union(*gather_objects(self._done))
        self._results, self._done = [], set()
        if not first_process:
            return ""
        results.sort(key=lambda row: (row["image_id"], -row["score"]))
        path = write_json(self.folder / "predictions.json", results)
        return f"{len(results)} detections on {len(images)} images: {path.resolve()}"


def to_coco_results(prediction: Prediction) -> list[dict[str, Any]]:
    """Turn one image's detections into COCO results rows (box as x, y, width, height)."""
    boxes = prediction["boxes"].double().tolist()
    return [
        {
            "image_id": prediction["image_id"],
            "category_id": category_id,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for (x1, y1, x2, y2), score, category_id in zip(
            boxes, prediction["scores"].tolist(), prediction["category_ids"].tolist(), strict=True
        )
    ]
