"""RoIAlign from the pyramid level that fits each box, with one call for all levels and images.

Letters in shapes: B images, C channels, H W cells of a level, N boxes per image, Q cells per side of the
pooled features.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .atlas import pool_by_kernel
from .boxes import on_host
from .levels import regions_of
from .rows import pool_by_rows


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

    On the CPU by :func:`.rows.pool_by_rows`; elsewhere, and where the number of samples depends on the box,
    by torchvision's kernel (:func:`.atlas.pool_by_kernel`).

    Args:
        features: ``[B, C, H_i, W_i]`` per level, finest first.
        strides: pixels per cell (vertical, horizontal) of each level.
        boxes: ``[B, N, 4]`` in pixels, inside the padded image.
        pool_size: Q.
        sampling_ratio: bilinear samples per pooled cell and axis; 0 for one per cell of the map, rounded up.
        aligned: move boxes by half a cell up and left, where the values of the map's cells are at home.
        canonical_size, canonical_level: see :func:`.levels.level_of_box`.

    Returns:
        ``[B*N, C, Q, Q]``, computed in float32, in the type of the features.
    """
    sizes = [(feature.shape[-2], feature.shape[-1]) for feature in features]
    regions = regions_of(boxes, sizes, strides, canonical_size, canonical_level)
    pool = pool_by_rows if sampling_ratio > 0 and on_host(boxes) else pool_by_kernel
    pooled = pool([feature.float() for feature in features], regions, pool_size, sampling_ratio, aligned)
    return pooled.to(features[0].dtype)
