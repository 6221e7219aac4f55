"""Densely connected networks (Huang et al. 2017), in two and three dimensions.

Letters in shapes: B images, C channels, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .base import Backbone, FeatureLevel
from .layers import (
    Activation,
    Axes,
    Dimensions,
    Inflation,
    LayerOptions,
    Norm,
    check_choice,
    check_layers,
    check_strides,
    make_avg_pool,
    make_max_pool,
    run_checkpointed,
    times,
)
from .norms import conv_then_norm
from .weights.load import load_weights, pretrained_is_skipped, warn_of_frozen
from .weights.published import torchvision_name

Depth = Literal[121, 161, 169, 201]

# Channels of the stem, channels that a layer adds, layers of each block.
ARCHITECTURES: dict[int, tuple[int, int, tuple[int, ...]]] = {
    121: (64, 32, (6, 12, 24, 16)),
    161: (96, 48, (6, 12, 36, 24)),
    169: (64, 32, (6, 12, 32, 32)),
    201: (64, 32, (6, 12, 48, 32)),
}
BOTTLENECK = 4  # the 1x1 convolution of a layer has four times as many channels as the layer adds
PLACES = ("stem", "max pool", "transition1", "transition2", "transition3")


class DenseLayer(nn.Module):
    """Reads all maps before it and adds one: norm, activation, 1x1, norm, activation, 3x3.

    Args:
        inputs: channels of all maps before it together.
        growth: channels of the map that it adds.
        options: shared by all layers.
    """

    def __init__(self, inputs: int, growth: int, options: LayerOptions) -> None:
        super().__init__()
        self.norm1 = options.make_norm(inputs)
        self.conv1 = options.make_conv(inputs, BOTTLENECK * growth, 1)
        self.norm2 = options.make_norm(BOTTLENECK * growth)
        self.conv2 = options.make_conv(BOTTLENECK * growth, growth, 3)
        self.act = options.make_activation()

    def forward(self, *maps: Tensor) -> Tensor:
        """Map several ``[B, C_i, *S]`` to ``[B, growth, *S]``."""
        x = self.act(self.norm1(torch.cat(maps, 1)))
        return self.conv2(self.act(conv_then_norm(self.conv1, self.norm2, x)))


class DenseBlock(nn.Module):
    """Layers that each read everything before them; the output is all maps, one after the other.

    Args:
        inputs: channels of the input.
        growth: channels that every layer adds.
        count: number of layers.
        options: shared by all layers.
        checkpointing: keep only each layer's own map in training. The concatenations and norms, whose
            memory grows with the square of the number of layers, are computed again (Pleiss et al. 2017).
    """

    def __init__(
        self, inputs: int, growth: int, count: int, options: LayerOptions, checkpointing: bool
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        for index in range(count):
            layer = DenseLayer(inputs + index * growth, growth, options)
            self.add_module(f"denselayer{index + 1}", layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, inputs, *S]`` to ``[B, inputs + count * growth, *S]``."""
        maps = [x]
        for layer in self.children():
            again = self.checkpointing and self.training
            maps.append(run_checkpointed(layer, *maps) if again else layer(*maps))
        return torch.cat(maps, 1)


