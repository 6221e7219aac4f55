"""The decoder of U-Nets (Ronneberger et al. 2015) on the levels of any trunk.

Letters in shapes: B images, C channels, K classes, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ...backbones.base import FeatureLevel
from ...backbones.layers import (
    Activation,
    Axes,
    LayerOptions,
    Norm,
    check_choice,
    check_kernels,
    initialise_trunk,
    make_conv,
    make_transposed_conv,
)
from ..base import NumClasses
from .base import RawSegmentation, SegmentationHead, check_width, halvings, resize, stepped_size
from .losses import SegmentationLoss

LEAST_WIDTH = 16
Upsampling = Literal["linear", "transposed"]


class UNet(SegmentationHead):
    """Merges the levels from coarse to fine, and goes on to the full resolution.

    Ronneberger et al., "U-Net: convolutional networks for biomedical image segmentation", 2015, and Çiçek et
    al. 2016 for volumes, with a trunk in place of the contracting path. A block upsamples (to the size of the
    next finer level), appends that level, and applies twice a 3x3 convolution, norm and activation. Where the
    finest level has a stride above 1, blocks without a level to append follow, each doubling the size, up to
    that of the image. A 1x1 convolution gives the scores. Convolutions begin as a trunk's do (normal, He et
    al. 2015, fan out), because the decoder is a deep chain of convolutions and ReLUs too.

    Sizes come from the maps: levels of equal size (trunks with dilation) are appended without upsampling,
    odd sizes and strides that differ between axes fit.

    Upsampling is linear interpolation, or a transposed convolution. The latter turns each cell into as many
    as the strides' ratio says, and brings the channels to the block's width before the level is appended, as
    in Çiçek et al. and nnU-Net. What it makes too much of (sizes that a stride has rounded up) is cut off at
    the end; where it makes too little (rounded down), interpolation follows.

    On a :class:`.residual_encoder.ResidualEncoder`, ``channels`` as the trunk's (without the coarsest, from
    coarse to fine), ``upsampling: transposed``, ``convs: 1``, ``kernels`` as the trunk's, ``norm: instance``
    and ``activation: leaky_relu`` give the decoder of nnU-Net's ResEnc networks.

    With ``deep_supervision`` the outputs of the blocks between the first and the last get separate scores, at
    their own size, finest first. The i-th of them counts ``aux_weight`` to the power i, so 1/2, 1/4, and so
    on. The first block's scale, the coarsest, has none. Both as in nnU-Net (Isensee et al. 2021), except that
    it divides all weights by their sum.

    Args:
        levels: what the trunk or neck declares, finest first; at least two.
        num_classes: K, 2 to 255; on the command line also ``auto``, for the classes of the data.
        channels: width of each block, coarsest first; None for half of the coarsest level's, halved from
            block to block down to 16: the widths of the paper for a trunk as wide as its.
        norm: of the blocks, see :func:`.layers.make_norm`.
        activation: of the blocks, see :func:`.layers.make_activation`.
        deep_supervision: whether the loss also reaches the inner blocks directly; see above.
        aux_weight: see above; at least 0.
        loss: what to minimise; None for cross-entropy.
        upsampling: ``linear`` or ``transposed``, see above.
        convs: convolutions of each block.
        kernels: of each block's convolutions, coarsest first, 1, 3 or 5: one number, or one per axis. None
            for 3.
        regions: the labels of each of several overlapping classes, see :class:`.base.SegmentationHead`.
        region_labels: the label to write for each, see there.

    Raises:
        ValueError: if an argument is out of its range, there is no inner block to supervise, or transposed
            convolutions cannot make up for strides that are no multiples of each other.
    """

    def __init__(
        self,
        levels: Sequence[FeatureLevel],
        num_classes: NumClasses,
        channels: list[int] | None = None,
        norm: Norm = "batch",
        activation: Activation = "relu",
        deep_supervision: bool = False,
        aux_weight: float = 0.5,
        loss: SegmentationLoss | None = None,
        upsampling: Upsampling = "linear",
        convs: int = 2,
        kernels: list[int | list[int]] | None = None,
        regions: list[list[int]] | None = None,
        region_labels: list[int] | None = None,
    ) -> None:
        super().__init__(levels, num_classes, loss, aux_weight, regions, region_labels)
        check_choice("head.upsampling", upsampling, get_args(Upsampling))
        if convs < 1:
            raise ValueError(f"head.convs is {convs}; a block has at least one convolution")
        if len(levels) < 2:
            raise ValueError("UNet merges the levels of a trunk, but this one has a single level; take FCN")
        # What each block appends, then zeros for those after the finest level.
        self.further = halvings((1,) * self.ndim, levels[0].stride)
        appended = [level.channels for level in reversed(levels[:-1])] + [0] * self.further
        widths = _widths(channels, len(appended), levels[-1].channels)
        options = LayerOptions(self.ndim, norm, activation)
        inputs = [levels[-1].channels, *widths[:-1]]
        self.ups = nn.ModuleList()
        if upsampling == "transposed":
            factors = _factors(levels, self.further)
            self.ups.extend(map(make_transposed_conv, inputs, widths, factors))
            inputs = widths
        names = [f"block {index}" for index in range(len(widths))]
        sizes = check_kernels("head.kernels", kernels, names, self.ndim)
        self.blocks = nn.ModuleList(
            _block(options, (before + more, *[width] * convs), size)
            for before, more, width, size in zip(inputs, appended, widths, sizes, strict=True)
        )
        self.score = make_conv(self.ndim, widths[-1], self.num_outputs, kernel=1, bias=True)
        inner = widths[-2:0:-1] if deep_supervision else []
        if deep_supervision and not inner:
            raise ValueError(
                f"head.deep_supervision needs a block between the first and the last, but this decoder has "
                f"{len(widths)}; leave it out, or take a trunk with more levels"
            )
        self.aux_scores = nn.ModuleList(
            make_conv(self.ndim, width, self.num_outputs, kernel=1, bias=True) for width in inner
        )
        initialise_trunk(self)
        layer: Any
        for layer in self.ups:
            nn.init.normal_(layer.weight, std=layer.in_channels**-0.5)  # one cell makes each: keeps the scale

    def auxiliary_weight(self, index: int) -> float:
        """Return what the loss of the auxiliary map of that position counts; see the class."""
        return self.aux_weight ** (index + 1)

    def forward(self, features: list[Tensor], image_size: tuple[int, ...]) -> RawSegmentation:
        """Compute ``[B, K, *S]`` at ``image_size`` from ``features``, one ``[B, C_i, *S_i]`` per level."""
        *finer, x = features
        outputs = []
        for index, block in enumerate(self.blocks):
            if index < len(finer):
                skip = finer[-1 - index]
                x = torch.cat([self._upsample(index, x, skip.shape[2:]), skip], 1)
            else:
                size = stepped_size(x.shape[2:], image_size, len(self.blocks) - 1 - index)
                x = self._upsample(index, x, size)
            x = block(x)
            outputs.append(x)
        inner = reversed(outputs[1:-1])
        aux = tuple(score(x) for score, x in zip(self.aux_scores, inner, strict=False))
        return RawSegmentation(resize(self.score(x), image_size), aux)

    def _upsample(self, index: int, x: Tensor, size: Sequence[int]) -> Tensor:
        if self.ups:
            x = self.ups[index](x)
            for axis, end in enumerate(size):
                x = x.narrow(axis + 2, 0, min(end, x.shape[axis + 2]))
        return resize(x, size)


def _block(options: LayerOptions, widths: Sequence[int], kernel: Axes) -> nn.Sequential:
    """Build convolutions from each of the widths to the next one, each with norm and activation."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [
            options.make_conv(before, after, kernel),
            options.make_norm(after),
            options.make_activation(),
        ]
    return nn.Sequential(*layers)


