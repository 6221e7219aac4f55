"""Pictures with masks as a Lightning data module: folders, lists, Pascal VOC, Cityscapes or COCO."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from torch import Tensor

from ..shared.augment import MaskAugmentation
from ..shared.common import require_positive, without_paths
from ..shared.label_classes import Background, MaskError
from ..shared.labels import LabelClass
from ..shared.loading import PlainErrorLoader, batch_loader, global_seed, ranks_of
from ..shared.locate import CheckImages, DataNotFoundError
from .batches import collate_segmentation
from .coco_masks import Overlaps
from .dataset import SegmentationBatchSampler, SegmentationDataset, evaluation_sizes
from .index import SegmentationIndex, check_classes, check_indices, count_pixels
from .layouts import Choices, SegmentationSources
from .pairs import MissingMasks

logger = logging.getLogger("trunkline")

FLIP = [{"HorizontalFlip": {"p": 0.5}}]

_SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class ImageSegmentation(pl.LightningDataModule):
    """Pictures with a class per pixel, for training, validation, testing and prediction.

    What is not given is looked for under ``root``, in this order:

    - Pascal VOC (also below ``VOCdevkit/VOC2012``): ``JPEGImages``, ``LabelClass`` and
      ``ImageSets/Segmentation/{split}.txt``;
    - Cityscapes: ``leftImg8bit/{split}/*/*_leftImg8bit.png`` with ``gtFine/{split}/*/*_gtFine_labelIds.png``,
      else ``*_labelTrainIds.png``; its 19 classes are known;
    - folders: ``images/{split}`` with ``masks/{split}``, or ``{split}/images`` with ``{split}/masks`` (also
      ``labels`` or ``annotations``); a mask has the name of its picture but for the suffix, also in folders
      inside;
    - COCO: ``annotations/instances_{split}.json`` and the image folders of ``CocoDetection``.

    Masks hold values (grey of 8 or 16 bits, 1-bit, palette indices) or colours (red, green and blue, by the
    table of classes). Values become labels 0..K-1 in the order of the classes; 255 is ignored, unless it is
    a class of the table, and so is what ``ignore`` names. Anything else is an error before training.

    COCO: ``*_masks`` may also be a panoptic JSON; its PNGs are in the folder beside it of the same name.
    Classes are the categories in ascending order of their ids, for instances with a background before them.
    Smaller objects lie over larger ones, and all over crowd regions, which are pixels of their class like any
    other. Pixels of no panoptic segment are ignored.

    Pictures stay uint8; the task normalises them. Batches are padded to the largest picture in them, rounded
    up to multiples of 32. Evaluation batches hold pictures of one size, and masks at their native size too.
    Under DDP the module divides the data among the ranks itself: in evaluation every picture is seen exactly
    once. Training goes without validation where there is none; testing uses the validation data where there
    are no test data.

    Args:
        root: folder that holds the data, and that relative paths below are relative to.
        train_images: folder of the training pictures, or a text file that lists their names, one a line, as
            in Pascal VOC; the pictures are then in ``JPEGImages`` or ``images``.
        train_masks: folder of their masks, or a COCO instances or panoptic JSON.
        val_images: the same for validation.
        val_masks: the same for validation.
        test_images: the same for testing.
        test_masks: the same for testing.
        predict: what to predict on: a picture, a folder of pictures (not the folders inside it), a list of
            both, or a text file that lists names. Relative to the working directory.
        classes: names of the classes, of the values 0, 1, 2 and so on; or a file: one name a line, or a CSV
            or TSV with the columns name, and optionally id (the value) and r, g, b or colour. If null,
            ``classes.csv``, ``classes.txt`` or ``labelmap.txt`` and the like under root; else those of the
            layout; else ``class 0``, ``class 1`` and so on by the values in training masks.
        mask_values: the value in the masks of each of the names in ``classes``, such as [0, 255].
        ignore: classes, by name or value, that become 255: not learned and not evaluated.
        categories: classes to learn, by name or value, in this order; the others become background.
        background: whether what no category covers is a class (label 0) or ignored. For instances, and with
            categories.
        overlaps: of COCO instances: the smaller object wins, or the pixel is ignored, as in torchvision's
            reference training on COCO.
        min_pixels: leave out training pictures with fewer pixels of classes other than the background; of
            COCO instances by the areas in the file, as torchvision does.
        missing_masks: what to do with pictures without a mask, and masks without a picture: error or skip.
        batch_size: training pictures per batch and device.
        eval_batch_size: the same for everything but training; as batch_size if null.
        workers: loader processes per device and loader; fewer if there are fewer processor cores. 0 loads
            in the main process.
        augment: albumentations transforms for training, each a name with its arguments, applied to picture
            and mask together. Pixels that a transform uncovers or blanks are ignored.
        eval_short_side: length of the shorter side in evaluation and prediction, in pixels; the native size
            if null. Figures are always at native size.
        eval_long_side: limit of the longer side then, in pixels.
        check_images: before starting, check the pictures: header reads the beginning of each file, decode all
            of it, off nothing.
        check_masks: before starting, decode all masks once and count what they hold.
        seed: fixes order and augmentation; if null, the seed given to seed_everything, else 0.
    """

    def __init__(
        self,
        root: str | None = None,
        train_images: str | None = None,
        train_masks: str | None = None,
        val_images: str | None = None,
        val_masks: str | None = None,
        test_images: str | None = None,
        test_masks: str | None = None,
        predict: str | list[str] | None = None,
        classes: str | list[str] | None = None,
        mask_values: list[int] | None = None,
        ignore: list[str | int] = [],  # noqa: B006, never changed
        categories: list[str | int] | None = None,
        background: Background = "class",
        overlaps: Overlaps = "smaller",
        min_pixels: int = 0,
        missing_masks: MissingMasks = "error",
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        workers: int = 4,
        augment: list[dict[str, dict[str, Any] | None]] = FLIP,
        eval_short_side: int | None = None,
        eval_long_side: int | None = None,
        check_images: CheckImages = "header",
        check_masks: bool = True,
        seed: int | None = None,
    ):
        super().__init__()
        require_positive(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            eval_short_side=eval_short_side,
            eval_long_side=eval_long_side,
        )
        if eval_long_side is not None and eval_long_side < (eval_short_side or eval_long_side + 1):
            raise ValueError(
                f"eval_long_side is {eval_long_side}; it limits the longer side where eval_short_side "
                f"({eval_short_side}) is given, and is at least that"
            )
        if min_pixels < 0:
            raise ValueError(f"min_pixels is {min_pixels}; it must be at least 0")
        # The arguments stay in self.hparams, which goes into checkpoints.
        self.save_hyperparameters(logger=False)
        for name, value in self.hparams.items():
            self.hparams[name] = without_paths(value)
        self.batch_size = batch_size
        self.classes: tuple[LabelClass, ...] = ()
        self.train_index: SegmentationIndex | None = None
        self.val_index: SegmentationIndex | None = None
        self.test_index: SegmentationIndex | None = None
        self.predict_index: SegmentationIndex | None = None
        self.predict_paths: dict[int, Path] = {}
        given = self.hparams
        paths = {f"{s}_{w}": given[f"{s}_{w}"] for s in ("train", "val", "test") for w in ("images", "masks")}
        choices = Choices(**{name: given[name] for name in Choices._fields})
        self._sources = SegmentationSources(given.root, paths, choices)
        self._augmentation: MaskAugmentation | None = None
        self._read: dict[str, SegmentationIndex] = {}
        self._sizes: dict[str, np.ndarray] = {}
        self._counts: dict[str, Tensor] = {}
        self._checked: list[SegmentationIndex] = []

    def prepare_data(self) -> None:
        """Check pictures and masks of the coming stage, on one process of the machine.

        Raises:
            ImageError: listing files that are missing or damaged.
            MaskError: listing masks that do not fit their pictures or hold something that is no class, or if
                the training masks show one class or none.
        """
        stage = None if self.trainer is None else self.trainer.state.fn
        indices = {s: index for s, index in self._indices(stage).items() if index not in self._checked}
        given = self.hparams
        self._counts |= check_indices(indices, given.check_images, given.check_masks)
        for split, index in indices.items():
            if given.check_masks and index.masks is not None:
                check_classes(split, index, self._counts.get(split))
        self._checked += indices.values()

    def setup(self, stage: str | None = None) -> None:
        """Read what a stage needs.

        Args:
            stage: ``fit`` (also for None), ``validate``, ``test`` or ``predict``.

        Raises:
            DataNotFoundError: if a file or folder is not there, naming the places looked at.
            MaskError: if pictures and masks do not pair, or classes are wrong.
            AnnotationError: if a COCO file is wrong.
            AugmentationError: if ``augment`` is wrong.
        """
        indices = self._indices(stage)
        for split, index in indices.items():
            setattr(self, f"{split}_index", index)
            self.classes = index.classes or self.classes or self._classes_for_prediction()
            if split == "predict":
                self.predict_paths = {i: Path(index.path(i)) for i in range(len(index))}
        if "train" in indices:
            if "val" not in indices:
                logger.warning(
                    "training without validation: no val pictures with masks found in %s; if there are some, "
                    "give data.val_images and data.val_masks", self.hparams.root
                )  # fmt: skip
            self._augmentation = MaskAugmentation(self.hparams.augment)

    def pixel_counts(self) -> Tensor:
        """Return ``[K]`` int64, the training pixels of each class; for class weights.

        Masks are looked through for it unless ``prepare_data`` did so in this process.

        Raises:
            RuntimeError: before ``setup("fit")``.
        """
        if self.train_index is None:
            raise RuntimeError("the training data have not been read: call setup('fit') first")
        if "train" not in self._counts:
            self._counts["train"] = count_pixels(self.train_index)
        return self._counts["train"][:, :-1].sum(dim=0)

    def image_layout(self) -> tuple[int, int]:
        """Return the number of channels and of spatial axes of the pictures, 3 and 2."""
        return 3, 2

    def train_dataloader(self) -> PlainErrorLoader:
        """Return the loader of augmented, shuffled training batches."""
        return self._loader("train", self.train_index)

    def val_dataloader(self) -> PlainErrorLoader | list[PlainErrorLoader]:
        """Return the validation loader, or an empty list if there is no validation data."""
        return [] if self.val_index is None else self._loader("val", self.val_index)

    def test_dataloader(self) -> PlainErrorLoader:
        """Return the test loader."""
        return self._loader("test", self.test_index)

    def predict_dataloader(self) -> PlainErrorLoader:
        """Return the loader of pictures to predict on; their masks are 255 everywhere."""
        return self._loader("predict", self.predict_index)

    def _loader(self, split: str, index: SegmentationIndex | None) -> PlainErrorLoader:
        if index is None:
            raise RuntimeError("the data has not been read: call setup(stage) before asking for a loader")
        training = split == "train"
        sizes = np.zeros((len(index), 2)) if training else self._evaluation_sizes(split, index)
        sampler = SegmentationBatchSampler(
            sizes,
            self.batch_size if training else self.hparams.eval_batch_size or self.batch_size,
            shuffle=training,
            seed=global_seed(self.hparams.seed),
            **ranks_of(self.trainer),
            spread=split != "predict",
        )
        augmentation = self._augmentation if training else None
        dataset = SegmentationDataset(index, augmentation, None if training else sizes)
        return batch_loader(dataset, sampler, collate_segmentation, self.hparams.workers, self.trainer)

    def _evaluation_sizes(self, split: str, index: SegmentationIndex) -> np.ndarray:
        if split not in self._sizes:
            self._sizes[split] = index.sizes()
        return evaluation_sizes(self._sizes[split], self.hparams.eval_short_side, self.hparams.eval_long_side)

    def _indices(self, stage: str | None) -> dict[str, SegmentationIndex]:
        """Read the splits of a stage, each once in the life of the module."""
        stage = stage or "fit"
        splits = [s for s in _SPLITS[stage] if s != "val" or stage != "fit" or self._has("val")]
        for split in splits:
            if split not in self._read:
                self._read[split] = self._read_predict() if split == "predict" else self._read_split(split)
        return {split: self._read[split] for split in splits}

    def _has(self, split: str) -> bool:
        try:
            self._sources.find(split)
        except DataNotFoundError:
            if any(self.hparams[f"{split}_{what}"] is not None for what in ("images", "masks")):
                raise
            return False
        return True

    def _read_split(self, split: str) -> SegmentationIndex:
        if split == "test" and not self._has("test"):
            logger.warning("there is no test data: the validation data take its place")
            return self._indices("validate")["val"]
        place = self._sources.find(split)
        index = self._sources.index(place)
        if split == "train" and self.hparams.min_pixels:
            index = self._with_enough_pixels(index)
        return index

    def _with_enough_pixels(self, index: SegmentationIndex) -> SegmentationIndex:
        wanted = self.hparams.min_pixels
        kept = index.with_pixels(wanted)
        if not len(kept):
            raise MaskError(f"no training picture has {wanted} pixels of classes other than the background")
        logger.info("min_pixels %d: left out %d of %d pictures", wanted, len(index) - len(kept), len(index))
        return kept

    def _read_predict(self) -> SegmentationIndex:
        given = self.hparams.predict
        if not given:
            raise DataNotFoundError("nothing to predict on: set data.predict to a picture or a folder")
        return self._sources.index_for_prediction([given] if isinstance(given, str) else given)

    def _classes_for_prediction(self) -> tuple[LabelClass, ...]:
        """Take the classes of the data under root, if there is any."""
        for split in ("val", "train"):
            if self._has(split):
                return self._indices("validate" if split == "val" else "fit")[split].classes
        return ()
