"""Anchors: the boxes that the RPN or a dense head starts from, a few in every cell of every level.

Letters in shapes: B images, L levels, R anchors per cell, H W cells of a level, A anchors of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...backbones.base import FeatureLevel
from ...backbones.constants import WithConstants
from .options import AnchorOptions


class Anchors(WithConstants):
    """Anchors of all levels, in the order level, row, column, ratio, size.

    Sizes come in the order of ``options.sizes``, each followed by its larger ones of ``octave_scales``.
    :func:`flatten_levels` brings the outputs of convolutions to the same order.

    They are those of Faster R-CNN as torchvision's ``AnchorGenerator`` makes them (sides rounded to even
    numbers, centred on the upper left corner of their cell), except that cells are ``levels[i].stride``
    apart. torchvision divides the padded image's size by the map's instead, which is another number
    wherever a map was rounded up. Without rounding they are those of detectron2's
    ``DefaultAnchorGenerator`` (where a cell has several sizes and ratios, that has the sizes outermost).

    Args:
        levels: the maps that the layers see, finest first.
        options: sizes, ratios and rounding.

    Attributes:
        per_cell: R.
        base: anchors of each level around the origin, ``[L, R, 4]`` float32.

    Raises:
        ValueError: if the number of levels is not the number of size entries, or strides are not 2-D.
    """

    base: Tensor

    def __init__(self, levels: Sequence[FeatureLevel], options: AnchorOptions) -> None:
        super().__init__()
        strides = [level.stride for level in levels]
        if any(len(stride) != 2 for stride in strides):
            raise ValueError(f"anchors need 2-D levels, but the trunk's strides are {strides}")
        sizes = options.sizes_per_level(strides)
        if len(sizes) != len(strides):
            raise ValueError(
                f"anchors.sizes has {len(sizes)} entries, but the trunk (or neck) gives {len(strides)} "
                f"levels of strides {strides}: give anchors.sizes one entry per level, or "
                "anchors.scale instead"
            )
        self.options = options
        self.strides = strides
        self.per_cell = len(sizes[0]) * len(options.ratios)
        # No buffer: casting a network, or averaging its buffers, must not round them.
        ratios, rounded = options.ratios, options.rounded
        self.set_constant(
            "base", lambda: torch.stack([_base_anchors(level, ratios, rounded) for level in sizes])
        )

    def forward(self, sizes: Sequence[tuple[int, int]], device: torch.device | None = None) -> Tensor:
        """Lay out the anchors.

        They are laid out anew each time: that is a few small operators, and tensors kept from an earlier step
        may be of inference mode or belong to a captured graph.

        Args:
            sizes: rows and columns of each level's map.
            device: where to lay them out; None for the device to which the module was moved. Any other costs
                a copy each time.

        Returns:
            ``[A, 4]`` float32 x1 y1 x2 y2 in pixels of the padded image; they may reach outside.
        """
        all_levels = self.base if device is None else self.base.to(device)
        laid_out = []
        for base, (height, width), (step_y, step_x) in zip(all_levels, sizes, self.strides, strict=True):
            y = torch.arange(height, device=base.device)[:, None].expand(height, width) * step_y
            x = torch.arange(width, device=base.device)[None].expand(height, width) * step_x
            corner = torch.stack([x, y, x, y], dim=-1).float()  # [H, W, 4]
            laid_out.append((corner[:, :, None] + base).flatten(0, 2))  # [H, W, R, 4] -> [H*W*R, 4]
        return torch.cat(laid_out)

    def per_level(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """How many of the A anchors belong to each level.

        Args:
            sizes: rows and columns of each level's map.
        """
        return tuple(height * width * self.per_cell for height, width in sizes)


def map_sizes(features: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Rows and columns of each level's map ``[B, C, H_i, W_i]``."""
    return [(feature.shape[-2], feature.shape[-1]) for feature in features]


def flatten_levels(maps: Sequence[Tensor], columns: int) -> Tensor:
    """Bring the outputs of convolutions to the order of the anchors.

    Args:
        maps: ``[B, R*columns, H_i, W_i]`` per level, finest first; the columns of an anchor lie side by side.
        columns: numbers per anchor: 4 for deltas, K for scores.

    Returns:
        ``[B, A, columns]``.
    """
    # [B, R*columns, H, W] -> [B, H, W, R*columns] -> [B, H*W*R, columns]
    return torch.cat([m.permute(0, 2, 3, 1).reshape(len(m), -1, columns) for m in maps], dim=1)


def _base_anchors(sizes: Sequence[float], ratios: Sequence[float], rounded: bool) -> Tensor:
    """Anchors around the origin, ``[R, 4]`` float32, ratios outermost."""
    # torchvision rounds what it has computed in float32; detectron2 computes in Python's floats.
    exact = torch.float32 if rounded else torch.float64
    side = torch.tensor(sizes, dtype=exact)
    root = torch.tensor(ratios, dtype=exact).sqrt()
    width = (1 / root)[:, None] * side  # [ratios, sizes]
    height = root[:, None] * side
    half = torch.stack([-width, -height, width, height], dim=-1) / 2
    return (half.round() if rounded else half).flatten(0, 1).float()
