"""A neck of your own: path aggregation (PANet, Liu et al. 2018), from fine to coarse after a pyramid.

Letters in shapes: B images, C channels, H W height and width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from trunkline.backbones import FPN, Backbone


class PathAggregation(Backbone):
    """Adds the detail of the finest level of a pyramid to the coarser ones.

    Each level is halved by a convolution, added to the next one of the pyramid, and goes through another
    convolution. Every level has the same number of channels.

    Args:
        bottom_up: the trunk.
        channels: of every level.
    """

    def __init__(self, bottom_up: Backbone, channels: int = 64) -> None:
        super().__init__()
        self.pyramid = FPN(bottom_up, channels, extra=None)
        self.levels = self.pyramid.levels
        steps = range(len(self.levels) - 1)
        self.down = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in steps)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in steps)

    @property
    def trunk(self) -> Backbone:
        """The network that reads images."""
        return self.pyramid.trunk

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute the maps of ``image`` ``[B, C, H, W]``, finest first."""
        finest, *coarser = self.pyramid(image)
        maps = [finest]
        for down, output, x in zip(self.down, self.output, coarser, strict=True):
            halved = F.relu(down(maps[-1]))
            # Networks round odd sizes differently, so sizes are read from the maps.
            merged = x + F.interpolate(halved, size=x.shape[2:], mode="nearest")
            maps.append(F.relu(output(merged)))
        return maps
