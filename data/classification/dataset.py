"""Images with classes as a dataset."""

from __future__ import annotations

from functools import partial

from torch.utils.data import Dataset

from ..shared.augment.transforms import AugmentationError
from ..shared.common import number_of
from ..shared.io import ImageError, read_image
from ..shared.loading import ImageRequest
from .batches import ClassificationSample
from .index import ClassIndex
from .scans import read_scan
from .transforms import PictureTransform, ScanTransform


class ClassificationDataset(Dataset):
    """Images of an index with their classes.

    Args:
        index: what there is.
        transform: for 2D images or scans, whichever the index holds.
        channels: for prediction: that every image must have. None for any number, the same within a batch.
        pixel_range: of 2D images that do not have 8 bits, see ``read_image``.
    """

    def __init__(
        self,
        index: ClassIndex,
        transform: PictureTransform | ScanTransform,
        channels: int | None = None,
        pixel_range: tuple[float, float] | None = None,
    ):
        self.index = index
        self.channels = channels
        self.transform = transform
        self.read = read_scan if index.scans else partial(read_image, pixel_range=pixel_range)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, request: ImageRequest) -> ClassificationSample:
        """Load one image.

        Raises:
            ImageError: if the file cannot be decoded, or has another number of channels.
            AugmentationError: if a transform fails on this image.
        """
        position = request.index
        path = self.index.path(position)
        try:
            image = self.read(path, self.index.content(position))
        except ImageError as error:
            if self.channels is not None:  # prediction, which goes on without it
                raise
            raise ImageError(f"{error} (--data.check_images decode finds all such files first)") from error
        try:
            pixels = self.transform(image, request.seed)
        except AugmentationError as error:
            raise AugmentationError(f"{path}: {error}") from error
        if self.channels not in (None, pixels.shape[0]):
            has = number_of(pixels.shape[0], "channel")
            raise ImageError(
                f"{path}: has {has}, most of the images have {self.channels}; "
                "predict on it by a network for such images"
            )
        return ClassificationSample(pixels, self.index.label(position), position)
