"""What a task does with the outputs of one head beyond running it.

Letters in shapes: B images, h w height and width of a picture in pixels, K classes.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor

from ...data.shared.io import read_image
from ...evaluation.files import write_json
from ...evaluation.pictures.boxes import save_picture
from ...heads.base import Head
from .classes import check_classes, require_annotations

Found = dict[str, Any]  # one head's predictions on one image, see Branch.predictions
# Labels would hide the objects of small images: their pictures are enlarged, by a whole factor, to this size.
SMALLEST_PICTURE = 320


class Branch(ABC):
    """One head with its classes, figures, pictures and files.

    Tasks with one head have one branch, :class:`.multi.MultiTask` has several. A branch is no module: what is
    trained is the head.

    Args:
        head: computes raw outputs, losses and predictions.
        option: where the head's settings are, such as ``model.head``; for messages.

    Attributes:
        classes: what is known of class k: at least a ``name``; plain dictionaries, for checkpoints.
        result: of the last validation or test, or None.
    """

    noun = "classes"
    annotations = "classes"  # what the head learns from, a key of classes.ANNOTATIONS
    headline = ""  # the figure that the progress bar shows
    covers_areas = False  # whether its drawing covers whole areas of a picture

    def __init__(self, head: Head, option: str = "model.head") -> None:
        self.head = head
        self.option = option
        self.classes: list[dict[str, Any]] = []
        self.result: Any = None

    # -- classes

    @abstractmethod
    def classes_of(self, data: Any) -> list[dict[str, Any]]:
        """Return the classes of a data module, empty if it names none."""

    def label_of(self, known: dict[str, Any]) -> str:
        """Return what tells one class from another, as text."""
        return known["name"]

    def prepare(self, data: Any, stage: str) -> None:
        """Take over what the data says before a stage begins.

        Raises:
            ValueError: if data, head and checkpoint do not fit each other.
        """
        if stage != "predict":
            require_annotations(data, self.annotations, self.option, self.head)
        found = self.classes_of(data)
        if stage == "predict":
            self.classes = self.classes or found  # a checkpoint's come later and win
        elif found:
            self.adopt(found)

    def adopt(self, classes: list[dict[str, Any]]) -> None:
        """Take over the data's classes, after checking that the head and the checkpoint know them.

        Raises:
            ValueError: if the data has more classes than the head, or others than the checkpoint.
        """
        known, found = ([self.label_of(row) for row in rows] for rows in (self.classes, classes))
        check_classes(known, found, self.head.num_classes, self.option, self.noun)
        self.classes = classes

    def class_names(self) -> list[str]:
        """Return one name per class of the head."""
        names = [row["name"] for row in self.classes]
        return names + [f"class {k}" for k in range(len(names), self.head.num_classes)]

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold, in plain values."""
        return {self.noun: self.classes}

    def restore(self, state: dict[str, Any], predicting: bool) -> None:
        """Take over what a checkpoint holds; its classes must be the data's, except for prediction.

        Raises:
            ValueError: if the data has other classes.
        """
        stored, from_data = state.get(self.noun, []), self.classes
        if stored:
            self.classes = stored
            if from_data and not predicting:
                self.adopt(from_data)

    # -- predictions and figures

    @abstractmethod
    def predictions(self, raw: Any, batch: Any) -> list[Found]:
        """Return what was found on each image, in pixels of the image on disk.

        Every dictionary has ``image_id`` and ``size`` (height and width of the image on disk).
        """

    @abstractmethod
    def reset(self) -> None:
        """Forget all predictions, before an evaluation."""

    @abstractmethod
    def evaluate(self, found: list[Found], batch: Any) -> None:
        """Take the predictions of a batch into the figures."""

    @abstractmethod
    def gather(self) -> None:
        """Exchange predictions with the other processes; all of them call it."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the figures of what was gathered and keep it as ``result``; empty without data for them."""

    def report(self) -> str:
        """Return the last result as text for people."""
        return f"{self.result.summary()}\n\n{self.result.class_table()}"

    def write_report(self, folder: Path, stage: str) -> dict[str, Path]:
        """Write the last result beside the logger's files; return the files by what they are."""
        return {}

    # -- pictures and files

    @abstractmethod
    def draw(self, picture: np.ndarray, found: Found, min_score: float) -> np.ndarray:
        """Draw predictions onto a copy of ``[h, w, 3]`` uint8, which may be scaled against the image."""

    def with_legend(self, picture: np.ndarray, found: Found) -> np.ndarray:
        """Explain the drawing in a strip below the picture, where that is needed."""
        return picture

    @abstractmethod
    def compare(
        self, picture: np.ndarray, found: Found, batch: Any, index: int, min_score: float
    ) -> np.ndarray:
        """Draw predictions and truth of one image of a batch; ``picture`` is that image at input size."""

    @abstractmethod
    def file_writer(self, folder: Path) -> FileWriter:
        """Return what writes the predictions as files under ``folder``."""


