"""The base of all tasks: the steps of training, evaluation and prediction.

Letters in shapes: B images, C channels, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pytorch_lightning import Callback
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from ... import __version__
from ...compat import upgrade_checkpoint
from ...data.shared.module import DataContractError, TrunklineData
from ...data.shared.summary import require_learnable, summary_table
from ...data.shared.terminal import harmless
from ...evaluation.base import Prediction
from ...evaluation.pictures import contact_sheet
from ..run.averaging import warn_of_slow_average
from ..run.last import LastCheckpoint
from ..run.peers import EndTogether
from ..run.resume import check_resume, run_state
from .branch import Branch
from .branches import Evaluators, make_branches, per_image
from .compilation import Compile, Losses, TrainingStep
from .fused import fused_where_possible
from .losses import LossCheck, LossMeans
from .network import Network
from .optimization import build_optimizer, build_schedulers, warn_of_schedule
from .watch import watches
from .writer import PictureBoard, PredictionWriter, draw_all

logger = logging.getLogger("trunkline")


class Task(Network):
    """Trains, evaluates and applies a network; every head is served by the branch that it names.

    The network runs once per step, whatever the number of heads.

    Args:
        evaluators: what computes metrics, in place of those that the branch of the head has; of several heads
            a list for each name.
        pictures: how many evaluation images with predictions go to the logger in each epoch.
        picture_score: predictions below this score are left out of those pictures.
        compile: whether the training step (normalising, network and losses) is compiled, one graph for each
            canvas: true for torch's usual mode, ``reduce-overhead`` for CUDA graphs too, ``max-autotune``, or
            ``max-autotune-no-cudagraphs``. Nothing falls back: what cannot be compiled ends the run.
        **network: what every ``Network`` takes.

    Attributes:
        kind: of the labels that the task learns; empty for tasks that take any head.
        branch_names: by what a head names, the branch that serves it in this task.
        evaluator_options: by kind of labels, arguments of the usual evaluator of its branch.
        run_settings: the sections ``trainer`` and ``seed_everything`` of the config, for checkpoints.
        run_folder: where a run without a logger writes its metrics; None for nowhere.
        predicts_on_copy: whether the command line predicts on the copy that :meth:`optimised` makes.
    """

    kind: ClassVar[str] = ""
    branch_names: ClassVar[dict[str, str]] = {}
    evaluator_options: Mapping[str, Mapping[str, Any]] = {}
    predicts_on_copy: ClassVar[bool] = True
    trainer: Any  # Lightning leaves many of its attributes undeclared

    def __init__(
        self,
        evaluators: Evaluators | None = None,
        pictures: int = 4,
        picture_score: float = 0.5,
        compile: Compile = False,
        **network: Any,
    ) -> None:
        super().__init__(**network)
        self.pictures = pictures
        self.picture_score = picture_score
        self.branches = make_branches(self, evaluators)
        self._training_losses = TrainingStep(training_losses, compile)
        self.loss_check = LossCheck(stops=not self.skip_nonfinite_steps)
        self._losses = LossMeans()
        self._board = PictureBoard(self)
        self._predicting = False
        self.run_settings: Mapping[str, Any] = {}
        self.run_folder: Path | None = None

    # -- the branch of a task with one head

    @property
    def branch(self) -> Branch:
        """The only branch.

        Raises:
            ValueError: if there are several.
        """
        if len(self.branches) > 1:
            raise ValueError(f"the task has the branches {list(self.branches)}; take one of task.branches")
        return next(iter(self.branches.values()))

    @property
    def class_names(self) -> list[str]:
        """One name per class of the only head."""
        return self.branch.class_names

    @property
    def result(self) -> Any:
        """The result of the first evaluator of the only head in the last evaluation, or None."""
        return self.branch.result

    # -- the network

    def raw(self, image: Tensor, image_sizes: Tensor) -> Any:
        """Run trunk, neck and head once; ``head.losses`` and ``head.predict`` both take the result."""
        return self.run(self.normalise(image, image_sizes))

    def forward(self, image: Tensor, image_sizes: Tensor) -> Any:
        """Predict.

        Args:
            image: ``[B, C, *S]`` uint8, padded to a common canvas, or floating point, normalised already.
            image_sizes: ``[B, n]`` int64, the size of each image inside the canvas.

        Returns:
            What the head predicts, in canvas pixels.
        """
        return self.head.predict(self.raw(image, image_sizes), image_sizes)

    def configure_optimizers(self) -> tuple[list, list]:
        optimizer = build_optimizer(self.make_optimizer, self, self.trunk, self.optimization)
        optimizer = fused_where_possible(optimizer, self._trainer)
        return [optimizer], build_schedulers(optimizer, self.make_scheduler, self.optimization)

    def configure_callbacks(self) -> list[Callback]:
        return [EndTogether(self._trainer), LastCheckpoint(self.command), *watches(self.skip_nonfinite_steps)]

    # -- what the data must agree with

    def setup(self, stage: str) -> None:
        self.prepare_device(self.trainer.strategy)
        if stage == "fit":
            self.require_sound_precision(self.trainer.strategy.root_device, str(self.trainer.precision))
        data = self.trainer.datamodule
        self._predicting = stage == "predict"
        if data is None:
            return  # loaders only: evaluators that need the truth say so when an evaluation begins
        if not isinstance(data, TrunklineData):
            raise DataContractError(
                f"{type(data).__name__} is no TrunklineData, so {type(self).__name__} cannot ask it for "
                "classes, the truth to evaluate against, and the files to predict on; derive it from "
                "trunkline.data.shared.TrunklineData and implement label_classes, "
                "evaluation_truth and prediction_paths"
            )
        if stage == "fit":
            self._summarise(data)
        self.require_fitting_trunk(*data.image_layout())
        for branch in self.branches.values():
            branch.prepare(data, stage, fitting=self.trainer.state.fn == TrainerFn.FITTING)

    def _summarise(self, data: TrunklineData) -> None:
        """Log what there is to learn, and stop if there is nothing."""
        summaries = data.summaries()
        if summaries and self.trainer.is_global_zero:
            logger.info("%s", summary_table(summaries))
        require_learnable(summaries)

    # -- training

    def training_batch(self, batch: Any) -> Any:
        """Return what the network trains on: the batch, unless a task changes it (mixup), never compiled."""
        return batch

    def on_train_start(self) -> None:
        warn_of_schedule(self, self.trainer)
        warn_of_slow_average(self.trainer)

    def on_train_epoch_start(self) -> None:  # callbacks may have changed it for this epoch
        self._training_losses.check(self.trainer.accumulate_grad_batches)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        losses = self._training_losses(self, self.training_batch(batch), self._trainer)
        total = self.loss_check.total(losses, batch.in_main_memory("image_ids"), self.global_step)
        logged = {f"train/{name}": loss.detach() for name, loss in losses.items()}
        self.log_dict(logged, batch_size=len(batch))
        self.log("train/loss", total.detach(), batch_size=len(batch))
        if self._trainer is not None and self.loss_check.last is not None:
            # With prog_bar=True above, Lightning would synchronise the device at the end of every step.
            self._trainer.progress_bar_metrics["train/loss"] = self.loss_check.last
        return total

    def on_train_epoch_end(self) -> None:
        self.loss_check.finish()

    # -- validation and test: losses and metrics of one forward pass

    def infer(
        self, batch: Any, use: Callable[[Any], None] | None = None
    ) -> tuple[Any, dict[str, list[Prediction]]]:
        """Run the network as in evaluation and prediction.

        Args:
            batch: the images.
            use: called with the raw outputs, if there are any, before predictions are made of them.

        Returns:
            Raw outputs, or None where there are none to compute losses from, and the predictions of each
            branch on each image, by name.
        """
        raw = self.raw(batch.image, batch.image_sizes)
        if use is not None:
            use(raw)
        return raw, self.predictions(raw, batch)

    def predictions(self, raw: Any, batch: Any) -> dict[str, list[Prediction]]:
        """Return the predictions of each branch on each image, by name."""
        return {
            name: branch.predictions(raw[name] if name else raw, batch.for_head(name))
            for name, branch in self.branches.items()
        }

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if not len(batch):
            return  # there are fewer images than processes, or none of these could be read
        # Losses first: their proposals serve predictions too, which need fewer of them.
        _, predictions = self.infer(batch, lambda raw: self._losses.take(self.head, raw, batch))
        for name, branch in self.branches.items():
            branch.update(predictions[name], batch.for_head(name))
        self._board.add(batch, predictions, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        self._losses.reset()
        self._board.reset()
        for branch in self.branches.values():
            branch.reset(self.report_folder(branch))

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
            metrics = {f"{path}{metric}": value for metric, value in branch.compute().items()}
            # Every rank holds the same metrics after gather(), so nothing is reduced here.
            self.log_dict(metrics, rank_zero_only=False, sync_dist=False)
            first = path + branch.headline
            if first in metrics:
                self.log(first.replace("/", "_"), metrics[first], prog_bar=True, logger=False)
        if not self.trainer.sanity_checking:
            self._board.finish(stage)
        if self.trainer.state.fn != TrainerFn.FITTING:  # fit reports at its end
            self._report()

    def on_fit_end(self) -> None:
        self._report()

    def report_folder(self, branch: Branch) -> Path | None:
        """Return the folder for files of an evaluation, next to those of the logger, or in ``run_folder``.

        All ranks ask for it together.
        """
        trainer = self.trainer
        folder = trainer.log_dir if trainer.loggers else trainer.strategy.broadcast(self.run_folder)
        if folder is None or trainer.fast_dev_run:
            return None
        return Path(folder) / ("test" if trainer.testing else "val") / branch.name

    def _report(self) -> None:
        """Print the last metrics, and write them next to the logger's files if there is a logger."""
        for name, branch in self.branches.items():
            folder = self.report_folder(branch)
            if not self.trainer.is_global_zero or not branch.results:
                continue
            # Not self.print(): that goes through the progress bar, and says nothing once the bar is gone.
            print(harmless(f"\n{name}:\n{branch.report()}" if name else f"\n{branch.report()}"))
            if folder is not None:
                written = branch.write_report(folder)
                print("".join(f"\n{what}: {path.resolve()}" for what, path in written.items()))

    # -- prediction

    def predict_step(self, batch: Any, batch_idx: int) -> list[Any]:
        """Return the prediction on each image; a dictionary by branch if there are several."""
        if not len(batch):
            return []  # none of its images could be read
        _, predictions = self.infer(batch)
        return per_image(predictions) if len(predictions) > 1 else next(iter(predictions.values()))

    def prediction_writer(self, folder: Path, pictures: bool, min_score: float) -> PredictionWriter:
        """Return the callback that writes this task's predictions under ``folder``.

        Args:
            folder: created where needed.
            pictures: whether to draw pictures too.
            min_score: predictions below this score are written to the results but not drawn.
        """
        return PredictionWriter(folder, self.branches, pictures, min_score)

    # -- checkpoints and pictures

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loss_check.finish()  # weights that a non-finite loss has touched are not worth keeping
        checkpoint["trunkline_version"] = __version__
        checkpoint["branches"] = {name: branch.state() for name, branch in self.branches.items()}
        if self._trainer is not None:
            checkpoint |= run_state(self._trainer, self.run_settings)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        upgrade_checkpoint(checkpoint)
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            check_resume(self, self.run_settings, checkpoint)
        for name, branch in self.branches.items():
            branch.restore(checkpoint.get("branches", {}).get(name, {}), self._predicting)

    def picture(self, batch: Any, index: int, predictions: dict[str, Prediction]) -> np.ndarray | None:
        """Draw one image of an evaluation with predictions, and truth where one branch shows it.

        Returns:
            ``[h, w, 3]`` uint8, or None where there is nothing to draw on.
        """
        (name, branch), *others = self.branches.items()
        if not others:
            return branch.evaluation_picture(predictions[name], batch, index, self.picture_score)
        image = branch.input_picture(batch, index)
        if image is None:
            return None
        return contact_sheet([image, draw_all(self.branches, image, predictions, self.picture_score)], 2)


def training_losses(task: Task, batch: Any) -> Losses:
    """Return the named losses of a batch, from its pixels on: what ``model.compile`` compiles."""
    return task.head.losses(task.raw(batch.image, batch.image_sizes), batch)
