"""The contract of data modules with the tasks that train on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytorch_lightning as pl

from .failed import FailedImage
from .labels.classes import LabelClass
from .storage import Location
from .summary import SplitSummary


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

    def prediction_paths(self) -> Mapping[int, Location]:
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

    def fingerprint(self) -> Mapping[str, Any]:
        """Return plain values that are equal for equal data, by split, for checkpoints.

        A resumed run compares them with those of its data, see ``fingerprint.differences``; without any there
        is nothing to compare. Called after ``setup("fit")``.
        """
        return {}

    def missing(self, method: str, what: str) -> DataContractError:
        """Return the error for a method that a task needs and that a module does not have."""
        return DataContractError(
            f"{type(self).__name__} has no {method}, which tells the task {what}; implement it as "
            "trunkline.data.shared.TrunklineData describes"
        )
