"""What a task does with the outputs of one head beyond training it.

Letters in shapes: B images, h w height and width of an image in pixels, K classes.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...data.shared.io import read_image
from ...data.shared.labels import LabelClass
from ...data.shared.module import DataContractError, TrunklineData
from ...data.shared.storage import Location
from ...evaluation.base import (
    EvaluationContext,
    Evaluator,
    Prediction,
    Result,
    merge_metrics,
    write_result,
)
from ...heads.base import Head
from .names import first_difference, listed, shortened
from .writer import FileWriter, draw_all, enlarged

BRANCHES = {
    "classification": "trunkline.tasks.classification.branch.ClassificationBranch",
    "detection": "trunkline.tasks.detection.branch.DetectionBranch",
    "segmentation": "trunkline.tasks.segmentation.branch.SegmentationBranch",
    "volumes": "trunkline.tasks.volumes.branch.VolumeBranch",
}
# By kind of labels: what they are, which data modules of this package have them, which task learns them.
LABELS = {
    "classification": ("classes of whole images", "ImageClassification", "Classification"),
    "detection": ("boxes", "CocoDetection or CocoDetectionAndMasks", "Detection"),
    "segmentation": ("masks", "ImageSegmentation or CocoDetectionAndMasks", "SemanticSegmentation"),
    "volumes": ("label volumes of scans", "ScanSegmentation", "VolumeSegmentation"),
}


class Branch(ABC):
    """One head with its classes, metrics, pictures and files.

    Tasks with one head have one branch, :class:`.multitask.MultiTask` has several. A branch is no module: it
    is the head that is trained.

    Args:
        head: computes raw outputs, losses and predictions.
        option: where the head's settings are, such as ``model.head``; for messages.
        name: of the head among several; else empty.

    Attributes:
        kind: of the labels that the head learns, as data modules name it.
        covers_areas: whether its drawing covers whole areas of an image.
        small_pictures: whether the logger gets its pictures together, on one sheet, evenly spaced over the
            data; else one by one, the first of the data.
        classes: what is known of class k: ``id``, ``name`` and perhaps ``colour``; plain dictionaries, for
            checkpoints.
        evaluators: what computes the metrics.
        results: of the last evaluation, one per evaluator.
        left_out: how many images the evaluation leaves out because they cannot be read.
    """

    kind: ClassVar[str] = ""
    covers_areas: ClassVar[bool] = False
    small_pictures: ClassVar[bool] = False

    def __init__(self, head: Head, option: str = "model.head", name: str = "") -> None:
        self.head = head
        self.option = option
        self.name = name
        self.classes: list[dict[str, Any]] = []
        self.evaluators: list[Evaluator] = []
        self.results: list[Result] = []
        self.left_out = 0
        self.truth: Any = None
        self.fitting = False

    # -- classes, and what else head, data and checkpoint must agree on

    def prepare(self, data: TrunklineData, stage: str, fitting: bool = False) -> None:
        """Take over what the data say before a stage begins.

        Args:
            data: of the trainer.
            stage: ``fit``, ``validate``, ``test`` or ``predict``.
            fitting: whether a training goes on, also while it validates.

        Raises:
            ValueError: if data, head and checkpoint do not fit each other.
            DataContractError: if the data module lacks a method.
        """
        self.fitting = fitting
        if stage == "predict":
            self.classes = self.classes or self.classes_of(data)  # a checkpoint's come later and win
            return
        self._require_labels(data)
        classes = self.classes_of(data)
        if classes:
            self.adopt(classes)
            self._require_number(classes)
        if stage == "fit" and self.head.balanced:
            self.head.balance([int(count) for count in data.label_counts(self.kind, self.name)])
        if any(evaluator.needs_truth for evaluator in self.evaluators):
            self.truth = data.evaluation_truth(self.kind, stage, self.name)

    def _require_labels(self, data: TrunklineData) -> None:
        if isinstance(data.label_kinds, str):
            raise DataContractError(
                f"label_kinds of {type(data).__name__} is the text {data.label_kinds!r}; it has to be a "
                f"tuple, as in ({data.label_kinds!r},)"
            )
        if self.kind not in data.label_kinds:
            kinds = [LABELS.get(kind, (kind, "", "another task")) for kind in data.label_kinds]
            has = " and ".join(kind[0] for kind in kinds) or "no labels"
            task = " or ".join(kind[2] for kind in kinds) or "another task"
            what, where, _ = LABELS.get(self.kind, (f"{self.kind} labels", "a module that has them", ""))
            raise ValueError(
                f"{self.option} is a {type(self.head).__name__}, which learns {what}; "
                f"{type(data).__name__} has {has}: set --data to {where}, or --model to {task}"
            )

    def classes_of(self, data: TrunklineData) -> list[dict[str, Any]]:
        """Return the classes of a data module as plain dictionaries; empty if it names none."""
        classes = list(data.label_classes(self.kind, self.name))
        if not all(isinstance(c, LabelClass) for c in classes):
            raise DataContractError(
                f"label_classes() of {type(data).__name__} returned {classes[:3]}; it has to be a list "
                "of LabelClass"
            )
        return [
            {"id": int(c.id), "name": c.name, **({} if c.colour is None else {"colour": list(c.colour)})}
            for c in classes
        ]

    def label_of(self, known: dict[str, Any]) -> str:
        """Return what tells one class from another, as text."""
        return f"{known['id']} {known['name']}"

    def adopt(self, classes: list[dict[str, Any]]) -> None:
        """Take over the data's classes, after checking that the head and the checkpoint know them.

        Raises:
            ValueError: if the data have more classes than the head, or others than the checkpoint.
        """
        known, given = ([self.label_of(row) for row in rows] for rows in (self.classes, classes))
        if known and known != given:
            raise ValueError(
                f"the checkpoint was trained on the classes {shortened(known)}, the data have "
                f"{shortened(given)}{first_difference(known, given)}; give data with the same classes in "
                "the same order, or train from these weights with --model.weights CHECKPOINT"
            )
        if len(given) > self.head.num_classes:
            self._require_number(classes)
        self.classes = classes

    def _require_number(self, classes: list[dict[str, Any]]) -> None:
        """Check that the head has as many classes as the data."""
        given = [row["name"] for row in classes]
        if len(given) != self.head.num_classes:
            option, number = f"--{self.option}.num_classes", len(given)
            raise ValueError(
                f"{option} is {self.head.num_classes}, but the data have {number} "
                f"class{'es' if number > 1 else ''}: {', '.join(listed(given))}. Set {option} auto (or "
                f"{number}); to use a network as it was trained, give data with its classes"
            )

    @property
    def class_names(self) -> list[str]:
        """One name per class of the head."""
        names = [row["name"] for row in self.classes]
        return names + [f"class {k}" for k in range(len(names), self.head.num_classes)]

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold, in plain values."""
        state: dict[str, Any] = {"classes": self.classes}
        if self.head.balanced and self.head.class_weights is not None:
            state["class_weights"] = list(self.head.class_weights)
        return state

    def restore(self, state: dict[str, Any], predicting: bool) -> None:
        """Take over what a checkpoint holds; its classes must be the data's, except for prediction.

        Raises:
            ValueError: if the data have other classes.
        """
        stored, from_data = state.get("classes", []), self.classes
        if stored:
            self.classes = stored
            if from_data and not predicting:
                self.adopt(from_data)
        if self.head.balanced and state.get("class_weights"):
            self.head.set_class_weights(state["class_weights"])

    # -- predictions and metrics

    @abstractmethod
    def predictions(self, raw: Any, batch: Any) -> list[Prediction]:
        """Return the prediction on each image, in pixels of the image on disk.

        Every dictionary has ``image_id`` and ``size`` (height and width of the image on disk).
        """

    @abstractmethod
    def default_evaluators(self, **options: Any) -> list[Evaluator]:
        """Return what computes the metrics unless the task is told otherwise.

        Args:
            **options: arguments of the evaluator that the task has options of its own for.
        """

    def context(self) -> EvaluationContext:
        """Return what evaluators have to know."""
        return EvaluationContext(self.class_names, truth=self.truth, fitting=self.fitting)

    def reset(self, folder: Path | None = None) -> None:
        """Prepare the evaluators and forget all predictions, before an evaluation.

        Args:
            folder: where files of the evaluation go; None for nowhere.
        """
        context = self.context()
        for evaluator in self.evaluators:
            evaluator.prepare(context)
            evaluator.reset()

    def update(self, predictions: Sequence[Prediction], batch: Any) -> None:
        """Take the predictions of a batch into the metrics."""
        for evaluator in self.evaluators:
            evaluator.update(predictions, batch)

    def gather(self) -> None:
        """Exchange predictions with the other processes; all of them call it."""
        for evaluator in self.evaluators:
            evaluator.gather()

    def compute(self) -> dict[str, float]:
        """Return the metrics of what was gathered, and keep the ``results``."""
        self.results = [evaluator.compute() for evaluator in self.evaluators]
        if self.results and self.left_out:
            self.results[0].metrics["images_left_out"] = float(self.left_out)
        return merge_metrics(self.results)

    @property
    def result(self) -> Any:
        """The result of the first evaluator in the last evaluation, or None."""
        return self.results[0] if self.results else None

    @property
    def headline(self) -> str:
        """The metric that the progress bar shows."""
        return self.evaluators[0].headline if self.evaluators else ""

    def report(self) -> str:
        """Return the last results as text for people."""
        return "\n\n".join(result.text() for result in self.results)

    def write_report(self, folder: Path) -> dict[str, Path]:
        """Write the last results under ``folder``; return the files by what they are."""
        written = write_result(self.results, folder)
        for evaluator, result in zip(self.evaluators, self.results, strict=True):
            written |= evaluator.write(result, folder)
        return written

    def result_pictures(self) -> dict[str, np.ndarray]:
        """Return pictures of the last results for the logger, ``[h, w, 3]`` uint8 by title."""
        pairs = zip(self.evaluators, self.results, strict=False)
        return {title: drawn for e, result in pairs for title, drawn in e.pictures(result).items()}

    # -- pictures and files

    def input_picture(self, batch: Any, index: int) -> np.ndarray | None:
        """Return one image of a batch at input size, ``[h, w, 3]`` uint8; None if it is no 2D image."""
        height, width = batch.in_main_memory("image_sizes")[index].tolist()
        return batch.image[index, :, :height, :width].permute(1, 2, 0).cpu().numpy()

    def picture_title(self, batch: Any, index: int) -> str:
        """Return the name of the picture of one image of a batch in the logger."""
        return f"image {int(batch.in_main_memory('image_ids')[index])}"

    @abstractmethod
    def draw(self, picture: np.ndarray, prediction: Prediction, min_score: float) -> np.ndarray:
        """Draw a prediction onto a copy of ``[h, w, 3]`` uint8, which may be scaled against the image."""

    def with_legend(self, picture: np.ndarray, prediction: Prediction) -> np.ndarray:
        """Explain the drawing in a strip below the picture, where that is needed."""
        return picture

    @abstractmethod
    def compare(
        self, picture: np.ndarray, prediction: Prediction, batch: Any, index: int, min_score: float
    ) -> np.ndarray:
        """Draw prediction and truth of one image of a batch; ``picture`` is that image at input size."""

    def evaluation_picture(
        self, prediction: Prediction, batch: Any, index: int, min_score: float
    ) -> np.ndarray | None:
        """Return the picture of one image of an evaluation, ``[h, w, 3]`` uint8; None for none."""
        picture = self.input_picture(batch, index)
        return None if picture is None else self.compare(picture, prediction, batch, index, min_score)

    def prediction_picture(
        self, prediction: Prediction, path: Location, batch: Any, min_score: float
    ) -> tuple[str, np.ndarray] | None:
        """Return name (without suffix) and pixels of the picture of a prediction; None for none."""
        picture = draw_all(
            {"": self}, enlarged(read_image(path, pixel_range="own")), {"": prediction}, min_score
        )
        return f"{path.stem}_{prediction['image_id']}", picture

    @abstractmethod
    def file_writer(self, folder: Path, min_score: float, pictures: bool) -> FileWriter:
        """Return what writes the predictions as files under ``folder``."""


def branch_class(name: str, head: Head | type[Head], option: str) -> type[Branch]:
    """Return the branch that a head, or its class, names: one of this package, or a class path.

    Raises:
        ValueError: if there is no such branch.
    """
    module, _, attribute = BRANCHES.get(name, name).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
        if not (isinstance(found, type) and issubclass(found, Branch)):
            raise ValueError("it is no Branch")
        return found
    except (ImportError, AttributeError, ValueError) as error:
        kind = head if isinstance(head, type) else type(head)
        raise ValueError(
            f"{option} is a {kind.__name__}, whose attribute branch is {name!r} ({error}); it has "
            f"to be one of {', '.join(BRANCHES)}, or the class path of a Branch"
        ) from error
