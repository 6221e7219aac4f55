"""Boxes and masks of the same images: COCO-format data with a class per pixel beside the objects.

Letters in shapes: B images, I images of a split, H W the padded canvas, h w a resized image, h0 w0 the image
on disk.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...constants import IGNORE_INDEX
from ..detection.batches import DetectionBatch, DetectionSample, collate_detection
from ..detection.dataset import CocoDetectionDataset
from ..detection.index import CocoIndex
from ..detection.module import CocoDetection
from ..segmentation.coco_masks import Overlaps
from ..segmentation.index import SegmentationIndex, check_classes, check_indices, count_pixels
from ..segmentation.layouts import Choices, SegmentationSources, SplitPaths
from ..segmentation.masks import MaskSource
from ..shared.augment import Augmentation, AugmentationError
from ..shared.batches import padded
from ..shared.canvas import Request
from ..shared.class_table import Background, MaskError
from ..shared.common import listing
from ..shared.io import resize_mask
from ..shared.labels import LabelClass
from ..shared.locate import IMAGE_PLACES, find

logger = logging.getLogger("trunkline")

MASK_PLACES = (
    "annotations/panoptic_{split}.json",
    "annotations/panoptic_{split}2017.json",
    "masks/{split}",
    "masks",
    "semantic/{split}",
    "semantic",
)


@dataclass
class MultiTaskSample(DetectionSample):
    """One image with boxes and a mask.

    Attributes:
        mask: ``[h, w]`` uint8 labels 0..K-1, 255 for pixels to ignore; of the resized image.
        truth: ``[h0, w0]`` uint8, the mask at the size on disk, in evaluation; else None.
    """

    mask: Tensor
    truth: Tensor | None = None


@dataclass(kw_only=True)
class MultiTaskBatch(DetectionBatch):
    """A padded batch of images with boxes and masks.

    Attributes:
        mask: ``[B, H, W]`` uint8 labels 0..K-1; 255 for pixels to ignore, and outside ``image_sizes``.
        truth: a ``[h0, w0]`` uint8 mask at the size on disk per image, in evaluation; else empty.
    """

    mask: Tensor
    truth: tuple[Tensor, ...] = ()


def collate_multi(samples: list[MultiTaskSample]) -> MultiTaskBatch:
    """Pad samples to their common canvas, see :func:`.batches.collate_detection`."""
    boxes = collate_detection(samples)
    mask = padded([sample.mask for sample in samples], boxes.image.shape[2:], IGNORE_INDEX)
    truth = tuple(sample.truth for sample in samples if sample.truth is not None)
    return MultiTaskBatch(**vars(boxes), mask=mask, truth=truth)


@dataclass(frozen=True)
class AlignedMasks:
    """The masks of the images of an index of boxes.

    Attributes:
        source: of the masks.
        positions: ``[I]`` int64, where the mask of each image is in ``source``; -1 where there is none.
    """

    source: MaskSource
    positions: Tensor

    def mask(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """Return ``[h0, w0]`` uint8 labels; 255 everywhere for an image without a mask.

        Raises:
            ImageError: if the mask cannot be decoded.
            MaskError: if it has another size, or holds an unknown value.
        """
        position = int(self.positions[index])
        if position < 0:
            return np.full(size, IGNORE_INDEX, dtype=np.uint8)
        mask = self.source.mask(position)
        if mask.shape != tuple(size):
            raise MaskError(
                f"{self.source.name(position)} has {mask.shape[1]}x{mask.shape[0]} pixels (width x height), "
                f"its image {size[1]}x{size[0]}"
            )
        return mask


class DetectionAndMaskDataset(CocoDetectionDataset):
    """Images with boxes and masks, augmented together, then resized as the request says.

    Args:
        index: images and boxes.
        masks: of the same images.
        augmentation: applied before resizing; None in evaluation, which keeps the masks on disk too.
        long_side: limit of the longer side after resizing, in pixels.
        reduced: as in ``CocoDetectionDataset``; masks are always read as they are.
    """

    def __init__(
        self,
        index: CocoIndex,
        masks: AlignedMasks,
        augmentation: Augmentation | None,
        long_side: int,
        reduced: bool = False,
    ) -> None:
        super().__init__(index, augmentation, long_side, reduced)
        self.masks = masks

    def __getitem__(self, request: Request) -> MultiTaskSample:
        """Load one image; errors as in ``CocoDetectionDataset``, and those of its mask."""
        image, boxes, labels, crowd = self.read(request)
        path = self.index.path(request.index)
        native = mask = self.masks.mask(request.index, tuple(self.index.sizes[request.index].tolist()))
        if self.augmentation is not None:
            try:
                image, boxes, labels, crowd, mask = self.augmentation(
                    image, boxes, labels, crowd, request.seed, mask, self.size_of_boxes(request)
                )
            except AugmentationError as error:
                raise AugmentationError(f"{path}: {error}") from error
        sample = self.sample(request, image, boxes, labels, crowd)
        resized = resize_mask(np.ascontiguousarray(mask), tuple(sample.image.shape[1:]))
        return MultiTaskSample(
            **{field.name: getattr(sample, field.name) for field in fields(sample)},
            mask=torch.from_numpy(resized),
            truth=torch.from_numpy(native) if self.augmentation is None else None,
        )


class CocoDetectionAndMasks(CocoDetection):
    """COCO-format boxes, and a class for every pixel of the same images, for ``MultiTask``.

    Boxes, images, canvases and the rest are those of ``CocoDetection``. Masks are read as in
    ``ImageSegmentation``: a panoptic JSON with its PNGs beside it, an instances JSON (the objects drawn as
    their classes), or a folder of masks with the images' names. Where not given they are looked for at
    ``annotations/panoptic_{split}.json`` (or ``_{split}2017.json``), ``masks/{split}``, ``masks``,
    ``semantic/{split}`` and ``semantic`` under ``root``.

    Args:
        train_masks: masks of the training images; relative to root.
        val_masks: masks of the validation images.
        test_masks: masks of the test images.
        mask_classes: names of the classes in folders of masks, or a file that lists them; see ``classes`` of
            ``ImageSegmentation``.
        mask_values: the value in the masks of each of the names in ``mask_classes``.
        ignore: classes of masks, by name or value, that become 255: not learned and not evaluated.
        mask_categories: classes of masks to learn, by name or value, in this order.
        background: whether what no category covers is a class or ignored.
        overlaps: of instances drawn as masks: the smaller object wins, or the pixel is ignored.
        missing_masks: images without a mask are an error, or all of their pixels are ignored: they train the
            boxes alone. No mask at all is an error either way.
        check_masks: before starting, decode all masks once and count what they hold.
        **detection: what ``CocoDetection`` takes.
    """

    def __init__(
        self,
        train_masks: str | None = None,
        val_masks: str | None = None,
        test_masks: str | None = None,
        mask_classes: str | list[str] | None = None,
        mask_values: list[int] | None = None,
        ignore: list[str | int] = [],  # noqa: B006, never changed
        mask_categories: list[str | int] | None = None,
        background: Background = "class",
        overlaps: Overlaps = "smaller",
        missing_masks: Literal["error", "ignore"] = "error",
        check_masks: bool = True,
        **detection: Any,
    ) -> None:
        super().__init__(**detection)
        self.classes: tuple[LabelClass, ...] = ()
        self._sources: SegmentationSources | None = None
        self._masks: dict[str, SegmentationIndex] = {}
        self._counts: Tensor | None = None

    def prepare_data(self) -> None:
        """Check images, boxes and masks of the coming stage, on one process of the machine.

        Raises:
            ImageError: listing missing, unreadable or differently sized images.
            MaskError: listing masks that do not fit their images or hold something that is no class.
        """
        super().prepare_data()
        stage = None if self.trainer is None else self.trainer.state.fn
        indices = {s: self._read_masks(s, i) for s, i in self._indices(stage).items() if s != "predict"}
        counts = check_indices(indices, "off", self.hparams.check_masks)
        for split, index in indices.items():
            if self.hparams.check_masks:
                check_classes(split, index, counts.get(split))
        self._counts = counts.get("train", self._counts)

    def setup(self, stage: str | None = None) -> None:
        """Read what a stage needs; errors as in ``CocoDetection``, and those of the masks."""
        super().setup(stage)
        for split, index in self._indices(stage).items():
            if split != "predict":
                self.classes = self._read_masks(split, index).classes

    def pixel_counts(self) -> Tensor:
        """Return ``[K]`` int64, the training pixels of each class; for class weights.

        Raises:
            RuntimeError: before ``setup("fit")``.
        """
        if "train" not in self._masks:
            raise RuntimeError("the training data have not been read: call setup('fit') first")
        if self._counts is None:
            self._counts = count_pixels(self._masks["train"])
        return self._counts[:, :-1].sum(dim=0)

    def _dataset(self, index: CocoIndex, augmentation: Augmentation | None) -> CocoDetectionDataset:
        if index is self.predict_index:
            return super()._dataset(index, augmentation)
        split = next(s for s in ("train", "val", "test") if getattr(self, f"{s}_index") is index)
        masks = self._read_masks(split, index)
        aligned = AlignedMasks(masks.masks, _positions(index, masks))
        return DetectionAndMaskDataset(
            index, aligned, augmentation, self.hparams.long_side, self.hparams.reduced_decoding
        )

    @staticmethod
    def _collate(samples: list[DetectionSample]) -> DetectionBatch:
        return (collate_multi if isinstance(samples[0], MultiTaskSample) else collate_detection)(samples)

    def _read_masks(self, split: str, index: CocoIndex) -> SegmentationIndex:
        """Read the masks of a split once, those of its images alone."""
        if split not in self._masks:
            place = self._place("val" if split == "test" and not self._given("test") else split)
            if self._sources is None:
                self._sources = self._new_sources()
            found = self._sources.index(place)
            positions = _positions(index, found)
            self._report_missing(index, positions, place)
            self._masks[split] = found.subset(positions[positions >= 0].tolist())
        return self._masks[split]

    def _given(self, split: str) -> bool:
        return super()._given(split) or self.hparams[f"{split}_masks"] is not None

    def _place(self, split: str) -> SplitPaths:
        given, root = self.hparams, self.hparams.root
        return SplitPaths(
            find(root, given[f"{split}_images"], IMAGE_PLACES, split, "images").absolute(),
            find(root, given[f"{split}_masks"], MASK_PLACES, split, "masks").absolute(),
        )

    def _new_sources(self) -> SegmentationSources:
        given = self.hparams
        paths: dict[str, str | None] = {}
        for split in ("train", "val", "test"):
            try:
                place = self._place(split)
            except FileNotFoundError:
                place = None
            paths[f"{split}_images"] = None if place is None else str(place.images)
            paths[f"{split}_masks"] = None if place is None else str(place.masks)
        choices = Choices(
            given.mask_classes,
            given.mask_values,
            given.ignore,
            given.mask_categories,
            given.background,
            given.overlaps,
            "silent",  # which images are wanted is up to the boxes, see _report_missing
        )
        return SegmentationSources(given.root, paths, choices)

    def _report_missing(self, index: CocoIndex, positions: Tensor, place: SplitPaths) -> None:
        without = torch.nonzero(positions < 0).flatten().tolist()
        if not without:
            return
        text = f"{len(without)} of {len(index)} images have no mask in {place.masks}"
        none = len(without) == len(index)
        if none or self.hparams.missing_masks == "error":
            names = [f"image id {int(index.image_ids[i])}: {index.file_name(i)}" for i in without]
            hint = "add them, or train on the boxes alone of such images with data.missing_masks ignore"
            if none:
                hint = "masks are found by the names of the images in the annotations; make them agree"
            raise MaskError(f"{text}:\n{listing(names)}\n{hint}")
        logger.warning("%s; all of their pixels are ignored", text)


def _positions(index: CocoIndex, masks: SegmentationIndex) -> Tensor:
    """Find the mask of each image by its name: ``[I]`` int64, -1 where there is none."""
    places = {os.path.normpath(name): position for position, name in enumerate(masks.names)}
    names = (os.path.normpath(index.file_name(i)) for i in range(len(index)))
    return torch.tensor([places.get(name, -1) for name in names], dtype=torch.int64)
