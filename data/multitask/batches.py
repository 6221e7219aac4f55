"""Images with boxes and a class per pixel: samples, and how they become a batch.

Letters in shapes: B images, H W the padded canvas, h w a resized image, h0 w0 the image on disk.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...constants import IGNORE_INDEX
from ..detection.batches import DetectionBatch, DetectionSample, collate_detection
from ..shared.batches import padded


@dataclass(kw_only=True)
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

    def objects(self, known: Collection[str] = ()) -> dict[str, Tensor]:
        seen = super().objects(known)
        return (
            seen
            if "labelled pixel" in known
            else seen | {"labelled pixel": (self.mask != IGNORE_INDEX).any()}
        )


def collate_multi(samples: Sequence[DetectionSample], rows_multiple: int = 16) -> DetectionBatch:
    """Pad samples to their common canvas, see :func:`..detection.batches.collate_detection`.

    Samples to predict on have no masks, and neither has their batch.
    """
    boxes = collate_detection(samples, rows_multiple)
    masked = [sample for sample in samples if isinstance(sample, MultiTaskSample)]
    if not masked:
        return boxes
    mask = padded([sample.mask for sample in masked], masked[0].canvas, IGNORE_INDEX)
    truth = tuple(sample.truth for sample in masked if sample.truth is not None)
    return MultiTaskBatch(**vars(boxes), mask=mask, truth=truth)
