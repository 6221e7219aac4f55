"""Fully convolutional networks (Long, Shelhamer and Darrell 2015).

Letters in shapes: B images, C channels, K classes, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ...backbones.base import FeatureLevel
from ...backbones.layers import Norm, make_conv, make_norm
from ..base import NumClasses
from .base import RawSegmentation, SegmentationHead, check_dropout, check_level, check_width, resize
from .losses import SegmentationLoss


class FCN(SegmentationHead):
    """Classifies each cell of the coarsest level and upsamples the scores.

    Layers, names, numbers and initial values (torch's own for convolutions, so that training from scratch can
    be compared) are those of ``torchvision.models.segmentation``'s ``FCNHead``. They are a 3x3 convolution,
    norm, ReLU, dropout and a 1x1 convolution, then linear interpolation to the size of the image. With
    ``ResNet(50, output_stride=8)`` and ``aux=-2`` this is its ``fcn_resnet50``, whose weights load. Around a
    trunk for volumes the convolutions are three-dimensional.

    ``skips`` adds the scores of finer levels: on a trunk of stride 32, 0 is the paper's FCN-32s, 1 its
    FCN-16s and 2 its FCN-8s. The scores are upsampled to the next finer map, to which the scores of a 1x1
    convolution on that level are added; those layers begin at zero, as in the paper. What differs from it:
    upsampling is linear interpolation to the finer map's size everywhere, where the paper learns the inner
    upsampling (from such a start) and crops. The classifier is torchvision's rather than two convolutions of
    4096 channels. All layers are trained together rather than level by level.

    Args:
        levels: what the trunk or neck declares; the last one is classified.
        num_classes: K, 2 to 255; on the command line also ``auto``, for the classes of the data.
        channels: of the hidden convolution; None for a quarter of the level's. The auxiliary classifier's
            always has a quarter of its own level's.
        aux: position of a level that an auxiliary classifier of the same kind reads (-2 is C4), whose scores
            are upsampled too; None for none.
        aux_weight: what its loss counts, at least 0.
        skips: how many finer levels add their scores, 0 to the number of levels less one.
        dropout: share of hidden values that training sets to zero, 0 to below 1.
        norm: of the hidden layers, see :func:`.layers.make_norm`.
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
        channels: int | None = None,
        aux: int | None = None,
        aux_weight: float = 0.5,
        skips: int = 0,
        dropout: float = 0.1,
        norm: Norm = "batch",
        loss: SegmentationLoss | None = None,
        regions: list[list[int]] | None = None,
        region_labels: list[int] | None = None,
    ) -> None:
        super().__init__(levels, num_classes, loss, aux_weight, regions, region_labels)
        check_dropout(dropout)
        if not 0 <= skips < len(levels):
            raise ValueError(
                f"head.skips is {skips}, but of the {len(levels)} levels {len(levels) - 1} are finer than "
                "the one that is classified"
            )
        self.aux = None
        if aux is not None:
            self.aux = check_level("aux", aux, levels, taken=[len(levels) - 1])
        self.classifier = fcn_classifier(levels[-1], self.num_outputs, channels, dropout, norm)
        if self.aux is not None:
            self.aux_classifier = fcn_classifier(levels[self.aux], self.num_outputs, None, dropout, norm)
        # Coarsest first: the order in which they are added.
        self.skip_scores = nn.ModuleList(
            make_conv(self.ndim, level.channels, self.num_outputs, kernel=1, bias=True)
            for level in list(levels)[-2 : -2 - skips : -1]
        )
        layer: Any
        for layer in self.skip_scores:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: list[Tensor], image_size: tuple[int, ...]) -> RawSegmentation:
        """Compute ``[B, K, *S]`` at ``image_size`` from ``features``, one ``[B, C_i, *S_i]`` per level."""
        scores = self.classifier(features[-1])
        finer = reversed(features[: len(features) - 1])
        for layer, x in zip(self.skip_scores, finer, strict=False):
            scores = resize(scores, x.shape[2:]) + layer(x)
        aux: tuple[Tensor, ...] = ()
        if self.aux is not None:
            aux = (resize(self.aux_classifier(features[self.aux]), image_size),)
        return RawSegmentation(resize(scores, image_size), aux)


def fcn_classifier(
    level: FeatureLevel, outputs: int, channels: int | None, dropout: float, norm: Norm
) -> nn.Sequential:
    """Build torchvision's ``FCNHead`` for a level; ``channels`` None for a quarter of the level's."""
    ndim = len(level.stride)
    width = max(1, level.channels // 4) if channels is None else channels
    check_width("channels", width)
    return nn.Sequential(
        make_conv(ndim, level.channels, width),
        make_norm(norm, width, ndim),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        make_conv(ndim, width, outputs, kernel=1, bias=True),
    )
