"""The dataset that the loaders use for images with boxes and a class per pixel.

Letters in shapes: I images of a split, h0 w0 an image on disk.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...constants import IGNORE_INDEX
from ..detection.dataset import CocoDetectionDataset
from ..detection.index import CocoIndex
from ..segmentation.index import SegmentationIndex
from ..segmentation.masks import MaskSource
from ..shared.augment.transforms import Augmentation
from ..shared.canvas import Request
from ..shared.io import resize_mask
from ..shared.labels.table import MaskError
from .batches import MultiTaskSample


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
        pixel_range: as in ``CocoDetectionDataset``.
        on_device: as in ``CocoDetectionDataset``; masks are always resized here.
    """

    def __init__(
        self,
        index: CocoIndex,
        masks: AlignedMasks,
        augmentation: Augmentation | None,
        long_side: int,
        reduced: bool = False,
        pixel_range: tuple[float, float] | None = None,
        on_device: bool = False,
    ) -> None:
        super().__init__(index, augmentation, long_side, reduced, pixel_range, on_device)
        self.masks = masks

    def __getitem__(self, request: Request) -> MultiTaskSample:
        """Load one image; errors as in ``CocoDetectionDataset``, and those of its mask."""
        size = tuple(self.index.sizes[request.index].tolist())
        native = self.masks.mask(request.index, size)
        given = self.read(request, native)
        sample = self.sample(request, given)
        height, width = sample.image.shape[1:]
        resized = resize_mask(np.ascontiguousarray(given.mask), (height, width))
        return MultiTaskSample(
            **vars(sample),
            mask=torch.from_numpy(resized),
            truth=torch.from_numpy(native) if self.augmentation is None else None,
        )


def positions_of(index: CocoIndex, masks: SegmentationIndex) -> Tensor:
    """Find the mask of each image by its name: ``[I]`` int64, -1 where there is none."""
    places = {os.path.normpath(name): position for position, name in enumerate(masks.names)}
    return torch.tensor([places.get(os.path.normpath(name), -1) for name in index.names], dtype=torch.int64)
