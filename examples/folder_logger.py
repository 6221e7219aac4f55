"""A logger of your own: a folder with a line of JSON for every record, and drawings as PNG files."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from trunkline.evaluation import save_picture


class FolderLogger(Logger):
    """Writes ``metrics.jsonl`` and ``pictures/`` into a folder.

    Args:
        folder: created where needed. Reports of evaluations and checkpoints go into it too.
    """

    def __init__(self, folder: str = "runs/folder_logger") -> None:
        super().__init__()
        self.folder = Path(folder)

    @property
    def name(self) -> str:
        """Part of the folder of checkpoints."""
        return "records"

    @property
    def version(self) -> str:
        """Part of the folder of checkpoints."""
        return ""

    @property
    def save_dir(self) -> str:
        """Where the files of a run go."""
        return str(self.folder)

    @property
    def experiment(self) -> "FolderLogger":
        """What takes drawings: an object with the method ``add_image``; here the logger itself."""
        return self

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the command writes the whole config next to the metrics."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a line: the step, and the metrics that are defined (JSON has no NaN) by name."""
        known = {name: value for name, value in metrics.items() if value == value}
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **known}) + "\n")

    @rank_zero_only
    def add_image(self, tag: str, img_tensor: np.ndarray, global_step: int, dataformats: str = "HWC") -> None:
        """Write a picture, ``[height, width, 3]`` uint8, under its title and step."""
        save_picture(self.folder / "pictures" / f"{tag.replace('/', '_')}_{global_step}.png", img_tensor)
