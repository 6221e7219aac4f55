"""The data set behind the loaders of COCO-format data.

Letters in shapes: h w a resized image, m boxes of one image. Sizes are (height, width) in pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from ..shared.augment import Augmentation, AugmentationError
from ..shared.canvas import Request, scaled_size
from ..shared.io import ImageError, image_size, read_image, resize
from .batches import DetectionSample
from .index import CocoIndex


class CocoDetectionDataset(Dataset):
    """Images of an index with their boxes, augmented, then resized as the request says.

    Args:
        index: images and annotations.
        augmentation: applied before resizing; None for none.
        long_side: limit of the longer side after resizing, in pixels.
        reduced: let JPEGs that will shrink to half or less be decoded smaller, see ``read_image``.

    Raises:
        AugmentationError: with ``reduced``, if the augmentation is more than flips.
    """

    def __init__(
        self,
        index: CocoIndex,
        augmentation: Augmentation | None = None,
        long_side: int = 1333,
        reduced: bool = False,
    ):
        if reduced and augmentation is not None and augmentation.flips is None:
            raise AugmentationError(
                "reduced_decoding goes with flips alone, or no augmentation: other transforms work in the "
                "pixels of the file; remove them, or switch it off"
            )
        self.index = index
        self.augmentation = augmentation
        self.long_side = long_side
        self.reduced = reduced

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, request: Request) -> DetectionSample:
        """Load one image.

        Raises:
            ImageError: if the file cannot be decoded, or its size is not the one in the annotations.
            AugmentationError: if a transform fails on this image.
        """
        image, boxes, labels, crowd = self.read(request)
        if self.augmentation is not None:
            try:
                image, boxes, labels, crowd = self.augmentation(
                    image, boxes, labels, crowd, request.seed, size=self.size_of_boxes(request)
                )
            except AugmentationError as error:
                raise AugmentationError(f"{self.index.path(request.index)}: {error}") from error
        return self.sample(request, image, boxes, labels, crowd)

    def size_of_boxes(self, request: Request) -> tuple[int, int] | None:
        """Return the size that boxes are in pixels of, where the image may be smaller; else None."""
        return tuple(self.index.sizes[request.index].tolist()) if self.reduced else None

    def read(self, request: Request) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return an image as it is on disk (or ``reduced``), its boxes on disk, labels and crowd flags.

        Raises:
            ImageError: if the file cannot be decoded, or its size is not the one in the annotations.
        """
        path, rows = self.index.path(request.index), self.index.rows(request.index)
        expected = tuple(self.index.sizes[request.index].tolist())
        image = read_image(path, enough=self._scaled(expected, request) if self.reduced else None)
        found = image_size(path) if self.reduced else image.shape[:2]
        if found != expected:
            raise ImageError(
                f"{path}: is {found[0]}x{found[1]} pixels (height x width), the annotations say "
                f"{expected[0]}x{expected[1]}; check_images lists all such images before training"
            )
        columns = (self.index.boxes, self.index.labels, self.index.crowd)
        return image, *(column[rows].numpy() for column in columns)

    def sample(
        self, request: Request, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, crowd: np.ndarray
    ) -> DetectionSample:
        """Resize an image and its boxes as the request says."""
        height, width = self.size_of_boxes(request) or image.shape[:2]
        size = self._scaled((height, width), request)
        pixels = torch.from_numpy(resize(image, size))
        factor = torch.tensor([size[1] / width, size[0] / height] * 2)
        limit = torch.tensor([size[1], size[0]] * 2)
        return DetectionSample(
            image=pixels.permute(2, 0, 1).contiguous(),  # [h, w, 3] -> [3, h, w]
            boxes=torch.minimum(torch.from_numpy(boxes) * factor, limit),
            labels=torch.from_numpy(labels).clone(),
            crowd=torch.from_numpy(crowd).clone(),
            image_id=int(self.index.image_ids[request.index]),
            original_size=tuple(self.index.sizes[request.index].tolist()),
            canvas=request.canvas,
        )

    def _scaled(self, size: tuple[int, int], request: Request) -> tuple[int, int]:
        return scaled_size(size, request.short_side, self.long_side, request.canvas)
