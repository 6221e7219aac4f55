"""The contract between a trunk and everything that is built on it.

Letters in shapes: B images, C channels, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn


@dataclass(frozen=True)
class FeatureLevel:
    """What a consumer must know of one feature map before it sees one.

    Attributes:
        channels: number of channels of the map.
        stride: input pixels per cell of the map, one number per spatial axis (two or three of them).
    """

    channels: int
    stride: tuple[int, ...]


class Backbone(nn.Module):
    """Turns an image (or volume) into feature maps at several scales.

    A subclass sets ``levels`` where it builds its stages, finest first, and returns exactly one map per
    level. The spatial size of a map is read from the map, never computed from ``stride``: networks round
    odd sizes differently.
    """

    levels: tuple[FeatureLevel, ...]
    frozen: tuple[str, ...] = ()

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute the feature maps.

        Args:
            image: ``[B, C, *S]``, normalised floating point.

        Returns:
            One ``[B, levels[i].channels, *S_i]`` map per level, finest first.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement forward(image)")

    def freeze(self, *names: str) -> None:
        """Stop the named submodules from changing: neither gradients nor running statistics reach them.

        Raises:
            AttributeError: if there is no submodule of that name.
        """
        for name in names:
            self.get_submodule(name).requires_grad_(False).eval()
        self.frozen += names

    def train(self, mode: bool = True) -> Self:
        """Switch the mode of everything but the frozen submodules, which stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self
