"""What a trunk or neck returns, compared with what it declares; and maps that are too small for norms.

Letters in shapes: B images, C channels, S spatial axes of an image (H, W or D, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .base import Backbone

ROUNDING = 2  # cells, by less than which rounding at every halving may move the size of a map
# What convolutions without padding may take away: pixels of the image, as the finest map shows them, and then
# cells of the other maps. A network that resizes its input takes away more, or adds some.
BORDER = 18
BORDER_CELLS = 3


def check_maps(backbone: Backbone, maps: Sequence[Tensor], size: Sequence[int]) -> None:
    """Check that maps are as many, as wide and as fine as the levels declare. Looks at shapes only.

    A map may have up to two cells more or fewer than the size divided by the stride: networks round odd sizes
    up or down, some at every halving. Networks without padding lose a few cells more. A network that resizes
    its input inside has maps of another stride, so that anchors would cover a part of the image, or reach
    outside.

    Args:
        backbone: a trunk or neck.
        maps: what it returned for images ``[B, C, *S]``.
        size: S.

    Raises:
        ValueError: naming the level, what it declares and what came.
    """
    name, levels = type(backbone).__name__, backbone.levels
    if len(maps) != len(levels):
        raise ValueError(
            f"{name} declares {len(levels)} levels and returned {len(maps)} maps; set self.levels to one "
            "FeatureLevel for each map, finest first"
        )
    border: tuple[float, ...] = ()
    for number, (level, x) in enumerate(zip(levels, maps, strict=True)):
        cells = tuple(x.shape[2:])
        if x.ndim != len(size) + 2 or x.shape[1] != level.channels:
            raise ValueError(
                f"{name} declares {level.channels} channels and {len(level.stride)} axes for level {number}, "
                f"and returned a map of shape {list(x.shape)}; correct its levels, which heads are built from"
            )
        if number == 0:
            border = tuple(BORDER / step for step in level.stride)
        if not all(map(_fits, cells, size, level.stride, border)):
            ratios = " x ".join(f"{whole / cell:.3g}" for whole, cell in zip(size, cells, strict=True))
            raise ValueError(
                f"{name} declares stride {_times(level.stride)} for level {number}, but made a map of "
                f"{_times(cells)} cells from an image of {_times(size)}, which is {ratios} pixels a cell. "
                "Boxes and masks would be in other places than they seem. Give images of the size that the "
                "network is built for, choose a network that takes any size, or correct the strides in its "
                "levels"
            )
        if number == 0:  # only a network without padding there may lack a border elsewhere
            padded = all(
                abs(whole / step - cell) < ROUNDING
                for cell, whole, step in zip(cells, size, level.stride, strict=True)
            )
            border = (0 if padded else BORDER_CELLS,) * len(size)


def _fits(cells: int, size: int, stride: int, border: float) -> bool:
    missing = size / stride - cells
    return cells > 0 and (abs(missing) < ROUNDING or 0 < missing <= border)


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def single_value(said: str, images: int, size: Sequence[int]) -> str | None:
    """Explain what torch says of norms that have a single value to compute statistics from.

    Args:
        said: torch's message.
        images: B.
        size: S.

    Returns:
        What is wrong and what to set; None if torch means something else.
    """
    seen = f"(there {'is 1 image' if images == 1 else f'are {images} images'} of {_times(size)} in a batch)"
    if "more than 1 value per channel" in said:
        return (
            "a batch of one image, whose coarsest map is a single cell, is too little for a norm that "
            f"computes statistics over a batch {seen}; set --data.batch_size 2 or more, larger images "
            "(--data.size, --data.patch), or --model.backbone.norm group (of a head --model.head.norm)"
        )
    if "more than 1 spatial element" in said:
        return (
            f"an image whose coarsest map is a single cell is too small for instance norm {seen}; give "
            "larger images (--data.patch, --data.size), fewer stages, or --model.backbone.norm group (of a "
            "head --model.head.norm)"
        )
    return None
