"""Object detection: boxes and classes from images.

Letters in shapes: B images, D detections per image, M box rows, H W the padded canvas.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from ..data.batches import DetectionBatch
from ..evaluation.coco import CocoEvaluator, CocoResult
from .base import Task
from .detection_writer import DetectionWriter, draw_detections
from .losses import LossMeans


class Detection(Task):
    """Trains, validates and applies a detector.

    Args:
        evaluator: COCO figures by ``faster`` (faster-coco-eval) or ``pycocotools``; they agree.
        pictures: how many validation images with predictions go to the logger in each epoch.
        picture_score: detections below this score are left out of those pictures.
        **task: what every ``Task`` takes; the head is a detection head (``FasterRCNN``).
    """

    def __init__(
        self,
        evaluator: Literal["faster", "pycocotools"] = "faster",
        pictures: int = 4,
        picture_score: float = 0.5,
        **task: Any,
    ) -> None:
        super().__init__(**task)
        self.evaluator_backend = evaluator
        self.pictures = pictures
        self.picture_score = picture_score
        # Class k is categories[k]: id and name in the annotation file.
        self.categories: list[dict[str, Any]] = []
        self.result: CocoResult | None = None  # of the last validation or test
        self._evaluator: CocoEvaluator | None = None
        self._losses = LossMeans()
        self._drawn = 0
        self._predicting = False

    def forward(self, image: Tensor, image_sizes: Tensor) -> Any:
        """Detect objects.

        Args:
            image: ``[B, 3, H, W]`` uint8 RGB, padded to a common canvas.
            image_sizes: ``[B, 2]`` int64, height and width of each image inside the canvas.

        Returns:
            ``Detections`` in canvas pixels.
        """
        return self.head.predict(self.raw(image, image_sizes), image_sizes)

    def raw(self, image: Tensor, image_sizes: Tensor) -> Any:
        """Run trunk, neck and head once; ``head.losses`` and ``head.predict`` both take the result."""
        normalised = self.normalise(image, image_sizes)
        return self.head(self.backbone(normalised), tuple(image.shape[-2:]))

    # -- training

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> Tensor:
        losses = self.head.losses(self.raw(batch.image, batch.image_sizes), batch)
        total = self.total_loss(losses, batch.image_ids)
        logged = {f"train/{name}": loss.detach() for name, loss in losses.items()}
        self.log_dict(logged, batch_size=len(batch))
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch))
        return total

    # -- validation and test: losses and COCO figures of one forward pass

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        categories = [{"id": c.id, "name": c.name} for c in getattr(data, "categories", None) or ()]
        self._predicting = stage == "predict"
        if data is not None:
            self.require_fitting_trunk(3, 2)
        if self._predicting:
            self.categories = self.categories or categories  # a checkpoint's come later and win
        elif categories:
            self.adopt_categories(categories)
        index = getattr(data, "test_index" if stage == "test" else "val_index", None)
        if stage != "predict" and index is not None:
            self._evaluator = CocoEvaluator(index.as_coco(), backend=self.evaluator_backend)

    def adopt_categories(self, categories: list[dict[str, Any]]) -> None:
        """Take over the data's categories, after checking that the head and the checkpoint know them.

        Raises:
            ValueError: if the data has more categories than the head, or others than the checkpoint.
        """
        if len(categories) > self.head.num_classes:
            raise ValueError(
                f"the data has {len(categories)} categories, the head num_classes {self.head.num_classes}; "
                f"set --model.head.num_classes {len(categories)}"
            )
        if self.categories and self.categories != categories:
            raise ValueError(
                f"the checkpoint was trained on the categories {_names(self.categories)}, the data has "
                f"{_names(categories)}; give data with the same categories (ids and names), or train from "
                "these weights with --model.weights CHECKPOINT"
            )
        self.categories = categories

    def validation_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        raw = self.raw(batch.image, batch.image_sizes)
        self._losses.add(self.head.losses(raw, batch), len(batch))
        detections = self.to_original(self.head.predict(raw, batch.image_sizes), batch)
        if self._evaluator is not None:
            for found in detections:
                self._evaluator.add(found["image_id"], found["boxes"], found["scores"], found["category_ids"])
        self._log_pictures(batch, detections)

    def test_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        self._losses.reset()
        self._drawn = 0
        if self._evaluator is not None:
            self._evaluator.reset()

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        self._finish_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._finish_evaluation("test")

    def _finish_evaluation(self, stage: str) -> None:
        for name, value in self._losses.gathered().items():
            self.log(f"{stage}/{name}", value, sync_dist=False)
        if self._evaluator is None:
            return
        self._evaluator.gather()
        if self.trainer.sanity_checking:
            return
        self.result = self._evaluator.compute()
        figures = {f"{stage}/{name}": value for name, value in self.result.figures.items()}
        # Every rank holds the same figures after gather(), so nothing is reduced here.
        self.log_dict(figures, rank_zero_only=False, sync_dist=False)
        self.log(f"{stage}_AP", figures[f"{stage}/AP"], prog_bar=True, logger=False)
        if self.trainer.state.fn != TrainerFn.FITTING:  # fit prints at its end
            self._print_result()

    def on_fit_end(self) -> None:
        self._print_result()

    def _print_result(self) -> None:
        # Not self.print(): that goes through the progress bar, and says nothing once the bar is gone.
        if self.result is not None and self.trainer.is_global_zero:
            print(f"\n{self.result.summary()}\n\n{self.result.class_table()}")

    # -- prediction

    def predict_step(self, batch: DetectionBatch, batch_idx: int) -> list[dict[str, Any]]:
        return self.to_original(self(batch.image, batch.image_sizes), batch)

    def to_original(self, detections: Any, batch: DetectionBatch) -> list[dict[str, Any]]:
        """Scale boxes from canvas pixels to the original images' pixels and drop empty rows; on the CPU.

        Returns:
            One dictionary per image: ``image_id``, ``boxes``, ``scores``, ``labels`` (class indices) and
            ``category_ids``.
        """
        height, width = (batch.original_sizes / batch.image_sizes).unbind(1)  # [B] each
        scale = torch.stack([width, height, width, height], 1)[:, None]  # [B, 1, 4]
        boxes = (detections.boxes.float() * scale).cpu()  # [B, D, 4]
        scores, labels, counts = detections.scores.cpu(), detections.labels.cpu(), detections.count.tolist()
        rows = {"boxes": boxes, "scores": scores, "labels": labels, "category_ids": self.category_ids(labels)}
        return [
            {"image_id": image_id, **{name: values[i, :n] for name, values in rows.items()}}
            for i, (image_id, n) in enumerate(zip(batch.image_ids.tolist(), counts, strict=True))
        ]

    def category_ids(self, labels: Tensor) -> Tensor:
        """Turn class indices into the annotation file's category ids; 1..K where no categories are known."""
        known = [category["id"] for category in self.categories]
        known += [max(known, default=0) + 1 + extra for extra in range(self.head.num_classes - len(known))]
        return torch.tensor(known, dtype=torch.int64)[labels]

    def class_names(self) -> list[str]:
        """Return one name per class of the head."""
        names = [category["name"] for category in self.categories]
        return names + [f"class {k}" for k in range(len(names), self.head.num_classes)]

    def prediction_writer(self, folder: Path, pictures: bool, min_score: float) -> Callback:
        return DetectionWriter(folder, pictures, min_score)

    # -- checkpoints and pictures

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["categories"] = self.categories

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored, from_data = checkpoint.get("categories", []), self.categories
        if stored:
            self.categories = stored
            if from_data and not self._predicting:
                self.adopt_categories(from_data)

    def _log_pictures(self, batch: DetectionBatch, detections: list[dict[str, Any]]) -> None:
        """Draw predictions (and the truth, thin) for the first images of the epoch, on rank 0."""
        board = getattr(self.logger, "experiment", None)
        wanted = min(self.pictures - self._drawn, len(batch))
        if wanted <= 0 or not self.trainer.is_global_zero or not hasattr(board, "add_image"):
            return
        names = self.class_names()
        for i in range(wanted):
            height, width = batch.image_sizes[i].tolist()
            image = batch.image[i, :, :height, :width].permute(1, 2, 0).cpu().numpy()  # [h, w, 3]
            found = detections[i]
            original = batch.original_sizes[i].tolist()
            back = torch.tensor([width / original[1], height / original[0]] * 2)
            real = (batch.labels[i] >= 0).cpu()
            truth = batch.boxes[i].cpu()[real]
            drawn = draw_detections(image, found, names, self.picture_score, back, truth_boxes=truth)
            board.add_image(f"val/image {found['image_id']}", drawn, self.global_step, dataformats="HWC")
        self._drawn += wanted


def _names(categories: list[dict[str, Any]], most: int = 8) -> str:
    listed = ", ".join(f"{category['id']} {category['name']}" for category in categories[:most])
    return f"[{listed}{', …' if len(categories) > most else ''}] ({len(categories)})"