class FileWriter(ABC):
    """Writes the predictions of one branch."""

    def begin(self, paths: dict[int, Path]) -> None:  # noqa: B027, many need nothing
        """Learn which images there are, by id, before the first prediction."""

    @abstractmethod
    def add(self, found: Found, path: Path) -> None:
        """Write, or keep, what was found on the image at ``path``."""

    @abstractmethod
    def finish(self, first_process: bool) -> str:
        """Write what remains; all processes call it. Return what was written, as text for people."""


class PredictionWriter(BasePredictionWriter):
    """Writes the files of every branch, ``images.json`` (id to file) and ``overlays/`` with all branches.

    Result files are written once, whole, when all ranks are done; pictures and masks appear as they are made.

    Args:
        folder: where to write; created where needed.
        branches: by name. The files of a single branch go into ``folder``, those of several into a folder of
            their name.
        pictures: whether to draw overlays.
        min_score: predictions below this score are written to the results but not drawn.
    """

    def __init__(
        self, folder: Path, branches: dict[str, Branch], pictures: bool = True, min_score: float = 0.5
    ) -> None:
        super().__init__(write_interval="batch")
        self.folder = Path(folder)
        self.branches = branches
        self.pictures = pictures
        self.min_score = min_score
        self._files: dict[str, FileWriter] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out before the work whether its result can be written.

        Raises:
            OSError: if the folder, or one above it, is a file or may not be written to.
        """
        require_writable(self.folder)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        paths = trainer.datamodule.predict_paths
        self._files = {name: branch.file_writer(self.folder / name) for name, branch in self.branches.items()}
        for files in self._files.values():
            files.begin(paths)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: list[Any],
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        for found in prediction:
            each = found if len(self.branches) > 1 else dict.fromkeys(self.branches, found)
            image_id = next(iter(each.values()))["image_id"]
            path = Path(trainer.datamodule.predict_paths[image_id])
            for name, files in self._files.items():
                files.add(each[name], path)
            if self.pictures:
                # The id keeps files of one name in different folders apart.
                target = self.folder / "overlays" / f"{path.stem}_{image_id}.jpg"
                save_picture(target, self._drawn(each, path))

    def _drawn(self, each: dict[str, Found], path: Path) -> np.ndarray:
        image = read_image(path)  # [h, w, 3]
        factor = -(-SMALLEST_PICTURE // min(image.shape[:2]))  # 1 for all but small images
        picture = image.repeat(factor, axis=0).repeat(factor, axis=1)
        return draw_all(self.branches, picture, each, self.min_score)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        texts = [files.finish(trainer.is_global_zero) for files in self._files.values()]
        if not trainer.is_global_zero:
            return
        paths = trainer.datamodule.predict_paths
        rows = [{"id": image_id, "file_name": str(path)} for image_id, path in sorted(paths.items())]
        write_json(self.folder / "images.json", rows)
        print("\n".join(texts))
        if self.pictures:
            print(f"overlay pictures: {(self.folder / 'overlays').resolve()}")


def draw_all(
    branches: dict[str, Branch], picture: np.ndarray, each: dict[str, Found], min_score: float
) -> np.ndarray:
    """Draw what every branch found onto one picture: areas first, so that boxes lie on top of them."""
    for name in sorted(branches, key=lambda name: not branches[name].covers_areas):
        picture = branches[name].draw(picture, each[name], min_score)
    for name, branch in branches.items():
        picture = branch.with_legend(picture, each[name])
    return picture


def ids_of(batch: Any) -> Tensor:
    """Return the ``[B]`` ids of a batch: those of the annotation file, or positions in the data's index."""
    return batch.image_ids if hasattr(batch, "image_ids") else batch.image_ids


def require_writable(folder: Path) -> None:
    """Raise an OSError unless ``folder`` can be written to, or created."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        problem = "may not be written to" if place.is_dir() else "is no folder"
        raise OSError(f"output.folder: {place} {problem}; give another --output.folder")
