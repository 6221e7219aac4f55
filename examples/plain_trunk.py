"""A trunk of your own: plain stages of 3x3 convolutions (Simonyan and Zisserman 2015).

Letters in shapes: B images, C channels, H W height and width in pixels.
"""

from torch import Tensor, nn

from trunkline.backbones import Backbone, FeatureLevel


class PlainTrunk(Backbone):
    """Four levels of strides 4, 8, 16 and 32; each stage halves the map and doubles the channels.

    Args:
        width: channels of the first level.
        depth: convolutions of each stage, at least 1.
        in_channels: channels of the images.
    """

    def __init__(self, width: int = 16, depth: int = 2, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = stage(in_channels, width, 1)
        channels = [width * 2**index for index in range(4)]
        inputs = [width, *channels[:-1]]
        self.stages = nn.ModuleList(stage(a, b, depth) for a, b in zip(inputs, channels, strict=True))
        self.levels = tuple(FeatureLevel(c, (4 * 2**i, 4 * 2**i)) for i, c in enumerate(channels))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute the maps of ``image`` ``[B, C, H, W]``, finest first."""
        maps = [self.stem(image)]
        for layers in self.stages:
            maps.append(layers(maps[-1]))
        return maps[1:]  # the stem's map, of stride 2, is no level


def stage(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """Build 3x3 convolutions with batch norm and ReLU; the first has stride 2."""
    layers: list[nn.Module] = []
    for index in range(depth):
        first = index == 0
        conv = nn.Conv2d(inputs if first else outputs, outputs, 3, 2 if first else 1, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
