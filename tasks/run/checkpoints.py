"""Checkpoints of a run: written whole or not at all, the last state always, and found again."""

from __future__ import annotations

import logging
import math
import os
import shlex
import signal
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning_fabric.utilities.cloud_io import _is_local_file_protocol
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import SIGTERMException

logger = logging.getLogger("trunkline")

LAST = "last.ckpt"
STOPPED = 128 + signal.SIGTERM  # exit status of a process that was asked to stop


class CheckpointError(ValueError):
    """A checkpoint is not there, cannot be read, or contradicts what is asked for."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint next to where it belongs, and renames it when all of it is on the disk.

    So there is never half a checkpoint under its name, and the old one is there until the new one is whole.
    Lightning's own writes to ``$TMPDIR`` first, and copies from there where that is another file system.
    Addresses of other storage (``s3://``) are left to Lightning.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: what to write.
            path: where; folders above it are created.
            storage_options: as in Lightning, not supported.

        Raises:
            OSError: if it cannot be written; what was there before stays as it is.
        """
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        part = target.with_name(f".{target.name[:64]}.{uuid.uuid4().hex[:8]}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
            _sync_folder(target.parent)
        except (OSError, RuntimeError) as error:  # torch's writer turns errors of the disk into RuntimeError
            cause = _cause(error)
            raise OSError(
                f"the checkpoint {target} cannot be written ({cause}); "
                + ("what was there before is unharmed; " if target.is_file() else "")
                + "make room on the disk, or give another --trainer.default_root_dir"
            ) from error
        finally:
            part.unlink(missing_ok=True)


def _cause(error: BaseException) -> str:
    """Return what the system said, which torch's writer hides behind an error of its own."""
    told: BaseException | None = error
    while told is not None:
        if isinstance(told, OSError) and told.strerror:
            return told.strerror
        told = told.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _sync_folder(folder: Path) -> None:
    """Let the new name of a file outlive a loss of power; not every system can open a folder."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, the newest state of a run, next to the checkpoints of ``ModelCheckpoint``.

    It is written at the end of every epoch, after every validation, whenever a ``ModelCheckpoint`` with
    ``save_last`` saves, and when the process is asked to stop (SIGTERM). Lightning's ``save_last`` follows
    the best checkpoints instead (since 2.6), so this takes its place. Every task brings this callback; it
    writes nothing without a ``ModelCheckpoint`` (``enable_checkpointing=False``) and in ``fast_dev_run``.

    Attributes:
        path: of the file; None before ``on_fit_start``, and where nothing is written.
    """

    def __init__(self) -> None:
        self.path: str | None = None
        self._folder: str | None = None
        self._saved_step = -1
        self._followed: list[ModelCheckpoint] = []
        self._not_numbers: set[str | None] = set()

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        """Take the place of ``save_last``, and let checkpoints be written whole or not at all."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        self.path = self._folder = None
        others = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
        if stage != "fit" or trainer.fast_dev_run or not others or others[0].dirpath is None:
            return
        for each in others:
            if each.save_last:
                self._followed.append(each)
                each.save_last = None
        self._folder = str(others[0].dirpath)
        self._saved_step = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the name of the file: now it is known which checkpoint the run goes on from."""
        if self._folder is None:
            return
        self.path = trainer.strategy.broadcast(self._free_path(trainer, self._folder))
        resumed = None if trainer.ckpt_path is None else Path(trainer.ckpt_path).resolve().parent
        for each in trainer.checkpoint_callbacks:
            # Without versions a best.ckpt of another run would be replaced.
            if isinstance(each, ModelCheckpoint) and Path(str(each.dirpath)).resolve() != resumed:
                each._enable_version_counter |= any(Path(str(each.dirpath)).glob("*.ckpt"))

    @staticmethod
    def _free_path(trainer: Trainer, folder: str) -> str:
        """Return ``last.ckpt``, or ``last-v1.ckpt`` and so on if there is one of another run."""
        resumed = None if trainer.ckpt_path is None else os.path.abspath(trainer.ckpt_path)
        path, version = os.path.join(folder, LAST), 0
        while os.path.exists(path) and os.path.abspath(path) != resumed:
            version += 1
            path = os.path.join(folder, f"last-v{version}.ckpt")
        return path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if any(each._last_global_step_saved == trainer.global_step for each in self._followed):
            self._save(trainer)

    def on_validation_end(self, trainer: Any, pl_module: LightningModule) -> None:
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:  # the end of the epoch follows
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Of this step there may be one already: from before the end of the epoch.
        self._save(trainer, again=True)
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
        """Say how to go on. Where the process is asked to stop (Lightning: between two steps) save before."""
        if self.path is None:
            return
        if isinstance(exception, SIGTERMException):
            exception.code = STOPPED
            self._save(trainer)
        if trainer.is_global_zero and self._saved_step >= 0:
            path = shlex.quote(self.path)
            logger.warning("the run has stopped; to go on: trunkline fit --ckpt_path %s", path)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the checkpoints are."""
        if self.path is None or not trainer.is_global_zero or not os.path.exists(self.path):
            return
        best = [
            each.best_model_path for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)
        ]
        for name, path in (*(("best", each) for each in best if each), ("last", self.path)):
            logger.info("%s checkpoint: %s", name, path)

    def _save(self, trainer: Trainer, again: bool = False) -> None:
        if self.path is None or trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if again or self._saved_step != trainer.global_step:
            trainer.save_checkpoint(self.path, weights_only=False)
            self._saved_step = trainer.global_step


def read_checkpoint(path: str, option: str) -> dict[str, Any]:
    """Return what a checkpoint holds, its tensors memory-mapped; no code in it runs.

    Args:
        path: an existing file.
        option: names the file in errors.

    Raises:
        CheckpointError: if the file cannot be read as a checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises nearly anything on a file that is not its own
        cause = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        if "PytorchStreamReader" in cause:
            cause = "it is cut short or damaged"
        elif "Weights only load failed" in cause:
            cause = "it holds objects other than tensors and plain values, which could run code"
        raise CheckpointError(
            f"{option} {path} cannot be read as a checkpoint ({cause}); give a .ckpt that fit has written"
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise CheckpointError(
            f"{option} {path} is no checkpoint of a run: it has no state_dict; a file of weights alone "
            "goes to --model.weights"
        )
    return content


def newest_checkpoint(roots: Iterable[Path], name: str) -> Path:
    """Return the newest checkpoint of the runs below some folders.

    A file that cannot be read is named in a warning, and the next one is taken.

    Args:
        roots: folders of runs.
        name: ``last`` for the newest of all; ``best`` for the best of the newest run, by what its newest
            checkpoint says.

    Raises:
        CheckpointError: if there is none, naming the folders.
    """
    roots = list(dict.fromkeys(Path(root) for root in roots))
    files = {file.resolve() for root in roots for file in root.rglob("*.ckpt") if file.is_file()}
    for file in sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name), reverse=True):
        try:
            checkpoint = read_checkpoint(str(file), "checkpoint")
        except CheckpointError as error:
            logger.warning("%s; an older one is taken", error)
            continue
        chosen = file if name == "last" else _best_of(checkpoint, file)
        logger.info("--ckpt_path %s: %s (step %s)", name, chosen, checkpoint.get("global_step", "unknown"))
        return chosen
    raise CheckpointError(
        f"--ckpt_path {name}: no checkpoint that can be read in {', '.join(map(str, roots))}, nor in the "
        "folders in there; give the path of a .ckpt, or leave --ckpt_path out to begin a new run"
    )


