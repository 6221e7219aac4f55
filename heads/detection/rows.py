"""RoIAlign on the host: every pooled cell is a weighted sum of a few cells of the map.

torchvision's kernel for the CPU runs on one thread and looks up one channel at a time. Here the cells of all
levels are the rows of one table with their channels side by side, and a pooled cell is one bag of
``embedding_bag``, which is vectorised and runs on all threads, forward and backward.

Letters in shapes: B images, C channels, H W cells of a level, N boxes of all images, Q cells per side of the
pooled features, r samples per pooled cell and axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from .levels import Regions


def pool_by_rows(
    features: Sequence[Tensor], regions: Regions, pool_size: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Pool regions ``[N]`` from float32 maps ``[B, C, H_i, W_i]``: ``[N, C, Q, Q]``, channels last.

    The samples, and the order of operations that places them, are those of torchvision's ``roi_align``.

    Args:
        features: finest first.
        regions: boxes in cells of their level.
        pool_size: Q.
        sampling_ratio: r, at least 1.
        aligned: as in :func:`.pooling.pool_boxes`.
    """
    channels, images = features[0].shape[1], features[0].shape[0]
    # [B, C, H, W] -> [B, H, W, C] -> [B*H*W, C], one level below the other; no copy if channels lie last
    table = torch.cat([feature.permute(0, 2, 3, 1).reshape(-1, channels) for feature in features])
    cells = [feature.shape[-2] * feature.shape[-1] for feature in features]
    first = torch.tensor([0, *accumulate(images * number for number in cells[:-1])])[regions.level]
    first = first + regions.image * torch.tensor(cells)[regions.level]  # [N], first row of the box's map
    how = (pool_size, sampling_ratio, aligned)
    row, row_weight = _samples(regions.y1, regions.y2, regions.height, *how)
    column, column_weight = _samples(regions.x1, regions.x2, regions.width, *how)
    row = first[:, None, None] + row * regions.width.long()[:, None, None]
    # [N, Q, 1, 2r, 1] with [N, 1, Q, 1, 2r] -> [N*Q*Q, 2r*2r]
    bag = (2 * sampling_ratio) ** 2
    index = (row[:, :, None, :, None] + column[:, None, :, None, :]).reshape(-1, bag)
    weight = (row_weight[:, :, None, :, None] * column_weight[:, None, :, None, :]).reshape(-1, bag)
    pooled = F.embedding_bag(index, table, per_sample_weights=weight, mode="sum")  # [N*Q*Q, C]
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
    step = torch.arange(ratio, dtype=start.dtype) + 0.5
    place = start[:, None, None] + torch.arange(cells, dtype=start.dtype)[:, None] * size
    place = place + step * size / ratio  # [N, Q, r]
    length = length[:, None, None]
    share = ((place >= -1) & (place <= length)).to(start.dtype) / ratio
    place = place.clamp(min=0)
    low = torch.minimum(place.floor(), length - 1)
    high = torch.minimum(low + 1, length - 1)
    beyond = torch.where(low < length - 1, place - low, 0)  # at the last cell there is nothing to blend with
    index = torch.stack([low, high], dim=-1).flatten(2).long()
    return index, torch.stack([(1 - beyond) * share, beyond * share], dim=-1).flatten(2)