def _factors(levels: Sequence[FeatureLevel], further: int) -> list[Axes]:
    """By how much each block upsamples every axis, coarsest first; further ones as :func:`stepped_size`.

    Raises:
        ValueError: if that is no whole number.
    """
    finest = levels[0].stride
    strides = [level.stride for level in reversed(levels)]
    strides += [tuple(min(step, 2**left) for step in finest) for left in reversed(range(further))]
    for coarse, fine in itertools.pairwise(strides):
        if any(a % b for a, b in zip(coarse, fine, strict=True)):
            raise ValueError(
                f"head.upsampling is 'transposed', but the stride {coarse} is no multiple of the next finer "
                f"one, {fine}; take linear"
            )
    return [
        tuple(a // b for a, b in zip(coarse, fine, strict=True))
        for coarse, fine in itertools.pairwise(strides)
    ]


def _widths(channels: Sequence[int] | None, count: int, coarsest: int) -> list[int]:
    """Return the width of each of ``count`` blocks."""
    if channels is None:
        return [max(LEAST_WIDTH, coarsest // 2 ** (index + 1)) for index in range(count)]
    if len(channels) != count:
        raise ValueError(
            f"head.channels has {len(channels)} widths, but this decoder has {count} blocks: one per level "
            "but the coarsest, and one per doubling from the finest level to the image; coarsest first"
        )
    for width in channels:
        check_width("channels", width)
    return list(channels)
