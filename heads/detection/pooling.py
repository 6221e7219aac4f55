"""RoIAlign from the pyramid level that fits each box, with one call for all levels and images.

There are two ways to the same result. On the CPU, torchvision's kernel runs on one thread and reads one
channel at a time; there :func:`_pool_by_rows` makes every pooled cell a weighted sum of a few cells of the
map. Elsewhere :func:`_pool_by_kernel` calls torchvision's kernel once, on an atlas: all levels side by side
in one map. Its gradient adds in any order, so torch's deterministic mode goes by rows everywhere.

Letters in shapes: B images, C channels, L levels, H W cells of a level, N boxes per image (in functions
without images: of all images), Q cells per side of the pooled features, r samples per pooled cell and axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchvision.ops import roi_align

from ..base import at_least_float32
from .anchors import map_sizes
from .boxes import box_areas, runs_on_cpu
from .weighted_rows import WeightedRows

# torchvision's: a box whose side is exactly at the border between two levels goes to the coarser one.
_LEVEL_EPS = 1e-6

# Cells by which a level's first and last rows and columns go on in the atlas: roi_align reads two beyond the
# far border, and aligned boxes half a cell before the near one.
_BEFORE, _AFTER = 1, 2
# Steps per cell to which boxes are brought where the number of samples depends on their size: few enough
# that moving a box within an atlas of up to 2048 cells leaves every bit of its size as it was.
_STEPS = 2**13
# Off every map, in pixels: a box there has features of 0.
_FAR_OFF = -float(2**20)

Corner = tuple[int, int]


def pool_boxes(
    features: Sequence[Tensor],
    strides: Sequence[tuple[int, int]],
    boxes: Tensor,
    *,
    pool_size: int = 7,
    sampling_ratio: int = 2,
    aligned: bool = False,
    canonical_size: float = 224,
    canonical_level: int = 4,
) -> Tensor:
    """RoIAlign of every box from its level: what torchvision's ``MultiScaleRoIAlign`` gives, or with
    ``aligned`` and ``sampling_ratio=0`` detectron2's ``ROIPooler``.

    Args:
        features: ``[B, C, H_i, W_i]`` per level, finest first.
        strides: pixels per cell (vertical, horizontal) of each level.
        boxes: ``[B, N, 4]`` in pixels, inside the padded image; they get no gradient. One with a NaN or an
            infinity has features of 0.
        pool_size: Q.
        sampling_ratio: bilinear samples per pooled cell and axis; 0 for one per cell of the map, rounded up.
        aligned: move boxes by half a cell up and left, to where the map's cells have their values.
        canonical_size, canonical_level: see :func:`level_of_box`.

    Returns:
        ``[B*N, C, Q, Q]``, computed in float32 (float64 stays what it is), in the type of the features.
    """
    # For a NaN the kernel would read anywhere in memory, which may end the process.
    finite = torch.isfinite(boxes).all(-1, keepdim=True)
    boxes = torch.where(finite, boxes.detach(), _FAR_OFF)
    regions = _regions_of(boxes, map_sizes(features), strides, canonical_size, canonical_level)
    # Where the number of samples depends on the box, only the kernel can be used.
    rows = sampling_ratio > 0 and (runs_on_cpu(boxes) or torch.are_deterministic_algorithms_enabled())
    pool = _pool_by_rows if rows else _pool_by_kernel
    pooled = pool(features, regions, pool_size, sampling_ratio, aligned)
    return pooled.to(features[0].dtype)


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


class _Regions(NamedTuple):
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


def _regions_of(
    boxes: Tensor,
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[tuple[int, int]],
    canonical_size: float,
    canonical_level: int,
) -> _Regions:
    """Bring boxes to the cells of their levels.

    Args:
        boxes: ``[B, N, 4]`` in pixels.
        sizes: rows and columns of each level's map.
        strides: pixels per cell (vertical, horizontal) of each level.
        canonical_size, canonical_level: see :func:`level_of_box`.
    """
    level = level_of_box(boxes, strides[0][0], len(sizes), canonical_size, canonical_level).flatten()
    scale_y, scale_x = (_of_level(level, [1 / step for step in axis]) for axis in zip(*strides, strict=True))
    height, width = (_of_level(level, axis) for axis in zip(*sizes, strict=True))
    x1, y1, x2, y2 = boxes.flatten(0, 1).unbind(-1)
    x1, x2 = torch.minimum(x1 * scale_x, width), torch.minimum(x2 * scale_x, width)
    y1, y2 = torch.minimum(y1 * scale_y, height), torch.minimum(y2 * scale_y, height)
    image = torch.arange(boxes.shape[0], device=boxes.device).repeat_interleave(boxes.shape[1])
    return _Regions(image, level, x1, y1, x2, y2, height, width)


def _of_level(level: Tensor, values: Sequence[float], kind: torch.dtype = torch.float32) -> Tensor:
    """``values[level]``, without a table that would have to be copied to the device."""
    chosen = torch.full_like(level, values[0], dtype=kind)
    for index, value in enumerate(values[1:], start=1):
        chosen.masked_fill_(level == index, value)
    return chosen


# ---- by weighted sums of rows


def _pool_by_rows(
    features: Sequence[Tensor], regions: _Regions, pool_size: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Pool regions ``[N]`` from maps ``[B, C, H_i, W_i]``: ``[N, C, Q, Q]`` float32, channels last.

    The cells of all levels are the rows of one table, and a pooled cell is one bag of ``embedding_bag``,
    which is vectorised and runs on all threads, forward and backward (on devices, of
    :class:`.weighted_rows.WeightedRows`). The samples, and the order of
    operations that places them, are those of torchvision's ``roi_align``.

    Args:
        features: finest first.
        regions: boxes in cells of their level.
        pool_size: Q.
        sampling_ratio: r, at least 1.
        aligned: as in :func:`pool_boxes`.
    """
    channels, images = features[0].shape[1], features[0].shape[0]
    # [B, C, H, W] -> [B, H, W, C] -> [B*H*W, C], one level below the other; no copy if channels lie last
    table = torch.cat([feature.permute(0, 2, 3, 1).reshape(-1, channels) for feature in features])
    table = at_least_float32(table)
    cells = [feature.shape[-2] * feature.shape[-1] for feature in features]
    firsts = [0, *accumulate(images * number for number in cells[:-1])]
    # [N], first row of the box's map
    first = _of_level(regions.level, firsts, torch.int64)
    first = first + regions.image * _of_level(regions.level, cells, torch.int64)
    how = (pool_size, sampling_ratio, aligned)
    row, row_weight = _samples(regions.y1, regions.y2, regions.height, *how)
    column, column_weight = _samples(regions.x1, regions.x2, regions.width, *how)
    row = first[:, None, None] + row * regions.width.long()[:, None, None]
    # [N, Q, 1, 2r, 1] with [N, 1, Q, 1, 2r] -> [N*Q*Q, 2r*2r]
    bag = (2 * sampling_ratio) ** 2
    index = (row[:, :, None, :, None] + column[:, None, :, None, :]).reshape(-1, bag)
    weight = (row_weight[:, :, None, :, None] * column_weight[:, None, :, None, :]).reshape(-1, bag)
    weight = weight.to(table.dtype)
    if runs_on_cpu(table):
        pooled = F.embedding_bag(index, table, per_sample_weights=weight, mode="sum")  # [N*Q*Q, C]
    else:
        pooled = WeightedRows.apply(table, index, weight)
    return pooled.view(-1, pool_size, pool_size, channels).permute(0, 3, 1, 2)


