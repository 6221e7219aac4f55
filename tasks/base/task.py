"""Tasks made of branches: the steps of training, evaluation and prediction that all of them share.

Letters in shapes: B images, C channels, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import Callback
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from ...evaluation.pictures.boxes import contact_sheet
from .branch import Branch, Found, PredictionWriter, draw_all, ids_of
from .losses import LossMeans
from .network import Task


class BranchedTask(Task):
    """A task whose heads are served by branches; the network runs once per step, whatever their number.

    Args:
        pictures: how many validation images with predictions go to the logger in each epoch.
        picture_score: predictions below this score are left out of those pictures.
        **task: what every ``Task`` takes.
    """

    def __init__(self, pictures: int = 4, picture_score: float = 0.5, **task: Any) -> None:
        super().__init__(**task)
        self.pictures = pictures
        self.picture_score = picture_score
        self.branches = self.make_branches()
        self._losses = LossMeans()
        self._drawn = 0
        self._predicting = False

    def make_branches(self) -> dict[str, Branch]:
        """Return the branches by name; the name of a single one is empty."""
        raise NotImplementedError(f"{type(self).__name__} must implement make_branches()")

    def raw(self, image: Tensor, image_sizes: Tensor) -> Any:
        """Run trunk, neck and head once; ``head.losses`` and ``head.predict`` both take the result."""
        normalised = self.normalise(image, image_sizes)
        return self.head(self.backbone(normalised), tuple(image.shape[2:]))

    def evaluation_raw(self, batch: Any) -> Any:
        """Compute what evaluation and prediction look at; the same as in training unless a task says more."""
        return self.raw(batch.image, batch.image_sizes)

    def forward(self, image: Tensor, image_sizes: Tensor) -> Any:
        """Predict.

        Args:
            image: ``[B, C, *S]`` uint8, padded to a common canvas.
            image_sizes: ``[B, n]`` int64, the size of each image inside the canvas.

        Returns:
            What the head predicts, in canvas pixels.
        """
        return self.head.predict(self.raw(image, image_sizes), image_sizes)

    # -- training

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        losses = self.head.losses(self.raw(batch.image, batch.image_sizes), batch)
        total = self.total_loss(losses, ids_of(batch))
        logged = {f"train/{name}": loss.detach() for name, loss in losses.items()}
        self.log_dict(logged, batch_size=len(batch))
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch))
        return total

    # -- validation and test: losses and figures of one forward pass

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        self._predicting = stage == "predict"
        if data is None:
            return
        self.require_fitting_trunk(*getattr(data, "image_layout", lambda: (3, 2))())
        for branch in self.branches.values():
            branch.prepare(data, stage)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        raw = self.evaluation_raw(batch)
        self._losses.add(self.head.losses(raw, batch), len(batch))
        found = self._predictions(raw, batch)
        for name, branch in self.branches.items():
            branch.evaluate(found[name], batch)
        self._log_pictures(batch, found)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        self._losses.reset()
        self._drawn = 0
        for branch in self.branches.values():
            branch.reset()

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        self._finish_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._finish_evaluation("test")

    def _finish_evaluation(self, stage: str) -> None:
        for name, value in self._losses.gathered().items():
            self.log(f"{stage}/{name}", value, sync_dist=False)
        for name, branch in self.branches.items():
            branch.gather()
            if self.trainer.sanity_checking:
                continue
            path = f"{stage}/{name}/" if name else f"{stage}/"
            figures = {f"{path}{figure}": value for figure, value in branch.compute().items()}
            # Every rank holds the same figures after gather(), so nothing is reduced here.
            self.log_dict(figures, rank_zero_only=False, sync_dist=False)
            first = path + branch.headline
            if first in figures:
                self.log(first.replace("/", "_"), figures[first], prog_bar=True, logger=False)
        if self.trainer.state.fn != TrainerFn.FITTING:  # fit reports at its end
            self._report(stage)

    def on_fit_end(self) -> None:
        self._report("val")

    def _report(self, stage: str) -> None:
        """Print the last figures, and write them beside the logger's files if there is a logger."""
        folder = self.trainer.log_dir if self.trainer.loggers else None  # asked for by all ranks together
        if not self.trainer.is_global_zero:
            return
        for name, branch in self.branches.items():
            if branch.result is None:
                continue
            # Not self.print(): that goes through the progress bar, and says nothing once the bar is gone.
            print(f"\n{name}:\n{branch.report()}" if name else f"\n{branch.report()}")
            if folder is not None and not self.trainer.fast_dev_run:
                written = branch.write_report(Path(folder) / name, stage)
                print("".join(f"\n{what}: {path.resolve()}" for what, path in written.items()))

    # -- prediction

    def predict_step(self, batch: Any, batch_idx: int) -> list[Any]:
        """Return, for each image, what was found; a dictionary by branch if there are several."""
        found = self._predictions(self.evaluation_raw(batch), batch)
        return _per_image(found) if len(found) > 1 else next(iter(found.values()))

    def _predictions(self, raw: Any, batch: Any) -> dict[str, list[Found]]:
        return {
            name: branch.predictions(raw[name] if name else raw, batch)
            for name, branch in self.branches.items()
        }

    def prediction_writer(self, folder: Path, pictures: bool, min_score: float) -> Callback:
        return PredictionWriter(folder, self.branches, pictures, min_score)

    # -- checkpoints and pictures

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        states = {name: branch.state() for name, branch in self.branches.items()}
        checkpoint.update(states.get("", {"branches": states}))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, branch in self.branches.items():
            state = checkpoint.get("branches", {}).get(name, {}) if name else checkpoint
            branch.restore(state, self._predicting)

    def _log_pictures(self, batch: Any, found: dict[str, list[Found]]) -> None:
        """Draw predictions and truth for the first images of the epoch, on rank 0."""
        board = getattr(self.logger, "experiment", None)
        wanted = min(self.pictures - self._drawn, len(batch))
        if wanted <= 0 or not self.trainer.is_global_zero or not hasattr(board, "add_image"):
            return
        for index, each in enumerate(_per_image(found)[:wanted]):
            height, width = batch.image_sizes[index].tolist()
            image = batch.image[index, :, :height, :width].permute(1, 2, 0).cpu().numpy()  # [h, w, 3]
            drawn = self._picture(image, each, batch, index)
            number = int(ids_of(batch)[index])
            board.add_image(f"val/image {number}", drawn, self.global_step, dataformats="HWC")
        self._drawn += wanted

    def _picture(self, image: np.ndarray, each: dict[str, Found], batch: Any, index: int) -> np.ndarray:
        """Draw one image with predictions, and truth where there is one branch to show it for."""
        if len(self.branches) > 1:
            drawn = draw_all(self.branches, image, each, self.picture_score)
            return contact_sheet([image, drawn], 2)
        ((name, branch),) = self.branches.items()
        return branch.compare(image, each[name], batch, index, self.picture_score)


def _per_image(found: dict[str, list[Found]]) -> list[dict[str, Found]]:
    return [dict(zip(found, each, strict=True)) for each in zip(*found.values(), strict=True)]
