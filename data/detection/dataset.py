"""The dataset that the loaders of COCO-format data use.

Letters in shapes: h0 w0 an image on disk, h w resized, m its boxes, P keypoints of a box. Sizes are (height,
width) in pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch.utils.data import Dataset

from ..shared.augment.flips import Flip
from ..shared.augment.instances import Instances
from ..shared.augment.transforms import Augmentation, AugmentationError
from ..shared.canvas import Request, scaled_size
from ..shared.io import ImageError, content_of, image_size, read_image, resize, resize_mask
from ..shared.on_device import RawImage, require_flips
from .batches import DetectionSample
from .index import CocoIndex
from .instance_masks import RunLengths


class Annotated(NamedTuple):
    """An image with its annotations, in its own pixels.

    Attributes:
        image: ``[h0, w0, 3]`` uint8.
        boxes: ``[m, 4]`` float32.
        labels: ``[m]`` int64.
        crowd: ``[m]`` bool.
        mask: ``[h0, w0]`` uint8 labels of the pixels, if the dataset has such.
        instances: masks and keypoints of the boxes, if the index keeps them.
        lost: how many boxes augmentation removed.
        flip: of the image, if the device is to mirror it; the rest is mirrored.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    mask: np.ndarray | None = None
    instances: Instances | None = None
    lost: int = 0
    flip: Flip | None = None


class CocoDetectionDataset(Dataset):
    """Images of an index with their boxes, augmented, then resized as the request says.

    Args:
        index: images and annotations.
        augmentation: applied before resizing; None for none.
        long_side: limit of the longer side after resizing, in pixels.
        reduced: let JPEGs that will shrink to half or less be decoded smaller, see ``read_image``.
        pixel_range: of images that do not have 8 bits, see ``read_image``.
        on_device: leave resizing and mirroring of the pixels to the device, see ``RawImage``.

    Raises:
        AugmentationError: with ``reduced`` or ``on_device``, if the augmentation is more than flips.
    """

    def __init__(
        self,
        index: CocoIndex,
        augmentation: Augmentation | None = None,
        long_side: int = 1333,
        reduced: bool = False,
        pixel_range: tuple[float, float] | None = None,
        on_device: bool = False,
    ):
        if on_device and augmentation is not None:
            require_flips(augmentation.flips)
        if reduced and augmentation is not None and augmentation.flips is None:
            raise AugmentationError(
                "reduced_decoding allows only flips, or no augmentation: other transforms work in the "
                "pixels of the file; remove them, or switch it off"
            )
        self.index = index
        self.augmentation = augmentation
        self.long_side = long_side
        self.reduced = reduced
        self.pixel_range = pixel_range
        self.on_device = on_device

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, request: Request) -> DetectionSample:
        """Load one image.

        Raises:
            ImageError: if the file cannot be decoded, or its size is not the one in the annotations.
            AugmentationError: if a transform fails on this image.
        """
        return self.sample(request, self.read(request))

    def read(self, request: Request, mask: np.ndarray | None = None) -> Annotated:
        """Load one image with what is known of it, and augment it; errors as above.

        Args:
            request: of the sampler.
            mask: ``[h0, w0]`` uint8 labels of its pixels on disk, which are augmented with it.
        """
        index, position = self.index, request.index
        rows = index.rows(position)
        boxes, labels, crowd = (column[rows].numpy() for column in (index.boxes, index.labels, index.crowd))
        given = Annotated(self._image(request), boxes, labels, crowd, mask, index.instances(position))
        if self.augmentation is None:
            return given
        try:
            image, boxes, labels, crowd, *rest = self.augmentation(
                self._to_augment(given.image), *given[1:4], request.seed, mask,
                self.size_of_boxes(request), given.instances,
            )  # fmt: skip
        except AugmentationError as error:
            raise AugmentationError(f"{index.path(position)}: {error}") from error
        instances = rest.pop() if given.instances is not None else None
        lost = len(given.labels) - len(labels)
        flip = None
        if self.on_device and self.augmentation.flips is not None:
            image, flip = given.image, self.augmentation.flips.draw(request.seed)
        return Annotated(image, boxes, labels, crowd, rest.pop() if rest else None, instances, lost, flip)

    def size_of_boxes(self, request: Request) -> tuple[int, int] | None:
        """Return the size that boxes are in pixels of, where the image may be smaller; else None."""
        other = self.reduced or self.on_device
        return tuple(self.index.sizes[request.index].tolist()) if other else None

    def _to_augment(self, image: np.ndarray) -> np.ndarray:
        """Return the pixels for the augmentation: a single one where the device mirrors all of them."""
        return image[:1, :1] if self.on_device else image

    def _image(self, request: Request) -> np.ndarray:
        """Return ``[h0, w0, 3]`` uint8, the image on disk (smaller if ``reduced``)."""
        path = self.index.path(request.index)
        expected = tuple(self.index.sizes[request.index].tolist())
        enough = self._scaled(expected, request) if self.reduced else None
        content = content_of(path)
        image = read_image(path, content, enough, self.pixel_range)
        size = image_size(path, content) if self.reduced else image.shape[:2]
        if size != expected:
            raise ImageError(
                f"{path}: is {size[0]}x{size[1]} pixels (height x width), the annotations say "
                f"{expected[0]}x{expected[1]}; check_images lists all such images before training"
            )
        return image

    def sample(self, request: Request, given: Annotated) -> DetectionSample:
        """Resize an image and what is known of it as the request says."""
        image = given.image
        height, width = self.size_of_boxes(request) or image.shape[:2]
        size = self._scaled((height, width), request)
        factor = torch.tensor([size[1] / width, size[0] / height] * 2)
        masks, keypoints, _ = given.instances or Instances()
        limit = torch.tensor([size[1], size[0]] * 2)
        return DetectionSample(
            image=RawImage.of(image, size, given.flip) if self.on_device else _resized_pixels(image, size),
            boxes=torch.minimum(torch.from_numpy(given.boxes) * factor, limit),
            labels=torch.from_numpy(given.labels).clone(),
            crowd=torch.from_numpy(given.crowd).clone(),
            image_id=int(self.index.image_ids[request.index]),
            original_size=tuple(self.index.sizes[request.index].tolist()),
            canvas=request.canvas,
            masks=None if masks is None else tuple(_resized(mask, size) for mask in masks),
            keypoints=None if keypoints is None else _scaled_points(keypoints, factor[:2]),
            boxes_lost=given.lost,
        )

    def _scaled(self, size: tuple[int, int], request: Request) -> tuple[int, int]:
        return scaled_size(size, request.short_side, self.long_side, request.canvas)


def _resized_pixels(image: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """Resize ``[h0, w0, 3]`` to ``[3, h, w]``."""
    return torch.from_numpy(resize(image, size)).permute(2, 0, 1).contiguous()


def _resized(mask: np.ndarray, size: tuple[int, int]) -> RunLengths:
    """Resize a bitmap and return its run lengths, which go by columns: so nothing has to be transposed."""
    return coco_mask.encode(resize_mask(np.ascontiguousarray(mask.T), size[::-1]).T)


def _scaled_points(keypoints: np.ndarray, factor: torch.Tensor) -> torch.Tensor:
    """Scale ``[m, P, 3]`` keypoints by the factors of x and y."""
    return torch.from_numpy(keypoints) * torch.cat([factor, torch.ones(1)])