class Transition(nn.Module):
    """What leads from one block to the next: norm and activation, then 1x1 convolution and average pool.

    Args:
        inputs: channels of the block before; half as many come out.
        stride: of the pool, per axis; 1 on every axis for none.
        options: shared by all layers.
    """

    def __init__(self, inputs: int, stride: Axes, options: LayerOptions) -> None:
        super().__init__()
        self.norm = options.make_norm(inputs)
        self.act = options.make_activation()
        self.conv = options.make_conv(inputs, inputs // 2, 1)
        self.pool = nn.Identity() if max(stride) == 1 else make_avg_pool(stride, round_up=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``[B, inputs, *S]`` to what a level shows, same shape, and ``[B, inputs / 2, *S / stride]``."""
        level = self.act(self.norm(x))
        return level, self.pool(self.conv(level))


class DenseNet(Backbone):
    """Densely connected network with four levels (strides 4, 8, 16, 32).

    Huang et al., "Densely connected convolutional networks", 2017 (DenseNet-BC, ImageNet); layers, names and
    numbers follow ``torchvision.models.densenet`` without the classifier, so that its weights load as they
    are. The levels are what the next stage reads. For the first three blocks these are the outputs after the
    norm and activation of the next transition, at the block's own resolution. For the last block it is the
    output after ``norm5`` and the activation.

    Args:
        depth: 121, 161, 169 or 201.
        weights: None for a random start; ``torchvision`` for the best weights torchvision has for this
            depth; one of its names, as ``IMAGENET1K_V1`` or ``DenseNet121_Weights.IMAGENET1K_V1``; or a file,
            see :func:`.weights.load_weights`. Not loaded inside :func:`.weights.skip_pretrained`.
        norm: every normalisation layer of the network: ``batch``, ``frozen_batch`` (fixed statistics and
            affine map, for pretrained weights), ``sync_batch`` (over all processes), ``group`` (up to 32
            groups) or ``instance``.
        frozen_stages: how many stages stay as they are, parameters and running statistics: 0 none, 1 the
            stem, 2 the stem and the first block with the norm after it, ... 5 everything. A transition's
            convolution belongs to the block that reads it.
        in_channels: channels of the image. Pretrained weights for three are summed (one channel) or
            repeated and rescaled (any other number).
        ndim: 2 for images ``[B, C, H, W]``, 3 for volumes ``[B, C, D, H, W]``.
        activation: every activation of the network.
        checkpointing: keep only the layers' own maps for the backward pass and compute the rest again: much
            less memory, about a third more time, the same result.
        strides: of the stem, the max pool and the three transitions: five entries of 1 or 2, each one number
            or one per axis, for scans with unequal spacing. A pool of stride 1 is left out. None for all 2.
        inflation: how 2-D weights fill 3-D kernels, ``centre`` or ``mean``; see
            :func:`.weights.load_weights`.

    Raises:
        ValueError: if an argument is not one of the values above, or the weights do not fit.
    """

    denseblock4: nn.Module
    norm5: nn.Module

    def __init__(
        self,
        depth: Depth = 121,
        weights: str | None = None,
        norm: Norm = "batch",
        frozen_stages: int = 0,
        in_channels: int = 3,
        ndim: Dimensions = 2,
        activation: Activation = "relu",
        checkpointing: bool = False,
        strides: list[int | list[int]] | None = None,
        inflation: Inflation = "centre",
    ) -> None:
        super().__init__()
        check_choice("depth", depth, get_args(Depth))
        check_choice("frozen_stages", frozen_stages, tuple(range(6)))
        check_choice("inflation", inflation, get_args(Inflation))
        check_layers(ndim, norm, activation, in_channels)
        options = LayerOptions(ndim, norm, activation)
        stem, pool, *steps = check_strides(strides, PLACES, ndim)
        self.depth, self.ndim, self.checkpointing = depth, ndim, checkpointing
        width = ARCHITECTURES[depth][0]
        self.conv0 = options.make_conv(in_channels, width, 7, stem)
        self.norm0 = options.make_norm(width)
        self.act0 = options.make_activation()
        self.pool0 = nn.Identity() if max(pool) == 1 else make_max_pool(3, pool)
        self._build_stages(times(stem, pool), steps, options)
        for layer in self.modules():
            if isinstance(layer, _ConvNd):
                # Over the inputs (He et al. 2015, as torchvision): over the outputs, as in a ResNet, layers
                # would enlarge their many inputs, and without batch statistics the last map would overflow.
                nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
        if weights is not None and not pretrained_is_skipped():
            name = torchvision_name(weights, f"DenseNet{depth}", f"depth {depth}")
            load_weights(self, name, inflation=inflation)
        warn_of_frozen(weights, frozen_stages=frozen_stages, norm=norm == "frozen_batch" and norm)
        self._freeze_stages(frozen_stages)

    def _build_stages(self, stride: Axes, steps: list[Axes], options: LayerOptions) -> None:
        # The stem and the max pool round sizes up, the transitions round down and must leave one cell.
        shrinking = (1,) * options.ndim
        for step in steps:
            shrinking = times(shrinking, step)
        self.smallest = tuple((cells - 1) * first + 1 for cells, first in zip(shrinking, stride, strict=True))
        channels, growth, counts = ARCHITECTURES[cast(int, self.depth)]
        levels = []
        for index, count in enumerate(counts, start=1):
            block = DenseBlock(channels, growth, count, options, self.checkpointing)
            self.add_module(f"denseblock{index}", block)
            channels += count * growth
            levels.append(FeatureLevel(channels, stride))
            if index < len(counts):
                self.add_module(f"transition{index}", Transition(channels, steps[index - 1], options))
                channels, stride = channels // 2, times(stride, steps[index - 1])
        self.norm5 = options.make_norm(channels)
        self.act5 = options.make_activation()
        self.levels = tuple(levels)

    def _freeze_stages(self, count: int) -> None:
        stages = [["conv0", "norm0"], ["denseblock1", "transition1.norm"]]
        for index in (2, 3):
            stages.append([f"transition{index - 1}.conv", f"denseblock{index}", f"transition{index}.norm"])
        stages.append(["transition3.conv", "denseblock4", "norm5"])
        self.freeze(*(name for stage in stages[:count] for name in stage))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute the four maps of ``image`` ``[B, in_channels, *S]``.

        The stem and the max pool round sizes up, the transitions down.

        Raises:
            ValueError: if the image is too small for the transitions.
        """
        size = tuple(image.shape[2:])
        if any(cells < least for cells, least in zip(size, self.smallest, strict=True)):
            raise ValueError(
                f"an image of {_sizes(size)} is too small for DenseNet's pooling, which rounds down; give at "
                f"least {_sizes(self.smallest)}, or set strides to 1 along short axes"
            )
        x = self.pool0(self.act0(conv_then_norm(self.conv0, self.norm0, image)))
        maps = []
        for index in (1, 2, 3):
            x = getattr(self, f"denseblock{index}")(x)
            level, x = getattr(self, f"transition{index}")(x)
            maps.append(level)
        return [*maps, self.act5(self.norm5(self.denseblock4(x)))]


def _sizes(size: Iterable[int]) -> str:
    return " x ".join(map(str, size))
