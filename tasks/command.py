"""LightningCLI, configured for trunkline: every task, trunk, neck, head and data module by its class name."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, Namespace
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from pytorch_lightning.utilities.seed import isolate_rng

# Imported so that their class names are known without a module path in YAML.
from ..backbones import FPN, Backbone, CifarResNet, DenseNet, ResidualEncoder, ResNet, TimmBackbone  # noqa: F401
from ..backbones.weights import skip_pretrained
from ..data.classification import ImageClassification  # noqa: F401
from ..data.detection import CocoDetection  # noqa: F401
from ..data.multitask import CocoDetectionAndMasks  # noqa: F401
from ..data.scans.module import ScanSegmentation  # noqa: F401
from ..data.segmentation import ImageSegmentation  # noqa: F401
from ..data.shared.loader_errors import raise_descriptor_limit
from ..data.shared.terminal import guard_log
from ..data.shared.trusted import imports_as_before
from ..heads import (  # noqa: F401
    FCN,
    Classifier,
    DeepLabV3,
    DeepLabV3Plus,
    FasterRCNN,
    SemanticFPN,
    UNet,
    segmentation,  # its losses
)
from .base.output import Existing
from .base.predicting import OptimisedPrediction
from .base.task import Task
from .classification import Classification  # noqa: F401
from .detection import Detection  # noqa: F401
from .multitask import MultiTask  # noqa: F401
from .run.auto import AUTO, resumed_from
from .run.checkpoints import read_checkpoint
from .run.experiment import SECTIONS, Command
from .run.leftovers import remove_leftovers
from .run.resume import (
    RUN_SECTIONS,
    refuse_before_start,
    run_folders,
    with_checkpoint_settings,
    with_found_checkpoint,
)
from .run.saving import SaveEvery
from .segmentation import SemanticSegmentation  # noqa: F401
from .settings.going_on import add_options, without_option
from .settings.nulls import check_nulls
from .settings.num_classes import fill_in
from .settings.parser import CommandParser, keep_whole_numbers, placed
from .settings.precision import warn_of_precision
from .settings.run_folder import SaveRunConfig, check_counts, claim_folders, new_run_folder
from .settings.sources import SettingError, read_sources, with_names_as_text
from .settings.trust import OPTION, trust
from .volumes import VolumeSegmentation  # noqa: F401

DUMPS = ("Does not validate against any of the Union", "Problem with given class_path")  # of jsonargparse


@dataclass
class Output:
    """Where ``predict`` writes.

    Attributes:
        folder: created where needed. Every task writes predictions.json (detection) or predictions.csv,
            images.json and pictures/, segmentation also masks/, scans labels/; several heads write into a
            folder of their name each. Images that cannot be read are listed in failed.csv.
        pictures: whether to draw pictures: predictions on images, slices of scans, or (classification) a
            sheet of the first images.
        min_score: detections below this score are written to the results but not drawn; classification
            with any number of classes per image lists the classes from this probability on.
        existing: what to do if the folder holds such files already: error, or move them into a new folder
            earlier_1 (_2, ...) there.
    """

    folder: Path = Path("predictions")
    pictures: bool = True
    min_score: float = 0.5
    existing: Existing = "error"


class TrunklineCLI(LightningCLI):
    """The commands fit, validate, test and predict. Arguments as for LightningCLI."""

    trainer: Any  # Lightning leaves many of its attributes undeclared
    _automatic = False  # whether the command goes on by itself when it is started again

    def __init__(self, **kwargs: Any) -> None:
        logging.getLogger("trunkline").setLevel(logging.INFO)
        guard_log()
        raise_descriptor_limit()
        if not logging.getLogger().handlers:
            logging.basicConfig(format="%(message)s")
        # Lightning 2.6 on torch 2.15: nothing a user could act on.
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        # True and of no consequence: predictions go by image id.
        warnings.filterwarnings("ignore", message=".*Couldn't infer the batch indices.*")
        warnings.filterwarnings("ignore", message=".*recommended to use `self.log.*sync_dist=True.*")
        # Said better by the data modules: there is no validation.
        warnings.filterwarnings("ignore", message=".*Total length of `list` across ranks is zero.*")
        with imports_as_before():  # a checkpoint may limit them
            super().__init__(
                model_class=Task,
                datamodule_class=LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                seed_everything_default=0,
                save_config_callback=SaveRunConfig,
                trainer_defaults={"default_root_dir": "runs"},
                parser_class=CommandParser,
                auto_configure_optimizers=False,
                **kwargs,
            )

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        keep_whole_numbers(parser)
        about = "import and call whatever classes --ckpt_path names: it is trusted as a program is"
        parser.add_argument(f"--{OPTION}", action="store_true", help=about)
        if subcommand == "fit":
            add_options(parser)
        if subcommand == "predict":
            parser.add_class_arguments(Output, "output")
            parser.set_defaults({"return_predictions": False})  # they go to disk, not into memory
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        given = list(sys.argv[1:] if args is None else args)
        sources = read_sources(given)
        words = with_found_checkpoint(given)
        if args is None:  # other processes of the run, which are started by these words, take the same file
            sys.argv[1:] = words
        words, user_words = with_checkpoint_settings(words), words
        trust(user_words, words)
        with placed(given, sources):
            self.config = parser.parse_args(with_names_as_text(words))
            command = self.config.get("subcommand")  # none with run=False
            check_nulls(
                self.config[command] if command else self.config, {"trainer": Trainer, "output": Output}
            )
        if command == "fit":
            self._resume(given, told=args is None)

    def _resume(self, given: list[str], told: bool) -> None:
        """Find what the run goes on from by ``--resume``, and what is said of it in its checkpoints."""
        config, roots = self.config["fit"], run_folders(given)
        SaveEvery.parse(config.save_every)
        self._experiment = self._as_plain(SECTIONS)
        self._given, resume = given, config.resume
        rank_zero_only(remove_leftovers)(roots)
        if resume is None:
            return
        if config.ckpt_path is not None:
            raise SettingError(
                "--resume looks for a checkpoint by itself; leave out --ckpt_path, or --resume"
            )
        path = resumed_from(resume, roots, self._experiment)
        config.resume, self._automatic = None, resume == AUTO
        if path is not None:
            config.ckpt_path = str(path)
            if config.seed_everything is True:  # a number drawn at the beginning, which the data go by
                stored = read_checkpoint(str(path), "--resume").get("run_settings", {})
                config.seed_everything = stored.get("seed_everything", True)
        if told:  # other processes of the run, which are started by these words, take the same file
            sys.argv[1:] = [*without_option(given, "resume"), f"--resume={'null' if path is None else path}"]

    def _as_plain(self, sections: Iterable[str]) -> dict[str, Any]:
        text = self._parser("fit").dump(self.config["fit"], format="json", skip_none=False)
        return {key: value for key, value in json.loads(text).items() if key in sections}

    def _parse_ckpt_path(self) -> None:
        """Do nothing: ``with_checkpoint_settings`` has read the checkpoint, and what the user says wins."""

    def before_instantiate_classes(self) -> None:
        if self.subcommand != "fit":  # only fit goes on with the callbacks of the run
            warnings.filterwarnings("ignore", message=".*The dirpath has changed from.*")
            warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need.*")

    def instantiate_classes(self) -> None:
        # A checkpoint brings all weights, so pretrained ones need not be fetched first. Names such as "last"
        # are resolved later, and may turn out to mean none.
        checkpoint = self._get(self.config, "ckpt_path")
        if checkpoint and Path(checkpoint).is_file():
            skipping: AbstractContextManager[None] = skip_pretrained()
        elif self._get(self.config, "model").init_args.get("weights"):
            skipping = skip_pretrained(only_trunk=True)  # the whole model's weights bring the trunk's
        else:
            skipping = nullcontext()
        try:
            with skipping:
                self._number_classes()
                super().instantiate_classes()
        except ValueError as error:
            # jsonargparse buries what a constructor said under a dump of the whole configuration.
            told: BaseException = error
            while str(told).startswith(DUMPS) and told.__cause__:
                told = told.__cause__
            if isinstance(told, ImportError):
                raise SettingError(f"a class of the config needs a package more: {told}") from told
            raise told  # noqa: B904

    def _number_classes(self) -> None:
        """Replace ``num_classes: auto``; a data module that was built for it is the one that is used."""
        command = self.subcommand or "fit"
        config, parser = self.config.get(str(self.subcommand), self.config), self._parser(self.subcommand)
        with isolate_rng():  # so that the model starts as with the number in the config
            data = fill_in(
                config, command, lambda: parser.instantiate_classes(Namespace(data=config.data)).data
            )
        if data is not None:
            self.parser.add_instantiator(lambda *_, **__: data, LightningDataModule)
            vars(self).pop("config_dump", None)  # which goes into checkpoints, with the number

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = self._get(self.config_init, "trainer")
        check_counts(settings)
        folder = new_run_folder(settings)
        if folder is not None:
            kwargs["default_root_dir"] = folder
            self.model.run_folder = Path(folder)
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError, ImportError, RuntimeError) as error:
            raise SettingError(f"the options of the trainer cannot be used: {error}") from error
        warn_of_precision(trainer)
        return trainer

    def before_fit(self) -> None:
        """Give the task what its checkpoints hold of the run, as plain values."""
        self.model.run_settings = self._as_plain(RUN_SECTIONS)
        checkpoint = self._get(self.config, "ckpt_path")
        words = without_option(self._given, "resume") if self._automatic or checkpoint is None else []
        self.model.command = Command(
            (*words, "--resume", AUTO) if words else (),
            self._experiment,
            self._get(self.config, "save_every"),
            self._automatic,
        )
        if checkpoint and Path(checkpoint).is_file():
            refuse_before_start(self.model, self.datamodule, self.model.run_settings, str(checkpoint))
        claim_folders(self.trainer, self.model)

    def before_predict(self) -> None:
        if self.model.predicts_on_copy:
            self.trainer.callbacks.append(OptimisedPrediction())
        output = self.config_init["predict"]["output"]
        writer = self.model.prediction_writer(Path(output.folder), output.pictures, output.min_score)
        writer.existing = output.existing
        self.trainer.callbacks.append(writer)
