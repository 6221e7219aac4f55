"""The semantic branch of panoptic feature pyramid networks (Kirillov et al. 2019).

Letters in shapes: B images, C channels, K classes, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ...backbones.base import FeatureLevel
from ...backbones.layers import Norm, initialise_trunk, make_conv, make_norm
from ..base import NumClasses
from .base import (
    RawSegmentation,
    SegmentationHead,
    check_dropout,
    check_width,
    conv_norm_relu,
    halvings,
    resize,
    stepped_size,
)
from .losses import SegmentationLoss


class SemanticFPN(SegmentationHead):
    """Brings every level of a pyramid to the size of the finest, adds them and classifies the sum.

    Kirillov et al., "Panoptic feature pyramid networks", 2019, as in ``SemSegFPNHead`` of detectron2. Each
    level passes 3x3 convolution, norm, ReLU and twofold linear upsampling, repeated until the finest level's
    stride is reached (the finest level: once, without upsampling). The levels are added, pass a 1x1
    convolution and are interpolated to the size of the image. Convolutions begin as there (normal, He et al.
    2015, fan out). Where twice the size does not fit (odd sizes, strides that differ between axes), a step
    leads to the size that halving the finest map's, rounded up, would give.

    Args:
        levels: what the neck (or trunk) declares, finest first.
        num_classes: K, 2 to 255; on the command line also ``auto``, for the classes of the data.
        channels: of the hidden layers.
        pyramid_levels: how many levels to read, from the finest: 4 leaves out the P6 that detectors add.
        norm: of the hidden layers, see :func:`.layers.make_norm`.
        dropout: share of the sum that training sets to zero, 0 to below 1.
        loss: what to minimise; None for cross-entropy.
        regions: the labels of each of several overlapping classes, see :class:`.base.SegmentationHead`.
        region_labels: the label to write for each, see there.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        levels: Sequence[FeatureLevel],
        num_classes: NumClasses,
        channels: int = 128,
        pyramid_levels: int = 4,
        norm: Norm = "group",
        dropout: float = 0.0,
        loss: SegmentationLoss | None = None,
        regions: list[list[int]] | None = None,
        region_labels: list[int] | None = None,
    ) -> None:
        super().__init__(levels, num_classes, loss, regions=regions, region_labels=region_labels)
        check_dropout(dropout)
        check_width("channels", channels)
        if not 1 <= pyramid_levels <= len(levels):
            raise ValueError(
                f"head.pyramid_levels is {pyramid_levels}, but the pyramid has {len(levels)} levels; set it "
                f"to 1..{len(levels)}"
            )
        self.towers: Any = nn.ModuleList()
        self.steps: list[int] = []  # upsampling steps of each tower
        for level in levels[:pyramid_levels]:
            steps = halvings(levels[0].stride, level.stride)
            widths = [level.channels, *[channels] * max(1, steps)]
            layers = (
                conv_norm_relu(make_conv(self.ndim, inputs, outputs), make_norm(norm, outputs, self.ndim))
                for inputs, outputs in zip(widths[:-1], widths[1:], strict=True)
            )
            self.towers.append(nn.Sequential(*layers))
            self.steps.append(steps)
        self.dropout = nn.Dropout(dropout)
        self.predictor = make_conv(self.ndim, channels, self.num_outputs, kernel=1, bias=True)
        initialise_trunk(self)

    def forward(self, features: list[Tensor], image_size: tuple[int, ...]) -> RawSegmentation:
        """Compute ``[B, K, *S]`` at ``image_size`` from ``features``, one ``[B, C_i, *S_i]`` per level."""
        finest = tuple(features[0].shape[2:])
        total = None
        for tower, steps, x in zip(self.towers, self.steps, features, strict=False):
            for number, layer in enumerate(tower):
                x = layer(x)
                x = resize(x, stepped_size(x.shape[2:], finest, max(steps - 1 - number, 0)))
            total = x if total is None else total + x
        return RawSegmentation(resize(self.predictor(self.dropout(total)), image_size))
