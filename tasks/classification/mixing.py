"""Mixup and cutmix: training images and their labels mixed in pairs, on the device.

Letters in shapes: B images, C channels, K classes, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...constants import UNLABELLED
from ...heads.classification import one_hot


class Mixing:
    """Mixes every image of a batch with the one before it, the first with the last.

    Mixup (Zhang et al. 2018) blends the whole images with a share drawn from Beta(alpha, alpha); cutmix (Yun
    et al. 2019) pastes a box of the other image, whose share of the volume is drawn in the same way. Labels
    are mixed by the same shares. With both, one of them is drawn for each batch, with equal probability.
    Pairs, shares and boxes are those of ``torchvision.transforms.v2``, here for any number of spatial axes.
    The random numbers come from torch's generator on the CPU, so nothing synchronises the device.

    Args:
        mixup: alpha, 0 for none.
        cutmix: alpha, 0 for none.

    Raises:
        ValueError: if an alpha is negative.
    """

    def __init__(self, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
            if alpha < 0:
                raise ValueError(f"{name} must be 0 (none) or a positive alpha, got {alpha}")
        self.methods = [
            (mix, alpha) for mix, alpha in ((mixed_up, mixup), (cut_and_mixed, cutmix)) if alpha > 0
        ]

    def __call__(self, image: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            image: ``[B, C, *S]`` floating point, normalised.
            label: ``[B]`` int64 (-1 for none) or ``[B, K]`` float32 (a row of -1 for none).
            num_classes: K.

        Returns:
            Mixed images and ``[B, K]`` float32 labels, a row of -1 where one of the two images has none; both
            inputs as they are without mixup and cutmix.
        """
        if not self.methods:
            return image, label
        mix, alpha = self.methods[int(torch.randint(len(self.methods), ()))]
        # torch has no Beta of half precision, which may be the default of a run.
        both = torch.tensor(alpha, dtype=torch.float32)
        image, share = mix(image, float(torch.distributions.Beta(both, both).sample()))
        return image, mixed_labels(one_hot(label, num_classes) if label.ndim == 1 else label, share)


def mixed_up(image: Tensor, share: float) -> tuple[Tensor, float]:
    """Blend ``share`` of each image ``[B, C, *S]`` with 1 - ``share`` of its partner; return both."""
    return image.lerp(image.roll(1, 0), 1 - share), share


def cut_and_mixed(image: Tensor, share: float) -> tuple[Tensor, float]:
    """Paste a box of its partner into each image; all images of the batch get the same box.

    Args:
        image: ``[B, C, *S]``.
        share: of the volume that the image keeps if the box, whose centre is drawn, lies inside as a whole.

    Returns:
        The images, and the share that they really keep.
    """
    sizes = image.shape[2:]
    side = 0.5 * (1 - share) ** (1 / len(sizes))
    box: list[slice] = []
    for size in reversed(sizes):  # the last axis draws first, as in torchvision
        centre, half = int(torch.randint(size, ())), int(side * size)
        box.insert(0, slice(max(0, centre - half), min(size, centre + half)))
    region: tuple[Any, ...] = (slice(None), slice(None), *box)
    mixed = image.clone()
    mixed[region] = image[region].roll(1, 0)
    return mixed, 1 - math.prod(cut.stop - cut.start for cut in box) / math.prod(sizes)


def mixed_labels(label: Tensor, share: float) -> Tensor:
    """Mix ``[B, K]`` labels with those of the partners; -1 throughout where one of the two has none."""
    partner = label.roll(1, 0)
    unknown = ((label < 0) | (partner < 0)).any(1, keepdim=True)  # [B, 1]
    return torch.where(unknown, float(UNLABELLED), label.lerp(partner, 1 - share))
