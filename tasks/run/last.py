"""The last state of a run: kept in ``last.ckpt``, from which it goes on exactly."""

from __future__ import annotations

import logging
import math
import os
import shlex
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import SIGTERMException

from .checkpoints import AtomicCheckpointIO, CheckpointError
from .experiment import Command
from .loops import use_exact_loops
from .saving import SaveEvery
from .state import RunState
from .stopping import StopSignals, agreed, requeue, requeue_signal

logger = logging.getLogger("trunkline")

LAST = "last.ckpt"


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, the newest state of a run, next to the checkpoints of ``ModelCheckpoint``.

    It is written between two optimiser steps, when all that belongs to the one before is done: at the end of
    every epoch, after every validation, whenever a ``ModelCheckpoint`` with ``save_last`` has saved, as
    ``--save_every`` says, and when the process is asked to stop (SIGTERM). A run that goes on from it ends
    where it would have ended. Lightning's ``save_last`` follows the best checkpoints instead (since 2.6), so
    this takes its place. Every task brings this callback; it writes nothing without a ``ModelCheckpoint``
    (``enable_checkpointing=False``) and in ``fast_dev_run``.

    Args:
        command: that started the run, if one did.

    Attributes:
        path: of the file; None before ``on_fit_start``, and where nothing is written.
    """

    def __init__(self, command: Command | None = None) -> None:
        self.path: str | None = None
        self._command = Command() if command is None else command
        self._folder: str | None = None
        self._saved_step = -1
        self._newest = 0  # when the newest checkpoint of the run was written, in ns
        self._due = False  # whether to save after this step
        self._stopping = 0  # the signal by which all processes stop after this step
        self._between = False
        self._followed: list[ModelCheckpoint] = []
        self._not_numbers: set[str | None] = set()
        self._every = SaveEvery.parse(self._command.save_every)
        self._signals = StopSignals()
        self._state = RunState()

    # -- the beginning of a run

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        """Take the place of ``save_last``, and let checkpoints be written whole or not at all.

        Raises:
            ValueError: if ``--save_every`` is given, and no checkpoint would be written.
        """
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        self.path = self._folder = None
        if stage != "fit":
            return
        loops = use_exact_loops(trainer)
        loops.between = lambda: self._after_epoch(trainer)
        loops.epoch_loop.between = lambda ends: self._after_step(trainer, ends)
        others = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
        if trainer.fast_dev_run or not others or others[0].dirpath is None:
            if self._command.save_every is not None and not trainer.fast_dev_run:
                raise ValueError(
                    "--save_every needs a checkpoint to write: leave out --trainer.enable_checkpointing false"
                )
            return
        for each in others:
            if each.save_last:
                self._followed.append(each)
                each.save_last = None
        self._folder = str(others[0].dirpath)
        self._saved_step, self._due, self._stopping = -1, False, 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the name of the file: now it is known which checkpoint the run goes on from."""
        first = trainer.strategy.broadcast(trainer.ckpt_path)
        if first != trainer.ckpt_path:
            raise CheckpointError(
                f"process {trainer.global_rank} goes on from {trainer.ckpt_path}, the first one from "
                f"{first}; give all processes the same file by --ckpt_path"
            )
        if self._folder is None:
            return
        self.path = trainer.strategy.broadcast(self._free_path(trainer, self._folder))
        resumed = None if trainer.ckpt_path is None else Path(trainer.ckpt_path).resolve()
        if resumed is not None and resumed.is_file():
            self._newest = resumed.stat().st_mtime_ns
        for each in trainer.checkpoint_callbacks:
            # Without versions a best.ckpt of another run would be replaced.
            if isinstance(each, ModelCheckpoint):
                folder = Path(str(each.dirpath)).resolve()
                if resumed is None or folder != resumed.parent:
                    each._enable_version_counter |= any(folder.glob("*.ckpt"))

    @staticmethod
    def _free_path(trainer: Trainer, folder: str) -> str:
        """Return ``last.ckpt``, or ``last-v1.ckpt`` and so on if there is one of another run."""
        resumed = None if trainer.ckpt_path is None else os.path.abspath(trainer.ckpt_path)
        path, version = os.path.join(folder, LAST), 0
        while os.path.exists(path) and os.path.abspath(path) != resumed:
            version += 1
            path = os.path.join(folder, f"last-v{version}.ckpt")
        return path

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._signals.install(trainer)
        self._every.saved()

    # -- when to save

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if any(each._last_global_step_saved == trainer.global_step for each in self._followed):
            self._due = True
        self._agree(trainer)

    def on_validation_end(self, trainer: Any, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == TrainerFn.FITTING:
            self._due = True
            self._agree(trainer)

    def _agree(self, trainer: Any) -> None:
        """Let all processes know whether to save or stop; with accumulated gradients at their step."""
        if trainer.fit_loop._should_accumulate():
            return
        due = self.path is not None and self._every.due(trainer.global_step)
        self._stopping, due = agreed(trainer, self._signals.asked, due)
        self._due |= due

    def _after_step(self, trainer: Any, ends: bool) -> None:
        """Save or stop within an epoch, if the last step is one to do it after."""
        if self._due or ends or self._stopping:
            self._save(trainer)
        if self._stopping and not ends:
            raise SIGTERMException()

    def _after_epoch(self, trainer: Any) -> None:
        self._save(trainer)
        if self._stopping and not trainer.fit_loop.done:
            raise SIGTERMException()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._state.end_epoch()
        for each in trainer.checkpoint_callbacks:
            monitor = each.monitor if isinstance(each, ModelCheckpoint) else None
            value = None if monitor is None else trainer.callback_metrics.get(monitor)
            if value is not None and math.isnan(value) and monitor not in self._not_numbers:
                self._not_numbers.add(monitor)
                logger.warning(
                    "%s is not a number, so it tells no better checkpoint from a worse one; give another "
                    "monitor to ModelCheckpoint, or look why there is nothing to measure",
                    monitor,
                )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say how to go on; where the process was asked to stop, with which status it ends."""
        if isinstance(exception, SIGTERMException) and self._stopping:
            exception.code = 128 + self._stopping
            if self._stopping == requeue_signal(trainer):
                requeue(trainer, self._command.automatic)
        if self.path is not None and trainer.is_global_zero and self._saved_step >= 0:
            words = self._command.going_on or ("fit", "--ckpt_path", self.path)
            logger.warning("the run has stopped; to go on: trunkline %s", shlex.join(words))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the checkpoints are."""
        if self.path is None or not trainer.is_global_zero or not os.path.exists(self.path):
            return
        best = [
            each.best_model_path for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)
        ]
        for name, path in (*(("best", each) for each in best if each), ("last", self.path)):
            logger.info("%s checkpoint: %s", name, path)

    # -- what is saved

    def _save(self, trainer: Trainer) -> None:
        """Write the file; only called between two steps."""
        if self.path is None:
            return
        self._between = True
        try:
            trainer.save_checkpoint(self.path, weights_only=False)
        finally:
            self._between = False
        self._saved_step, self._due = trainer.global_step, False
        self._every.saved()
        if trainer.is_global_zero and os.path.isfile(self.path):
            self._stay_newest(self.path)

    def _stay_newest(self, path: str) -> None:
        """Let the newest checkpoint be the newest by its time too, after the clock was set back."""
        written = os.stat(path).st_mtime_ns
        if written <= self._newest:
            written = self._newest + 1_000_000  # what file systems tell apart
            os.utime(path, ns=(written, written))
        self._newest = written

    def on_save_checkpoint(
        self, trainer: Any, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._command.store(checkpoint)
        self._state.store(trainer, checkpoint, self._between)

    def on_load_checkpoint(
        self, trainer: Any, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._state.load(trainer, checkpoint)
