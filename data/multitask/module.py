"""Boxes and masks of the same images: COCO-format data with objects and a class per pixel.

Letters in shapes: I images of a split, K classes of the masks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..detection.dataset import CocoDetectionDataset
from ..detection.index import CocoIndex
from ..detection.module import CocoDetection
from ..segmentation.coco_masks import Overlaps
from ..segmentation.index import (
    SegmentationIndex,
    check_classes,
    check_indices,
    count_pixels,
    renumbered_counts,
)
from ..segmentation.layouts import Choices, SegmentationSources, SplitPaths
from ..segmentation.masks import MaskSource
from ..shared.augment.transforms import Augmentation
from ..shared.common import listing
from ..shared.fingerprint import digest, fingerprint_of
from ..shared.labels.classes import LabelClass
from ..shared.labels.table import Background, MaskError
from ..shared.locate import IMAGE_PLACES, Missing, find
from ..shared.summary import SplitSummary
from .batches import collate_multi
from .dataset import AlignedMasks, DetectionAndMaskDataset, positions_of

logger = logging.getLogger("trunkline")

MASK_PLACES = (
    "annotations/panoptic_{split}.json",
    "annotations/panoptic_{split}2017.json",
    "masks/{split}",
    "masks",
    "semantic/{split}",
    "semantic",
)


class CocoDetectionAndMasks(CocoDetection):
    """COCO-format boxes, and a class for every pixel of the same images, for ``MultiTask``.

    Boxes, images, canvases and the rest are those of ``CocoDetection``. Masks are read as in
    ``ImageSegmentation``: a panoptic JSON with its PNGs next to it, an instances JSON (the objects drawn as
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
        missing: what to do with images without a mask: error, or skip, which ignores all of their pixels, so
            that they train only the boxes. No mask at all is an error either way.
        check_masks: before starting, decode all masks once and count what they hold.
        **detection: what ``CocoDetection`` takes.
    """

    label_kinds = ("detection", "segmentation")

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
        missing: Missing = "error",
        check_masks: bool = True,
        **detection: Any,
    ) -> None:
        super().__init__(**detection)
        self._sources: SegmentationSources | None = None
        self._masks: dict[str, SegmentationIndex] = {}
        self._counts: Tensor | None = None

    def prepare_data(self) -> None:
        """Check images, boxes and masks for the coming command, on one process of the machine.

        Raises:
            ImageError: listing missing, unreadable or differently sized images.
            MaskError: listing masks that do not fit their images or hold something that is no class.
        """
        super().prepare_data()
        splits = [split for split in self.indices(self.stage) if split != "predict"]
        indices = {split: self._read_masks(split) for split in splits}
        counts = check_indices(indices, "off", self.hparams.check_masks, self.to_skip())
        for split, index in indices.items():
            if self.hparams.check_masks:
                check_classes(split, index, counts.get(split))
        self._counts = counts.get("train", self._counts)

    def setup(self, stage: str | None = None) -> None:
        """Read what a stage needs; errors as in ``CocoDetection``, and those of the masks."""
        super().setup(stage)
        for split in self.indices(stage):
            if split != "predict":
                self._read_masks(split)

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells images, boxes and masks from others, by split."""
        masks = {f"{split} masks": fingerprint_of(index) for split, index in self._masks.items()}
        pixels = {} if self._counts is None else {"train pixels": {"of the classes": digest(self._counts)}}
        return {**super().fingerprint(), **masks, **pixels}

    def summaries(self) -> Mapping[str, SplitSummary]:
        """Return the numbers of images, boxes and masks by split; either is something to learn from."""
        boxes = super().summaries()
        masks = {split: len(self._masks.get(self.source_of(split) or split, ())) for split in boxes}
        pixels = None if self._counts is None else int(self._counts[:, :-1].sum())
        return {
            split: SplitSummary(
                {**summary.counts, "images without mask": summary.counts["images"] - masks[split]},
                summary.learnable + (masks[split] if pixels is None or split != "train" else pixels),
                summary.remedy,
            )
            for split, summary in boxes.items()
        }

    def label_classes(self, kind: str, head: str = "") -> Sequence[LabelClass]:
        """Return the categories, or the classes of the masks; empty before ``setup``, or if unknown."""
        if kind != "segmentation":
            return super().label_classes(kind, head)
        return next((masks.classes for masks in self._masks.values()), ())

    def take_classes(self, kind: str, classes: Sequence[LabelClass], head: str = "") -> bool:
        """Give labels of boxes, or of masks, the numbers of these classes, if they have the same names."""
        if kind != "segmentation":
            return super().take_classes(kind, classes, head)
        new = {split: index.renumbered(classes) for split, index in self._masks.items()}
        known = {split: index for split, index in new.items() if index is not None}
        if len(known) < len(self._masks) or self._sources is None:
            return False
        if self._counts is not None:
            self._counts = renumbered_counts(self._counts, self.label_classes(kind), classes)
        self._masks = known
        self._sources.number_like("the checkpoint", classes)
        logger.warning("the masks number the classes of the checkpoint otherwise; they are matched by name")
        return True

    def label_counts(self, kind: str, head: str = "") -> Sequence[int]:
        """Return the training pixels of each class of the masks.

        Raises:
            RuntimeError: before ``setup("fit")``.
        """
        if kind != "segmentation":
            return super().label_counts(kind, head)
        self.index_of("train")
        if self._counts is None:
            self._counts = count_pixels(self._read_masks("train"))
        return self._counts[:, :-1].sum(dim=0).tolist()  # [I, K + 1] -> K numbers

    def make_dataset(
        self, split: str, index: CocoIndex, augmentation: Augmentation | None
    ) -> CocoDetectionDataset:
        """Return the samples of a split; those to predict on have no masks."""
        if split == "predict":
            return super().make_dataset(split, index, augmentation)
        masks = self._read_masks(split)
        aligned = AlignedMasks(cast(MaskSource, masks.masks), positions_of(index, masks))
        return DetectionAndMaskDataset(index, aligned, augmentation, *self.reading())

    collate = staticmethod(collate_multi)

    def _read_masks(self, split: str) -> SegmentationIndex:
        """Read the masks of a split once, only those of its images."""
        split = self.source_of(split) or split
        if split not in self._masks:
            place = self._place(split)
            if self._sources is None:
                self._sources = self._new_sources()
            index, masks = self.index_of(split), self._sources.index(place)
            positions = positions_of(index, masks)
            self._report_missing(index, positions, place)
            self._masks[split] = masks.subset(positions[positions >= 0].tolist())
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
        if none or self.hparams.missing == "error":
            names = [f"image id {int(index.image_ids[i])}: {index.file_name(i)}" for i in without]
            hint = "add them, or train only on the boxes of such images with data.missing skip"
            if none:
                hint = "masks are found by the names of the images in the annotations; make them agree"
            raise MaskError(f"{text}:\n{listing(names)}\n{hint}")
        logger.warning("%s; all of their pixels are ignored", text)
