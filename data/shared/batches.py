"""Typed batches and how single samples become one.

Letters in shapes: B images, M box rows of the image with most boxes, H W the padded canvas; C channels, K
classes, S the one or more spatial sizes of an image to classify; h w height and width of one image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from ...constants import IGNORE_INDEX
from .canvas import PADDING_MULTIPLE


@dataclass
class DetectionSample:
    """One image with its boxes, as the data set yields it.

    Attributes:
        image: ``[3, h, w]`` uint8 RGB, already resized, not padded.
        boxes: ``[m, 4]`` float32, x1 y1 x2 y2 in pixels of ``image``.
        labels: ``[m]`` int64 in 0..K-1.
        crowd: ``[m]`` bool.
        image_id: the id in the annotation file.
        original_size: height and width of the image on disk (after EXIF orientation), in pixels.
        canvas: height and width to pad to, in pixels.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    image_id: int
    original_size: tuple[int, int]
    canvas: tuple[int, int]


@dataclass
class DetectionBatch:
    """A padded batch of images with boxes. Lightning moves its tensors to the device by itself.

    Attributes:
        image: ``[B, 3, H, W]`` uint8 RGB, zero outside ``image_sizes``.
        image_sizes: ``[B, 2]`` int64, height and width of each resized image inside the canvas.
        boxes: ``[B, M, 4]`` float32, x1 y1 x2 y2 in canvas pixels, zero in padding rows.
        labels: ``[B, M]`` int64 in 0..K-1; -1 marks a padding row.
        crowd: ``[B, M]`` bool, false in padding rows.
        image_ids: ``[B]`` int64, the ids in the annotation file.
        original_sizes: ``[B, 2]`` int64, height and width of each image on disk.
    """

    image: Tensor
    image_sizes: Tensor
    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    image_ids: Tensor
    original_sizes: Tensor

    def __len__(self) -> int:
        return self.image.shape[0]

    def pin_memory(self) -> DetectionBatch:
        """Copy every tensor to page-locked memory; the DataLoader calls this."""
        return DetectionBatch(**{name: value.pin_memory() for name, value in vars(self).items()})


def padded(images: Sequence[Tensor], canvas: Sequence[int], value: int = 0) -> Tensor:
    """Put images into the upper left corners of a new batch.

    A loader process makes the batch in shared memory at once, which torch would copy it to.

    Args:
        images: ``[..., h, w]`` uint8, equal in the axes before the last two.
        canvas: height and width of the batch, no less than any image's.
        value: of the pixels beside an image.

    Returns:
        ``[B, ..., H, W]`` uint8.
    """
    shape = (len(images), *images[0].shape[:-2], *canvas)
    batch = torch.empty(shape, dtype=torch.uint8) if get_worker_info() is None else _shared(shape)
    for place, image in zip(batch, images, strict=True):
        height, width = image.shape[-2:]
        place[..., :height, :width] = image
        place[..., :height, width:] = value
        place[..., height:, :] = value
    return batch


def _shared(shape: tuple[int, ...]) -> Tensor:
    """Return an uninitialised uint8 tensor in shared memory, as torch's ``default_collate`` makes it."""
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def collate_detection(samples: list[DetectionSample], rows_multiple: int = 16) -> DetectionBatch:
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
        image=padded([sample.image for sample in samples], canvas),
        image_sizes=torch.tensor([sample.image.shape[-2:] for sample in samples], dtype=torch.int64),
        boxes=torch.zeros(count, rows, 4),
        labels=torch.full((count, rows), -1, dtype=torch.int64),
        crowd=torch.zeros(count, rows, dtype=torch.bool),
        image_ids=torch.tensor([sample.image_id for sample in samples], dtype=torch.int64),
        original_sizes=torch.tensor([sample.original_size for sample in samples], dtype=torch.int64),
    )
    for index, sample in enumerate(samples):
        number = len(sample.labels)
        batch.boxes[index, :number] = sample.boxes
        batch.labels[index, :number] = sample.labels
        batch.crowd[index, :number] = sample.crowd
    return batch


@dataclass
class ClassificationSample:
    """One picture or scan with its class or classes.

    Attributes:
        image: ``[3, h, w]`` uint8 RGB, or ``[C, D, H, W]`` float32 standardised.
        label: ``[]`` int64 in 0..K-1, or ``[K]`` float32 of zeros and ones where an image may show several
            classes; -1 (everywhere) if unknown.
        image_id: position in the index of the data module.
    """

    image: Tensor
    label: Tensor
    image_id: int