def _best_of(checkpoint: dict[str, Any], file: Path) -> Path:
    """Return the best checkpoint of the run of another one.

    Raises:
        CheckpointError: if that run kept none, or it is gone.
    """
    states = [state for state in checkpoint.get("callbacks", {}).values() if isinstance(state, dict)]
    # Without a metric the "best" of a ModelCheckpoint is only its newest.
    states.sort(key=lambda state: state.get("best_model_score") is None)
    paths = [state["best_model_path"] for state in states if state.get("best_model_path")]
    for state in states:
        if state.get("best_model_path"):
            for place in _places(state, file):
                if place.is_file():
                    return place
    raise CheckpointError(
        f"--ckpt_path best: the newest run ({file}) has no best checkpoint"
        + (f"; {paths[0]} is not there" if paths else "")
        + "; give the path of a .ckpt"
    )


def _places(state: dict[str, Any], file: Path) -> list[Path]:
    """Return where the best checkpoint of a ``ModelCheckpoint`` may lie, by its state in another one.

    The folder of the runs may have been moved, and a path from the folder that a command was started in may
    lead to another run: what counts is the way from the one checkpoint to the other.
    """
    best, folder = str(state["best_model_path"]), str(state.get("dirpath") or "")
    places = []
    if folder and os.path.isabs(best) == os.path.isabs(folder):
        places.append(Path(os.path.normpath(file.parent / os.path.relpath(best, folder))))
    if os.path.isabs(best) or (folder and Path(folder).resolve() == file.parent):
        places.append(Path(best))
    return [*places, file.parent / Path(best).name]
