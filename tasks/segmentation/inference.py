"""Segmenting large, flipped and resized images: sliding windows and test-time augmentation.

Letters in shapes: B images, C channels, K classes, S spatial axes (H, W or D, H, W), W axes of a window, b
windows that run at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ...backbones.layers import check_choice, per_axis

Weights = Literal["gaussian", "constant"]
SPREAD = 0.125  # standard deviation of the Gaussian weights in windows
LEAST_WEIGHT = 1e-3  # else corners of a window weigh almost nothing, also where no other covers them


@dataclass(frozen=True)
class InferenceOptions:
    """How an image becomes class probabilities; by default in one run over all of it.

    Attributes:
        window: pixels of a sliding window, one number or one per axis; None runs on whole images. Images that
            are smaller are padded with zeros on both sides.
        overlap: of neighbouring windows, as a share of the window, 0 to below 1.
        weights: how overlapping windows are averaged: ``gaussian`` trusts the middle of a window most
            (Isensee et al. 2021, nnU-Net), ``constant`` all of it alike.
        window_batch: windows that run at once, 1 or more.
        flip: average with the result on the image flipped along its last axis.
        scales: the image is resized by each of these factors, and the results averaged.

    Raises:
        ValueError: if one of them is out of its range.
    """

    window: int | tuple[int, ...] | None = None
    overlap: float = 0.5
    weights: Weights = "gaussian"
    window_batch: int = 4
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)

    @property
    def plain(self) -> bool:
        """Whether the network runs once, on whole images as they are."""
        return self.window is None and not self.flip and tuple(self.scales) == (1.0,)

    def __post_init__(self) -> None:
        sizes = (self.window,) if isinstance(self.window, int) else self.window
        if sizes is not None and (not len(sizes) or min(sizes) < 1):
            raise ValueError(f"inference.window is {self.window}; give a number of pixels, or one per axis")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"inference.overlap must lie in 0 to below 1, got {self.overlap}")
        check_choice("inference.weights", self.weights, get_args(Weights))
        if self.window_batch < 1:
            raise ValueError(f"inference.window_batch must be at least 1, got {self.window_batch}")
        if not self.scales or not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            raise ValueError(f"inference.scales must be one or more positive numbers, got {self.scales}")


@torch.no_grad()
def probabilities(run: Callable[[Tensor], Tensor], image: Tensor, options: InferenceOptions) -> Tensor:
    """Compute class probabilities, averaged over windows, flips and scales; without gradients.

    Args:
        run: maps normalised images ``[b, C, *s]`` to logits ``[b, K, *s]``.
        image: ``[B, C, *S]`` normalised; zero is what padding holds.
        options: see :class:`InferenceOptions`.

    Returns:
        ``[B, K, *S]`` float32 on the device of ``image``.

    Raises:
        ValueError: if ``options.window`` has another number of axes than the image, or ``run`` returns
            another size than it was given.
    """
    size = tuple(image.shape[2:])
    total: Tensor | None = None
    for scale in options.scales:
        scaled = _resized(image, tuple(max(1, round(length * scale)) for length in size))
        found = _windowed(run, scaled, options)
        if options.flip:
            found = (found + _windowed(run, scaled.flip(-1), options).flip(-1)) / 2
        found = _resized(found, size)
        total = found if total is None else total + found
    return cast(Tensor, total) / len(options.scales)


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Place windows along an axis, the last one at its end, as MONAI's ``sliding_window_inference`` does.

    Args:
        length: of the axis in pixels, at least ``window``.
        window: pixels.
        overlap: share of the window that neighbours have in common; the last two may have more.
    """
    step = max(1, int(window * (1 - overlap)))
    number = math.ceil((length - window) / step) + 1
    return [min(index * step, length - window) for index in range(number)]


def window_weights(window: Sequence[int], weights: Weights, device: torch.device) -> Tensor:
    """Return the weight of each pixel of a window, ``[*W]`` float32.

    ``gaussian`` is the product over axes of a Gaussian with a standard deviation of an eighth of the window,
    and 0.001 at least, as in MONAI.
    """
    found = torch.ones(tuple(window), device=device)
    if weights == "constant":
        return found
    for axis, length in enumerate(window):
        offset = torch.arange(length, dtype=torch.float32, device=device) - (length - 1) / 2
        line = torch.exp(-(offset**2) / (2 * (SPREAD * length) ** 2))
        found = found * line.reshape([-1 if other == axis else 1 for other in range(len(window))])
    return found.clamp(min=LEAST_WEIGHT)


def _windowed(run: Callable[[Tensor], Tensor], image: Tensor, options: InferenceOptions) -> Tensor:
    """Average the probabilities of all windows of ``image`` ``[B, C, *S]``: ``[B, K, *S]``."""
    if options.window is None:
        return _softmax(run, image)
    size = image.shape[2:]
    window = per_axis("inference.window", options.window, len(size))
    missing = [max(0, wanted - length) for wanted, length in zip(window, size, strict=True)]
    before = [number // 2 for number in missing]
    sides = [(half, number - half) for half, number in zip(before, missing, strict=True)]
    # F.pad wants the last axis first.
    padded = F.pad(image, [number for side in reversed(sides) for number in side]) if any(missing) else image
    total = _sum_windows(run, padded, window, options)
    if not any(missing):
        return total
    inside: list[Any] = [slice(half, half + length) for half, length in zip(before, size, strict=True)]
    return total[(..., *inside)]


def _sum_windows(
    run: Callable[[Tensor], Tensor], image: Tensor, window: tuple[int, ...], options: InferenceOptions
) -> Tensor:
    """Weighted mean over windows that lie inside ``image`` ``[B, C, *S]``: ``[B, K, *S]``."""
    size = image.shape[2:]
    starts = [window_starts(*axis, options.overlap) for axis in zip(size, window, strict=True)]
    places = [
        tuple(slice(start, start + length) for start, length in zip(corner, window, strict=True))
        for corner in itertools.product(*starts)
    ]
    weights = window_weights(window, options.weights, image.device)
    share = torch.zeros(size, device=image.device)  # sum of the weights on each pixel
    for place in places:
        share[place] += weights
    total: Tensor | None = None
    every: list[tuple[Any, ...]] = [(index, *place) for index in range(len(image)) for place in places]
    for first in range(0, len(every), options.window_batch):
        chunk = every[first : first + options.window_batch]
        found = _softmax(run, torch.stack([image[(index, slice(None), *place)] for index, *place in chunk]))
        found = found.to(image.device) * weights  # [b, K, *W]
        if total is None:
            total = found.new_zeros(len(image), found.shape[1], *size)
        for (index, *window_place), part in zip(chunk, found, strict=True):
            total[(index, slice(None), *window_place)] += part
    return cast(Tensor, total).div_(share)


def _softmax(run: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Run on ``[b, C, *s]``: ``[b, K, *s]`` float32 probabilities."""
    logits = run(image)
    if logits.shape[2:] != image.shape[2:]:
        raise ValueError(
            f"logits must have the size of the image, {list(image.shape[2:])}, got {list(logits.shape[2:])}"
        )
    return logits.float().softmax(1)


def _resized(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize ``[B, C, *S]`` by linear interpolation along each axis."""
    if tuple(x.shape[2:]) == size:
        return x
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    return F.interpolate(x, size=size, mode=mode, align_corners=False)
