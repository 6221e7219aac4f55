"""Feature pyramid network (Lin et al. 2017): a backbone around a backbone.

Letters in shapes: B images, C channels, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Backbone, FeatureLevel
from .layers import check_choice, initialise_neck, make_conv

Extra = Literal["maxpool", "convs"]


class FPN(Backbone):
    """Gives every level of a trunk the same number of channels and the context of the coarser ones.

    Lin et al., "Feature pyramid networks for object detection", 2017: a 1x1 convolution per level
    (``lateral``), nearest-neighbour upsampling to the size of the finer map and addition from coarse to
    fine, then a 3x3 convolution per level (``output``). Equal to
    ``torchvision.ops.FeaturePyramidNetwork`` with ``LastLevelMaxPool`` or ``LastLevelP6P7``. Around a trunk
    for volumes, all of this is three-dimensional (3x3x3 convolutions).

    Args:
        bottom_up: the trunk; its ``levels`` say how many channels arrive, and their strides of how many axes.
        channels: number of channels of every level of the pyramid, at least 1.
        extra: coarser levels on top: ``maxpool`` takes every second cell of the last one (P6 of Faster
            R-CNN), ``convs`` adds two 3x3 convolutions of stride 2 with a ReLU between (P6 and P7 of
            RetinaNet, Lin et al. 2017b), None adds nothing. Each halves every axis.

    Raises:
        ValueError: if ``channels`` or ``extra`` is none of these.
    """

    def __init__(self, bottom_up: Backbone, channels: int = 256, extra: Extra | None = "maxpool") -> None:
        super().__init__()
        check_choice("extra", extra, (*get_args(Extra), None))
        if channels < 1:
            raise ValueError(f"channels is {channels}; a pyramid needs at least one channel")
        inputs = bottom_up.levels
        ndim = len(inputs[0].stride)
        self.extra = extra
        self.lateral = nn.ModuleList(
            make_conv(ndim, level.channels, channels, kernel=1, bias=True) for level in inputs
        )
        self.output = nn.ModuleList(make_conv(ndim, channels, channels, bias=True) for _ in inputs)
        if extra == "convs":
            self.p6 = make_conv(ndim, channels, channels, stride=2, bias=True)
            self.p7 = make_conv(ndim, channels, channels, stride=2, bias=True)
        initialise_neck(self)
        # Registered last, so that the initialisation above does not reach the trunk.
        self.bottom_up = bottom_up
        strides = [level.stride for level in inputs]
        for _ in range({"maxpool": 1, "convs": 2, None: 0}[extra]):
            strides.append(tuple(2 * step for step in strides[-1]))
        self.levels = tuple(FeatureLevel(channels, stride) for stride in strides)

    @property
    def trunk(self) -> Backbone:
        """The trunk below the pyramid."""
        return self.bottom_up.trunk

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute the pyramid of ``image`` ``[B, C, *S]``: one map per level, finest first.

        Raises:
            ValueError: if the trunk returns other maps than its ``levels`` declare.
        """
        maps = self.bottom_up(image)
        self._check(maps)
        merged = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for index in range(len(merged) - 1, 0, -1):
            finer = merged[index - 1]
            merged[index - 1] = finer + F.interpolate(merged[index], size=finer.shape[2:], mode="nearest")
        pyramid = [output(x) for output, x in zip(self.output, merged, strict=True)]
        if self.extra == "maxpool":
            subsample = F.max_pool2d if pyramid[-1].ndim == 4 else F.max_pool3d
            pyramid.append(subsample(pyramid[-1], kernel_size=1, stride=2))
        elif self.extra == "convs":
            pyramid.append(self.p6(pyramid[-1]))
            pyramid.append(self.p7(F.relu(pyramid[-1])))
        return pyramid

    def _check(self, maps: list[Tensor]) -> None:
        expected = [lateral.in_channels for lateral in self.lateral]
        channels = [x.shape[1] for x in maps]
        if channels != expected:
            raise ValueError(
                f"{type(self.bottom_up).__name__} returned maps of {channels} channels, but its levels "
                f"declare {expected}; correct its levels, which FPN is built from"
            )
