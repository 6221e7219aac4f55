"""Scans with label volumes as a Lightning data module: patches to train on, whole cases to evaluate."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from ..shared.common import require_positive, without_paths
from ..shared.labels import LabelClass
from ..shared.loading import PlainErrorLoader, batch_loader, capped_workers, global_seed, ranks_of
from .augment import ScanAugmentation
from .batches import collate_patches
from .cases.cases import Case, CasesError, ScanDataset, find_cases, find_dataset
from .cases.checks import check_cases
from .formats.files import read_grid
from .patches import PatchDataset, PatchSampler, check_patch, fit_patch
from .prepare.cache import PreparedCases
from .prepare.intensity import Intensity
from .prepare.prepare import Preparation
from .whole_cases import CasesToPredict, LabelledCases, case_loader

logger = logging.getLogger("trunkline")

_FOUND_BY = (
    "images", "labels", "table", "classes", "ignore_id", "splits", "fold", "folds", "patients",
)  # fmt: skip


class ScanSegmentation(pl.LightningDataModule):
    """CT, MR and other scans of two or three axes with a class per voxel.

    Training shows random patches of prepared scans, a fixed number of batches an epoch, as nnU-Net does
    (Isensee et al., Nature Methods 2021). Validation, testing and prediction show whole cases, one at a time,
    with the truth on the grid of its file. Cases are prepared once and kept, see ``cache``; those to predict
    are prepared as they come, and one that cannot be read is delivered with the reason in its place.

    Under DDP ranks draw different patches, and in evaluation every case is seen exactly once. Testing uses
    the validation data where no test case has labels.

    Args:
        root: folder that holds the data, and that relative paths below are relative to.
        images: see :func:`.cases.find_dataset`, as for all up to ``patients``.
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
        predict: what to predict on: scans, DICOM folders, folders of either, or a list of them. Relative to
            the working directory.
        preparation: how scans are prepared; the same in training and prediction.
        patch: size of the training patches in voxels of prepared scans: 3 numbers, or 2 for pictures and for
            slices of scans. Needed for training.
        slice_axis: with patches of two numbers from scans of three axes, the axis of prepared scans that
            slices lie across; null for that of the coarsest spacing of ``preparation``, or else of the
            coarsest median spacing of the training data; the last if equal.
        batch_size: patches per batch and device.
        steps_per_epoch: batches per epoch and device.
        foreground: share of the patches that are centred on a voxel of a class other than the background,
            drawn from the classes in the case, 0 to 1. The others lie anywhere.
        augment: MONAI's transforms for training, each a name (without the d of its dictionary version) with
            its arguments; null for the recipe of nnU-Net (:func:`.augment.default_transforms`), [] for none.
        cache: where prepared cases are kept: on disk, memory-mapped; in memory; or none, to prepare a case
            for each patch anew.
        cache_folder: folder for ``disk``; null for one in the user's folder for caches.
        workers: loader processes per device for training, and cases prepared at a time; fewer if there are
            fewer processor cores. 0 loads in the main process. Whole cases are loaded by one, as each may
            take gigabytes.

    Raises:
        ValueError: if an argument is out of range or does not fit the others.
        AugmentationError: if ``augment`` is wrong.
    """

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
    ):
        super().__init__()
        require_positive(**{"data.batch_size": batch_size, "data.steps_per_epoch": steps_per_epoch})
        if not 0 <= foreground <= 1:
            raise ValueError(f"data.foreground is {foreground}; it is a share of the patches, 0 to 1")
        if workers < 0:
            raise ValueError(f"data.workers is {workers}; it must be at least 0")
        if cache not in ("disk", "memory", "none"):
            raise ValueError(f"data.cache is {cache!r}; it is disk, memory or none")
        if cache_folder is not None and cache != "disk":
            raise ValueError(f"data.cache_folder has no effect with data.cache {cache}; leave it out")
        check_patch(patch, slice_axis)
        # The arguments stay in self.hparams, which goes into checkpoints.
        self.save_hyperparameters(logger=False)
        for name, value in self.hparams.items():
            self.hparams[name] = asdict(value) if isinstance(value, Preparation) else without_paths(value)
        self.preparation = _as_preparation(preparation)
        self.patch = None if patch is None else tuple(patch)
        self.slice_axis = slice_axis
        self.batch_size = batch_size
        self.classes: tuple[LabelClass, ...] = ()
        self.channels: tuple[str, ...] = ()
        self.regions: dict[str, tuple[int, ...]] = {}
        self.predict_cases: tuple[Case, ...] = ()
        self.predict_paths: dict[int, Path] = {}
        # The default cannot be wrong, and making it takes seconds.
        self._augmentation = ScanAugmentation(augment, patch) if augment and patch else None
        self._found: ScanDataset | None = None
        self._prepared: dict[str, PreparedCases] = {}
        self._checked: set[str] = set()

    # -- what Lightning calls

    def prepare_data(self) -> None:
        """Check and prepare the cases of the coming stage, on one process of the machine.

        Raises:
            CasesError: listing what is wrong with the dataset or its files.
        """
        stage = None if self.trainer is None else self.trainer.state.fn
        splits = self._stage_splits(stage)
        unchecked = [split for split in splits if split not in self._checked]
        if unchecked:
            check_cases(self._dataset(), unchecked)
            self._checked |= set(unchecked)
        if self.hparams.cache == "disk":
            for split in splits:
                self._cases(split)

    def setup(self, stage: str | None = None) -> None:
        """Find the cases of a stage, and prepare those that are not yet.

        Args:
            stage: ``fit`` (also for None), ``validate``, ``test`` or ``predict``.

        Raises:
            CasesError: if there are none, or they do not fit each other.
            ValueError: if ``patch`` does not fit the scans.
        """
        if stage == "predict":
            self._setup_prediction()
            return
        splits = self._stage_splits(stage)
        self._take_names(self._dataset())
        if stage == "test" and splits == ["val"]:
            unlabelled = len(self._dataset().cases.get("test", ()))
            why = f"none of {unlabelled} test cases has labels" if unlabelled else "there are no test cases"
            logger.warning("%s: the validation data take their place", why)
        for split in splits:
            self._cases(split)
        if "train" in splits:
            self.slice_axis = fit_patch(self._cases("train"), self.patch, self.slice_axis)
            if self._augmentation is None and self.hparams.augment is None:
                self._augmentation = ScanAugmentation(None, self.patch)

    def train_dataloader(self) -> PlainErrorLoader:
        """Return the loader of random, augmented patches."""
        cases = self._ready("train")
        sampler = PatchSampler(
            len(cases),
            self.batch_size,
            self.hparams.steps_per_epoch,
            self.hparams.foreground,
            seed=global_seed(self.hparams.seed),
            **ranks_of(self.trainer),
        )
        dataset = PatchDataset(cases, self.patch, self.slice_axis, self._augmentation)
        return batch_loader(dataset, sampler, collate_patches, self.hparams.workers, self.trainer)

    def val_dataloader(self) -> PlainErrorLoader:
        """Return the loader of whole validation cases."""
        return case_loader(LabelledCases(self._ready("val")), self.hparams.workers, self.trainer)

    def test_dataloader(self) -> PlainErrorLoader:
        """Return the loader of whole test cases."""
        (split,) = self._stage_splits("test")
        return case_loader(LabelledCases(self._ready(split)), self.hparams.workers, self.trainer)

    def predict_dataloader(self) -> PlainErrorLoader:
        """Return the loader of whole cases to predict on."""
        if not self.predict_cases:
            raise RuntimeError("the data has not been read: call setup(stage) before asking for a loader")
        channels = len(self.channels) or None  # else the network alone knows how many it takes
        dataset = CasesToPredict(self.predict_cases, self.preparation, channels)
        return case_loader(dataset, self.hparams.workers, self.trainer)

    # -- what tasks ask

    def pixel_counts(self) -> Tensor:
        """Return ``[K]`` int64, the voxels of each class in the prepared training cases; for class weights.

        Raises:
            RuntimeError: before ``setup("fit")``.
        """
        counts = self._ready("train").counts()
        return torch.from_numpy(np.asarray(counts)[:, :-1].sum(axis=0).astype(np.int64))

    def image_layout(self) -> tuple[int, int]:
        """Return the number of channels, and of spatial axes of what the network sees.

        Raises:
            RuntimeError: before ``setup``.
        """
        cases = self.predict_cases or next((found.cases for found in self._prepared.values()), ())
        if not cases:
            raise RuntimeError("the data has not been read: call setup(stage) first")
        if self.channels and self.patch is not None:
            return len(self.channels), len(self.patch)
        for case in cases:
            try:
                grids = [read_grid(path) for path in case.images]
            except (ValueError, OSError):
                continue  # reported when its turn comes
            axes = len(grids[0][0].shape) if self.patch is None else len(self.patch)
            return len(self.channels) or sum(channels for _, channels in grids), axes
        raise CasesError(f"none of the {len(cases)} cases can be read; the first is {cases[0].images[0]}")

    # -- inside

    def _dataset(self) -> ScanDataset:
        if self._found is None:
            given = self.hparams
            if given.root is None:
                raise CasesError("data.root is not set; give the folder that holds scans and their labels")
            self._found = find_dataset(
                given.root, seed=given.seed or 0, **{name: given[name] for name in _FOUND_BY}
            )
        return self._found

    def _stage_splits(self, stage: str | None) -> list[str]:
        """Return the splits that a stage uses.

        Raises:
            CasesError: if one is needed and has no cases.
            ValueError: if ``patch`` is not set but needed.
        """
        stage = stage or "fit"
        if stage == "predict":
            return []
        if stage == "fit" and self.patch is None:
            raise ValueError("data.patch is not set; training needs the size of its patches in voxels")
        found = self._dataset().cases
        if stage == "test" and any(case.label is not None for case in found.get("test", ())):
            return ["test"]
        needed = ["train", "val"] if stage == "fit" else ["val"]
        for split in needed:
            if split not in found:
                raise CasesError(
                    f"{self.hparams.root}: there are no {split} cases (there are {', '.join(found)})"
                )
        return needed

    def _cases(self, split: str) -> PreparedCases:
        """Return the prepared cases of a split, made once in the life of the module."""
        if split not in self._prepared:
            found = self._dataset()
            cases = [case for case in found.cases[split] if case.label is not None]
            if not cases:
                raise CasesError(f"none of the {len(found.cases[split])} {split} cases has labels")
            if len(cases) < len(found.cases[split]):
                logger.warning(
                    "%d of %d %s cases have no labels and are left out",
                    len(found.cases[split]) - len(cases), len(found.cases[split]), split,
                )  # fmt: skip
            made = PreparedCases(
                cases,
                self.preparation,
                found.classes,
                found.ignore_id,
                self.hparams.cache,
                self.hparams.cache_folder,
            )
            made.build(capped_workers(self.hparams.workers, len(cases)))
            self._prepared[split] = made
        return self._prepared[split]

    def _ready(self, split: str) -> PreparedCases:
        if split not in self._prepared:
            raise RuntimeError("the data has not been read: call setup(stage) before asking for it")
        return self._prepared[split]

    def _take_names(self, found: ScanDataset) -> None:
        self.classes, self.channels, self.regions = found.classes, found.channels, found.regions

    def _setup_prediction(self) -> None:
        given = self.hparams.predict
        if not given:
            raise CasesError("nothing to predict on: set data.predict to a scan or a folder of scans")
        if self.hparams.root is not None:
            try:
                self._take_names(self._dataset())
            except (ValueError, OSError) as error:  # the classes are in the checkpoint too
                logger.info("predicting without the training data: %s", error)
        paths = [given] if isinstance(given, str) else given
        self.predict_cases = find_cases(paths, len(self.channels) or None)
        self.predict_paths = {i: Path(case.images[0]) for i, case in enumerate(self.predict_cases)}


def _as_preparation(given: Preparation | Mapping[str, Any]) -> Preparation:
    """Rebuild a preparation from the plain values that a checkpoint holds."""
    if isinstance(given, Preparation):
        return given
    return Preparation(**{**given, "intensity": [Intensity(**one) for one in given["intensity"]]})
