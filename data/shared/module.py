"""What tasks ask of a data module, and what the data modules of this package share.

Write a data module of your own as a ``TrunklineData``, or, if it has splits that are read from disk, as a
``SplitData``; docs/extend/dataset.md shows one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from .batches import Batch
from .common import without_paths
from .failed import FailedImage
from .labels.classes import LabelClass
from .loading import global_seed, leave_out_done, ranks_of
from .locate import DataNotFoundError
from .summary import SplitSummary

logger = logging.getLogger("trunkline")

Index = TypeVar("Index")

SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


@dataclass(frozen=True)
class VolumeSettings:
    """What a task that segments scans has to know of its data.

    Attributes:
        patch: voxels of a training patch, per axis of the network; empty if not known.
        slice_axis: the axis of prepared scans along which a 2D network goes through volumes; None
            for networks for volumes.
        regions: the labels of each region that is evaluated, by name; empty for every class but the first.
        preparation: how scans are prepared, in plain values that can be compared.
        region_labels: the label that each region is written as, by name; empty if nothing is said.
        spacing: mm between voxels, per axis of prepared scans, that the network is trained with; empty if
            not known.
    """

    patch: Sequence[int] = ()
    slice_axis: int | None = None
    regions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    preparation: Mapping[str, Any] = field(default_factory=dict)
    region_labels: Mapping[str, int] = field(default_factory=dict)
    spacing: Sequence[float] = ()


class DataContractError(ValueError):
    """A data module lacks what a task needs of it."""


class TrunklineData(pl.LightningDataModule):
    """The contract of data modules with the tasks that train on them.

    Tasks ask for the classes of the labels, the truth to evaluate against, the files to predict on and the
    kind of images. What a task needs and a module does not have is an error that names the method. Methods
    take the kind of labels: ``detection``, ``segmentation``, ``classification``, ``volumes`` for scans, or
    the ``kind`` of a branch of your own. They also take the name of the head, which is empty unless several
    heads are trained at once.

    Attributes:
        label_kinds: the kinds of labels that the module has.
    """

    label_kinds: ClassVar[tuple[str, ...]] = ()
    hparams: Any  # Lightning declares neither the arguments
    trainer: Any  # nor many of the trainer's attributes

    def image_layout(self) -> tuple[int, int]:
        """Return the number of channels and of spatial axes (2 or 3) of the images."""
        raise self.missing("image_layout()", "the number of channels and of spatial axes of the images")

    def label_classes(self, kind: str, head: str = "") -> Sequence[LabelClass]:
        """Return the classes of the labels: label k is ``label_classes(kind)[k]``.

        Empty in prediction if they are not known; the checkpoint names them then.
        """
        raise self.missing("label_classes(kind, head)", f"the classes of its {kind} labels")

    def read_classes(self, stage: str) -> None:
        """Read as much as :meth:`label_classes` needs, before the model is built (``num_classes: auto``).

        There is no trainer yet, ``prepare_data`` has not been called, and every process does it. A module
        that downloads in ``prepare_data`` reads its classes from elsewhere here.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.
        """
        self.setup(stage)

    def label_counts(self, kind: str, head: str = "") -> Sequence[int]:
        """Return how often each class occurs in the training data, for ``balanced`` class weights."""
        raise self.missing("label_counts(kind, head)", "how often each class occurs, for balanced weights")

    def multi_label(self, head: str = "") -> bool:
        """Return whether an image may have any number of classes. For classification."""
        return False

    def evaluation_truth(self, kind: str, stage: str, head: str = "") -> Any:
        """Return what predictions are evaluated against, where it does not travel in the batches.

        Args:
            kind: of the labels. For ``detection`` it is a COCO instances dictionary.
            stage: ``fit`` and ``validate`` evaluate the validation data, ``test`` the test data.
            head: see the class.

        Returns:
            What the evaluators of that kind take; None if there are no data for the stage.
        """
        raise self.missing("evaluation_truth(kind, stage, head)", "the annotations to evaluate against")

    def take_classes(self, kind: str, classes: Sequence[LabelClass], head: str = "") -> bool:
        """Give the labels the numbers and ids of a checkpoint's classes, which have the same names.

        Called where the classes of the data and of a checkpoint differ, after ``setup`` and before the
        loaders are made.

        Returns:
            Whether it was done. If not, the difference is an error.
        """
        return False

    def prediction_classes(self, kind: str, head: str = "") -> Sequence[LabelClass]:
        """Return the classes with the ids that predictions are to be written with; empty for the model's."""
        return ()

    def prediction_paths(self) -> Mapping[int, Path]:
        """Return the file of each image to predict on, by its id in the batches."""
        raise self.missing("prediction_paths()", "the files to predict on, by the ids of the images")

    def prediction_failures(self) -> Sequence[FailedImage]:
        """Return the images to predict on that were found before the work to be unreadable.

        They are in ``prediction_paths`` too, and in no batch.
        """
        return ()

    def volume_settings(self) -> VolumeSettings:
        """Return what segmentation of scans has to know: patch, slices, regions and preparation."""
        raise self.missing("volume_settings()", "patches, slices, regions and preparation of scans")

    def summaries(self) -> Mapping[str, SplitSummary]:
        """Return what there is to learn and to evaluate, by split, for the table at the start of ``fit``.

        Called after ``setup("fit")``. Without counts there is no table, and no check that there is something
        to learn.
        """
        return {}

    def missing(self, method: str, what: str) -> DataContractError:
        """Return the error for a method that a task needs and that a module does not have."""
        return DataContractError(
            f"{type(self).__name__} has no {method}, which tells the task {what}; implement it as "
            "trunkline.data.shared.TrunklineData describes"
        )


