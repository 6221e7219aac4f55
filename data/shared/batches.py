"""What the batches of all kinds of labels share.

Letters in shapes: B images, C channels, S spatial sizes of the padded canvas, H W two of them, h w height and
width of one image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from .failed import FailedImage


@dataclass(kw_only=True)
class Batch:
    """Images of one canvas, with their labels in the fields of a subclass.

    Lightning moves its tensors to the device by itself. A head reads its targets from the fields, only by
    their names.

    Attributes:
        image: ``[B, C, *S]``, uint8 (normalised by the task), or float32 that is normalised already.
        image_sizes: ``[B, n]`` int64, the size of each image inside the canvas, n of them.
        image_ids: ``[B]`` int64: the ids in the annotation file, or positions in the index of the data.
        failed: images to predict on that could not be read, and are not in the batch.
    """

    image: Tensor
    image_sizes: Tensor
    image_ids: Tensor
    failed: tuple[FailedImage, ...] = ()

    def __len__(self) -> int:
        return len(self.image)

    def labelled(self) -> int | Tensor:
        """Return how many of the images have a label, by which the losses of an evaluation are weighed."""
        return len(self)

    def for_head(self, name: str) -> Batch:
        """Return the batch with the labels of one head; the same for all heads unless a subclass says more.

        Args:
            name: of the head in a ``MultiTask``; empty for the only head of a task.
        """
        return self

    def pin_memory(self) -> Self:
        """Copy every tensor to page-locked memory; the DataLoader calls this."""
        return type(self)(**{name: _pinned(value) for name, value in vars(self).items()})


def _pinned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.pin_memory()
    return tuple(_pinned(item) for item in value) if isinstance(value, tuple) else value


def padded(images: Sequence[Tensor], canvas: Sequence[int], value: int = 0) -> Tensor:
    """Put images into the upper left corners of a new batch.

    A loader process makes the batch in shared memory at once, which torch would copy it to.

    Args:
        images: ``[..., h, w]`` uint8, equal in the axes before the last two.
        canvas: height and width of the batch, no less than any image's.
        value: of the pixels of the canvas outside an image.

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
