"""COCO-format detection data as a Lightning data module."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from ..shared.augment import Augmentation
from ..shared.canvas import CanvasBatchSampler, default_canvases
from ..shared.coco_json import AnnotationError, OnBadBox, load_instances, read_categories
from ..shared.common import require_positive, without_paths
from ..shared.labels import LabelClass
from ..shared.loading import batch_loader, global_seed, ranks_of
from ..shared.locate import ANNOTATION_PLACES, IMAGE_PLACES, CheckImages, DataNotFoundError, find, list_images
from .batches import collate_detection
from .dataset import CocoDetectionDataset
from .index import CocoIndex, check_images, index_of_files, read_coco

logger = logging.getLogger("trunkline")

FLIP = [{"HorizontalFlip": {"p": 0.5}}]

_SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class CocoDetection(pl.LightningDataModule):
    """COCO-format data for training, validation, testing and prediction.

    Paths that are not given are looked for under ``root``: annotations at
    ``annotations/instances_{split}.json`` or ``annotations/instances_{split}2017.json``; images in
    ``images/{split}``, ``{split}2017``, ``images/{split}2017`` or ``images``, where split is train, val or
    test. Training goes without validation where there is no validation file. Testing uses the validation
    data unless test paths are given.

    Category ids become labels 0..K-1 in ascending id order. Images stay uint8; the task normalises them.
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
        augment: albumentations transforms for training, each a name with its arguments, applied before
            resizing.
        min_visibility: a box of which a transform leaves a smaller share of its area than this is dropped.
        on_bad_box: what to do with boxes without area or outside their image: error, clip or drop.
        check_images: before starting, check that images exist and have the size in the JSON: header reads the
            beginning of each file, decode all of it, off nothing.
        reduced_decoding: decode JPEGs that will shrink to half their size or less at a half, a quarter or an
            eighth, which takes a half to two thirds of the time for large photographs. Pixels then differ
            from those of other programs by about half a grey level in the mean, so it is off by default.
            Needs an ``augment`` of flips alone (or none).
        skip_images_without_boxes: leave such images out of training instead of training on them as
            background.
        seed: fixes order, scales and augmentation; if null, the seed given to seed_everything, else 0.
    """

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
        augment: list[dict[str, dict[str, Any] | None]] = FLIP,
        min_visibility: float = 0.1,
        on_bad_box: OnBadBox = "error",
        check_images: CheckImages = "header",
        reduced_decoding: bool = False,
        skip_images_without_boxes: bool = False,
        seed: int | None = None,
    ):
        super().__init__()
        short_sides = [short_side] if isinstance(short_side, int) else list(short_side)
        require_positive(batch_size=batch_size, eval_batch_size=eval_batch_size, long_side=long_side)
        if not short_sides or min(short_sides) < 1 or max(short_sides) > long_side:
            raise ValueError(
                f"short_side {short_side} must be at least 1 and at most long_side ({long_side})"
            )
        # The arguments stay in self.hparams, which goes into checkpoints.
        self.save_hyperparameters(logger=False)
        for name, value in self.hparams.items():  # checkpoints that open with weights_only hold no Path
            self.hparams[name] = without_paths(value)
        self.batch_size = batch_size
        self.short_sides = short_sides
        self.canvases = default_canvases(short_sides, long_side) if canvases is None else canvases
        self.categories: tuple[LabelClass, ...] = ()
        self.train_index: CocoIndex | None = None
        self.val_index: CocoIndex | None = None
        self.test_index: CocoIndex | None = None
        self.predict_index: CocoIndex | None = None
        self.predict_paths: dict[int, Path] = {}
        self._augmentation: Augmentation | None = None
        self._read: dict[str, CocoIndex] = {}

    def prepare_data(self) -> None:
        """Check the images of the coming stage, on one process of the machine.

        Raises:
            ImageError: listing missing, unreadable or differently sized images.
        """
        stage = None if self.trainer is None else self.trainer.state.fn
        for index in self._indices(stage).values():
            check_images(index, self.hparams.check_images)

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
        indices = self._indices(stage)
        for split, index in indices.items():
            if split == "predict":
                self.categories = self._categories_for_prediction(index)
                self.predict_paths = {int(i): index.path(n) for n, i in enumerate(index.image_ids)}
            else:
                self._require_same_categories(split, index)
            if split == "train" and self.hparams.skip_images_without_boxes:
                index = index.with_boxes()
            setattr(self, f"{split}_index", index)
        if "train" in indices and "val" not in indices:
            logger.warning("training without validation: no val annotations under %s", self.hparams.root)
        if "train" in indices:
            self._augmentation = Augmentation(self.hparams.augment, self.hparams.min_visibility)

    def train_dataloader(self) -> DataLoader:
        """Return the loader of augmented, shuffled training batches."""
        return self._loader(self.train_index, training=True)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return the validation loader, or an empty list if there is no validation data."""
        return [] if self.val_index is None else self._loader(self.val_index)

    def test_dataloader(self) -> DataLoader:
        """Return the test loader."""
        return self._loader(self.test_index)

    def predict_dataloader(self) -> DataLoader:
        """Return the loader of images to predict on; its batches have no boxes."""
        return self._loader(self.predict_index)

    def _loader(self, index: CocoIndex | None, training: bool = False) -> DataLoader:
        if index is None:
            raise RuntimeError("the data has not been read: call setup(stage) before asking for a loader")
        sampler = CanvasBatchSampler(
            index.sizes.numpy(),
            self.batch_size if training else self.hparams.eval_batch_size or self.batch_size,
            self.short_sides,
            self.hparams.long_side,
            self.canvases,
            shuffle=training,
            seed=global_seed(self.hparams.seed),
            **ranks_of(self.trainer),
        )
        dataset = self._dataset(index, self._augmentation if training else None)
        return batch_loader(dataset, sampler, self._collate, self.hparams.workers, self.trainer)

    def _dataset(self, index: CocoIndex, augmentation: Augmentation | None) -> CocoDetectionDataset:
        given = self.hparams
        return CocoDetectionDataset(index, augmentation, given.long_side, given.reduced_decoding)

    _collate = staticmethod(collate_detection)

    def _indices(self, stage: str | None) -> dict[str, CocoIndex]:
        """Read the splits of a stage, each once in the life of the module."""
        stage = stage or "fit"
        splits = _SPLITS[stage]
        if stage == "fit" and "val" not in self._read and self._no_validation():
            splits = ("train",)
        for split in splits:
            if split not in self._read:
                self._read[split] = self._read_predict() if split == "predict" else self._read_split(split)
        return {split: self._read[split] for split in splits}

    def _read_split(self, split: str) -> CocoIndex:
        if split == "test" and not self._given("test"):
            return self._indices("validate")["val"]
        annotations = self._find(split, "annotations")
        return read_coco(annotations, self._find(split, "images"), self.hparams.on_bad_box)

    def _find(self, split: str, what: str) -> Path:
        places = ANNOTATION_PLACES if what == "annotations" else IMAGE_PLACES
        return find(self.hparams.root, self.hparams[f"{split}_{what}"], places, split, what)

    def _given(self, split: str) -> bool:
        return any(self.hparams[f"{split}_{what}"] is not None for what in ("images", "annotations"))

    def _no_validation(self) -> bool:
        if self._given("val"):
            return False
        try:
            self._find("val", "annotations")
        except DataNotFoundError:
            return True
        return False

    def _read_predict(self) -> CocoIndex:
        given = self.hparams.predict
        if given is None:
            raise DataNotFoundError(
                "nothing to predict on: set data.predict to an image, a folder or a COCO JSON"
            )
        given = [given] if isinstance(given, str) else list(given)
        if len(given) == 1 and given[0].lower().endswith(".json"):
            source = Path(given[0]).expanduser()
            return read_coco(source, self._predict_folder(source), boxes=False)
        return index_of_files(list_images(given))

    def _predict_folder(self, source: Path) -> Path:
        """Find the image folder of a JSON file by where its first image is."""
        if self.hparams.predict_images is not None:
            return Path(self.hparams.predict_images).expanduser()
        near = source.parent, source.parent.parent
        bases = near if self.hparams.root is None else (*near, Path(self.hparams.root).expanduser())
        split = source.stem.removeprefix("instances_").removesuffix("2017")
        folders = [base / place.format(split=split) for base in bases for place in (*IMAGE_PLACES, ".")]
        first = read_coco(source, "", boxes=False).file_name(0)
        for folder in folders:
            if (folder / first).exists():
                return folder
        looked = "\n".join(f"  {folder}" for folder in dict.fromkeys(folders))
        raise DataNotFoundError(
            f"{source}: no image folder found, looked for {first} in\n{looked}\ngive data.predict_images"
        )

    def _require_same_categories(self, split: str, index: CocoIndex) -> None:
        if self.categories and index.categories != self.categories:
            only = sorted(set(index.categories) ^ set(self.categories))
            names = ", ".join(f"{category.name} (id {category.id})" for category in only[:20])
            raise AnnotationError(
                f"the categories of the {split} annotations differ from the other files' in {names}; "
                "use the same list in all"
            )
        self.categories = index.categories

    def _categories_for_prediction(self, index: CocoIndex) -> tuple[LabelClass, ...]:
        """Take the classes of the predict JSON, else of the data under root, if there is any."""
        if index.categories or self.categories:
            return index.categories or self.categories
        for split in ("val", "train"):  # the smaller file first
            try:
                source = self._find(split, "annotations")
            except DataNotFoundError:
                continue
            return read_categories(load_instances(source, annotations=False)["categories"], source)
        return ()
