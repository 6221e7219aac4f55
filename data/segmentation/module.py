"""Images with masks as a Lightning data module: folders, lists, Pascal VOC, Cityscapes or COCO."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..shared.augment.transforms import MaskAugmentation
from ..shared.common import require_positive
from ..shared.fingerprint import digest
from ..shared.labels.classes import LabelClass
from ..shared.labels.table import Background, MaskError
from ..shared.loading import PlainErrorLoader
from ..shared.locate import CheckImages, DataNotFoundError, Missing
from ..shared.module import SplitData
from ..shared.on_device import AugmentOn, require_flips
from ..shared.pixel_range import PixelRange, PixelRanges, file_of
from ..shared.storage import Location, located
from ..shared.summary import SplitSummary
from .batches import collate_segmentation
from .coco_masks import Overlaps
from .dataset import SegmentationBatchSampler, SegmentationDataset, evaluation_sizes
from .index import SegmentationIndex, check_classes, check_indices, count_pixels, renumbered_counts
from .layouts import Choices, SegmentationSources
from .summary import summarise

logger = logging.getLogger("trunkline")


class ImageSegmentation(SplitData[SegmentationIndex]):
    """Images with a class per pixel, for training, validation, testing and prediction.

    What is not given is looked for under ``root``, in this order:

    - Pascal VOC (also below ``VOCdevkit/VOC2012``): ``JPEGImages``, ``SegmentationClass`` and
      ``ImageSets/Segmentation/{split}.txt``;
    - Cityscapes: ``leftImg8bit/{split}/*/*_leftImg8bit.png`` with ``gtFine/{split}/*/*_gtFine_labelIds.png``,
      else ``*_labelTrainIds.png``; its 19 classes are known;
    - folders: ``images/{split}`` with ``masks/{split}``, or ``{split}/images`` with ``{split}/masks`` (also
      ``labels`` or ``annotations``); a mask has the name of its image except the suffix, also in folders
      inside;
    - COCO: ``annotations/instances_{split}.json`` and the image folders of ``CocoDetection``.

    Masks hold values (grey of 8 or 16 bits, 1-bit, palette indices) or colours (red, green and blue, by the
    table of classes). Values become labels 0..K-1 in the order of the classes; 255 is ignored, unless it is
    a class of the table, and so is what ``ignore`` names. Anything else is an error before training.

    COCO: ``*_masks`` may also be a panoptic JSON; its PNGs are in the folder of the same name next to it.
    Classes are the categories in ascending order of their ids, for instances with a background before them.
    Smaller objects lie over larger ones, and all over crowd regions, which are pixels of their class like any
    other. Pixels of no panoptic segment are ignored.

    Images stay uint8; the task normalises them. Batches are padded to the largest image in them, rounded
    up to multiples of 32. Evaluation batches hold images of one size, and masks at their native size too.
    Under DDP the module divides the data among the ranks itself: in evaluation every image is seen exactly
    once. Training goes without validation where there is none; testing uses the validation data where there
    are no test data.

    Args:
        root: folder that holds the data, and that relative paths below are relative to.
        train_images: folder of the training images, or a text file that lists their names, one a line, as
            in Pascal VOC; the images are then in ``JPEGImages`` or ``images``.
        train_masks: folder of their masks, or a COCO instances or panoptic JSON.
        val_images: the same for validation.
        val_masks: the same for validation.
        test_images: the same for testing.
        test_masks: the same for testing.
        predict: what to predict on: an image, a folder of images (not the folders inside it), a list of
            both, or a text file that lists names. Relative to the working directory.
        classes: names of the classes, of the values 0, 1, 2 and so on; or a file. It has one name a line, or
            is a CSV or TSV with the columns name, and optionally id (the value) and r, g, b or colour. If
            null, ``classes.csv``, ``classes.txt`` or ``labelmap.txt`` and the like under root; else those of
            the layout; else ``class 0``, ``class 1`` and so on by the values in training masks.
        mask_values: the value in the masks of each of the names in ``classes``, such as [0, 255].
        ignore: classes, by name or value, that become 255: not learned and not evaluated.
        categories: classes to learn, by name or value, in this order; the others become background.
        background: whether what no category covers is a class (label 0) or ignored. For instances, and with
            categories.
        overlaps: of COCO instances: the smaller object wins, or the pixel is ignored, as in torchvision's
            reference training on COCO.
        min_pixels: leave out training images with fewer pixels of classes other than the background; of
            COCO instances by the areas in the file, as torchvision does.
        missing: what to do with images without a mask, and masks without an image: error or skip.
        batch_size: training images per batch and device.
        eval_batch_size: the same for everything but training; as batch_size if null.
        workers: loader processes per device and loader; fewer if there are fewer processor cores. 0 loads
            in the main process.
        augment: albumentations transforms for training, each a name with its arguments, applied to image
            and mask together. Pixels that a transform uncovers or blanks are ignored. None if null.
        augment_on: who resizes and mirrors the pixels: the loader, or the device, for which the loader only
            decodes. With device, ``augment`` has flips only; pixels differ by at most one grey level.
        eval_short_side: length of the shorter side in evaluation and prediction, in pixels; the native size
            if null. Metrics are always at native size.
        eval_long_side: limit of the longer side then, in pixels.
        check_images: before starting, check the images: header reads the beginning of each file, decode all
            of it, off nothing. Not in prediction.
        check_masks: before starting, decode all masks once and count what they hold.
        pixel_range: the values that become black and white in images that do not have 8 bits, such as
            [0, 4095]; images of 8 bits stay as they are. auto looks at training images: 0 and the largest
            value of as many bits as theirs need; of signed and 32-bit values, the lowest and highest.
        seed: fixes order and augmentation; if null, the seed given to seed_everything, else 0.
        **shared: what every ``SplitData`` takes.
    """

    label_kinds = ("segmentation",)

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
        missing: Missing = "error",
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        workers: int = 4,
        augment: list[dict[str, dict[str, Any] | None]] | None = None,
        augment_on: AugmentOn = "loader",
        eval_short_side: int | None = None,
        eval_long_side: int | None = None,
        check_images: CheckImages = "header",
        check_masks: bool = True,
        pixel_range: PixelRange = "auto",
        seed: int | None = None,
        **shared: Any,
    ):
        super().__init__(**shared)
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
        self.keep_arguments()
        self.batch_size = batch_size
        given = self.hparams
        paths = {f"{s}_{w}": given[f"{s}_{w}"] for s in ("train", "val", "test") for w in ("images", "masks")}
        choices = Choices(**{name: given[name] for name in Choices._fields})
        self._sources = SegmentationSources(given.root, paths, choices)
        self._augmentation: MaskAugmentation | None = None
        self._sizes: dict[str, np.ndarray] = {}
        self._counts: dict[str, Tensor] = {}
        self._left_out = 0
        self._checked: list[SegmentationIndex] = []
        self.pixels = PixelRanges(pixel_range)

    def prepare_data(self) -> None:
        """Check images and masks for the coming command, on one process of the machine.

        Raises:
            ImageError: listing files that are missing or damaged.
            MaskError: listing masks that do not fit their images or hold something that is no class, or if
                the training masks show one class or none.
        """
        indices = {s: index for s, index in self.indices(self.stage).items() if index not in self._checked}
        indices.pop("predict", None)  # where one bad file costs none of the others
        given = self.hparams
        self._counts |= check_indices(indices, given.check_images, given.check_masks, self.to_skip())
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
            MaskError: if images and masks do not pair, or classes are wrong.
            AnnotationError: if a COCO file is wrong.
            AugmentationError: if ``augment`` is wrong.
        """
        indices = self.indices(stage)
        if "predict" in indices and not self.label_classes("segmentation"):
            labelled = next((split for split in ("val", "train") if self.has_split(split)), None)
            if labelled is not None:  # it names the classes
                self.splits[labelled] = self.read_split(labelled)
        self.pixels.settle(self, file_of)
        if "train" in indices:
            self._augmentation = MaskAugmentation(self.hparams.augment or [])
            if self.hparams.augment_on == "device":
                require_flips(self._augmentation.flips)

    def image_layout(self) -> tuple[int, int]:
        """Return the number of channels and of spatial axes of the images, 3 and 2."""
        return 3, 2

    def label_classes(self, kind: str, head: str = "") -> Sequence[LabelClass]:
        """Return the classes of the masks; empty if nothing was read but images to predict on."""
        if kind != "segmentation":
            return super().label_classes(kind, head)
        return next((index.classes for index in self.splits.values() if index.classes), ())

    def label_counts(self, kind: str, head: str = "") -> Sequence[int]:
        """Return the training pixels of each class.

        Masks are looked through for it unless ``prepare_data`` did so in this process.

        Raises:
            RuntimeError: before ``setup("fit")``.
        """
        if kind != "segmentation":
            return super().label_counts(kind, head)
        index = self.index_of("train")
        if "train" not in self._counts:
            self._counts["train"] = count_pixels(index)
        return self._counts["train"][:, :-1].sum(dim=0).tolist()  # [I, K + 1] -> K numbers

    def take_classes(self, kind: str, classes: Sequence[LabelClass], head: str = "") -> bool:
        """Give the labels of all splits the numbers and ids of these classes, if they have the same names."""
        if kind != "segmentation":
            return super().take_classes(kind, classes, head)
        own = {split: index for split, index in self.splits.items() if split != "predict"}
        new = {split: index.renumbered(classes) for split, index in own.items()}
        known = {split: index for split, index in new.items() if index is not None}
        if len(known) < len(own):
            return False
        self._counts = {
            split: renumbered_counts(counts, own[split].classes, classes)
            for split, counts in self._counts.items()
            if split in own
        }
        self._checked += [known[split] for split, index in own.items() if index in self._checked]
        self.splits |= known
        self._sources.number_like("the checkpoint", classes)
        logger.warning("the data number the classes of the checkpoint otherwise; they are matched by name")
        return True

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells the data from others, and the pixels of the classes if they are known."""
        counted = {split: {"pixels": digest(counts)} for split, counts in self._counts.items()}
        return {split: {**each, **counted.get(split, {})} for split, each in super().fingerprint().items()}

    def summaries(self) -> Mapping[str, SplitSummary]:
        """Return the numbers of images and of pixels by split; of pixels only if ``check_masks`` counted."""
        return {
            split: summarise(index, self._counts.get(split), self._left_out if split == "train" else 0)
            for split, index in self.splits.items()
            if split in ("train", "val")
        }

    def prediction_paths(self) -> dict[int, Location]:
        """Return the file of each image to predict on, by its position in the index."""
        index = self.index_of("predict")
        paths = {position: located(index.path(position)) for position in range(len(index))}
        return paths | {image.image_id: located(image.file_name) for image in self.unreadable}

    def has_split(self, split: str) -> bool:
        """Return whether there are images and masks; if the user named some, they have to be there."""
        try:
            self._sources.find(split)
        except DataNotFoundError:
            if any(self.hparams[f"{split}_{what}"] is not None for what in ("images", "masks")):
                raise
            return False
        return True

    def read_split(self, split: str) -> SegmentationIndex:
        """Pair the images and masks of a split; for training without those of too few pixels."""
        index, wanted = self._sources.index(self._sources.find(split)), self.hparams.min_pixels
        if split != "train" or not wanted:
            return index
        kept = index.with_pixels(wanted)
        if not len(kept):
            raise MaskError(f"no training image has {wanted} pixels of classes other than the background")
        self._left_out = len(index) - len(kept)
        logger.info("min_pixels %d: left out %d of %d images", wanted, len(index) - len(kept), len(index))
        return kept

    def read_prediction(self, given: list[str]) -> SegmentationIndex:
        """Index the images to predict on; their masks are 255 everywhere."""
        every = self._sources.index_for_prediction(given)
        index, self._sizes["predict"], self.unreadable = every.readable()
        return index

    def make_loader(self, split: str, index: SegmentationIndex) -> PlainErrorLoader:
        """Return the loader of a split; evaluation batches hold images of one size."""
        training, given = split == "train", self.hparams
        if training:
            sizes = np.zeros((len(index), 2))
        else:
            if split not in self._sizes:
                self._sizes[split] = index.sizes(self.to_skip())
            sizes = evaluation_sizes(self._sizes[split], given.eval_short_side, given.eval_long_side)
        sampler = SegmentationBatchSampler(sizes, **self.sampler_options(split), spread=split != "predict")
        augmentation = self._augmentation if training else None
        wanted, on_device = None if training else sizes, given.augment_on == "device"
        dataset = SegmentationDataset(index, augmentation, wanted, self.pixels.value, on_device)
        return self.readable_loader(split, dataset, sampler, collate_segmentation, index.named)
