"""Which pyramid level each box is pooled from, and where it lies there (FPN, Lin 2017).

Letters in shapes: B images, L levels, N boxes per image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .boxes import box_areas

# torchvision's: a box whose side is exactly at the border between two levels goes to the coarser one.
_LEVEL_EPS = 1e-6


class Regions(NamedTuple):
    """Boxes in cells of the level that they are pooled from; every entry is ``[B*N]``.

    Attributes:
        image: int64.
        level: int64, 0 for the finest.
        x1, y1, x2, y2: float32, at most the size of the level's map.
        height, width: float32, the size of the level's map.
    """

    image: Tensor
    level: Tensor
    x1: Tensor
    y1: Tensor
    x2: Tensor
    y2: Tensor
    height: Tensor
    width: Tensor


def regions_of(
    boxes: Tensor,
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[tuple[int, int]],
    canonical_size: float,
    canonical_level: int,
) -> Regions:
    """Bring boxes to the cells of their levels.

    Args:
        boxes: ``[B, N, 4]`` in pixels.
        sizes: rows and columns of each level's map.
        strides: pixels per cell (vertical, horizontal) of each level.
        canonical_size, canonical_level: see :func:`level_of_box`.
    """
    level = level_of_box(boxes, strides[0][0], len(sizes), canonical_size, canonical_level).flatten()
    scale_y, scale_x = (of_level(level, [1 / step for step in axis]) for axis in zip(*strides, strict=True))
    height, width = (of_level(level, axis) for axis in zip(*sizes, strict=True))
    x1, y1, x2, y2 = boxes.flatten(0, 1).unbind(-1)
    x1, x2 = torch.minimum(x1 * scale_x, width), torch.minimum(x2 * scale_x, width)
    y1, y2 = torch.minimum(y1 * scale_y, height), torch.minimum(y2 * scale_y, height)
    image = torch.arange(boxes.shape[0], device=boxes.device).repeat_interleave(boxes.shape[1])
    return Regions(image, level, x1, y1, x2, y2, height, width)


def level_of_box(
    boxes: Tensor, finest_stride: int, levels: int, canonical_size: float, canonical_level: int
) -> Tensor:
    """Index of the level to pool each box from (FPN, Lin 2017, equation 1).

    Args:
        boxes: ``[..., 4]`` in pixels.
        finest_stride: stride of level index 0; stride 4 is the paper's level 2.
        levels: number of levels.
        canonical_size: side of a square box that belongs to ``canonical_level``.
        canonical_level: in the paper's count.

    Returns:
        ``[...]`` int64 in 0..levels-1.
    """
    lowest = int(math.log2(finest_stride))
    side = torch.sqrt(box_areas(boxes))
    level = torch.floor(canonical_level + torch.log2(side / canonical_size) + _LEVEL_EPS)
    return level.clamp(min=lowest, max=lowest + levels - 1).long() - lowest


def of_level(level: Tensor, values: Sequence[float]) -> Tensor:
    """``values[level]`` in float32, without a table that would have to be copied to the device."""
    chosen = torch.full_like(level, values[0], dtype=torch.float32)
    for index, value in enumerate(values[1:], start=1):
        chosen = torch.where(level == index, float(value), chosen)
    return chosen