class SplitData(TrunklineData, Generic[Index]):
    """A data module whose splits are read from disk, each once in the life of the module.

    A subclass calls :meth:`keep_arguments` in its constructor and implements ``has_split``, ``read_split``,
    ``read_prediction`` and ``make_loader``.

    Attributes:
        stand_ins: by a split that there is not, the one whose data take its place.
        splits: what was read, by ``train``, ``val``, ``test`` and ``predict``.
    """

    batch_size: int = 0  # where the module has one
    stand_ins: ClassVar[Mapping[str, str]] = {"test": "val"}

    def __init__(self) -> None:
        super().__init__()
        self.splits: dict[str, Index] = {}
        self.unreadable: list[FailedImage] = []  # of the images to predict on, found by read_prediction

    def keep_arguments(self) -> None:
        """Turn paths in ``self.hparams`` into text: checkpoints that open with weights_only hold no Path."""
        for name, value in self.hparams.items():
            self.hparams[name] = without_paths(value)

    def has_split(self, split: str) -> bool:
        """Return whether there are data for ``train``, ``val`` or ``test``.

        Raises:
            DataNotFoundError: if the user named data that are not there.
        """
        raise self.missing("has_split(split)", "whether there are train, val or test data")

    def read_split(self, split: str) -> Index:
        """Read the index of ``train``, ``val`` or ``test``."""
        raise self.missing("read_split(split)", "what images a split has")

    def read_prediction(self, given: list[str]) -> Index:
        """Read the index of what ``data.predict`` names."""
        raise self.missing("read_prediction(given)", "what images to predict on")

    def make_loader(self, split: str, index: Index) -> DataLoader:
        """Return the loader of a split."""
        raise self.missing("make_loader(split, index)", "the batches of a split")

    def indices(self, stage: str | None = None) -> dict[str, Index]:
        """Return the indices of the splits that a stage needs, and read those that have not been read.

        Args:
            stage: ``fit`` (also for None), ``validate``, ``test`` or ``predict``. ``fit`` goes without
                validation where there are no data for it.
        """
        stage = stage or "fit"
        first = "train" not in self.splits
        indices = {}
        for split in SPLITS[stage]:
            if stage == "fit" and split == "val" and self.source_of("val") is None:
                if first:  # Lightning asks several times
                    logger.warning(
                        "training without validation: there are no validation data under %s",
                        self.hparams.get("root"),
                    )
                continue
            if split not in self.splits:
                self.splits[split] = self._read(split)
            indices[split] = self.splits[split]
        return indices

    def prediction_failures(self) -> Sequence[FailedImage]:
        return self.unreadable

    def index_of(self, split: str) -> Index:
        """Return the index of ``train``, ``val``, ``test`` or ``predict``.

        Raises:
            RuntimeError: before ``setup`` of a stage that needs the split.
        """
        if split not in self.splits:
            raise RuntimeError(f"the {split} data have not been read: call setup(stage) first")
        return self.splits[split]

    def setup(self, stage: str | None = None) -> None:
        """Read what a stage needs; see ``indices``."""
        self.indices(stage)

    def sampler_options(self, split: str) -> dict[str, Any]:
        """Return the arguments that samplers of all kinds take, by the options of the module.

        The attribute ``batch_size`` (which Lightning's tuner changes) is needed; the options
        ``eval_batch_size`` and ``seed`` count where the constructor has them.
        """
        if not self.batch_size:
            raise self.missing("batch_size", "how many images a batch has")
        training = split == "train"
        evaluated = self.hparams.get("eval_batch_size") or self.batch_size
        return {
            "batch_size": self.batch_size if training else evaluated,
            "shuffle": training,
            "seed": global_seed(self.hparams.get("seed")),
            **ranks_of(self.trainer),
        }

    def source_of(self, split: str) -> str | None:
        """Return the split whose data serve for ``split``: itself, its stand-in, or None."""
        if self.has_split(split):
            return split
        other = self.stand_ins.get(split)
        return other if other is not None and self.has_split(other) else None

    def why_absent(self, split: str) -> str:
        """Say why another split takes the place of this one."""
        return f"there are no {split} data"

    def _read(self, split: str) -> Index:
        if split == "predict":
            given = self.hparams.get("predict")
            if not given:
                raise DataNotFoundError("nothing to predict on: set data.predict to a file or a folder")
            return self.read_prediction([given] if isinstance(given, str) else list(given))
        source = self.source_of(split)
        if source is None or source == split:
            return self.read_split(split)  # which says where it looked
        logger.warning("%s: the %s data take their place", self.why_absent(split), source)
        if source not in self.splits:
            self.splits[source] = self.read_split(source)
        return self.splits[source]

    @property
    def stage(self) -> str | None:
        """What the trainer is doing; None without a trainer."""
        return None if self.trainer is None else self.trainer.state.fn

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Let the device do what the loader has left to it (``augment_on: device``)."""
        return batch.rendered() if isinstance(batch, Batch) else batch

    def train_dataloader(self) -> DataLoader:
        """Return the loader of augmented, shuffled training batches."""
        loader = self._loader("train")
        leave_out_done(loader, self.trainer)
        return loader

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return the validation loader, or an empty list if there are no validation data."""
        return self._loader("val") if "val" in self.splits else []

    def test_dataloader(self) -> DataLoader:
        """Return the test loader."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader:
        """Return the loader of images to predict on."""
        return self._loader("predict")

    def _loader(self, split: str) -> DataLoader:
        return self.make_loader(split, self.index_of(split))
