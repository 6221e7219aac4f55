"""RoIAlign of all levels by one call of torchvision's kernel: the levels lie side by side in one map.

Letters in shapes: B images, C channels, L levels, H W cells of a level, N boxes of all images, Q cells per
side of the pooled features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchvision.ops import roi_align

from .levels import Regions, of_level

# Cells by which a level's first and last rows and columns go on in the atlas: roi_align reads two beyond the
# far border, and aligned boxes half a cell before the near one.
_BEFORE, _AFTER = 1, 2
# Steps per cell to which boxes are brought where the number of samples depends on their size: few enough
# that moving a box within an atlas of up to 2048 cells leaves every bit of its size as it was.
_STEPS = 2**13

Corner = tuple[int, int]


def atlas_corners(sizes: Sequence[tuple[int, int]]) -> tuple[list[Corner], tuple[int, int]]:
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
    below = max((height + margin for height, _ in sizes[1:]), default=0)
    return corners, (top + below, max(sizes[0][1] + margin, column))


class _Atlas(torch.autograd.Function):
    """Copies all levels into one map, each with its border repeated around it.

    Slices and ``cat`` would do the same; this copies every value once in each direction.
    """

    @staticmethod
    def forward(ctx, *levels: Tensor) -> Tensor:
        ctx.sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        corners, size = atlas_corners(ctx.sizes)
        atlas = levels[0].new_zeros(levels[0].shape[:2] + size)
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
        corners, _ = atlas_corners(ctx.sizes)
        gradients = []
        for (height, width), corner in zip(ctx.sizes, corners, strict=True):
            area = _area(gradient, corner, height, width)
            rows = area[:, :, _BEFORE : _BEFORE + height].clone()  # [B, C, H, W + margins]
            rows[:, :, 0] += area[:, :, :_BEFORE].sum(2)
            rows[:, :, -1] += area[:, :, _BEFORE + height :].sum(2)
            level = rows[..., _BEFORE : _BEFORE + width].clone()
            level[..., 0] += rows[..., :_BEFORE].sum(3)
            level[..., -1] += rows[..., _BEFORE + width :].sum(3)
            gradients.append(level)
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


def pool_by_kernel(
    features: Sequence[Tensor], regions: Regions, pool_size: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Pool regions ``[N]`` from maps ``[B, C, H_i, W_i]`` in float32: ``[N, C, Q, Q]`` float32.

    torchvision's ``MultiScaleRoIAlign`` selects the boxes of each level, a shape that depends on the data.
    Here the levels lie in one atlas and boxes are moved to their level's place, so one ``roi_align`` serves
    all. The repeated border makes samples at the edge read what they read in the level alone. Samples off
    the map occur only for boxes narrower than a cell, whose other samples all read the border cell; so the
    zeros that torchvision averages in amount to a factor per pooled row and column. With ``aligned`` there
    are none: boxes keep their width.

    How many samples ``sampling_ratio=0`` takes jumps with the size of a box. Boxes are therefore rounded to
    2^-13 of a cell first, which makes moving them exact.
    """
    atlas = _Atlas.apply(*features)
    corners, _ = atlas_corners([(feature.shape[-2], feature.shape[-1]) for feature in features])
    row, column = (of_level(regions.level, axis) for axis in zip(*corners, strict=True))
    x1, y1, x2, y2 = regions.x1, regions.y1, regions.x2, regions.y2
    if sampling_ratio == 0:
        x1, y1, x2, y2 = ((side * _STEPS).round() / _STEPS for side in (x1, y1, x2, y2))
    image = regions.image.to(x1)
    boxes = torch.stack([image, x1 + column, y1 + row, x2 + column, y2 + row], dim=-1)  # [N, 5]
    pooled = roi_align(atlas, boxes, pool_size, 1.0, sampling_ratio, aligned)
    if not aligned:
        samples = max(1, sampling_ratio)  # a box narrower than a cell of the map gets one per pooled cell
        inside_y = _share_inside(y1, y2, regions.height, pool_size, samples)
        inside_x = _share_inside(x1, x2, regions.width, pool_size, samples)
        pooled = pooled.mul_(inside_y[:, None, :, None] * inside_x[:, None, None, :])
    return pooled
