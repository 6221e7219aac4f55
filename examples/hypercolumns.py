"""A segmentation head of your own: hypercolumns (Hariharan et al. 2015), all levels at once for every pixel.

Letters in shapes: B images, C channels, K classes, S spatial axes (H, W or D, H, W).
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from trunkline.backbones import FeatureLevel
from trunkline.heads import NumClasses
from trunkline.heads.segmentation import RawSegmentation, SegmentationHead, SegmentationLoss


class Hypercolumns(SegmentationHead):
    """Brings every level to the size of the finest one, adds them up and classifies each cell.

    Args:
        levels: of the trunk or neck.
        num_classes: K; ``auto`` is replaced by the command line.
        channels: that every level is brought to.
        loss: what to minimise; None for cross-entropy.
    """

    def __init__(
        self,
        levels: Sequence[FeatureLevel],
        num_classes: NumClasses,
        channels: int = 32,
        loss: SegmentationLoss | None = None,
    ) -> None:
        super().__init__(levels, num_classes, loss)
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[self.ndim]
        self.mode = {2: "bilinear", 3: "trilinear"}[self.ndim]
        self.project = nn.ModuleList(conv(level.channels, channels, 1) for level in levels)
        self.classify = conv(channels, self.num_outputs, 1)

    def forward(self, features: list[Tensor], image_size: tuple[int, ...]) -> RawSegmentation:
        """Compute logits ``[B, K, *S]`` at ``image_size`` from one ``[B, C_i, *S_i]`` map per level."""
        columns = [project(x) for project, x in zip(self.project, features, strict=True)]
        total = sum(self.resize(x, features[0].shape[2:]) for x in columns)
        return RawSegmentation(self.resize(self.classify(F.relu(total)), image_size))

    def resize(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Interpolate ``[B, C, *S]`` to another size."""
        return F.interpolate(x, size=tuple(size), mode=self.mode, align_corners=False)
