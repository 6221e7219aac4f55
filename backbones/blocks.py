"""Residual blocks: basic and bottleneck, with the norms after (v1) or before (v2) the convolutions.

Letters in shapes: B images, C channels, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from .layers import Axes, BlurPool, LayerOptions, SqueezeExcitation, make_avg_pool
from .norms import ConvNormSequential, conv_then_norm

Shortcut = Literal["projection", "average", "pad", "none"]


@dataclass(frozen=True)
class BlockOptions(LayerOptions):
    """What all blocks of a trunk have in common; see :class:`.resnet.ResNet` for the meaning of each.

    Attributes:
        always_project: whether an ``average`` shortcut has its 1x1 convolution also where the channels stay.
    """

    shortcut: Shortcut = "projection"
    groups: int = 1
    width_per_group: int = 64
    stride_in_1x1: bool = False
    squeeze_excitation: bool = False
    anti_alias: bool = False
    always_project: bool = True


@dataclass(frozen=True)
class Place:
    """The place of a block in the network.

    Attributes:
        inputs: channels that come in.
        width: base width of the stage: 64, 128, 256, 512 in the published networks.
        stride: of the block, per axis.
        dilations: per axis, of the block's strided 3x3 convolution and of those after it.
        drop_rate: probability, for each image, that stochastic depth leaves the block's branch out.
        kernel: of the convolutions that are 3x3 in the published networks, per axis.
    """

    inputs: int
    width: int
    stride: Axes
    dilations: tuple[Axes, Axes]
    drop_rate: float = 0.0
    kernel: int | Axes = 3


class PadShortcut(nn.Module):
    """Shortcut without parameters: subsamples, and fills new channels with zeros (option A of the paper)."""

    def __init__(self, inputs: int, outputs: int, stride: Axes) -> None:
        super().__init__()
        self.extra = outputs - inputs
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, inputs, *S]`` to ``[B, outputs, *S / stride]``, sizes rounded up."""
        x = x[(slice(None), slice(None), *(slice(None, None, step) for step in self.stride))]
        return F.pad(x, (0, 0) * len(self.stride) + (0, self.extra))


def make_shortcut(place: Place, outputs: int, options: BlockOptions, norm: bool) -> nn.Module | None:
    """Build the shortcut of a block that changes size or channels; None stands for the identity.

    Args:
        place: of the block.
        outputs: channels of the block's output.
        options: ``shortcut`` chooses the kind.
        norm: whether a norm follows the projection.
    """
    inputs, stride = place.inputs, place.stride
    if options.shortcut == "none" or (inputs == outputs and max(stride) == 1):
        return None
    if options.shortcut == "pad":
        return PadShortcut(inputs, outputs, stride)
    norms = [options.make_norm(outputs)] if norm else []
    if options.shortcut == "average":
        pool = make_avg_pool(stride) if max(stride) > 1 else nn.Identity()
        if inputs == outputs and not options.always_project:
            return pool
        return ConvNormSequential(pool, options.make_conv(inputs, outputs, 1), *norms)
    return ConvNormSequential(options.make_conv(inputs, outputs, 1, stride), *norms)


