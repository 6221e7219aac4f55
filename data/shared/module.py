"""What tasks ask of a data module, and what the data modules of this package share.

Write a data module of your own as a ``TrunklineData``, or, if it has splits that are read from disk, as a
``SplitData``; docs/extend/dataset.md shows one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar, get_args

from torch.utils.data import DataLoader, Dataset, DistributedSampler

from .batches import Batch
from .canvas import CanvasBatchSampler
from .common import without_paths
from .contract import DataContractError as DataContractError
from .contract import TrunklineData
from .contract import VolumeSettings as VolumeSettings
from .failed import FailedBatch, FailedImage, OnBadImage, OnChangedData
from .faults import SkippedImages, on_unreadable
from .fingerprint import fingerprint_of
from .inside import files_of
from .loading import PlainErrorLoader, batch_loader, global_seed, ranks_of
from .locate import DataNotFoundError
from .resumed import EpochProgress
from .sharing import shared_on_machine
from .terminal import guard_log
from .trusted import checked_settings

logger = logging.getLogger("trunkline")

Index = TypeVar("Index")

SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class SplitData(TrunklineData, Generic[Index]):
    """A data module whose splits are read from disk, each once in the life of the module.

    A subclass calls :meth:`keep_arguments` in its constructor and implements ``has_split``, ``read_split``,
    ``read_prediction`` and ``make_loader``. It hands on what it does not know by ``**shared``.

    Args:
        on_bad_image: what training does with an image (or mask, or scan) that cannot be read: error, or skip,
            which shows another one in its place, and evaluates without it.
        max_bad_images: how many different images may be skipped in a whole run; more are an error.
        on_changed_data: what going on from a checkpoint does if the data are not those of its run: error, or
            accept.
        allow_outside_root: whether files that lists and annotations name may lie outside the folder that they
            are relative to.

    Attributes:
        stand_ins: by a split that there is not, the one whose data take its place.
        splits: what was read, by ``train``, ``val``, ``test`` and ``predict``.
        skipped: the images that were skipped, in this process; see ``on_bad_image``.
    """

    batch_size: int = 0  # where the module has one
    stand_ins: ClassVar[Mapping[str, str]] = {"test": "val"}

    def __init__(
        self,
        on_bad_image: OnBadImage = "error",
        max_bad_images: int = 20,
        on_changed_data: OnChangedData = "error",
        allow_outside_root: bool = False,
    ) -> None:
        super().__init__()
        guard_log()
        given = {
            "on_bad_image": (on_bad_image, OnBadImage),
            "on_changed_data": (on_changed_data, OnChangedData),
        }
        for name, (value, kind) in given.items():
            if value not in get_args(kind):
                raise ValueError(f"data.{name} is {value!r}; it must be {' or '.join(get_args(kind))}")
        if max_bad_images < 0:
            raise ValueError(f"data.max_bad_images is {max_bad_images}; it must be at least 0")
        self.on_bad_image, self.max_bad_images = on_bad_image, max_bad_images
        self.on_changed_data, self.allow_outside_root = on_changed_data, allow_outside_root
        self.skipped = SkippedImages(max_bad_images)
        self.progress = EpochProgress()
        self._shared: set[str] = set()
        self.splits: dict[str, Index] = {}
        self.unreadable: list[FailedImage] = []  # of the images to predict on, found by read_prediction

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Build a data module with the arguments in a checkpoint, as ``LightningDataModule`` does.

        The file is opened with ``weights_only=True`` unless told otherwise. Then classes and transforms that
        it names have to be of this package, of the libraries that it builds on, or of packages whose models
        or data modules the program has imported.

        Raises:
            UntrustedClassError: if the file names others; ``weights_only=False`` trusts it as a program.
        """
        kwargs.setdefault("weights_only", True)
        key = cls.CHECKPOINT_HYPER_PARAMS_KEY
        with checked_settings(checkpoint_path, key, kwargs["weights_only"]):
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

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
                with files_of(self.hparams.get("root"), self.allow_outside_root):
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
        """Count skipped images; let the device do what the loader has left to it (``augment_on: device``)."""
        if isinstance(batch, Batch | FailedBatch) and batch.failed and self.stage != "predict":
            self.skipped.add(batch.failed)
        return batch.rendered() if isinstance(batch, Batch) else batch

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the skipped images of the whole run, and its epoch."""
        state: dict[str, Any] = {"skipped": skipped} if (skipped := self.skipped.state()) else {}
        if self.trainer is not None and self.batch_size:
            state["progress"] = self.progress.state(self.trainer, self.batch_size)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the epoch, and the skipped images; their budget is looked at with the next one."""
        self.progress.restore(state_dict.get("progress", {}))
        self.skipped.join([state_dict.get("skipped", {})])

    def train_dataloader(self) -> DataLoader:
        """Return the loader of augmented, shuffled training batches."""
        loader = self._loader("train")
        self.progress.apply(loader, self.trainer)
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

    def readable_loader(
        self,
        split: str,
        dataset: Dataset,
        sampler: DistributedSampler,
        collate: Callable[[list[Any]], Any],
        named: Callable[[Any], tuple[int, str]],
    ) -> PlainErrorLoader:
        """Return the loader of a split, which does with unreadable images what ``on_bad_image`` says.

        In prediction they are delivered as failed, whatever it says.

        Args:
            split: ``train``, ``val``, ``test`` or ``predict``.
            dataset, sampler, collate: as in ``batch_loader``.
            named: returns the id and the file of the image that a request asks for.
        """
        workers, predicting = self.hparams.workers, split == "predict"
        if not predicting:
            groups = sampler.groups if isinstance(sampler, CanvasBatchSampler) else None
            what, training = self.on_bad_image, split == "train"
            dataset, collate = on_unreadable(what, training, dataset, collate, named, groups)
        return batch_loader(dataset, sampler, collate, workers, self.trainer, named if predicting else None)

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells the training and validation data from others, by split."""
        return {name: fingerprint_of(self.splits[name]) for name in ("train", "val") if name in self.splits}

    def to_skip(self) -> SkippedImages | None:
        """Return where images that a check before the run finds are counted; None where they are an error."""
        return self.skipped if self.on_bad_image == "skip" else None

    def _loader(self, split: str) -> DataLoader:
        index = self.index_of(split)
        if split not in self._shared:  # all processes make their loaders in the same order
            self._shared.add(split)
            self.splits[split] = index = shared_on_machine(index, self.trainer)
        return self.make_loader(split, index)