def _samples(
    start: Tensor, end: Tensor, length: Tensor, cells: int, ratio: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Which cells along one axis each pooled cell reads, and how much of each.

    A sample lies between two cells of the map and reads both; one off the map reads nothing.

    Args:
        start, end: ``[N]``, of the boxes.
        length: ``[N]`` float32, cells of the map along this axis.
        cells: Q.
        ratio: r.
        aligned: whether the middle of a map's cell, rather than its edge, is its place.

    Returns:
        ``[N, Q, 2r]`` int64 positions, and float32 weights that add up to 1 where all samples are on the map.
    """
    if aligned:
        start, end = start - 0.5, end - 0.5
        size = end - start
    else:
        size = (end - start).clamp(min=1)
    size = (size / cells)[:, None, None]
    step = torch.arange(ratio, device=start.device, dtype=start.dtype) + 0.5
    cell = torch.arange(cells, device=start.device, dtype=start.dtype)[:, None]
    place = start[:, None, None] + cell * size
    place = place + step * size / ratio  # [N, Q, r]
    length = length[:, None, None]
    share = ((place >= -1) & (place <= length)).to(start.dtype) / ratio
    place = place.clamp(min=0)
    low = torch.minimum(place.floor(), length - 1)
    high = torch.minimum(low + 1, length - 1)
    beyond = torch.where(low < length - 1, place - low, 0)  # at the last cell there is nothing to blend with
    index = torch.stack([low, high], dim=-1).flatten(2).long()
    return index, torch.stack([(1 - beyond) * share, beyond * share], dim=-1).flatten(2)


# ---- by torchvision's kernel


def _atlas_corners(sizes: Sequence[tuple[int, int]]) -> tuple[list[Corner], tuple[int, int]]:
    """Where each level goes: the finest at the upper left, the others side by side below it.

    Returns:
        (row, column) of each level's first cell, and the atlas's rows and columns.
    """
    margin = _BEFORE + _AFTER
    top = sizes[0][0] + margin
    corners, column = [(_BEFORE, _BEFORE)], 0
    for _, width in sizes[1:]:
        corners.append((top + _BEFORE, column + _BEFORE))
        column += width + margin
    # Not max(..., default=0), which torch 2.11 cannot compile.
    below = max([0, *(height + margin for height, _ in sizes[1:])])
    return corners, (top + below, max(sizes[0][1] + margin, column))


class _Atlas(torch.autograd.Function):
    """Copies all levels into one map, each with its border repeated around it.

    The map is float32, or float64 where the levels are. Slices and ``cat`` would do the same; this copies
    (and converts) every value once in each direction.
    """

    @staticmethod
    def forward(ctx, *levels: Tensor) -> Tensor:
        ctx.sizes, ctx.types = map_sizes(levels), [level.dtype for level in levels]
        corners, size = _atlas_corners(ctx.sizes)
        exact = torch.promote_types(levels[0].dtype, torch.float32)
        atlas = levels[0].new_zeros(levels[0].shape[:2] + size, dtype=exact)
        for level, (height, width), corner in zip(levels, ctx.sizes, corners, strict=True):
            area = _area(atlas, corner, height, width)
            middle = area[:, :, _BEFORE : _BEFORE + height]
            middle[..., _BEFORE : _BEFORE + width] = level
            middle[..., :_BEFORE] = level[..., :1]
            middle[..., _BEFORE + width :] = level[..., -1:]
            area[:, :, :_BEFORE] = middle[:, :, :1]
            area[:, :, _BEFORE + height :] = middle[:, :, -1:]
        return atlas

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, ...]:
        corners, _ = _atlas_corners(ctx.sizes)
        gradients = []
        for (height, width), kind, corner in zip(ctx.sizes, ctx.types, corners, strict=True):
            area = _area(gradient, corner, height, width)
            rows = area[:, :, _BEFORE : _BEFORE + height].clone()  # [B, C, H, W + margins]
            rows[:, :, 0] += area[:, :, :_BEFORE].sum(2)
            rows[:, :, -1] += area[:, :, _BEFORE + height :].sum(2)
            level = rows[..., _BEFORE : _BEFORE + width].clone()
            level[..., 0] += rows[..., :_BEFORE].sum(3)
            level[..., -1] += rows[..., _BEFORE + width :].sum(3)
            gradients.append(level.to(kind))
        return tuple(gradients)


def _area(atlas: Tensor, corner: Corner, height: int, width: int) -> Tensor:
    """A level's place in the atlas, with its margins."""
    row, column = corner
    return atlas[:, :, row - _BEFORE : row + height + _AFTER, column - _BEFORE : column + width + _AFTER]


def _share_inside(start: Tensor, end: Tensor, length: Tensor, cells: int, ratio: int) -> Tensor:
    """Share of each pooled cell's samples along one axis that lie on the map: ``[N, Q]``.

    roi_align gives a box at least the width of one cell of the map, so a narrow box at the far border
    reaches beyond it, and samples there count as zero. The order of operations is the kernel's.
    """
    cell = (end - start).clamp(min=1)[:, None, None] / cells
    position = torch.arange(cells, device=start.device, dtype=start.dtype)[:, None] * cell  # [N, Q, 1]
    step = torch.arange(ratio, device=start.device, dtype=start.dtype) + 0.5
    samples = start[:, None, None] + position + step * cell / ratio  # [N, Q, ratio]
    return (samples <= length[:, None, None]).to(start.dtype).mean(-1)


def _pool_by_kernel(
    features: Sequence[Tensor], regions: _Regions, pool_size: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Pool regions ``[N]`` from maps ``[B, C, H_i, W_i]``: ``[N, C, Q, Q]`` float32.

    torchvision's ``MultiScaleRoIAlign`` selects the boxes of each level, a shape that depends on the data.
    Here the levels lie in one atlas and boxes are moved to their level's place, so one ``roi_align`` serves
    all. The repeated border makes samples at the edge read the same values as in the level by itself.
    Samples off the map occur only for boxes narrower than a cell, whose other samples all read the border
    cell. So the zeros in torchvision's average are equal to a factor per pooled row and column. With
    ``aligned`` there are none: boxes keep their width.

    How many samples ``sampling_ratio=0`` takes jumps with the size of a box. Boxes are therefore rounded to
    2^-13 of a cell first, which makes moving them exact.
    """
    atlas = _Atlas.apply(*features)
    corners, _ = _atlas_corners(map_sizes(features))
    row, column = (_of_level(regions.level, axis) for axis in zip(*corners, strict=True))
    x1, y1, x2, y2 = regions.x1, regions.y1, regions.x2, regions.y2
    if sampling_ratio == 0:
        x1, y1, x2, y2 = ((side * _STEPS).round() / _STEPS for side in (x1, y1, x2, y2))
    image = regions.image.to(x1)
    boxes = torch.stack([image, x1 + column, y1 + row, x2 + column, y2 + row], dim=-1)  # [N, 5]
    pooled = roi_align(atlas, boxes.to(atlas.dtype), pool_size, 1.0, sampling_ratio, aligned)
    if not aligned:
        samples = max(1, sampling_ratio)  # a box narrower than a cell of the map gets one per pooled cell
        inside_y = _share_inside(y1, y2, regions.height, pool_size, samples)
        inside_x = _share_inside(x1, x2, regions.width, pool_size, samples)
        pooled = pooled.mul_(inside_y[:, None, :, None] * inside_x[:, None, None, :])
    return pooled
