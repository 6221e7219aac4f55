"""COCO-format detection data as a Lightning data module."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch.utils.data import DataLoader

from ..shared.augment.transforms import Augmentation
from ..shared.canvas import CanvasBatchSampler, default_canvases
from ..shared.coco.annotations import InstanceKind, load_instances, read_categories
from ..shared.coco.boxes import OnBadBox
from ..shared.coco.fields import AnnotationError
from ..shared.common import require_positive
from ..shared.labels.classes import LabelClass
from ..shared.locate import ANNOTATION_PLACES, IMAGE_PLACES, CheckImages, DataNotFoundError, find, list_images
from ..shared.module import SplitData
from ..shared.on_device import AugmentOn, require_flips
from ..shared.pixel_range import PixelRange, PixelRanges, file_of
from ..shared.storage import Location, located
from ..shared.summary import SplitSummary
from .batches import DetectionBatch, collate_detection
from .classes import renumbered
from .dataset import CocoDetectionDataset
from .folders import folder_of_images
from .index import CocoIndex, check_images, index_of_files, read_coco
from .lost import LostBoxes
from .summary import Scale, summarise, tell, tell_unlearned

logger = logging.getLogger("trunkline")


class CocoDetection(SplitData[CocoIndex]):
    """COCO-format data for training, validation, testing and prediction.

    Paths that are not given are looked for under ``root``: annotations at
    ``annotations/instances_{split}.json`` or ``annotations/instances_{split}2017.json``; images in
    ``images/{split}``, ``{split}2017``, ``images/{split}2017`` or ``images``, where split is train, val or
    test. Training goes without validation where there is no validation file. Testing uses the validation
    data where there is no test file, with a warning.

    Category ids become labels 0..K-1 in ascending id order. Files (and checkpoints) that number the same
    classes otherwise are matched by the names. Images stay uint8; the task normalises them.
    Under DDP the module divides the data among the ranks itself: in evaluation every image is seen exactly
    once.

    Args:
        root: folder that holds the data, and that relative paths below are relative to.
        train_images: folder of the training images.
        train_annotations: COCO instances JSON of the training images.
        val_images: folder of the validation images.
        val_annotations: COCO instances JSON of the validation images.
        test_images: folder of the test images.
        test_annotations: COCO instances JSON of the test images.
        predict: what to predict on: an image, a folder of images (not the folders inside it), a list of
            both, or one COCO JSON file. Relative to the working directory.
        predict_images: folder of the images of a predict JSON; looked for near it and under root if not
            given.
        batch_size: training images per batch and device.
        eval_batch_size: the same for everything but training; as batch_size if null.
        workers: loader processes per device and loader; fewer if there are fewer processor cores. 0 loads
            in the main process.
        short_side: length of the shorter image side after resizing, in pixels. A list trains at several
            scales, one drawn per batch, and evaluates at the largest.
        long_side: limit of the longer side after resizing, in pixels.
        canvases: heights and widths that batches are padded to. If null, derived from short_side and
            long_side for aspect ratios 1:1, 4:3, 3:2 and the longest, both ways up (800 and 1333 give
            800x832, 800x1088, 800x1216, 800x1344 and their transposes). An empty list pads each batch to
            its own largest image, rounded up to 32.
        instances: what batches hold in addition to boxes: masks of the objects, keypoints, or both; the
            annotations must have them. Nothing of them is read or kept otherwise.
        augment: albumentations transforms for training, each a name with its arguments, applied before
            resizing; none if null.
        augment_on: who resizes and mirrors the pixels: the loader, or the device, for which the loader only
            decodes. With device, ``augment`` has flips only; pixels differ by at most one grey level.
        min_visibility: a box of which a transform leaves a smaller share of its area than this is dropped.
        on_bad_box: what training does with boxes without area or outside their image: error, clip or drop.
            With drop, annotations with a wrong mask or wrong keypoints are dropped too; else they are an
            error. Evaluation takes boxes as the file gives them.
        check_images: before starting, check that images exist and have the size in the JSON: header reads the
            beginning of each file, decode all of it, off nothing. Not in prediction.
        reduced_decoding: decode JPEGs that will shrink to half their size or less at a half, a quarter or an
            eighth, which takes a half to two thirds of the time for large photographs. Pixels then differ
            from those of other programs by about half a grey level in the mean, so it is off by default.
            Needs an ``augment`` of only flips (or none).
        skip_images_without_boxes: leave such images out of training instead of training on them as
            background.
        pixel_range: the values that become black and white in images that do not have 8 bits, such as
            [0, 4095]; images of 8 bits stay as they are. auto looks at training images: 0 and the largest
            value of as many bits as theirs need; of signed and 32-bit values, the lowest and highest.
        seed: fixes order, scales and augmentation; if null, the seed given to seed_everything, else 0.
        **shared: what every ``SplitData`` takes.
    """

    label_kinds: ClassVar[tuple[str, ...]] = ("detection",)

    def __init__(
        self,
        root: str | None = None,
        train_images: str | None = None,
        train_annotations: str | None = None,
        val_images: str | None = None,
        val_annotations: str | None = None,
        test_images: str | None = None,
        test_annotations: str | None = None,
        predict: str | list[str] | None = None,
        predict_images: str | None = None,
        batch_size: int = 2,
        eval_batch_size: int | None = None,
        workers: int = 4,
        short_side: int | list[int] = 800,
        long_side: int = 1333,
        canvases: list[tuple[int, int]] | None = None,
        instances: list[InstanceKind] = [],  # noqa: B006, never changed
        augment: list[dict[str, dict[str, Any] | None]] | None = None,
        augment_on: AugmentOn = "loader",
        min_visibility: float = 0.1,
        on_bad_box: OnBadBox = "error",
        check_images: CheckImages = "header",
        reduced_decoding: bool = False,
        skip_images_without_boxes: bool = False,
        pixel_range: PixelRange = "auto",
        seed: int | None = None,
        **shared: Any,
    ):
        super().__init__(**shared)
        short_sides = [short_side] if isinstance(short_side, int) else list(short_side)
        require_positive(batch_size=batch_size, eval_batch_size=eval_batch_size, long_side=long_side)
        if not short_sides or min(short_sides) < 1 or max(short_sides) > long_side:
            raise ValueError(
                f"short_side {short_side} must be at least 1 and at most long_side ({long_side})"
            )
        self.save_hyperparameters(logger=False)  # which goes into checkpoints
        self.keep_arguments()
        self.batch_size = batch_size
        self.short_sides = short_sides
        self.canvases = default_canvases(short_sides, long_side) if canvases is None else canvases
        self._categories: tuple[LabelClass, ...] = ()
        self._predicted: tuple[LabelClass, ...] = ()
        self._lost = LostBoxes()
        self.pixels = PixelRanges(pixel_range)

    def prepare_data(self) -> None:
        """Check the images for the coming command, on one process of the machine.

        Raises:
            ImageError: listing missing, unreadable or differently sized images.
        """
        for split, index in self.indices(self.stage).items():
            if split != "predict":  # where one bad file costs none of the others
                check_images(index, self.hparams.check_images, self.to_skip())

    def setup(self, stage: str | None = None) -> None:
        """Read what a stage needs.

        Args:
            stage: ``fit`` (also for None), ``validate``, ``test`` or ``predict``.

        Raises:
            DataNotFoundError: if a file or folder is not there, naming the places looked at.
            AnnotationError: if an annotation file is wrong, see ``read_coco``, or categories of two files
                differ.
            AugmentationError: if ``augment`` is wrong.
        """
        for split, index in self.indices(stage).items():
            if split == "predict":
                self._predicted = self._categories_for_prediction(index)
            else:
                self._require_same_categories(split, index)
        self.pixels.settle(self, file_of)
        if "train" in self.splits:
            self._augmentation()
        if "val" in self.splits and (stage or "fit") == "fit":
            tell_unlearned(self.splits["train"], self.splits["val"])

    def image_layout(self) -> tuple[int, int]:
        """Return the number of channels and of spatial axes of the images, 3 and 2."""
        return 3, 2

    def label_classes(self, kind: str, head: str = "") -> Sequence[LabelClass]:
        """Return the categories in ascending order of their ids; empty before ``setup``, or if unknown."""
        if kind != "detection":
            return super().label_classes(kind, head)
        return self._categories or self._predicted

    def take_classes(self, kind: str, classes: Sequence[LabelClass], head: str = "") -> bool:
        """Give labels and ids of all splits the numbers of these classes, if they have the same names."""
        if kind != "detection":
            return super().take_classes(kind, classes, head)
        own = {split: index for split, index in self.splits.items() if split != "predict"}
        new = {split: renumbered(index, classes) for split, index in own.items()}
        known = {split: index for split, index in new.items() if index is not None}
        if len(known) < len(own):
            return False
        self.splits |= known
        self._categories = tuple(classes)
        logger.warning("the data number the classes of the checkpoint otherwise; they are matched by name")
        return True

    def prediction_classes(self, kind: str, head: str = "") -> Sequence[LabelClass]:
        """Return the categories of the JSON to predict on; empty if it has none, or for other files."""
        if kind != "detection":
            return super().prediction_classes(kind, head)
        return self.index_of("predict").categories

    def summaries(self) -> Mapping[str, SplitSummary]:
        """Return the numbers of images and boxes by split; empty before ``setup``."""
        return {
            split: summarise(index, self._scale)
            for split, index in self.splits.items()
            if split in ("train", "val")
        }

    def on_before_batch_transfer(self, batch: DetectionBatch, dataloader_idx: int) -> DetectionBatch:
        """Count the boxes that augmentation removed: plain numbers, for which nothing waits."""
        if self.trainer is not None and self.trainer.training and self.trainer.is_global_zero:
            self._lost.processes = self.trainer.world_size
            self._lost.add(batch, self.trainer.current_epoch)
        return batch

    def teardown(self, stage: str) -> None:
        """Log the counts of the last epoch."""
        self._lost.finish()

    def evaluation_truth(self, kind: str, stage: str, head: str = "") -> dict[str, Any] | None:
        """Return the annotations of the validation or test images as a COCO instances dictionary."""
        if kind != "detection":
            return super().evaluation_truth(kind, stage, head)
        index = self.splits.get("test" if stage == "test" else "val")
        return None if index is None else index.as_coco()

    def prediction_paths(self) -> dict[int, Location]:
        """Return the file of each image to predict on, by its id."""
        index = self.index_of("predict")
        paths = {image_id: index.path(n) for n, image_id in enumerate(index.image_ids.tolist())}
        return paths | {image.image_id: located(image.file_name) for image in self.unreadable}

    def has_split(self, split: str) -> bool:
        """Return whether there are annotations for ``train``, ``val`` or ``test``."""
        if self._given(split):
            return True  # if they are not there, reading them is an error
        try:
            self._find(split, "annotations")
        except DataNotFoundError:
            return False
        return True

    def read_split(self, split: str) -> CocoIndex:
        """Read the annotations of ``train``, ``val`` or ``test``; errors as in ``setup``."""
        given = self.hparams
        annotations, images = self._find(split, "annotations"), self._find(split, "images")
        index = read_coco(annotations, images, given.on_bad_box, instances=given.instances)
        if split == "train" and given.skip_images_without_boxes:
            every, index = len(index), index.with_boxes()
            logger.info("left out %d of %d images, which have no boxes", every - len(index), every)
        tell(index, split, self._scale)
        return index

    def read_prediction(self, given: list[str]) -> CocoIndex:
        """List the images to predict on, or read them from one COCO JSON."""
        if len(given) == 1 and given[0].lower().endswith(".json"):
            source = located(given[0])
            index = read_coco(source, "", boxes=False)
            folder = folder_of_images(source, index.names, self.hparams.predict_images, self.hparams.root)
            return replace(index, folder=str(folder))
        index, self.unreadable = index_of_files(list_images(given))
        return index

    @property
    def _scale(self) -> Scale:
        """How large images become at most."""
        return Scale(max(self.short_sides), self.hparams.long_side, self.canvases)

    def make_loader(self, split: str, index: CocoIndex) -> DataLoader:
        """Return the loader of a split; batches to predict on have no boxes."""
        sampler = CanvasBatchSampler(
            index.sizes.numpy().copy(),  # spawned processes move the tensor's memory
            short_sides=self.short_sides,
            long_side=self.hparams.long_side,
            canvases=self.canvases,
            **self.sampler_options(split),
        )
        dataset = self.make_dataset(split, index, self._augmentation() if split == "train" else None)
        return self.readable_loader(split, dataset, sampler, self.collate, index.named)

    def make_dataset(
        self, split: str, index: CocoIndex, augmentation: Augmentation | None
    ) -> CocoDetectionDataset:
        """Return the samples of a split."""
        return CocoDetectionDataset(index, augmentation, *self.reading())

    def reading(self) -> tuple[int, bool, tuple[float, float] | None, bool]:
        """Return how images are read and resized: the last arguments of datasets."""
        given = self.hparams
        return given.long_side, given.reduced_decoding, self.pixels.value, given.augment_on == "device"

    collate = staticmethod(collate_detection)

    def _augmentation(self) -> Augmentation:
        given = self.hparams
        made = Augmentation(given.augment or [], given.min_visibility, carried=given.instances)
        if given.augment_on == "device":
            require_flips(made.flips)
        return made

    def _find(self, split: str, what: str) -> Location:
        places = ANNOTATION_PLACES if what == "annotations" else IMAGE_PLACES
        return find(self.hparams.root, self.hparams[f"{split}_{what}"], places, split, what)

    def _given(self, split: str) -> bool:
        return any(self.hparams[f"{split}_{what}"] is not None for what in ("images", "annotations"))

    def _require_same_categories(self, split: str, index: CocoIndex) -> None:
        known = next(other for name, other in self.splits.items() if name != "predict")
        if index.categories != (self._categories or index.categories):
            same = renumbered(index, self._categories)
            if same is not None:
                self.splits[split] = index = same
                logger.warning(
                    "the %s annotations number the categories otherwise than the other files; they are "
                    "matched by name",
                    split,
                )
        if index.categories != (self._categories or index.categories):
            only = sorted(set(index.categories) ^ set(self._categories))
            names = ", ".join(f"{category.name} (id {category.id})" for category in only[:20])
            raise AnnotationError(
                f"the categories of the {split} annotations differ from the other files' in {names}; "
                "use the same list in all"
            )
        if index.keypoint_classes != known.keypoint_classes:
            raise AnnotationError(f"the keypoints of the {split} categories differ from the other files'")
        self._categories = index.categories

    def _categories_for_prediction(self, index: CocoIndex) -> tuple[LabelClass, ...]:
        """Take the classes of the predict JSON, else of the data under root, if there is any."""
        if index.categories or self._categories:
            return index.categories or self._categories
        for split in ("val", "train"):  # the smaller file first
            try:
                source = self._find(split, "annotations")
            except DataNotFoundError:
                continue
            return read_categories(load_instances(source, annotations=False)["categories"], source)
        return ()
