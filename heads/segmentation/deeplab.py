"""DeepLabV3 (Chen et al. 2017) and DeepLabV3+ (Chen et al. 2018).

Letters in shapes: B images, C channels, K classes, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ...backbones.base import FeatureLevel
from ...backbones.layers import Norm, make_conv, make_norm
from ..base import NumClasses
from .base import (
    RawSegmentation,
    SegmentationHead,
    check_dropout,
    check_level,
    check_width,
    conv_norm_relu,
    resize,
)
from .fcn import fcn_classifier
from .losses import SegmentationLoss

AUX_DROPOUT = 0.1  # torchvision's


class DeepLabV3(SegmentationHead):
    """Classifies each cell of the coarsest level from its surroundings at several scales.

    Chen et al., "Rethinking atrous convolution for semantic image segmentation", 2017: :class:`ASPP`, a 3x3
    convolution, norm, ReLU and a 1x1 convolution, then linear interpolation to the size of the image.
    Layers, names, numbers and initial values (torch's own for convolutions) are those of
    ``torchvision.models.segmentation.deeplabv3_resnet50``; with ``ResNet(50, output_stride=8)`` and
    ``aux=-2`` its weights load.

    Args:
        levels: what the trunk or neck declares; the last one is classified.
        num_classes: K, 2 to 255; on the command line also ``auto``, for the classes of the data.
        rates: spacing, in cells, of the 3x3 convolutions that run side by side: 12, 24, 36 on a trunk of
            output stride 8; 6, 12, 18 on one of 16.
        channels: of all hidden layers.
        aux: position of a level that an auxiliary classifier reads (-2 is C4), with torchvision's layers,
            whose scores are upsampled too; None for none.
        aux_weight: what its loss counts, at least 0.
        dropout: share of ASPP's output that training sets to zero, 0 to below 1. (The auxiliary
            classifier's is 0.1.)
        norm: of the hidden layers, see :func:`.layers.make_norm`; not ``instance``, which would blank the
            pooled branch.
        loss: what to minimise; None for cross-entropy.
        regions: the labels of each of several overlapping classes, see :class:`.base.SegmentationHead`.
        region_labels: the label to write for each, see there.

    Raises:
        ValueError: if an argument is out of its range; in training, for a single image with batch norms.
    """

    def __init__(
        self,
        levels: Sequence[FeatureLevel],
        num_classes: NumClasses,
        rates: tuple[int, ...] = (12, 24, 36),
        channels: int = 256,
        aux: int | None = None,
        aux_weight: float = 0.5,
        dropout: float = 0.5,
        norm: Norm = "batch",
        loss: SegmentationLoss | None = None,
        regions: list[list[int]] | None = None,
        region_labels: list[int] | None = None,
    ) -> None:
        super().__init__(levels, num_classes, loss, aux_weight, regions, region_labels)
        self.classifier = nn.Sequential(
            ASPP(levels[-1], rates, channels, dropout, norm),
            make_conv(self.ndim, channels, channels),
            make_norm(norm, channels, self.ndim),
            nn.ReLU(inplace=True),
            make_conv(self.ndim, channels, self.num_outputs, kernel=1, bias=True),
        )
        self.aux = _position(aux, levels)
        if self.aux is not None:
            self.aux_classifier = fcn_classifier(levels[self.aux], self.num_outputs, None, AUX_DROPOUT, norm)

    def forward(self, features: list[Tensor], image_size: tuple[int, ...]) -> RawSegmentation:
        """Compute ``[B, K, *S]`` at ``image_size`` from ``features``, one ``[B, C_i, *S_i]`` per level."""
        scores = self.classifier(features[-1])
        return RawSegmentation(resize(scores, image_size), _auxiliary(self, features, image_size))


class DeepLabV3Plus(SegmentationHead):
    """DeepLabV3 with a decoder that sharpens borders by means of a fine level.

    Chen et al., "Encoder-decoder with atrous separable convolution for semantic image segmentation", 2018:
    the output of :class:`ASPP` is upsampled to the fine level, whose channels a 1x1 convolution reduces. Both
    together pass two 3x3 convolutions and a 1x1 convolution. The scores are interpolated to the size of the
    image. Convolutions are plain ones, as the paper has them on ResNets, not depthwise separable. They begin
    at torch's own initial values, as those of :class:`DeepLabV3`, whose ASPP loads from its files.

    Args:
        levels: what the trunk or neck declares; ASPP reads the last one.
        num_classes: K, 2 to 255; on the command line also ``auto``, for the classes of the data.
        rates: as for :class:`DeepLabV3`; 6, 12, 18 on a trunk of output stride 16, the paper's choice.
        channels: of all hidden layers but ``low_channels``.
        aux: as for :class:`DeepLabV3`.
        aux_weight: what the auxiliary classifier's loss counts, at least 0.
        dropout: as for :class:`DeepLabV3`.
        norm: as for :class:`DeepLabV3`.
        loss: what to minimise; None for cross-entropy.
        low_level: position of the fine level, 0 for the finest.
        low_channels: to which its channels are reduced.
        regions: the labels of each of several overlapping classes, see :class:`.base.SegmentationHead`.
        region_labels: the label to write for each, see there.

    Raises:
        ValueError: if an argument is out of its range; in training, for a single image with batch norms.
    """

    def __init__(
        self,
        levels: Sequence[FeatureLevel],
        num_classes: NumClasses,
        rates: tuple[int, ...] = (12, 24, 36),
        channels: int = 256,
        aux: int | None = None,
        aux_weight: float = 0.5,
        dropout: float = 0.5,
        norm: Norm = "batch",
        loss: SegmentationLoss | None = None,
        low_level: int = 0,
        low_channels: int = 48,
        regions: list[list[int]] | None = None,
        region_labels: list[int] | None = None,
    ) -> None:
        super().__init__(levels, num_classes, loss, aux_weight, regions, region_labels)
        check_width("low_channels", low_channels)
        self.low_level = check_level("low_level", low_level, levels, taken=[len(levels) - 1])

        def block(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
            conv = make_conv(self.ndim, inputs, outputs, kernel)
            return conv_norm_relu(conv, make_norm(norm, outputs, self.ndim))

        self.aspp = ASPP(levels[-1], rates, channels, dropout, norm)
        self.reduce = block(levels[self.low_level].channels, low_channels, 1)
        self.refine = nn.Sequential(block(channels + low_channels, channels, 3), block(channels, channels, 3))
        self.classifier = make_conv(self.ndim, channels, self.num_outputs, kernel=1, bias=True)
        self.aux = _position(aux, levels)
        if self.aux is not None:
            self.aux_classifier = fcn_classifier(levels[self.aux], self.num_outputs, None, AUX_DROPOUT, norm)

    def forward(self, features: list[Tensor], image_size: tuple[int, ...]) -> RawSegmentation:
        """Compute ``[B, K, *S]`` at ``image_size`` from ``features``, one ``[B, C_i, *S_i]`` per level."""
        low = self.reduce(features[self.low_level])
        high = resize(self.aspp(features[-1]), low.shape[2:])
        scores = self.classifier(self.refine(torch.cat([high, low], 1)))
        return RawSegmentation(resize(scores, image_size), _auxiliary(self, features, image_size))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1 convolution, dilated 3x3 convolutions and a pooled branch.

    Their outputs, side by side, pass a 1x1 convolution, norm, ReLU and dropout. Names follow torchvision's.
    The pooled branch takes the mean over the whole of each image or volume.

    Args:
        level: what it reads.
        rates: spacing, in cells, of the 3x3 convolutions, at least 1 each.
        channels: of every branch, and of the output.
        dropout: share of the output that training sets to zero.
        norm: see :func:`.layers.make_norm`; not ``instance``.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self, level: FeatureLevel, rates: Sequence[int], channels: int, dropout: float, norm: Norm
    ) -> None:
        super().__init__()
        check_dropout(dropout)
        check_width("channels", channels)
        if not rates or min(rates) < 1:
            raise ValueError(f"head.rates must be one or more numbers of at least 1, got {tuple(rates)}")
        ndim = len(level.stride)

        def make(inputs: int, kernel: int, rate: int = 1) -> list[nn.Module]:
            conv = make_conv(ndim, inputs, channels, kernel, dilation=rate)
            return [conv, make_norm(norm, channels, ndim), nn.ReLU(inplace=True)]

        pool = (nn.AdaptiveAvgPool2d if ndim == 2 else nn.AdaptiveAvgPool3d)(1)
        branches: list[list[nn.Module]] = [
            make(level.channels, 1),
            *(make(level.channels, 3, rate) for rate in rates),
        ]
        branches.append([pool, *make(level.channels, 1)])
        self.convs: Any = nn.ModuleList(nn.Sequential(*branch) for branch in branches)
        self.project = nn.Sequential(*make(len(branches) * channels, 1), nn.Dropout(dropout))
        _check_pooled_norm(norm, branches[-1][2])

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, *S]`` to ``[B, channels, *S]``.

        Raises:
            ValueError: in training, if the pooled branch's batch norm would see one value per channel.
        """
        *branches, pooling = self.convs
        pool, conv, norm, activation = pooling
        pooled = conv(pool(x))
        if pooled.numel() == pooled.shape[1] and _needs_several_values(norm):
            raise ValueError(
                "the pooled branch of DeepLab's head has one value per channel in a batch of one image, of "
                "which batch norm has no deviation; train with a batch size of at least 2 (per device, and "
                "without a last batch of one image), or set the head's norm to group"
            )
        pooled = activation(norm(pooled)).expand(-1, -1, *x.shape[2:])  # [B, C, 1, ...] -> [B, C, *S]
        maps = [branch(x) for branch in branches]
        order = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        if maps[0].is_contiguous(memory_format=order) and not maps[0].is_contiguous():
            pooled = pooled.contiguous(memory_format=order)  # or all maps together would lie channels first
        return self.project(torch.cat([*maps, pooled], 1))


def _check_pooled_norm(name: Norm, norm: nn.Module) -> None:
    """Raise a ValueError for a norm that turns a single value per channel into zero."""
    if name == "instance":
        raise ValueError(
            "head.norm is 'instance', which would blank the pooled branch (one value per image and channel); "
            "take batch, sync_batch, frozen_batch or group"
        )
    if isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels:
        raise ValueError(
            f"head.channels is {norm.num_channels}: with head.norm group that is one channel per group, "
            "which would blank the pooled branch (one value per image and channel); take more channels"
        )


def _needs_several_values(norm: nn.Module) -> bool:
    """Whether a norm takes its statistics only from the batch of this process, as it is now."""
    if isinstance(norm, nn.SyncBatchNorm):
        shared = distributed.is_available() and distributed.is_initialized()
        return norm.training and not (shared and distributed.get_world_size() > 1)
    return isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d) and norm.training


def _position(aux: int | None, levels: Sequence[FeatureLevel]) -> int | None:
    return None if aux is None else check_level("aux", aux, levels, taken=[len(levels) - 1])


def _auxiliary(
    head: DeepLabV3 | DeepLabV3Plus, features: list[Tensor], image_size: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """Return the upsampled scores of the auxiliary classifier, if there is one."""
    if head.aux is None:
        return ()
    return (resize(head.aux_classifier(features[head.aux]), image_size),)
