"""Images with boxes: samples, and how they become a batch.

Letters in shapes: B images, M box rows of the image with most boxes, P keypoints of a box, H W the padded
canvas; h w height and width of one image, m its boxes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shared.batches import Batch, images_of
from ..shared.on_device import RawImage
from .instance_masks import InstanceMasks, RunLengths

FIXED_ROWS = 128  # of boxes in compiled steps: more than nearly all images of COCO have


@dataclass(kw_only=True)
class DetectionSample:
    """One image with its boxes, as the dataset yields it.

    Attributes:
        image: ``[3, h, w]`` uint8 RGB, resized, not padded; or only decoded, for the device to resize.
        boxes: ``[m, 4]`` float32, x1 y1 x2 y2 in pixels of ``image``.
        labels: ``[m]`` int64 in 0..K-1.
        crowd: ``[m]`` bool.
        image_id: the id in the annotation file.
        original_size: height and width of the image on disk (after EXIF orientation), in pixels.
        canvas: height and width to pad to, in pixels.
        masks: the m masks in pixels of ``image``, as pycocotools' compressed run lengths; None unless they
            are read.
        keypoints: ``[m, P, 3]`` float32, x and y in pixels of ``image`` and visibility; 0, 0, 0 for those not
            labelled or outside. None unless they are read.
        boxes_lost: how many boxes of the image augmentation removed.
    """

    image: Tensor | RawImage
    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    image_id: int
    original_size: tuple[int, int]
    canvas: tuple[int, int]
    masks: tuple[RunLengths, ...] | None = None
    keypoints: Tensor | None = None
    boxes_lost: int = 0


@dataclass(kw_only=True)
class DetectionBatch(Batch):
    """A padded batch of images with boxes.

    Attributes:
        image: ``[B, 3, H, W]`` uint8 RGB, zero outside ``image_sizes``.
        image_sizes: ``[B, 2]`` int64, height and width of each resized image inside the canvas.
        image_ids: ``[B]`` int64, the ids in the annotation file.
        boxes: ``[B, M, 4]`` float32, x1 y1 x2 y2 in canvas pixels, zero in padding rows.
        labels: ``[B, M]`` int64 in 0..K-1; -1 marks a padding row.
        crowd: ``[B, M]`` bool, false in padding rows.
        original_sizes: ``[B, 2]`` int64, height and width of each image on disk.
        masks: of the objects, row by row as the boxes; None unless they are read.
        keypoints: ``[B, M, P, 3]`` float32, x and y in canvas pixels and visibility (0 not labelled, 1
            hidden, 2 visible); zero in padding rows. None unless they are read.
        boxes_given: how many boxes the images have on disk, crowd regions too.
        boxes_lost: how many of these augmentation removed.
    """

    host_fields: ClassVar[tuple[str, ...]] = ("image_sizes", "image_ids", "original_sizes")

    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    original_sizes: Tensor
    masks: InstanceMasks | None = None
    keypoints: Tensor | None = None
    boxes_given: int = 0
    boxes_lost: int = 0

    def objects(self, known: Collection[str] = ()) -> dict[str, Tensor]:
        return {} if "box" in known else {"box": ((self.labels >= 0) & ~self.crowd).any()}

    def with_few_shapes(self) -> Self:
        """Return the batch with ``FIXED_ROWS`` rows of boxes, or twice, four times ... as many."""
        rows = FIXED_ROWS
        while rows < self.labels.shape[1]:
            rows *= 2
        more = rows - self.labels.shape[1]
        return replace(
            self,
            boxes=F.pad(self.boxes, (0, 0, 0, more)),  # [B, M, 4], from the last axis on
            labels=F.pad(self.labels, (0, more), value=-1),
            crowd=F.pad(self.crowd, (0, more)),
            keypoints=None if self.keypoints is None else F.pad(self.keypoints, (0, 0, 0, 0, 0, more)),
        )


def collate_detection(samples: Sequence[DetectionSample], rows_multiple: int = 16) -> DetectionBatch:
    """Pad samples to their common canvas and their boxes to a common number of rows.

    Args:
        samples: at least one sample; all name the same ``canvas`` and fit into it.
        rows_multiple: M is rounded up to a multiple of this (at least one), so that few shapes occur.

    Raises:
        ValueError: if canvases differ, or an image is larger than its canvas.
    """
    canvas = samples[0].canvas
    for sample in samples:
        height, width = sample.image.shape[-2:]
        if sample.canvas != canvas:
            raise ValueError(
                f"image id {sample.image_id} asks for canvas {sample.canvas}, its batch for {canvas}"
            )
        if height > canvas[0] or width > canvas[1]:
            raise ValueError(
                f"image id {sample.image_id} is {height}x{width} (height x width) after resizing and does "
                f"not fit the canvas {canvas[0]}x{canvas[1]}"
            )
    most = max(1, max(len(sample.labels) for sample in samples))
    rows = -(-most // rows_multiple) * rows_multiple
    count = len(samples)
    batch = DetectionBatch(
        **images_of([sample.image for sample in samples], canvas),
        image_sizes=torch.tensor([sample.image.shape[-2:] for sample in samples], dtype=torch.int64),
        boxes=torch.zeros(count, rows, 4),
        labels=torch.full((count, rows), -1, dtype=torch.int64),
        crowd=torch.zeros(count, rows, dtype=torch.bool),
        image_ids=torch.tensor([sample.image_id for sample in samples], dtype=torch.int64),
        original_sizes=torch.tensor([sample.original_size for sample in samples], dtype=torch.int64),
        boxes_lost=sum(sample.boxes_lost for sample in samples),
    )
    batch.boxes_given = batch.boxes_lost + sum(len(sample.labels) for sample in samples)
    for index, sample in enumerate(samples):
        number = len(sample.labels)
        batch.boxes[index, :number] = sample.boxes
        batch.labels[index, :number] = sample.labels
        batch.crowd[index, :number] = sample.crowd
    if samples[0].masks is not None:
        batch.masks = InstanceMasks([sample.masks or () for sample in samples], canvas)
    if samples[0].keypoints is not None:
        batch.keypoints = torch.zeros(count, rows, *samples[0].keypoints.shape[1:])
        for place, sample in zip(batch.keypoints, samples, strict=True):
            if sample.keypoints is not None:
                place[: len(sample.keypoints)] = sample.keypoints
    return batch
