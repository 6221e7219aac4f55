"""Where predictions go: files, and pictures for the logger.

Letters in shapes: h w height and width of a picture in pixels.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter

from ...data.shared.failed import FailedImage
from ...data.shared.io import read_image
from ...data.shared.module import DataContractError
from ...data.shared.storage import Location, located
from ...data.shared.terminal import harmless
from ...evaluation.base import Prediction
from ...evaluation.files import shown, write_json
from ...evaluation.names import safe_name
from ...evaluation.pictures import contact_sheet, save_picture
from ...evaluation.pictures.attempts import Attempts
from .output import (
    Existing,
    Failures,
    OutputLock,
    UnreadImages,
    earlier_results,
    move_earlier_results,
    refuse_earlier_results,
    require_writable,
)

if TYPE_CHECKING:
    from .branch import Branch
    from .task import Task

logger = logging.getLogger("trunkline")

COLUMNS = 4  # of a sheet of small pictures
# Labels would hide the objects of small images: their pictures are enlarged, by a whole factor, to this size.
SMALLEST_PICTURE = 320


class FileWriter(ABC):
    """Writes the predictions of one branch."""

    def begin(self, paths: Mapping[int, Location]) -> None:  # noqa: B027, many need nothing
        """Learn which images there are, by id, before the first prediction."""

    @abstractmethod
    def add(self, prediction: Prediction, path: Location, batch: Any, index: int) -> None:
        """Write, or keep, the prediction on one image.

        Args:
            prediction: see :data:`.evaluation.base.Prediction`; with an ``error`` there is nothing to write.
            path: of the image.
            batch: that holds the image.
            index: where in the batch.
        """

    @abstractmethod
    def finish(self, first_process: bool) -> str:
        """Write what remains; all processes call it. Return what was written, as text for people."""


class PredictionWriter(BasePredictionWriter):
    """Writes the files of every branch, ``images.json`` (id to file) and ``pictures/`` with all branches.

    Images that could not be read are listed in ``failed.csv``, and are an error when all others are written.
    Result files are written once, whole, when all ranks are done; pictures and masks appear as they are made.

    Args:
        folder: where to write; created where needed.
        branches: by name. The files of a single branch go into ``folder``, those of several into a folder of
            their name.
        pictures: whether to draw pictures.
        min_score: predictions below this score are written to the results but not drawn.
        existing: what to do if the folder holds results already: ``error``, or ``move`` them into a new
            folder ``earlier_N`` there.
    """

    def __init__(
        self,
        folder: Path,
        branches: dict[str, Branch],
        pictures: bool = True,
        min_score: float = 0.5,
        existing: Existing = "error",
    ) -> None:
        super().__init__(write_interval="batch")
        self.folder = Path(folder)
        self.branches = branches
        self.pictures = pictures
        self.min_score = min_score
        self.existing: Existing = existing
        self._files: dict[str, FileWriter] = {}
        self._paths: dict[int, Location] = {}
        self._failures = Failures(self.folder)
        self._attempts = Attempts()
        self._lock = OutputLock(self.folder)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out before the work whether its result can be written.

        Raises:
            OSError: if the folder, or one above it, is a file or may not be written to, or it holds results.
        """
        require_writable(self.folder)
        if trainer.is_global_zero:
            self._lock.acquire()
        names = earlier_results(self.folder, self.branches)
        try:
            if self.existing == "error":
                refuse_earlier_results(self.folder, names)
        except OSError:
            self._lock.release()
            raise
        trainer.strategy.barrier("earlier results")  # until all processes have looked
        if names and trainer.is_global_zero:
            moved = move_earlier_results(self.folder, names)
            logger.info("moved earlier results to %s", shown(moved.resolve()))
        trainer.strategy.barrier("moved results")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let others have the folder."""
        self._lock.release()

    def on_exception(self, *_: Any) -> None:
        """As at the end."""
        self._lock.release()

    def on_predict_start(self, trainer: Any, pl_module: LightningModule) -> None:
        data = trainer.datamodule
        paths = data.prediction_paths()
        if not isinstance(paths, Mapping):
            raise DataContractError(
                f"prediction_paths() of {type(data).__name__} returned a {type(paths).__name__}; it has to "
                "be a dictionary from the ids of the images to their files"
            )
        self._paths = {int(i): located(path) for i, path in paths.items()}
        self._files = {
            name: branch.file_writer(self.folder / name, self.min_score, self.pictures)
            for name, branch in self.branches.items()
        }
        for files in self._files.values():
            files.begin(self._paths)
        self._failures = Failures(self.folder)
        self._failures.add(data.prediction_failures())

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
        self._failures.add(batch.failed)
        for index, found in enumerate(prediction):
            each = found if len(self.branches) > 1 else dict.fromkeys(self.branches, found)
            image_id = next(iter(each.values()))["image_id"]
            if image_id not in self._paths:
                raise DataContractError(
                    f"prediction_paths() of the data module has no file for the image id "
                    f"{image_id} of a batch"
                )
            path = self._paths[image_id]
            for name, files in self._files.items():
                files.add(each[name], path, batch.for_head(name), index)
            problem = next((found["error"] for found in each.values() if "error" in found), None)
            if problem is not None:
                self._failures.add([FailedImage(image_id, str(path), problem)])
            elif self.pictures:
                self._attempts.attempt(str(path), partial(self._draw, each, path, batch))

    def _draw(self, each: dict[str, Prediction], path: Location, batch: Any) -> None:
        drawn = self._picture(each, path, batch)
        if drawn is not None:
            # The id keeps files of one name in different folders apart.
            save_picture(self.folder / "pictures" / f"{safe_name(drawn[0])}.jpg", drawn[1])

    def _picture(
        self, each: dict[str, Prediction], path: Location, batch: Any
    ) -> tuple[str, np.ndarray] | None:
        (name, branch), *others = self.branches.items()
        if not others:
            return branch.prediction_picture(each[name], path, batch, self.min_score)
        picture = draw_all(self.branches, enlarged(read_image(path, pixel_range="own")), each, self.min_score)
        return f"{path.stem}_{each[name]['image_id']}", picture

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is written whole.

        Raises:
            OSError: if the folder cannot be written to.
            ValueError: at the end of all, if there were images that could not be predicted on.
        """
        first = trainer.is_global_zero
        try:
            texts = [files.finish(first) for files in self._files.values()]
            problem = self._failures.finish(first, len(self._paths))
            if first:
                rows = [{"id": i, "file_name": str(path)} for i, path in sorted(self._paths.items())]
                write_json(self.folder / "images.json", rows)
        except OSError as error:
            raise OSError(
                f"output.folder: {shown(self.folder)} cannot be written to ({error}); make room, or give "
                "another --output.folder"
            ) from error
        if first:
            print(harmless("\n".join(shown(text) for text in texts if text)))
            if self.pictures and (self.folder / "pictures").is_dir():
                print(f"pictures: {shown((self.folder / 'pictures').resolve())}")
        self._attempts.finish()
        if problem:
            raise UnreadImages(problem)