class ResidualBlock(nn.Module):
    """What basic and bottleneck blocks share: the shortcut, and what happens at the end of the branch.

    Args:
        place: of the block in the network.
        options: what it shares with all other blocks.
        pre_activation: norms and activations before the convolutions (He et al. 2016b) rather than after.
    """

    expansion: int
    depth: int  # number of convolutions

    bn1: nn.Module

    def __init__(self, place: Place, options: BlockOptions, pre_activation: bool) -> None:
        super().__init__()
        outputs = place.width * self.expansion
        self.pre_activation = pre_activation
        self.has_shortcut = options.shortcut != "none"
        self.downsample = make_shortcut(place, outputs, options, norm=not pre_activation)
        self.act = options.make_activation()
        self.se = (
            SqueezeExcitation(outputs, options.ndim, options.activation)
            if options.squeeze_excitation
            else None
        )
        self.drop = StochasticDepth(place.drop_rate, mode="row") if place.drop_rate > 0 else None
        self.blur: BlurPool | None = None

    def _add_layer(
        self, index: int, channels: tuple[int, int], options: BlockOptions, *more: int | Axes
    ) -> None:
        """Add the convolution ``conv{index}`` with kernel and what follows it, and its norm."""
        inputs, outputs = channels
        self.add_module(f"conv{index}", options.make_conv(inputs, outputs, *more))
        self.add_module(f"bn{index}", options.make_norm(inputs if self.pre_activation else outputs))

    def _strided(self, stride: Axes, channels: int, options: BlockOptions) -> Axes:
        """Return the stride for the strided convolution: 1 where a blur after it subsamples instead."""
        if not options.anti_alias or max(stride) == 1:
            return stride
        self.blur = BlurPool(channels, stride)
        return (1,) * len(stride)

    def zero_branch(self) -> None:
        """Zero what ends the branch, so that the block begins as its shortcut."""
        last = getattr(self, f"conv{self.depth}" if self.pre_activation else f"bn{self.depth}")
        nn.init.zeros_(last.weight)

    def activate(self, x: Tensor) -> Tensor:
        """Apply the norm and the activation that a pre-activation block begins with."""
        return self.act(self.bn1(x))

    def branch(self, x: Tensor) -> Tensor:
        """Compute the residual from the (activated) input: every convolution of the block."""
        for index in range(1, self.depth + 1):
            conv, last = getattr(self, f"conv{index}"), index == self.depth
            if self.pre_activation and last:
                return conv(x)
            x = conv_then_norm(conv, getattr(self, f"bn{index + self.pre_activation}"), x)
            if not last:
                x = self._blur_before(index + 1, self.act(x))
        return x

    def _blur_before(self, index: int, x: Tensor) -> Tensor:
        """Subsample before the last convolution, directly after the one that has lost its stride."""
        return self.blur(x) if self.blur is not None and index == self.depth else x

    def forward(self, x: Tensor, activated: Tensor | None = None) -> Tensor:
        """Map ``[B, inputs, *S]`` to ``[B, expansion * width, *S / stride]``, sizes rounded up.

        Args:
            x: the input.
            activated: ``activate(x)``, if it has been computed already (pre-activation only).
        """
        if not self.pre_activation:
            return self.act(self._join(x, x))
        return self._join(x, self.activate(x) if activated is None else activated)

    def _join(self, x: Tensor, activated: Tensor) -> Tensor:
        out = self.branch(activated)
        if self.se is not None:
            out = self.se(out)
        if self.drop is not None:
            out = self.drop(out)
        if self.has_shortcut:
            out += x if self.downsample is None else self.downsample(activated)
        return out


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions and a shortcut; the stride is in the first."""

    expansion = 1
    depth = 2

    def __init__(self, place: Place, options: BlockOptions, pre_activation: bool = False) -> None:
        super().__init__(place, options, pre_activation)
        width, (first, second) = place.width, place.dilations
        stride = self._strided(place.stride, width, options)
        self._add_layer(1, (place.inputs, width), options, place.kernel, stride, first)
        self._add_layer(2, (width, width), options, place.kernel, 1, second)


class Bottleneck(ResidualBlock):
    """1x1, 3x3 (in groups) and 1x1 convolutions and a shortcut; four times as many channels come out.

    The stride is in the 3x3 ("V1.5", as in torchvision and timm), or in the first 1x1 with
    ``stride_in_1x1`` (the paper's own networks).
    """

    expansion = 4
    depth = 3

    def __init__(self, place: Place, options: BlockOptions, pre_activation: bool = False) -> None:
        super().__init__(place, options, pre_activation)
        inner = place.width * options.width_per_group // 64 * options.groups
        one = (1,) * options.ndim
        first, second = (place.stride, one) if options.stride_in_1x1 else (one, place.stride)
        self._add_layer(1, (place.inputs, inner), options, 1, first)
        second = self._strided(second, inner, options)
        # After a 1x1 that has lost its stride the 3x3 must skip the cells that the stride would have skipped.
        dilation = place.dilations[1] if options.stride_in_1x1 else place.dilations[0]
        self._add_layer(2, (inner, inner), options, place.kernel, second, dilation, options.groups)
        self._add_layer(3, (inner, place.width * self.expansion), options, 1)
