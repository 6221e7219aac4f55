"""ResNet-18 to ResNet-152 (He et al. 2016), with torchvision's parameter names.

Letters in shapes: B images, C channels, H W height and width.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from torch import Tensor, nn

from .base import Backbone, FeatureLevel
from .layers import Norm, check_choice, conv1x1, conv3x3, initialise_trunk, make_norm
from .weights import load_weights, pretrained_is_skipped

Depth = Literal[18, 34, 50, 101, 152]
OutputStride = Literal[32, 16, 8]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Args:
        inputs: channels of the input.
        width: channels of both convolutions.
        stride: of the first convolution and the shortcut.
        dilations: of the first (strided) and the second convolution.
        norm: normalisation layer, see :func:`.layers.make_norm`.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, dilations: tuple[int, int], norm: Norm) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, width, stride, dilations[0])
        self.bn1 = make_norm(norm, width)
        self.conv2 = conv3x3(width, width, dilation=dilations[1])
        self.bn2 = make_norm(norm, width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = make_shortcut(inputs, width, stride, norm)

    @property
    def last_norm(self) -> nn.Module:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, inputs, H, W]`` to ``[B, width, H / stride, W / stride]``, sizes rounded up."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the stride is in the 3x3 ("V1.5", as torchvision).

    Args:
        inputs: channels of the input.
        width: channels of the 3x3 convolution; the output has four times as many.
        stride: of the 3x3 convolution and the shortcut.
        dilations: the first is that of the 3x3 convolution; the second has no layer to apply to here.
        norm: normalisation layer, see :func:`.layers.make_norm`.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, dilations: tuple[int, int], norm: Norm) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = conv1x1(inputs, width)
        self.bn1 = make_norm(norm, width)
        self.conv2 = conv3x3(width, width, stride, dilations[0])
        self.bn2 = make_norm(norm, width)
        self.conv3 = conv1x1(width, outputs)
        self.bn3 = make_norm(norm, outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = make_shortcut(inputs, outputs, stride, norm)

    @property
    def last_norm(self) -> nn.Module:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, inputs, H, W]`` to ``[B, 4 * width, H / stride, W / stride]``, sizes rounded up."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


def make_shortcut(inputs: int, outputs: int, stride: int, norm: Norm) -> nn.Sequential | None:
    """Projection for a block that changes size or channels, None (the identity) for any other."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(conv1x1(inputs, outputs, stride), make_norm(norm, outputs))


ARCHITECTURES: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


class ResNet(Backbone):
    """Deep residual network with four levels, C2 to C5 (strides 4, 8, 16, 32).

    He et al., "Deep residual learning for image recognition", 2016; layers, names and numbers follow
    ``torchvision.models.resnet`` without the classifier, so that its weights load as they are.

    Args:
        depth: 18, 34 (basic blocks), 50, 101 or 152 (bottlenecks).
        weights: None for a random start; ``torchvision`` for the best weights torchvision has for this
            depth; one of its names, as ``IMAGENET1K_V1`` or ``ResNet50_Weights.IMAGENET1K_V1``; or a file,
            see :func:`.weights.load_weights`. Not loaded inside :func:`.weights.skip_pretrained`.
        norm: every normalisation layer of the network: ``batch``, ``frozen_batch`` (fixed statistics and
            affine map, for pretrained weights), ``sync_batch`` (over all processes) or ``group`` (32 groups).
        frozen_stages: how many stages stay as they are, parameters and running statistics: 0 none, 1 the
            stem, 2 the stem and ``layer1``, ... 5 everything. Counts as detectron2's ``FREEZE_AT``.
        in_channels: channels of the image. Pretrained weights for three are summed (one channel) or
            repeated and rescaled (any other number).
        output_stride: 32, or 16 or 8 to replace the stride of the last one or two stages by dilation. Every
            cell of the undilated network keeps its value; new cells lie between.
        zero_init_residual: start every block as the identity (Goyal et al. 2017) by zeroing its last norm.

    Raises:
        ValueError: if an argument is not one of the values above, or the weights do not fit.
    """

    def __init__(
        self,
        depth: Depth = 50,
        weights: str | None = None,
        norm: Norm = "batch",
        frozen_stages: int = 0,
        in_channels: int = 3,
        output_stride: OutputStride = 32,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        check_choice("depth", depth, get_args(Depth))
        check_choice("norm", norm, get_args(Norm))
        check_choice("frozen_stages", frozen_stages, tuple(range(len(STAGES) + 1)))
        check_choice("output_stride", output_stride, get_args(OutputStride))
        if in_channels < 1:
            raise ValueError(f"in_channels is {in_channels}; an image has at least one channel")
        if zero_init_residual and norm == "frozen_batch":
            raise ValueError("zero_init_residual needs norms that learn; frozen_batch would keep the zeros")
        self.depth = depth
        self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = make_norm(norm, 64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self._build_stages(norm, output_stride)
        initialise_trunk(self)
        if zero_init_residual:
            self._zero_last_norms()
        if weights is not None and not pretrained_is_skipped():
            load_weights(self, torchvision_name(weights, depth))
        if frozen_stages > 0:
            self.freeze("conv1", "bn1", *STAGES[1:frozen_stages])

    def _build_stages(self, norm: Norm, output_stride: int) -> None:
        block, counts = ARCHITECTURES[self.depth]
        channels, stride, dilation, levels = 64, 4, 1, []
        for index, count in enumerate(counts):
            width, step, previous = 64 * 2**index, 1 if index == 0 else 2, dilation
            if stride * step > output_stride:
                step, dilation = 1, dilation * step
            stride *= step
            # The layer that has lost its stride still reads its input at the spacing of the stage before.
            blocks = [block(channels, width, step, (previous, dilation), norm)]
            channels = width * block.expansion
            blocks += [block(channels, width, 1, (dilation, dilation), norm) for _ in range(1, count)]
            self.add_module(STAGES[index + 1], nn.Sequential(*blocks))
            levels.append(FeatureLevel(channels, (stride, stride)))
        self.levels = tuple(levels)

    def _zero_last_norms(self) -> None:
        for module in self.modules():
            if isinstance(module, (BasicBlock, Bottleneck)):
                nn.init.zeros_(module.last_norm.weight)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute C2 to C5 of ``image`` ``[B, in_channels, H, W]``; sizes are rounded up at each halving."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps


def torchvision_name(weights: str, depth: int) -> str:
    """Complete the short names of torchvision's weights for a depth; leave any other source as it is.

    Raises:
        ValueError: if the name is of another ResNet (before anything is downloaded).
    """
    family = f"ResNet{depth}_Weights"
    if weights == "torchvision":
        return f"{family}.DEFAULT"
    if re.fullmatch(r"IMAGENET1K_\w+", weights):
        return f"{family}.{weights}"
    if re.match(r"ResNet\d+_Weights\.", weights) and not weights.startswith(f"{family}."):
        raise ValueError(f"weights {weights} do not fit depth {depth}; use {family}.DEFAULT or another depth")
    return weights
