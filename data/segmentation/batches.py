"""Images with masks: samples, and how they become a batch.

Letters in shapes: B images, H W the padded canvas; h w height and width of one image, h0 w0 on disk.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...constants import IGNORE_INDEX
from ..shared.batches import Batch, images_of, padded
from ..shared.canvas import PADDING_MULTIPLE
from ..shared.on_device import RawImage


@dataclass
class SegmentationSample:
    """One image with its mask, as the dataset yields it.

    Attributes:
        image: ``[3, h, w]`` uint8 RGB, not padded; or only decoded, for the device to resize.
        mask: ``[h, w]`` uint8 labels 0..K-1, 255 for pixels to ignore.
        image_id: position in the index of the data module.
        original_size: height and width of the image on disk (after EXIF orientation), in pixels.
        truth: ``[h0, w0]`` uint8, the mask at the original size, in evaluation; else None.
    """

    image: Tensor | RawImage
    mask: Tensor
    image_id: int
    original_size: tuple[int, int]
    truth: Tensor | None = None


@dataclass(kw_only=True)
class SegmentationBatch(Batch):
    """A padded batch of images with masks.

    Attributes:
        image: ``[B, 3, H, W]`` uint8 RGB, zero outside ``image_sizes``.
        image_sizes: ``[B, 2]`` int64, height and width of each image inside the canvas.
        image_ids: ``[B]`` int64, positions in the index of the data module.
        mask: ``[B, H, W]`` uint8 labels 0..K-1; 255 for pixels to ignore, and outside ``image_sizes``.
        original_sizes: ``[B, 2]`` int64, height and width of each image on disk.
        truth: a ``[h0, w0]`` uint8 mask at the original size per image, in evaluation; else empty.
    """

    host_fields: ClassVar[tuple[str, ...]] = ("image_sizes", "image_ids", "original_sizes")

    mask: Tensor
    original_sizes: Tensor
    truth: tuple[Tensor, ...] = ()

    def objects(self, known: Collection[str] = ()) -> dict[str, Tensor]:
        return {} if "labelled pixel" in known else {"labelled pixel": (self.mask != IGNORE_INDEX).any()}


def collate_segmentation(
    samples: list[SegmentationSample], multiple: int = PADDING_MULTIPLE
) -> SegmentationBatch:
    """Pad images and masks to the size of the largest of them, rounded up.

    Args:
        samples: at least one.
        multiple: pixels; sides are rounded up to multiples of it. The cells of a map that is resized to a
            image of another size would stand for fewer pixels than their stride, and so for the wrong ones.
    """
    sizes = torch.tensor([sample.image.shape[-2:] for sample in samples], dtype=torch.int64)  # [B, 2]
    canvas = [-(-side // multiple) * multiple for side in sizes.amax(dim=0).tolist()]
    return SegmentationBatch(
        **images_of([sample.image for sample in samples], canvas),
        image_sizes=sizes,
        mask=padded([sample.mask for sample in samples], canvas, IGNORE_INDEX),
        image_ids=torch.tensor([sample.image_id for sample in samples], dtype=torch.int64),
        original_sizes=torch.tensor([sample.original_size for sample in samples], dtype=torch.int64),
        truth=tuple(sample.truth for sample in samples if sample.truth is not None),
    )
