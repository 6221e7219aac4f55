"""Images with classes: samples, and how they become a batch.

Letters in shapes: B images, C channels, K classes, S the spatial sizes of an image, h w two of them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..shared.batches import Batch, images_of
from ..shared.on_device import RawImage


@dataclass
class ClassificationSample:
    """One 2D image or scan with its class or classes.

    Attributes:
        image: ``[3, h, w]`` uint8 RGB, or only decoded, for the device to resize; ``[C, D, H, W]`` float32
            standardised.
        label: ``[]`` int64 in 0..K-1, or ``[K]`` float32 of zeros and ones where an image may show several
            classes; -1 (everywhere) if unknown.
        image_id: position in the index of the data module.
    """

    image: Tensor | RawImage
    label: Tensor
    image_id: int


@dataclass(kw_only=True)
class ClassificationBatch(Batch):
    """A batch of images of one size.

    Attributes:
        image: ``[B, C, *S]``, uint8 RGB images or float32 scans, as in ``ClassificationSample``.
        image_sizes: ``[B, 2]`` or ``[B, 3]`` int64, the sizes S of each image; nothing is padded.
        image_ids: ``[B]`` int64, positions in the index of the data module.
        label: ``[B]`` int64 in 0..K-1, or ``[B, K]`` float32 zeros and ones; -1 where unknown.
    """

    host_fields: ClassVar[tuple[str, ...]] = ("image_sizes", "image_ids", "label")

    label: Tensor

    def objects(self, known: Collection[str] = ()) -> dict[str, Tensor]:
        return {} if "class" in known or self.label.ndim == 1 else {"class": (self.label > 0).any()}

    def labelled(self) -> Tensor:
        """Return how many of the images have all of their labels."""
        return (self.label.view(len(self), -1) >= 0).all(1).sum()


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
    size = first.image.shape[1:]
    ready = [sample.image for sample in samples if isinstance(sample.image, Tensor)]
    images = {"image": torch.stack(ready)} if ready else images_of([s.image for s in samples], size)
    sizes = torch.tensor(size, dtype=torch.int64)
    return ClassificationBatch(
        **images,
        label=torch.stack([sample.label for sample in samples]),
        image_ids=torch.tensor([sample.image_id for sample in samples], dtype=torch.int64),
        image_sizes=sizes.repeat(len(samples), 1),
    )