@dataclass
class ClassificationBatch:
    """A batch of images of one size. Lightning moves its tensors to the device by itself.

    Attributes:
        image: ``[B, C, *S]``, uint8 RGB pictures or float32 scans, as in ``ClassificationSample``.
        label: ``[B]`` int64 in 0..K-1, or ``[B, K]`` float32 zeros and ones; -1 where unknown.
        ids: ``[B]`` int64, positions in the index of the data module.
        image_sizes: ``[B, 2]`` or ``[B, 3]`` int64, the sizes S of each image; nothing is padded.
    """

    image: Tensor
    label: Tensor
    ids: Tensor
    image_sizes: Tensor

    def __len__(self) -> int:
        return self.image.shape[0]

    def pin_memory(self) -> ClassificationBatch:
        """Copy every tensor to page-locked memory; the DataLoader calls this."""
        return ClassificationBatch(**{name: value.pin_memory() for name, value in vars(self).items()})


def collate_classification(samples: list[ClassificationSample]) -> ClassificationBatch:
    """Put samples of equal shape into one batch.

    Raises:
        ValueError: if an image differs from the first in shape (scans with other numbers of channels do).
    """
    first = samples[0]
    for sample in samples:
        if sample.image.shape != first.image.shape:
            raise ValueError(
                f"image id {sample.image_id} has shape {list(sample.image.shape)}, image id {first.image_id} "
                f"of its batch {list(first.image.shape)}; all need the same number of channels and size"
            )
    image = torch.stack([sample.image for sample in samples])
    sizes = torch.tensor(image.shape[2:], dtype=torch.int64)
    return ClassificationBatch(
        image=image,
        label=torch.stack([sample.label for sample in samples]),
        ids=torch.tensor([sample.image_id for sample in samples], dtype=torch.int64),
        image_sizes=sizes.repeat(len(samples), 1),
    )


@dataclass
class SegmentationSample:
    """One picture with its mask, as the data set yields it.

    Attributes:
        image: ``[3, h, w]`` uint8 RGB, not padded.
        mask: ``[h, w]`` uint8 labels 0..K-1, 255 for pixels to ignore.
        image_id: position in the index of the data module.
        original_size: height and width of the picture on disk (after EXIF orientation), in pixels.
        truth: ``[h0, w0]`` uint8, the mask at the original size, in evaluation; else None.
    """

    image: Tensor
    mask: Tensor
    image_id: int
    original_size: tuple[int, int]
    truth: Tensor | None = None


@dataclass
class SegmentationBatch:
    """A padded batch of pictures with masks. Lightning moves its tensors to the device by itself.

    Attributes:
        image: ``[B, 3, H, W]`` uint8 RGB, zero outside ``image_sizes``.
        image_sizes: ``[B, 2]`` int64, height and width of each picture inside the canvas.
        mask: ``[B, H, W]`` uint8 labels 0..K-1; 255 for pixels to ignore, and outside ``image_sizes``.
        ids: ``[B]`` int64, positions in the index of the data module.
        original_sizes: ``[B, 2]`` int64, height and width of each picture on disk.
        truth: a ``[h0, w0]`` uint8 mask at the original size per picture, in evaluation; else empty.
    """

    image: Tensor
    image_sizes: Tensor
    mask: Tensor
    ids: Tensor
    original_sizes: Tensor
    truth: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return self.image.shape[0]

    def pin_memory(self) -> SegmentationBatch:
        """Copy every tensor to page-locked memory; the DataLoader calls this."""
        pinned = {name: value.pin_memory() for name, value in vars(self).items() if name != "truth"}
        return SegmentationBatch(**pinned, truth=tuple(mask.pin_memory() for mask in self.truth))


def collate_segmentation(
    samples: list[SegmentationSample], multiple: int = PADDING_MULTIPLE
) -> SegmentationBatch:
    """Pad pictures and masks to the size of the largest of them, rounded up.

    Args:
        samples: at least one.
        multiple: pixels; sides are rounded up to multiples of it. The cells of a map that is resized to a
            picture of another size would stand for fewer pixels than their stride, and so for the wrong ones.
    """
    sizes = torch.tensor([sample.image.shape[-2:] for sample in samples], dtype=torch.int64)  # [B, 2]
    canvas = [-(-side // multiple) * multiple for side in sizes.amax(dim=0).tolist()]
    return SegmentationBatch(
        image=padded([sample.image for sample in samples], canvas),
        image_sizes=sizes,
        mask=padded([sample.mask for sample in samples], canvas, IGNORE_INDEX),
        ids=torch.tensor([sample.image_id for sample in samples], dtype=torch.int64),
        original_sizes=torch.tensor([sample.original_size for sample in samples], dtype=torch.int64),
        truth=tuple(sample.truth for sample in samples if sample.truth is not None),
    )