def enlarged(picture: np.ndarray, smallest: int = SMALLEST_PICTURE) -> np.ndarray:
    """Repeat the pixels of a small picture ``[h, w, 3]`` by a whole factor, so that labels find room."""
    factor = -(-smallest // min(picture.shape[:2]))  # 1 for all but small images
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def draw_all(
    branches: dict[str, Branch], picture: np.ndarray, each: dict[str, Prediction], min_score: float
) -> np.ndarray:
    """Draw the predictions of every branch onto one picture: areas first, boxes on top of them."""
    for name in sorted(branches, key=lambda name: not branches[name].covers_areas):
        picture = branches[name].draw(picture, each[name], min_score)
    for name, branch in branches.items():
        picture = branch.with_legend(picture, each[name])
    return picture


@runtime_checkable
class TakesPictures(Protocol):
    """What a logger's ``experiment`` needs to show pictures, as TensorBoard's does."""

    def add_image(self, tag: str, img_tensor: Any, global_step: int, dataformats: str) -> None:
        """Show a picture."""


class PictureBoard:
    """Gives the logger pictures of an evaluation, on the first process, if it takes any.

    Args:
        task: draws the pictures.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._attempts = Attempts()
        self.reset()

    def reset(self) -> None:
        """Forget the pictures of the last evaluation."""
        self._sheet: list[np.ndarray] = []
        self._drawn = 0
        self._batch_size = 0  # of the evaluation at hand, the last batch apart

    def _experiment(self) -> TakesPictures | None:
        task = self._task
        if task.logger is None or not task.trainer.is_global_zero:
            return None
        logger: Any = task.logger
        return logger.experiment if isinstance(logger.experiment, TakesPictures) else None

    def _show(self, experiment: TakesPictures, title: str, picture: np.ndarray) -> None:
        experiment.add_image(title, picture, self._task.global_step, dataformats="HWC")

    def add(self, batch: Any, predictions: dict[str, list[Prediction]], batch_idx: int) -> None:
        """Draw those images of a batch that the logger is to show."""
        experiment = self._experiment()
        if experiment is None:
            return
        branch = next(iter(self._task.branches.values()))
        for index in self._chosen(len(batch), batch_idx, branch.small_pictures):
            each = {name: found[index] for name, found in predictions.items()}
            what = f"image id {next(iter(each.values()))['image_id']}"
            self._attempts.attempt(what, partial(self._add, experiment, branch, batch, index, each))

    def _add(self, experiment: TakesPictures, branch: Branch, batch: Any, index: int, each: Any) -> None:
        picture = self._task.picture(batch, index, each)
        if picture is None:
            return
        if branch.small_pictures:
            self._sheet.append(picture)
        else:
            self._show(experiment, f"val/{branch.picture_title(batch, index)}", picture)

    def _chosen(self, size: int, batch_idx: int, spread: bool) -> list[int]:
        """Return which images of a batch are drawn: the first of all, or evenly spaced ones.

        Data often come class by class, so the first would all be of one class.
        """
        wanted = self._task.pictures
        if not spread:
            chosen = list(range(min(size, max(0, wanted - self._drawn))))
            self._drawn += len(chosen)
            return chosen
        trainer = self._task.trainer
        if trainer.sanity_checking:
            return []
        if batch_idx == 0:
            self._batch_size = size
        batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
        images = int(batches[0]) * self._batch_size
        places = sorted({number * images // wanted for number in range(wanted)})
        first = batch_idx * self._batch_size
        return [place - first for place in places if first <= place < first + size]

    def finish(self, stage: str) -> None:
        """Show the sheet of small pictures, and what the evaluators drew."""
        experiment = self._experiment()
        if experiment is None:
            return
        self._attempts.attempt("the sheet of images", partial(self._show_sheet, experiment, stage))
        for name, branch in self._task.branches.items():
            path = "/".join(part for part in (stage, name) if part)
            self._attempts.attempt(
                f"the results {path}", partial(self._show_results, experiment, path, branch)
            )

    def _show_sheet(self, experiment: TakesPictures, stage: str) -> None:
        if self._sheet:
            self._show(experiment, f"{stage}/pictures", contact_sheet(self._sheet, COLUMNS))

    def _show_results(self, experiment: TakesPictures, path: str, branch: Branch) -> None:
        for title, picture in branch.result_pictures().items():
            self._show(experiment, f"{path}/{title}", picture)
