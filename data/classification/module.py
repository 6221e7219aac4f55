"""Images with classes as a Lightning data module: class folders, a zip of them, or a CSV."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from ..shared.common import require_positive, without_paths
from ..shared.io import ImageError, Interpolation
from ..shared.loading import ImageBatchSampler, PlainErrorLoader, batch_loader, global_seed, ranks_of
from ..shared.locate import CheckImages, DataNotFoundError
from .batches import collate_classification
from .dataset import ClassificationDataset
from .index import ClassIndex, LabelError, check_class_images, check_training_classes
from .layouts import ClassSources, Place
from .transforms import PictureTransform, Policy, ScanTransform

logger = logging.getLogger("trunkline")

FLIP = [{"HorizontalFlip": {"p": 0.5}}]

_SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class ImageClassification(pl.LightningDataModule):
    """Pictures or scans with classes, for training, validation, testing and prediction.

    Each split is one of

    - a folder of class folders, ``train/<class>/**/*.jpg``, as in ImageNet;
    - a zip of such folders, read without unpacking; further folders around them do not matter;
    - a CSV with a header: ``path``, optionally ``split`` (train, val, test), and ``label`` (one name),
      ``labels`` (any number of names, ``;`` between them) or else one column of 0 and 1 per class. With the
      last two an image may show several classes. Paths are relative to the CSV's folder, or to ``root``.

    A split that is not given is looked for in ``root``: if that is a folder, as ``train.csv``, ``train`` or
    ``train.zip`` (for validation also ``valid`` and ``validation``); if it is a zip, as a folder inside; if
    it is a CSV, as the rows of that split. Where there is no validation data but a test split, validation
    uses the test split and says so, and the other way round. Training goes without validation where there
    is neither.

    Classes are those of the training data: sorted folder names or labels (as numbers if all are), or columns
    in their order. Another split may lack some but not have others.

    Pictures stay uint8 ``[B, 3, size, size]``; the task normalises them. Files named ``.nii``, ``.nii.gz`` or
    ``.npy`` are scans: standardised per channel over the volume, resized without regard to voxel spacing,
    float32 ``[B, C, D, H, W]`` with the axes of NIfTI pointing right, anterior and superior.

    Under DDP the module divides the data among the ranks itself: in evaluation every image is seen exactly
    once.

    Args:
        root: folder, zip or CSV that holds the splits, and that relative paths below are relative to.
        train: training data: a folder of class folders, a zip or a CSV; inside the zip if root is one.
        val: validation data.
        test: test data.
        predict: what to predict on: an image, a folder of images (not the folders inside it), a list of
            both, a zip, or a CSV with the column path. Relative to the working directory.
        batch_size: training images per batch and device.
        eval_batch_size: the same for everything but training; as batch_size if null.
        workers: loader processes per device and loader; fewer if there are fewer processor cores. 0 loads
            in the main process.
        size: side of the pictures in a batch, in pixels; of scans the side of a cube, or depth, height and
            width, in voxels.
        train_size: side of the pictures in training batches, in pixels; as size if null. Smaller ones than in
            evaluation are quicker and not worse (Touvron et al. 2019, "Fixing the train-test resolution
            discrepancy").
        resize: length of the shorter side of a picture before its centre is cut out, for evaluation (and
            training, see augment), in pixels; as size if null. 256 is usual for 224.
        interpolation: for resizing pictures, and for the policy.
        augment: albumentations transforms for training pictures, each a name with its arguments, applied to
            the original pixels. What is not of the wanted size afterwards is resized and cut as in
            evaluation. A horizontal flip if null.
        policy: an automatic augmentation policy for training pictures, after the transforms.
        random_erasing: probability of painting a rectangle in the mean colour over a training picture, last.
        repeated_augmentation: how often an image comes up in a row, each time augmented anew; an epoch then
            shows as much fewer different images.
        flip_axes: axes along which training scans are randomly reversed: 0 for depth, 1 height, 2 width.
        intensity: random changes of scale and offset of training scans, in standard deviations, 0 to 1.
        check_images: before starting, check that the images can be read: header reads the beginning of each
            file, decode all of it, off nothing.
        seed: fixes order and augmentation; if null, the seed given to seed_everything, else 0.
    """

    def __init__(
        self,
        root: str | None = None,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        predict: str | list[str] | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        workers: int = 4,
        size: int | tuple[int, int, int] = 224,
        train_size: int | None = None,
        resize: int | None = None,
        interpolation: Interpolation = "bilinear",
        augment: list[dict[str, dict[str, Any] | None]] | None = None,
        policy: Policy | None = None,
        random_erasing: float = 0.0,
        repeated_augmentation: int = 1,
        flip_axes: list[int] = [],  # noqa: B006, never changed
        intensity: float = 0.0,
        check_images: CheckImages = "header",
        seed: int | None = None,
    ):
        super().__init__()
        sides = (size,) if isinstance(size, int) else tuple(size)
        require_positive(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            size=min(sides),
            train_size=train_size,
            repeated_augmentation=repeated_augmentation,
        )
        if len(sides) not in (1, 3):
            raise ValueError(f"size is {size}; give one number, or depth, height and width of scans")
        if resize is not None and (len(sides) > 1 or resize < size):
            raise ValueError(f"resize is {resize}; it must be at least size ({size}), which is cut out of it")
        for name, value in (("random_erasing", random_erasing), ("intensity", intensity)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it must be 0 to 1")
        if len(set(flip_axes)) < len(flip_axes) or not set(flip_axes) <= {0, 1, 2}:
            raise ValueError(f"flip_axes is {flip_axes}; axes are 0, 1 and 2, each once")
        # The arguments stay in self.hparams, which goes into checkpoints.
        self.save_hyperparameters(logger=False)
        for name, value in self.hparams.items():
            self.hparams[name] = without_paths(value)
        self.batch_size = batch_size
        self.class_names: list[str] = []
        self.multi_label = False
        self.train_index: ClassIndex | None = None
        self.val_index: ClassIndex | None = None
        self.test_index: ClassIndex | None = None
        self.predict_index: ClassIndex | None = None
        self.predict_paths: dict[int, str] = {}
        self._sources = ClassSources(
            self.hparams.root, {s: self.hparams[s] for s in ("train", "val", "test")}
        )
        self._read: dict[str, ClassIndex] = {}
        self._train_place: Place | None = None

    def prepare_data(self) -> None:
        """Check the images of the coming stage, on one process of the machine.

        Raises:
            ImageError: listing missing or unreadable images, or scans with other numbers of channels.
        """
        stage = None if self.trainer is None else self.trainer.state.fn
        check_class_images(list(self._indices(stage).values()), self.hparams.check_images)

    def setup(self, stage: str | None = None) -> None:
        """Read what a stage needs.

        Args:
            stage: ``fit`` (also for None), ``validate``, ``test`` or ``predict``.

        Raises:
            DataNotFoundError: if a file or folder is not there, naming the places looked at.
            LabelError: if rows of a CSV are wrong, an image has no class, or classes of two splits differ.
            ImageError: if pictures and scans are mixed.
            AugmentationError: if ``augment`` is wrong.
            ValueError: if an argument does not fit the kind of images.
        """
        indices = self._indices(stage)
        for split, index in indices.items():
            setattr(self, f"{split}_index", index)
            self.class_names, self.multi_label = list(index.class_names), index.multi_label
        if "predict" in indices:
            self.predict_paths = {i: indices["predict"].path(i) for i in range(len(indices["predict"]))}
        if "train" in indices and "val" not in indices:
            logger.warning("training without validation: no val or test data in %s", self.hparams.root)
        self._check_kinds(indices)
        if "train" in indices:
            check_training_classes(indices["train"])

    def class_counts(self) -> Tensor:
        """Return ``[K]`` int64, how many training images show each class; for class weights.

        Raises:
            RuntimeError: before ``setup("fit")``.
        """
        if self.train_index is None:
            raise RuntimeError("the training data have not been read: call setup('fit') first")
        return self.train_index.counts()

    def image_layout(self) -> tuple[int, int]:
        """Return the number of channels and of spatial axes of the images.

        Raises:
            RuntimeError: before ``setup``.
            ImageError: if the first file is a scan and cannot be read.
        """
        for index in (self.train_index, self.val_index, self.test_index, self.predict_index):
            if index is not None:
                return index.layout()
        raise RuntimeError("no data have been read: call setup(stage) first")

    def train_dataloader(self) -> PlainErrorLoader:
        """Return the loader of augmented, shuffled training batches."""
        return self._loader(self.train_index, training=True)

    def val_dataloader(self) -> PlainErrorLoader | list[PlainErrorLoader]:
        """Return the validation loader, or an empty list if there is no validation data."""
        return [] if self.val_index is None else self._loader(self.val_index)

    def test_dataloader(self) -> PlainErrorLoader:
        """Return the test loader."""
        return self._loader(self.test_index)

    def predict_dataloader(self) -> PlainErrorLoader:
        """Return the loader of images to predict on; their labels are -1."""
        return self._loader(self.predict_index)

    def _loader(self, index: ClassIndex | None, training: bool = False) -> PlainErrorLoader:
        if index is None:
            raise RuntimeError("the data has not been read: call setup(stage) before asking for a loader")
        sampler = ImageBatchSampler(
            len(index),
            self.batch_size if training else self.hparams.eval_batch_size or self.batch_size,
            shuffle=training,
            seed=global_seed(self.hparams.seed),
            **ranks_of(self.trainer),
            repeats=self.hparams.repeated_augmentation if training else 1,
            spread=index is not self.predict_index,
        )
        dataset = ClassificationDataset(index, self._transform(index, training))
        return batch_loader(dataset, sampler, collate_classification, self.hparams.workers, self.trainer)

    def _transform(self, index: ClassIndex, training: bool) -> PictureTransform | ScanTransform:
        given = self.hparams
        if index.scans:
            size = (given.size,) * 3 if isinstance(given.size, int) else given.size
            return ScanTransform(size, given.flip_axes, given.intensity) if training else ScanTransform(size)
        short = given.size if given.resize is None else given.resize
        if not training:
            return PictureTransform(given.size, short, given.interpolation)
        augment = FLIP if given.augment is None else given.augment
        side = given.train_size or given.size
        return PictureTransform(
            side, max(short, side), given.interpolation, augment, given.policy, given.random_erasing
        )

    def _check_kinds(self, indices: dict[str, ClassIndex]) -> None:
        """Refuse scans beside pictures, and arguments that are for the other kind of image."""
        kinds = {index.scans for index in indices.values()}
        if len(kinds) > 1:
            named = ", ".join(f"{split}: {index.path(0)}" for split, index in indices.items())
            raise ImageError(f"one split holds scans and another pictures ({named}); use one kind")
        scans, given = kinds.pop(), self.hparams
        if not scans and not isinstance(given.size, int):
            raise ValueError(f"size is {given.size}, but the images are pictures: give one number")
        for_pictures = ("train_size", "resize", "augment", "policy", "random_erasing")
        wrong = [name for name in (for_pictures if scans else ("flip_axes", "intensity")) if given[name]]
        if scans and given.interpolation != "bilinear":
            wrong.append("interpolation")
        if wrong:
            instead = "flip_axes and intensity augment scans" if scans else "augment is for pictures"
            kind = "scans" if scans else "pictures"
            raise ValueError(f"{' and '.join(wrong)} cannot be used: the images are {kind}; {instead}")
        if "train" in indices:
            self._transform(indices["train"], training=True)  # finds what is wrong in augment

    def _indices(self, stage: str | None) -> dict[str, ClassIndex]:
        """Read the splits of a stage, each once in the life of the module."""
        stage = stage or "fit"
        splits = [s for s in _SPLITS[stage] if s != "val" or stage != "fit" or self._has_validation()]
        for split in splits:
            if split not in self._read:
                self._read[split] = self._read_predict() if split == "predict" else self._read_split(split)
        return {split: self._read[split] for split in splits}

    def _has_validation(self) -> bool:
        try:
            self._place("val")
        except DataNotFoundError:
            if self.hparams.val is not None:
                raise
            return False
        return True

    def _place(self, split: str) -> tuple[str, Place]:
        """Find a split, and say which it is: validation and test data stand in for each other."""
        try:
            return split, self._sources.find(split)
        except DataNotFoundError as error:
            other = {"val": "test", "test": "val"}.get(split)
            if other is None or self.hparams[split] is not None:
                raise
            try:
                return other, self._sources.find(other)
            except DataNotFoundError:
                raise error from None

    def _read_split(self, split: str) -> ClassIndex:
        name, place = self._place(split)
        if name != split:
            logger.warning("there is no %s data: the %s data (%s) take their place", split, name, place)
        own = self._sources.class_names(place)
        known = self._known_classes()
        if known is None:
            logger.warning("there is no training data: the classes are those of the %s data", name)
        class_names, several = known or own
        if own[1] != several:
            shown = "any number of classes" if own[1] else "one class"
            raise LabelError(
                f"{place}: an image shows {shown}, unlike in the training data; use the same columns in both"
            )
        if split != "train" and place == self._train_place and place.is_table:
            raise LabelError(
                f"{place}: holds both the training and the {name} data; add a column split, or give a file "
                "for each"
            )
        return self._sources.index(place, class_names)

    def _known_classes(self) -> tuple[tuple[str, ...], bool] | None:
        """Return the classes of the training data, or None if there is none."""
        if self._train_place is None:
            try:
                self._train_place = self._sources.find("train")
            except DataNotFoundError:
                return None
        return self._sources.class_names(self._train_place)

    def _read_predict(self) -> ClassIndex:
        given = self.hparams.predict
        if not given:
            raise DataNotFoundError(
                "nothing to predict on: set data.predict to an image, a folder, a zip or a CSV"
            )
        classes = self._known_classes()
        if classes is None:
            try:
                classes = self._sources.class_names(self._place("val")[1])
            except DataNotFoundError:
                classes = ((), False)
        return self._sources.index_for_prediction([given] if isinstance(given, str) else given, *classes)
