"""What the trainer is built with: the folder of a run is new, the config in it overwrites nothing."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from .sources import SettingError

logger = logging.getLogger("trunkline")

COUNTS = ("accumulate_grad_batches", "check_val_every_n_epoch")
RUNS = "lightning_logs"  # as the loggers call it


def claim_folders(trainer: Any, task: Any) -> None:
    """Make the folders of a run before hours are spent: no other run has them, and they can be written to.

    Making a folder succeeds for one process only, so that two runs that begin at the same moment get folders
    of their own. Only the first process of a run does it.

    Args:
        trainer: of the command ``fit``; its loggers, or without one itself, get the number of the folder.
        task: whose ``run_folder`` is the folder of a run without a logger.

    Raises:
        SettingError: if a folder cannot be written to.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run:
        return
    for logger_ in trainer.loggers:
        if isinstance(logger_, CSVLogger | TensorBoardLogger) and logger_._version is None:
            if not _is_local(logger_.log_dir):
                continue
            while not _made(Path(logger_.log_dir), "trainer.logger"):
                logger_._version = int(logger_.version) + 1
    if task.run_folder is not None:
        while not _made(task.run_folder, "trainer.default_root_dir"):
            stem, _, number = task.run_folder.name.rpartition("_")
            task.run_folder = task.run_folder.with_name(f"{stem}_{int(number) + 1}")
        trainer._default_root_dir = str(task.run_folder)
    for each in trainer.checkpoint_callbacks:
        if isinstance(each, ModelCheckpoint) and each.dirpath is not None and _is_local(each.dirpath):
            _made(Path(each.dirpath), "dirpath of ModelCheckpoint")


def _is_local(folder: Any) -> bool:
    return folder is not None and "://" not in str(folder)


def _made(folder: Path, option: str) -> bool:
    """Make a folder, and write to it; return whether it was not there."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
            new = True
        except FileExistsError:
            new = False
            if not folder.is_dir():
                raise
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        raise SettingError(
            f"{folder}: cannot be written to ({error.strerror}), so nothing of this run could be kept; give "
            "another folder by --trainer.default_root_dir, or make this one writable",
            option,
        ) from error
    return new


class SaveRunConfig(SaveConfigCallback):
    """Saves the config of a run in its folder, under another name where there is a file of that name."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save it, and say which folder it is; nothing where it has been saved."""
        folder = trainer.log_dir
        if self.already_saved or folder is None:
            return
        stem, number = Path(self.config_filename).stem, 0
        while trainer.is_global_zero and Path(folder, self.config_filename).exists():
            number += 1
            self.config_filename = f"{stem}_{number}.yaml"
        super().setup(trainer, pl_module, stage)
        if trainer.is_global_zero and "://" not in str(folder):
            logger.info("run folder: %s", Path(folder).resolve())


def check_counts(trainer: Mapping[str, Any]) -> None:
    """Refuse counts below 1 that Lightning divides by.

    Raises:
        SettingError: naming the option.
    """
    for name in COUNTS:
        value = trainer.get(name)
        if value is not None and value < 1:
            raise SettingError(f"expected a whole number from 1 on, got {value}", f"trainer.{name}")


def new_run_folder(trainer: Mapping[str, Any]) -> str | None:
    """Return a folder for a run without a logger, which would write into ``default_root_dir`` itself.

    It is ``lightning_logs/version_N`` in there, as with a logger, and is not created here.

    Args:
        trainer: its settings.

    Returns:
        The folder; None if a logger has one, or nothing is written.
    """
    root = str(trainer.get("default_root_dir") or ".")
    if trainer.get("logger") not in (False, []) or trainer.get("fast_dev_run") or "://" in root:
        return None
    runs, number = Path(root, RUNS), 0
    while (runs / f"version_{number}").exists():
        number += 1
    return str(runs / f"version_{number}")
