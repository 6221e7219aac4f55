"""Images that the loader only decodes; the device resizes, mirrors and pads them (``augment_on: device``).

What is drawn at random, and what goes with an image (boxes, masks, keypoints), is as without it: the loader
draws by the same seed and moves the labels, so that only pixels are left to do.

Letters in shapes: B images, H W the padded canvas; h0 w0 an image as decoded, h w as it enters the network;
N bytes of all images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import get_worker_info

from .augment.checks import AugmentationError
from .augment.flips import Flip, Flips
from .io import Interpolation

AugmentOn = Literal["loader", "device"]


class Pixels(NamedTuple):
    """What is to be done with the pixels of one image, in this order.

    Attributes:
        decoded: h0 and w0.
        resized: height and width after resizing, with antialiasing where it shrinks.
        flip: what is mirrored then.
        corner: the upper left corner of what is cut out at last, in pixels of the mirrored image.
        size: h and w, the height and width of what is cut out.
        interpolation: for resizing.
    """

    decoded: tuple[int, int]
    resized: tuple[int, int]
    flip: Flip
    corner: tuple[int, int]
    size: tuple[int, int]
    interpolation: Interpolation


class RawImage(NamedTuple):
    """A decoded image, in the place of the pixels of a sample.

    Attributes:
        content: ``[h0, w0, 3]`` uint8 RGB.
        work: what is to be done with it.
    """

    content: Tensor
    work: Pixels

    @classmethod
    def of(
        cls,
        image: np.ndarray,
        resized: tuple[int, int],
        flip: Flip | None = None,
        cut: tuple[int, int] | None = None,
        interpolation: Interpolation = "bilinear",
    ) -> RawImage:
        """Put off resizing and mirroring ``[h0, w0, 3]`` uint8, and cutting out a centre of size ``cut``."""
        size = resized if cut is None else cut
        corner = round((resized[0] - size[0]) / 2), round((resized[1] - size[1]) / 2)
        height, width = image.shape[:2]
        flip = flip or Flip(False, False)
        work = Pixels((height, width), resized, flip, corner, size, interpolation)
        return cls(torch.from_numpy(np.ascontiguousarray(image)), work)

    @property
    def shape(self) -> torch.Size:
        """Of the image as it enters the network, ``3, h, w``."""
        return torch.Size((3, *self.work.size))


@dataclass  # not frozen: Lightning converts the types of what it finds in batches
class RawImages:
    """The decoded images of a batch, in one buffer that is copied to the device at once.

    Attributes:
        content: ``[N]`` uint8, one image after the other.
        work: what is to be done with each.
        canvas: H and W.
    """

    content: Tensor
    work: tuple[Pixels, ...]
    canvas: tuple[int, int]

    @classmethod
    def pack(cls, images: Sequence[RawImage], canvas: Sequence[int]) -> RawImages:
        """Join the images of a batch; each fits the canvas."""
        content = uint8_buffer((sum(image.content.numel() for image in images),))
        parts = content.split([image.content.numel() for image in images])
        for part, image in zip(parts, images, strict=True):
            part.copy_(image.content.flatten())
        return cls(content, tuple(image.work for image in images), (int(canvas[0]), int(canvas[1])))

    def to(self, device: torch.device) -> RawImages:
        """Return them on a device, without a wait if they lie in page-locked memory."""
        return replace(self, content=self.content.to(device, non_blocking=device.type == "cuda"))

    def rendered(self) -> Tensor:
        """Do the work, where the buffer is: ``[B, 3, H, W]`` uint8, zero outside each image.

        Pixels differ from those of the loader by at most one grey level: it resizes in integers.
        """
        result = self.content.new_zeros(len(self.work), 3, *self.canvas)
        parts = self.content.split([3 * work.decoded[0] * work.decoded[1] for work in self.work])
        for place, part, work in zip(result, parts, self.work, strict=True):
            image = part.view(*work.decoded, 3).permute(2, 0, 1)  # [h0, w0, 3] -> [3, h0, w0]
            height, width = work.size
            place[:, :height, :width] = _done(image, work)
        return result


def _done(image: Tensor, work: Pixels) -> Tensor:
    """Resize, mirror and cut ``[3, h0, w0]`` uint8: ``[3, h, w]``, whole numbers of any type."""
    if work.resized != work.decoded:
        # The loader rounds between the two axes, which shows where bicubic goes beyond black and white.
        between = (work.decoded[0], work.resized[1])
        for size in (between, work.resized) if work.interpolation == "bicubic" else (work.resized,):
            resized = functional.interpolate(
                image[None].float(), size, mode=work.interpolation, antialias=True
            )
            image = resized[0].round_().clamp_(0, 255)
    axes = [axis for axis, mirrored in zip((1, 2), work.flip, strict=True) if mirrored]
    image = image.flip(axes) if axes else image
    (top, left), (height, width) = work.corner, work.size
    return image[:, top : top + height, left : left + width]


def require_flips(flips: Flips | None) -> None:
    """Refuse transforms that only the loader can do.

    Args:
        flips: of an augmentation, None if it has other transforms.

    Raises:
        AugmentationError: saying which there may be.
    """
    if flips is None:
        raise AugmentationError(
            "data.augment_on device takes HorizontalFlip and VerticalFlip only, data.augment has other "
            "transforms: remove them, or set data.augment_on to loader"
        )


def uint8_buffer(shape: tuple[int, ...]) -> Tensor:
    """Return an uninitialised uint8 tensor, which a loader process makes in shared memory.

    torch would copy it there. It is made as torch's ``default_collate`` makes it.
    """
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def without_pixels(images: Sequence[Any]) -> Tensor:
    """Return ``[B, 3, 0, 0]`` uint8, in the place of images that have not been rendered."""
    return torch.empty(len(images), 3, 0, 0, dtype=torch.uint8)
