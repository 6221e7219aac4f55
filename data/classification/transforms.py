"""From a decoded 2D image or scan to the tensor of a batch, with or without augmentation.

Letters in shapes: h w height and width in pixels, S the side of a 2D image in a batch; C channels and D H W
the axes of a scan, in voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from ..shared.augment.flips import Flips
from ..shared.augment.transforms import AugmentationError, Entry, ImageAugmentation
from ..shared.io import Interpolation, resize
from ..shared.on_device import RawImage, require_flips
from .scans import resize_scan, standardise_scan

Policy = Literal["auto_augment", "rand_augment", "trivial_augment_wide"]

MEAN_COLOUR = (124, 116, 104)  # of ImageNet, 0..255

_POLICIES = {
    "auto_augment": v2.AutoAugment,
    "rand_augment": v2.RandAugment,
    "trivial_augment_wide": v2.TrivialAugmentWide,
}


class PictureTransform:
    """Brings a 2D image to the size of the batch.

    In this order: the pipeline, resizing, the policy, random erasing. An image that has the wanted size
    after the pipeline is not resized. Of any other the shorter side is resized to ``resize``, and the centre
    is cut out. So without arguments for training the result is that of torchvision's ``Resize`` and
    ``CenterCrop``.

    Args:
        size: S, the side of the result in pixels.
        resize: length of the shorter side before the centre is cut out, at least ``size``.
        interpolation: for resizing and for the policy.
        augment: albumentations transforms, see ``ImageAugmentation``.
        policy: a published policy as torchvision implements it, or None: AutoAugment for ImageNet (Cubuk et
            al., 2019), RandAugment (2 of magnitude 9; Cubuk et al., 2020), TrivialAugment (Mueller & Hutter,
            2021).
        on_device: leave resizing, mirroring and cutting to the device, see ``RawImage``.
        random_erasing: probability of painting a random rectangle (2 to 33 % of the area) in ImageNet's mean
            colour, which normalising makes zero (Zhong et al., 2020).

    Raises:
        AugmentationError: if ``augment`` is wrong, or with ``on_device`` if there is more than flips.
    """

    def __init__(
        self,
        size: int,
        resize: int,
        interpolation: Interpolation = "bilinear",
        augment: Sequence[Entry] = (),
        policy: Policy | None = None,
        random_erasing: float = 0.0,
        on_device: bool = False,
    ):
        self.size = size
        self.resize = resize
        self.interpolation = interpolation
        self.augmentation = ImageAugmentation(augment) if augment else None
        self.flips = Flips([]) if self.augmentation is None else self.augmentation.flips
        self.on_device = on_device
        if on_device:
            require_flips(self.flips)
            if policy is not None or random_erasing:
                raise AugmentationError(
                    "data.augment_on device does without policy and random_erasing: remove them, or set "
                    "data.augment_on to loader"
                )
        mode = InterpolationMode(interpolation)
        self.policy = None if policy is None else _POLICIES[policy](interpolation=mode)
        self.erasing = v2.RandomErasing(random_erasing, value=list(MEAN_COLOUR)) if random_erasing else None

    def __call__(self, image: np.ndarray, seed: int = 0) -> Tensor | RawImage:
        """Return ``[3, S, S]`` uint8 for ``[h, w, 3]`` uint8; all randomness comes from ``seed``.

        Raises:
            AugmentationError: if a transform fails on this image.
        """
        if self.on_device and self.flips is not None:
            size, cut = image.shape[:2], (self.size, self.size)
            resized = size if size == cut else self._scaled(size)
            return RawImage.of(image, resized, self.flips.draw(seed), cut, self.interpolation)
        if self.augmentation is not None:
            image = self.augmentation(image, seed)
        if image.shape[:2] != (self.size, self.size):
            image = self._centre(image)
        if min(image.strides) < 0:  # a flip or turn as a view, which torch does not know
            image = image.copy()
        if self.policy is None and self.erasing is None:
            return torch.from_numpy(image).permute(2, 0, 1)  # [S, S, 3] -> [3, S, S]
        state = torch.get_rng_state()  # these transforms draw from torch's global generator
        try:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed GPUs, too
            if self.policy is not None:  # Pillow, as in the published recipes, and faster than on tensors
                image = np.array(self.policy(Image.fromarray(np.ascontiguousarray(image))))
            pixels = torch.from_numpy(image).permute(2, 0, 1)  # [S, S, 3] -> [3, S, S]
            return pixels if self.erasing is None else self.erasing(pixels)
        finally:
            torch.set_rng_state(state)

    def _scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width that an image has before its centre is cut out."""
        short = min(size)
        return int(self.resize * size[0] / short), int(self.resize * size[1] / short)

    def _centre(self, image: np.ndarray) -> np.ndarray:
        height, width = self._scaled(image.shape[:2])
        image = resize(image, (height, width), self.interpolation)
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return image[top : top + self.size, left : left + self.size]


class ScanTransform:
    """Standardises a scan per channel, brings it to the size of the batch, and augments it.

    Args:
        size: D, H and W of the result in voxels.
        flip_axes: each of these axes (0 for D, 1 for H, 2 for W) is reversed with probability one half.
        intensity: strength of random changes: a voxel v becomes v * (1 + a) + b, with a and b drawn for each
            channel between ``-intensity`` and ``intensity``, in standard deviations.
    """

    def __init__(self, size: tuple[int, int, int], flip_axes: Sequence[int] = (), intensity: float = 0.0):
        depth, height, width = size
        self.size = (depth, height, width)
        self.flip_axes = tuple(flip_axes)
        self.intensity = intensity

    def __call__(self, scan: np.ndarray, seed: int = 0) -> Tensor:
        """Return ``[C, *size]`` float32 for ``[C, D, H, W]`` float32; all randomness comes from ``seed``."""
        scan = resize_scan(standardise_scan(scan), self.size)
        rng = np.random.default_rng(seed)
        chosen = [axis + 1 for axis in self.flip_axes if rng.random() < 0.5]
        scan = np.flip(scan, tuple(chosen))
        if self.intensity:
            scale, shift = rng.uniform(-self.intensity, self.intensity, (2, len(scan), 1, 1, 1))
            scan = scan * (1 + scale) + shift
        return torch.from_numpy(np.ascontiguousarray(scan, dtype=np.float32))
