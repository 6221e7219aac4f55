"""Classification: a class, or any number of them, for every image or scan.

Letters in shapes: B images, C channels, K classes, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from ...data.classification.batches import ClassificationBatch
from ...evaluation.classification.evaluator import ClassificationEvaluator, ClassificationResult
from ...evaluation.distributed import gather_objects
from ...evaluation.files import write_json
from ...evaluation.pictures.boxes import contact_sheet, save_picture
from ...evaluation.pictures.confusion import MOST_CLASSES, draw_confusion
from ...heads.classification import Classifier, ClassProbabilities, RawClassification
from ..base.classes import check_classes, require_annotations, spare_classes
from ..base.losses import LossMeans
from ..base.network import Task
from .mixing import Mixing
from .writer import ClassificationWriter, as_picture, draw_label, label_texts

logger = logging.getLogger("trunkline")

COLUMNS = 4  # of the sheet of validation pictures


class Classification(Task):
    """Trains, validates and applies a classifier of pictures or scans.

    Without an ``optimizer`` it trains by SGD with rate 0.1, momentum 0.9 and weight decay 1e-4.

    Args:
        mixup: alpha of mixup on training batches, 0 for none, see :class:`.mixing.Mixing`.
        cutmix: alpha of cutmix, 0 for none; with both, one of the two is drawn for each batch.
        pictures: how many validation pictures with their predictions go to the logger in each epoch, evenly
            spaced over the data of the first process.
        **task: what every ``Task`` takes; the head is a ``Classifier``.

    Raises:
        ValueError: if an alpha is negative.
    """

    def __init__(self, mixup: float = 0.0, cutmix: float = 0.0, pictures: int = 16, **task: Any) -> None:
        super().__init__(**task)
        if not isinstance(self.head, Classifier):
            raise ValueError(f"model.head is a {type(self.head).__name__}; Classification takes a Classifier")
        self.mixing = Mixing(mixup, cutmix)
        self.pictures = pictures
        self.class_names: list[str] = []  # class k is class_names[k]
        self.result: ClassificationResult | None = None  # of the last validation or test
        self._evaluator = self._new_evaluator()
        self._losses = LossMeans()
        self._drawn: list[Any] = []
        self._batch_size = 0  # of the validation at hand, the last batch apart
        self._predicting = False

    @staticmethod
    def default_optimizer(parameters: Any) -> torch.optim.Optimizer:
        """SGD as He et al. 2016 train on ImageNet: rate 0.1 for 256 images, momentum 0.9, decay 1e-4."""
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)

    def forward(self, image: Tensor, image_sizes: Tensor) -> ClassProbabilities:
        """Classify images.

        Args:
            image: ``[B, C, *S]`` uint8 pictures, or float32 scans that are normalised already.
            image_sizes: ``[B, n]`` int64, the size of each image inside the canvas.
        """
        return self.head.predict(self.raw(image, image_sizes), image_sizes)

    def raw(self, image: Tensor, image_sizes: Tensor) -> RawClassification:
        """Run trunk, neck and head once; ``head.losses`` and ``head.predict`` both take the result."""
        return self._run(self.normalise(image, image_sizes))

    def _run(self, normalised: Tensor) -> RawClassification:
        try:
            features = self.backbone(normalised)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                "a batch of one image, whose coarsest map is a single cell, is too little for batch norm; "
                "set --data.batch_size 2 or more, a larger --data.size, or --model.backbone.norm group"
            ) from error
        return self.head(features, tuple(normalised.shape[2:]))

    # -- training

    def training_step(self, batch: ClassificationBatch, batch_idx: int) -> Tensor:
        normalised = self.normalise(batch.image, batch.image_sizes)
        image, label = self.mixing(normalised, batch.label, self.head.num_classes)
        losses = self.head.losses(self._run(image), replace(batch, label=label))
        total = self.total_loss(losses, batch.image_ids)
        logged = {f"train/{name}": loss.detach() for name, loss in losses.items()}
        self.log_dict(logged, batch_size=len(batch))
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch))
        return total

    # -- what the data must agree with

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        names = list(getattr(data, "class_names", None) or ())
        self._predicting = stage == "predict"
        if hasattr(data, "image_layout"):
            self.require_fitting_trunk(*data.image_layout())
        if self._predicting:
            self.class_names = self.class_names or names  # a checkpoint's come later and win
            return
        require_annotations(data, "class_names", "model.head", self.head)
        if names:
            self._require_same_kind(bool(getattr(data, "multi_label", False)))
            self.adopt_class_names(names)
            self._require_no_spare_classes()
        counts = getattr(data, "class_counts", None)
        if stage == "fit" and counts is not None and self.head.balanced:
            self.head.balance([int(count) for count in counts()])
        self._evaluator = self._new_evaluator()

    def _require_no_spare_classes(self) -> None:
        """Refuse classes of the head that the data lack, or warn where the loss allows them."""
        known, wanted = len(self.class_names), self.head.num_classes
        if known == wanted:
            return
        text = spare_classes(known, wanted, "model.head")
        if self.head.multi_label:
            raise ValueError(text)
        logger.warning("%s unless the others are to come later", text)

    def _require_same_kind(self, multi_label: bool) -> None:
        if multi_label != self.head.multi_label:
            several, one = "any number of classes per image", "one class per image"
            data, head = (several, one) if multi_label else (one, several)
            raise ValueError(
                f"the data has {data}, the head {head}; set --model.head.multi_label "
                f"{str(multi_label).lower()}, or give other labels"
            )

    def adopt_class_names(self, names: list[str]) -> None:
        """Take over the data's classes, after checking that the head and the checkpoint know them.

        Raises:
            ValueError: if the data has more classes than the head, or others than the checkpoint.
        """
        check_classes(self.class_names, names, self.head.num_classes, "model.head")
        self.class_names = names

    def all_class_names(self) -> list[str]:
        """Return one name per class of the head."""
        extra = range(len(self.class_names), self.head.num_classes)
        return self.class_names + [f"class {k}" for k in extra]

    # -- validation and test: loss and figures of one forward pass

    def _new_evaluator(self) -> ClassificationEvaluator:
        return ClassificationEvaluator(self.all_class_names(), self.head.multi_label)

    def validation_step(self, batch: ClassificationBatch, batch_idx: int) -> None:
        raw = self.raw(batch.image, batch.image_sizes)
        probabilities = self.head.predict(raw, batch.image_sizes).probabilities
        self._losses.add(self.head.losses(raw, batch), (batch.label.view(len(batch), -1) >= 0).all(1).sum())
        self._evaluator.add(batch.image_ids, probabilities, batch.label)
        self._draw(batch, probabilities, batch_idx)

    def test_step(self, batch: ClassificationBatch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        self._losses.reset()
        self._drawn = []
        self._evaluator = self._new_evaluator()  # a checkpoint may have brought other names

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        self._finish_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._finish_evaluation("test")

    def _finish_evaluation(self, stage: str) -> None:
        for name, value in self._losses.gathered().items():
            self.log(f"{stage}/{name}", value, sync_dist=False)
        self._evaluator.merge(gather_objects(self._evaluator.rows()))
        if self.trainer.sanity_checking:
            return
        self.result = self._evaluator.compute()
        figures = {f"{stage}/{name}": value for name, value in self.result.figures.items()}
        # Every rank holds the same figures after merging, so nothing is reduced here.
        self.log_dict(figures, rank_zero_only=False, sync_dist=False)
        first = next(iter(self.result.figures))
        self.log(f"{stage}_{first}", figures[f"{stage}/{first}"], prog_bar=True, logger=False)
        self._log_pictures(stage)
        if self.trainer.state.fn != TrainerFn.FITTING:  # fit does so at its end
            self._report(stage)

    def on_fit_end(self) -> None:
        self._report("val")

    def _report(self, stage: str) -> None:
        """Print the last figures, and write them beside the logger's files if there is a logger."""
        folder = self.trainer.log_dir if self.trainer.loggers else None  # asked for by all ranks together
        if self.result is None or not self.trainer.is_global_zero:
            return
        # Not self.print(): that goes through the progress bar, and says nothing once the bar is gone.
        print(f"\n{self.result.summary()}\n\n{self.result.class_table()}")
        if folder is None or self.trainer.fast_dev_run:
            return
        path = write_json(Path(folder) / f"{stage}_figures.json", self.result.as_dict())
        print(f"\nfigures: {path.resolve()}")
        if self._confusion_is_drawn():
            picture = draw_confusion(self.result.confusion, self.all_class_names())
            path = save_picture(Path(folder) / f"{stage}_confusion.png", picture)
            print(f"confusion matrix: {path.resolve()}")

    def _confusion_is_drawn(self) -> bool:
        return self.result.confusion is not None and len(self.result.confusion) <= MOST_CLASSES

    # -- prediction

    def predict_step(self, batch: ClassificationBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return ``ids`` ``[B]`` and ``probabilities`` ``[B, K]`` on the CPU."""
        found = self(batch.image, batch.image_sizes)
        return {"ids": batch.image_ids.cpu(), "probabilities": found.probabilities.cpu()}

    def prediction_writer(self, folder: Path, pictures: bool, min_score: float) -> Callback:
        return ClassificationWriter(folder, pictures, min_score)

    # -- checkpoints and pictures

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["class_names"] = self.class_names
        if self.head.balanced:
            checkpoint["class_weights"] = self.head.class_weights

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored, from_data = checkpoint.get("class_names", []), self.class_names
        if stored:
            self.class_names = stored
            if from_data and not self._predicting:
                self.adopt_class_names(from_data)
        if self.head.balanced and checkpoint.get("class_weights"):
            self.head.set_class_weights(checkpoint["class_weights"])

    def _board(self) -> Any:
        """Return the logger's board for pictures on rank 0, or None if it takes none."""
        board = getattr(self.logger, "experiment", None)
        return board if self.trainer.is_global_zero and hasattr(board, "add_image") else None

    def _draw(self, batch: ClassificationBatch, probabilities: Tensor, batch_idx: int) -> None:
        """Keep pictures from all over the epoch, labelled with prediction and truth, for the logger."""
        if self.trainer.sanity_checking or self._board() is None:
            return
        names, several = self.all_class_names(), self.head.multi_label
        for index in self._chosen_pictures(len(batch), batch_idx):
            picture, row = as_picture(batch.image[index]), probabilities[index].cpu()
            if picture is None:
                return
            text, truth = label_texts(row, names, several, batch.label[index].cpu())
            self._drawn.append(draw_label(picture, text, int(row.argmax()), truth))

    def _chosen_pictures(self, size: int, batch_idx: int) -> list[int]:
        """Return which images of a batch are drawn: evenly spaced, for data often come class by class."""
        if batch_idx == 0:
            self._batch_size = size
        batches = self.trainer.num_test_batches if self.trainer.testing else self.trainer.num_val_batches
        images = int(batches[0]) * self._batch_size
        places = sorted({number * images // self.pictures for number in range(self.pictures)})
        first = batch_idx * self._batch_size
        return [place - first for place in places if first <= place < first + size]

    def _log_pictures(self, stage: str) -> None:
        board = self._board()
        if board is None:
            return
        if self._drawn:
            sheet = contact_sheet(self._drawn, COLUMNS)
            board.add_image(f"{stage}/pictures", sheet, self.global_step, dataformats="HWC")
        if self._confusion_is_drawn():
            picture = draw_confusion(self.result.confusion, self.all_class_names())
            board.add_image(f"{stage}/confusion", picture, self.global_step, dataformats="HWC")
