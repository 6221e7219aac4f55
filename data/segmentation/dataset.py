"""The dataset and the sampler that the loaders of images with masks use.

Letters in shapes: I images, B images of a batch, W ranks; h w an image as it enters the network.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset

from ...constants import IGNORE_INDEX
from ..shared.augment.transforms import AugmentationError, MaskAugmentation
from ..shared.canvas import scaled_sizes
from ..shared.io import ImageError, read_image, resize, resize_mask
from ..shared.labels.table import MaskError
from ..shared.loading import ImageBatchSampler, ImageRequest
from ..shared.on_device import RawImage, require_flips
from .batches import SegmentationSample
from .index import SegmentationIndex


class SegmentationDataset(Dataset):
    """Images of an index with their masks.

    Args:
        index: what there is.
        augmentation: for training; None for evaluation and prediction.
        sizes: ``[I, 2]`` height and width that each image is resized to in evaluation; None for its own.
        pixel_range: of images that do not have 8 bits, see ``read_image``.
        on_device: leave resizing and mirroring of the pixels to the device, see ``RawImage``.

    Raises:
        AugmentationError: with ``on_device``, if the augmentation is more than flips.
    """

    def __init__(
        self,
        index: SegmentationIndex,
        augmentation: MaskAugmentation | None = None,
        sizes: np.ndarray | None = None,
        pixel_range: tuple[float, float] | None = None,
        on_device: bool = False,
    ):
        if on_device and augmentation is not None:
            require_flips(augmentation.flips)
        self.on_device = on_device
        self.index = index
        self.augmentation = augmentation
        self.pixel_range = pixel_range
        self.sizes = None if sizes is None else torch.from_numpy(sizes)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, request: ImageRequest) -> SegmentationSample:
        """Load one image.

        Raises:
            ImageError: if the image or its mask cannot be decoded.
            MaskError: if the mask has another size, or holds an unknown value.
            AugmentationError: if a transform fails on this image.
        """
        position = request.index
        path, source = self.index.path(position), self.index.masks
        try:
            image = read_image(path, pixel_range=self.pixel_range)
        except ImageError as error:
            if source is None:  # prediction, which goes on without it
                raise
            raise ImageError(f"{error} (--data.check_images decode finds all such files first)") from error
        original_size = image.shape[:2]
        mask = np.full(original_size, IGNORE_INDEX, np.uint8) if source is None else source.mask(position)
        if source is not None and mask.shape != original_size:
            raise MaskError(
                f"{path} has {original_size[1]}x{original_size[0]} pixels (width x height), its mask "
                f"{source.name(position)} {mask.shape[1]}x{mask.shape[0]}"
            )
        truth = None if source is None or self.augmentation is not None else torch.from_numpy(mask)
        pixels, mask = self._prepared(image, mask, request)
        return SegmentationSample(
            image=pixels,
            mask=_tensor(mask),
            image_id=position,
            original_size=original_size,
            truth=truth,
        )

    def _prepared(
        self, image: np.ndarray, mask: np.ndarray, request: ImageRequest
    ) -> tuple[torch.Tensor | RawImage, np.ndarray]:
        """Augment or resize ``[h0, w0, 3]`` and ``[h0, w0]``: ``[3, h, w]`` and ``[h, w]``."""
        size, augmentation = image.shape[:2], self.augmentation
        if augmentation is None:
            size = size if self.sizes is None else tuple(self.sizes[request.index].tolist())
            if self.on_device:
                return RawImage.of(image, size), resize_mask(mask, size)
            image, mask = resize(image, size), resize_mask(mask, size)
        elif self.on_device and augmentation.flips is not None:
            flip = augmentation.flips.draw(request.seed)
            return RawImage.of(image, size, flip), flip.pixels(mask)
        else:
            try:
                image, mask = augmentation(image, mask, request.seed)
            except AugmentationError as error:
                raise AugmentationError(f"{self.index.path(request.index)}: {error}") from error
        return _tensor(image).permute(2, 0, 1), mask  # [h, w, 3] -> [3, h, w]


class SegmentationBatchSampler(ImageBatchSampler):
    """Yields batches of requests.

    Training (``shuffle``): as ``ImageBatchSampler``.

    Evaluation: every image once over all ranks, in batches of images of one size, so that padding does
    not depend on the batch. The order is that of the index, or, with ``spread``, a random one that never
    changes, as far as grouping allows. Batches may be smaller, and ranks may have different numbers of them;
    one without any gets a batch of no image.

    Args:
        sizes: ``[I, 2]`` heights and widths as they enter the network; in training only I matters.
        batch_size, shuffle, seed, rank, world_size, spread: as in ``ImageBatchSampler``.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        spread: bool = False,
    ):
        super().__init__(len(sizes), batch_size, shuffle, seed, rank, world_size, spread=spread)
        self._fixed = None if shuffle else self._grouped(sizes)[rank::world_size]

    def __len__(self) -> int:
        return super().__len__() if self._fixed is None else max(1, len(self._fixed))

    def _evaluation_batches(self) -> Iterator[list[ImageRequest]]:
        return (list(map(ImageRequest, batch.tolist())) for batch in self._fixed or ())

    def _grouped(self, sizes: np.ndarray) -> list[np.ndarray]:
        """Cut the images of each size into batches, in the order of the first image of each."""
        order = np.random.default_rng(0).permutation(self.count) if self.spread else np.arange(self.count)
        _, group_of = np.unique(sizes[order], axis=0, return_inverse=True)
        groups = [np.flatnonzero(group_of.reshape(-1) == group) for group in range(group_of.max() + 1)]
        size = self.batch_size
        batches = [group[start : start + size] for group in groups for start in range(0, len(group), size)]
        return [order[batch] for batch in sorted(batches, key=lambda batch: batch[0])]


def evaluation_sizes(sizes: np.ndarray, short_side: int | None, long_side: int | None) -> np.ndarray:
    """Return ``[I, 2]`` heights and widths after resizing, see ``canvas.scaled_size``; None for no change."""
    if short_side is None:
        return sizes
    return scaled_sizes(sizes, short_side, np.iinfo(np.int64).max if long_side is None else long_side)


def _tensor(array: np.ndarray) -> torch.Tensor:
    """Share the memory, unless it is a flip or turn as a view, which torch does not know."""
    return torch.from_numpy(array.copy() if min(array.strides) < 0 else array)
