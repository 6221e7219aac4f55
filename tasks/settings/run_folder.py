"""What the trainer is built with: the folder of a run is new, the config in it overwrites nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback

from .sources import SettingError

logger = logging.getLogger("trunkline")

COUNTS = ("accumulate_grad_batches", "check_val_every_n_epoch")
RUNS = "lightning_logs"  # as the loggers call it


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
