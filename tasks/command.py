"""LightningCLI, configured for trunkline: every task, trunk, neck, head and data module by its class name."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningDataModule
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

# Imported so that their class names are known without a module path in YAML.
from ..backbones import FPN, ResNet  # noqa: F401
from ..backbones.weights import skip_pretrained
from ..data.coco import CocoDetection  # noqa: F401
from ..heads import FasterRCNN  # noqa: F401
from .base import Task
from .detection import Detection  # noqa: F401


@dataclass
class Output:
    """Where ``predict`` writes.

    Attributes:
        folder: results.json, images.json and overlays/ go here.
        pictures: whether to draw overlay pictures.
        min_score: detections below this score are written to the results but not drawn.
    """

    folder: Path = Path("predictions")
    pictures: bool = True
    min_score: float = 0.5


class TrunklineCLI(LightningCLI):
    """The commands fit, validate, test and predict. Arguments as for LightningCLI."""

    def __init__(self, **kwargs: Any) -> None:
        logging.getLogger("trunkline").setLevel(logging.INFO)
        if not logging.getLogger().handlers:
            logging.basicConfig(format="%(message)s")
        super().__init__(
            model_class=Task,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"default_root_dir": "runs", "use_distributed_sampler": False},
            auto_configure_optimizers=False,
            **kwargs,
        )

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.add_class_arguments(Output, "output")
            parser.set_defaults({"return_predictions": False})  # they go to disk, not into memory
        return parser

    def instantiate_classes(self) -> None:
        # A checkpoint brings all weights, so pretrained ones need not be fetched first.
        checkpoint = self._get(self.config, "ckpt_path")
        try:
            with skip_pretrained() if checkpoint else nullcontext():
                super().instantiate_classes()
        except ValueError as error:
            # jsonargparse buries what a constructor said under a dump of the whole configuration.
            while str(error).startswith("Does not validate against any of the Union") and error.__cause__:
                error = error.__cause__
            raise error  # noqa: B904

    def before_predict(self) -> None:
        output = self.config_init["predict"]["output"]
        self.trainer.callbacks.append(
            self.model.prediction_writer(Path(output.folder), output.pictures, output.min_score)
        )
