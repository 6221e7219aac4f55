"""Cases of a dataset of scans: which files belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ....constants import IGNORE_INDEX
from ...shared.labels.classes import LabelClass

DEFAULT_IGNORE = IGNORE_INDEX  # as an id in the files of labels, unless the dataset says otherwise

Unlabelled = Literal["error", "skip"]  # what happens to cases to train or validate with that have no labels


class CasesError(ValueError):
    """Cases, their labels or their splits are missing, contradict each other, or do not fit the classes."""


@dataclass(frozen=True)
class Case:
    """A scan with its labels.

    Attributes:
        name: unique in the dataset; predictions are named after it.
        images: one file or DICOM folder, which may hold several channels, or one per channel.
        label: the file of its labels, or None.
        patient: whose scan it is; all cases of a patient belong to one split.
    """

    name: str
    images: tuple[str, ...]
    label: str | None
    patient: str


@dataclass(frozen=True)
class ScanDataset:
    """Everything that is known of a dataset before its voxels are read.

    Attributes:
        cases: those of ``train``, ``val`` and ``test``; a split without cases is absent.
        classes: K of them; label k stands for ``classes[k]``, and the class of id 0, if any, is the first.
        channels: names of the modalities, in the order of the channels.
        regions: labels that each region consists of; empty without regions.
        ignore_id: the value, in the files of labels, of voxels to leave out.
        region_labels: the label that each region is written as, in their order; empty if nothing is said.
        ignore_stated: whether the user or the dataset named the value to leave out; else it is the usual one.
    """

    cases: dict[str, tuple[Case, ...]]
    classes: tuple[LabelClass, ...]
    channels: tuple[str, ...]
    regions: dict[str, tuple[int, ...]]
    ignore_id: int
    region_labels: tuple[int, ...] = ()
    ignore_stated: bool = False


class Declared(NamedTuple):
    """What a ``dataset.json`` says of classes and channels.

    Attributes:
        rows: the classes by their ids; None if it names none.
        regions: ids, not labels, of each region.
        ignore_id: None if nothing is said.
        channels: names, or empty.
        region_ids: the id that each region is written as; empty if nothing is said.
        ending: suffix of the files that belong to cases; None for all known ones.
        numbers: how many cases there are by split; None where nothing is said.
    """

    rows: list[LabelClass] | None = None
    regions: dict[str, tuple[int, ...]] = {}
    ignore_id: int | None = None
    channels: tuple[str, ...] = ()
    region_ids: tuple[int, ...] = ()
    ending: str | None = None
    numbers: Mapping[str, int | None] = {}


@dataclass
class Layout:
    """The cases that a layout of files holds, before splitting.

    Attributes:
        source: the file or folder that tells of them, for errors.
        cases: by split; if there is no ``val``, those of ``train`` are still to be split.
        declared: see there.
        folds: the number of the fold in which each case validates, by name; empty if nothing is said.
    """

    source: str
    cases: dict[str, list[Case]]
    declared: Declared = field(default_factory=Declared)
    folds: dict[str, int] = field(default_factory=dict)
