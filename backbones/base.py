"""The contract between a trunk and everything that is built on it.

Letters in shapes: B images, C channels, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

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
    odd sizes differently. A neck is a backbone around a backbone: it overrides ``trunk``.

    Attributes:
        levels: what is known of each map, finest first.
        frozen: names of the submodules that do not change, see :meth:`freeze`.
        expected_pixels: mean and standard deviation, per channel on the 0..1 scale, that pretrained weights
            were trained with; None if nothing is known.
        depth: number of layers by which the network is named, such as 50; None if it has no such name.
        pre_activation: whether norms stand before the convolutions.
    """

    levels: tuple[FeatureLevel, ...] = ()
    frozen: tuple[str, ...] = ()
    expected_pixels: tuple[Sequence[float], Sequence[float]] | None = None
    depth: int | None = None
    pre_activation: bool = False

    @property
    def trunk(self) -> Backbone:
        """The network that reads images: itself, unless this is a neck around another backbone."""
        return self

    @property
    def image_channels(self) -> int | None:
        """Channels of the images it reads: those of the first kernel; None if it has no convolution."""
        axes = len(self.levels[0].stride)
        kernel = next((p for p in self.trunk.parameters() if p.ndim == axes + 2), None)
        return None if kernel is None else kernel.shape[1]

    def expectations(self, layout: str, **facts: Any) -> dict[str, Any]:
        """Return the settings that weights of a layout take for granted and that this network lacks.

        Args:
            layout: where the weights come from, such as ``detectron2``.
            **facts: what is known of the file, such as ``stride_in_1x1``.

        Returns:
            The value to set for each option, by its name in the constructor.
        """
        return {}

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


@runtime_checkable
class NormalisesPixels(Protocol):
    """A module that brings images to the input scale of its trunk; tasks do.

    Attributes:
        pixel_mean: per channel, or one for all channels, on the 0..1 scale.
        pixel_std: the same for the standard deviation.
    """

    pixel_mean: Tensor
    pixel_std: Tensor


@runtime_checkable
class WithExpectations(Protocol):
    """A part that names which of its settings weights of a layout take for granted; heads do."""

    def expectations(self, layout: str, **facts: Any) -> dict[str, Any]:
        """Return the value to set for each option that differs, see :meth:`Backbone.expectations`."""


def parts_of(module: nn.Module) -> tuple[Backbone, nn.Module | None]:
    """Return trunk and head of a task (anything with the submodules ``backbone`` and ``head``).

    A backbone that is given by itself has no head.

    Raises:
        TypeError: if the module is neither a task nor a backbone.
    """
    parts = dict(module.named_children())
    backbone = parts["backbone"] if {"backbone", "head"} <= parts.keys() else module
    if not isinstance(backbone, Backbone):
        raise TypeError(
            f"cannot load weights into {type(module).__name__}: it is no Backbone, and has no Backbone and "
            "head in the submodules backbone and head"
        )
    return backbone.trunk, None if backbone is module else parts["head"]
