"""Scans with label volumes as a Lightning data module: patches to train on, whole cases to evaluate."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, cast

from torch.utils.data import DataLoader

from ..shared.faults import on_unreadable
from ..shared.labels.classes import LabelClass
from ..shared.loading import (
    ImageBatchSampler,
    PlainErrorLoader,
    RequestedBatches,
    capped_workers,
    global_seed,
    ranks_of,
)  # fmt: skip
from ..shared.module import SPLITS, SplitData, VolumeSettings
from ..shared.summary import SplitSummary
from .arguments import as_preparation, check_arguments
from .augment import ScanAugmentation
from .batches import collate_patches
from .cases.cases import ScanDataset, find_cases, find_dataset
from .cases.checks import check_cases
from .cases.types import CasesError, Unlabelled
from .dataset import CasesToPredict, LabelledCases, PatchDataset
from .formats.files import read_grid
from .patches import PatchSampler, fit_patch
from .prepare.cache import PreparedCases
from .prepare.prepare import Placement, Preparation
from .summary import summary, trained_spacing, warn_of_far_spacings

logger = logging.getLogger("trunkline")

_FOUND_BY = ("images", "labels", "table", "classes", "ignore_id", "splits", "fold", "folds", "patients",
             "missing")  # fmt: skip


class ScanSegmentation(SplitData[PreparedCases | CasesToPredict]):
    """CT, MR and other scans of two or three axes with a class per voxel.

    Training shows random patches of prepared scans, a fixed number of batches an epoch, as nnU-Net does
    (Isensee et al., Nature Methods 2021). Validation, testing and prediction show whole cases, one at a time,
    with the truth on the grid of its file. Cases are prepared once and kept, see ``cache``; those to predict
    are prepared as they come, and one that cannot be read is delivered with the reason in its place.

    Under DDP ranks draw different patches, and in evaluation every case is seen exactly once. Testing uses
    the validation data where no test case has labels.

    Args:
        root: folder that holds the data, and that relative paths below are relative to.
        images: see :func:`.cases.find_dataset`, as for all up to ``missing``.
        labels: where the label volumes are.
        table: a CSV of cases.
        classes: names of the classes by their ids in the label files, or in the order of the ids 0, 1, 2 and
            so on.
        ignore_id: id in the label files of voxels to ignore.
        splits: file of splits.
        fold: which fold validates.
        folds: number of folds.
        seed: fixes the folds (0 if null), and draws of patches and augmentation (if null the seed given to
            seed_everything, else 0).
        patients: which cases belong to one patient.
        missing: what to do about cases to train or validate with that have no labels: error, or skip to leave
            them out with a warning. Test cases without labels are always left out.
        predict: what to predict on: scans, DICOM folders, folders of either, or a list of them. Relative to
            the working directory.
        preparation: how scans are prepared; the same in training and prediction.
        patch: size of the training patches in voxels of prepared scans: 3 numbers, or 2 for 2D images and for
            slices of scans. Needed for training.
        slice_axis: the axis of prepared scans that slices are perpendicular to, for patches of two numbers
            from scans of three axes. If null, the axis of the coarsest spacing of ``preparation``, or else of
            the coarsest median spacing of the training data; the last if equal.
        batch_size: patches per batch and device.
        steps_per_epoch: batches per epoch and device.
        foreground: share of the patches that are centred on a voxel of a class other than the background,
            drawn from the classes in the case, 0 to 1. The others lie anywhere.
        augment: MONAI's transforms for training, each a name (without the d of its dictionary version) with
            its arguments; null for none. ``trunkline plan`` writes the recipe of nnU-Net for a patch
            (:func:`.augment.default_transforms`).
        cache: where prepared cases are kept: on disk, memory-mapped; in memory; or none, to prepare a case
            again for each patch.
        cache_folder: folder for ``disk``; null for one in the user's folder for caches.
        workers: loader processes per device for training, and cases prepared at a time; fewer if there are
            fewer processor cores. 0 loads in the main process. Whole cases are loaded by one, as each may
            take gigabytes.
        **shared: what every ``SplitData`` takes.

    Raises:
        ValueError: if an argument is out of range or does not fit the others.
        AugmentationError: if ``augment`` is wrong.
    """

    label_kinds = ("volumes",)

    def __init__(
        self,
        root: str | None = None,
        images: str | None = None,
        labels: str | None = None,
        table: str | None = None,
        classes: dict[int, str] | list[str] | None = None,
        ignore_id: int | None = None,
        splits: str | None = None,
        fold: int | None = None,
        folds: int = 5,
        seed: int | None = None,
        patients: str | None = None,
        missing: Unlabelled = "error",
        predict: str | list[str] | None = None,
        preparation: Preparation = Preparation(),  # noqa: B008, never changed
        patch: list[int] | None = None,
        slice_axis: int | None = None,
        batch_size: int = 2,
        steps_per_epoch: int = 250,
        foreground: float = 0.33,
        augment: list[dict[str, dict[str, Any] | None]] | None = None,
        cache: Literal["disk", "memory", "none"] = "disk",
        cache_folder: str | None = None,
        workers: int = 4,
        **shared: Any,
    ):
        super().__init__(**shared)
        self.save_hyperparameters(logger=False)  # which goes into checkpoints
        self.keep_arguments()
        check_arguments(self.hparams)
        self.preparation = as_preparation(preparation)
        self.hparams["preparation"] = json.loads(json.dumps(asdict(self.preparation)))  # plain values
        self.patch = None if patch is None else tuple(patch)
        self.slice_axis = slice_axis
        self.batch_size = batch_size
        self._augmentation = ScanAugmentation(augment, patch) if augment and patch else None
        self._known: ScanDataset | None = None
        self._checked: set[str] = set()

    # -- what Lightning calls

    def prepare_data(self) -> None:
        """Check and prepare the cases for the coming command, on one process of the machine.

        Raises:
            CasesError: listing what is wrong with the dataset or its files.
            ValueError: if ``patch`` is not set but needed.
        """
        stage = self.stage or "fit"
        if stage == "predict":
            return
        self._require_patch(stage)
        sources = [self.source_of(split) or split for split in SPLITS[stage]]
        unchecked = [split for split in sources if split not in self._checked]
        if unchecked:
            check_cases(self._dataset(), unchecked, self.to_skip())
            self._checked |= set(unchecked)
        if self.hparams.cache == "disk":
            self.indices(stage)

    def setup(self, stage: str | None = None) -> None:
        """Find the cases of a stage, and prepare those that are not yet.

        Args:
            stage: ``fit`` (also for None), ``validate``, ``test`` or ``predict``.

        Raises:
            CasesError: if there are none, or they do not fit each other.
            ValueError: if ``patch`` does not fit the scans.
        """
        stage = stage or "fit"
        self._require_patch(stage)
        self.indices(stage)
        if stage == "fit":
            cases = cast(PreparedCases, self.index_of("train"))
            self.slice_axis = fit_patch(cases, cast(Sequence[int], self.patch), self.slice_axis)
            warn_of_far_spacings(cases, self._places(cases), self.preparation.spacing)

    def _require_patch(self, stage: str) -> None:
        if stage == "fit" and self.patch is None:
            raise ValueError("data.patch is not set; training needs the size of its patches in voxels")

    # -- splits

    def has_split(self, split: str) -> bool:
        cases = self._dataset().cases.get(split, ())
        return any(case.label is not None for case in cases) if split == "test" else bool(cases)

    def why_absent(self, split: str) -> str:
        cases = self._dataset().cases.get(split, ())
        return f"none of {len(cases)} {split} cases has labels" if cases else f"there are no {split} cases"

    def read_split(self, split: str) -> PreparedCases:
        """Prepare the cases of a split that have labels.

        Raises:
            CasesError: if there are none.
        """
        found = self._dataset()
        if split not in found.cases:
            known = ", ".join(found.cases)
            raise CasesError(f"{self.hparams.root}: there are no {split} cases (there are {known})")
        cases = [case for case in found.cases[split] if case.label is not None]
        number = len(found.cases[split])
        if not cases:
            raise CasesError(f"none of the {number} {split} cases has labels")
        if len(cases) < number:
            without = number - len(cases)
            logger.warning("%d of %d %s cases have no labels and are left out", without, number, split)
        given = self.hparams
        made = PreparedCases(
            cases, self.preparation, found.classes, found.ignore_id, given.cache, given.cache_folder
        )
        return made.built(capped_workers(given.workers, len(cases)), self.to_skip())

    def read_prediction(self, given: list[str]) -> CasesToPredict:
        """Find the cases to predict on; classes and channels too if the training data are there."""
        if self.hparams.root is not None:
            try:
                self._dataset()
            except (ValueError, OSError) as error:  # the classes are in the checkpoint too
                logger.info("predicting without the training data: %s", error)
        channels = self._channels()
        return CasesToPredict(find_cases(given, channels), self.preparation, channels)

    def make_loader(self, split: str, index: PreparedCases | CasesToPredict) -> DataLoader:
        if split == "predict":
            return self._case_loader(cast(CasesToPredict, index))
        cases = cast(PreparedCases, index)
        if split != "train":
            whole, first = LabelledCases(cases), itemgetter(0)
            return self._case_loader(*on_unreadable(self.on_bad_image, False, whole, first, cases.named))
        given = self.hparams
        sampler = PatchSampler(
            len(index),
            self.batch_size,
            given.steps_per_epoch,
            given.foreground,
            seed=global_seed(given.seed),
            **ranks_of(self.trainer),
        )
        patch = cast(Sequence[int], self.patch)
        dataset = PatchDataset(cases, patch, self.slice_axis, self._augmentation)
        return self.readable_loader(split, dataset, sampler, collate_patches, cases.named)

    def _case_loader(
        self, dataset: Any, collate: Callable[[list[Any]], Any] = itemgetter(0)
    ) -> PlainErrorLoader:
        """Build the loader of single cases: each once over all ranks, in their order.

        A rank for which there is none gets one that another has too: without a case it would block the
        others.
        """
        ranks = ranks_of(self.trainer)
        rank = ranks["rank"] % len(dataset)
        sampler = ImageBatchSampler(len(dataset), 1, rank=rank, world_size=ranks["world_size"])
        overfit = self.trainer is not None and self.trainer.overfit_batches > 0
        workers = capped_workers(min(self.hparams.workers, 1), len(sampler))  # a case may take gigabytes
        return PlainErrorLoader(
            RequestedBatches(dataset, fixed=list(sampler) if overfit else None),
            batch_size=None,  # the sampler yields whole batches, of one case
            sampler=sampler,
            collate_fn=collate,
            num_workers=workers,
            prefetch_factor=1 if workers else None,
        )

    # -- what tasks ask

    def image_layout(self) -> tuple[int, int]:
        """Return the number of channels, and of spatial axes of what the network sees.

        Raises:
            RuntimeError: before ``setup``.
            CasesError: if no case can be read.
        """
        cases = self.index_of(
            "predict" if "predict" in self.splits else next(iter(self.splits), "train")
        ).cases
        channels = self._channels()
        if channels and self.patch is not None:
            return channels, len(self.patch)
        for case in cases:
            try:
                grids = [read_grid(path) for path in case.images]
            except (ValueError, OSError):
                continue  # reported when its turn comes
            axes = len(grids[0][0].shape) if self.patch is None else len(self.patch)
            return channels or sum(count for _, count in grids), axes
        raise CasesError(f"none of the {len(cases)} cases can be read; the first is {cases[0].images[0]}")

    def label_classes(self, kind: str, head: str = "") -> Sequence[LabelClass]:
        return () if self._known is None else self._known.classes

    def read_classes(self, stage: str) -> None:
        if stage != "predict" or self.hparams.root is not None:
            self._dataset()  # which names the classes; no case is prepared yet

    def label_counts(self, kind: str, head: str = "") -> list[int]:
        """Return the voxels of each class in the prepared training cases.

        Raises:
            RuntimeError: before ``setup("fit")``.
        """
        return cast(PreparedCases, self.index_of("train")).counts()[:, :-1].sum(axis=0).tolist()

    def prediction_paths(self) -> dict[int, Path]:
        """Return the first file of each case to predict on, by its id in the batches."""
        return {number: Path(case.images[0]) for number, case in enumerate(self.index_of("predict").cases)}

    def volume_settings(self) -> VolumeSettings:
        regions = {} if self._known is None else self._known.regions
        written = () if self._known is None else self._known.region_labels
        labels = dict(zip(regions, written, strict=False))
        spacing: Sequence[float] = self.preparation.spacing or ()
        if not spacing and "train" in self.splits:
            spacing = trained_spacing(self._places(cast(PreparedCases, self.splits["train"])), None)
        return VolumeSettings(
            self.patch or (), self.slice_axis, regions, self.hparams.preparation, labels, spacing
        )

    def summaries(self) -> Mapping[str, SplitSummary]:
        return {
            split: summary(cast(PreparedCases, cases))
            for split, cases in self.splits.items()
            if split in ("train", "val")
        }

    # -- inside

    @staticmethod
    def _places(cases: PreparedCases) -> list[Placement]:
        return [cases.placement(index) for index in range(len(cases))]

    def _dataset(self) -> ScanDataset:
        if self._known is None:
            given, outside = self.hparams, self.allow_outside_root
            if given.root is None:
                raise CasesError("data.root is not set; give the folder that holds scans and their labels")
            found = {name: given[name] for name in _FOUND_BY}
            self._known = find_dataset(given.root, seed=given.seed or 0, allow_outside_root=outside, **found)
        return self._known

    def _channels(self) -> int | None:
        """Return how many channels scans have; None if only the network knows."""
        return None if self._known is None else len(self._known.channels) or None
