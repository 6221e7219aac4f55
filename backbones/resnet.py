"""Residual networks (He et al. 2016) and their relatives, in two and three dimensions.

Letters in shapes: B images, C channels, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor, nn

from .blocks import BasicBlock, BlockOptions, Bottleneck, ResidualBlock, Shortcut
from .layers import (
    Activation,
    Axes,
    BlurPool,
    Dimensions,
    Inflation,
    Norm,
    check_choice,
    check_strides,
    initialise_trunk,
    make_max_pool,
    times,
)
from .norms import ConvNormSequential, conv_then_norm
from .residual import ResidualTrunk, check_common
from .weights.load import load_weights, pretrained_is_skipped, warn_of_frozen
from .weights.published import torchvision_name

Depth = Literal[10, 18, 26, 34, 50, 101, 152, 200]
OutputStride = Literal[32, 16, 8]
Stem = Literal["7x7", "deep"]

ARCHITECTURES: dict[int, tuple[type[ResidualBlock], tuple[int, ...]]] = {
    10: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    26: (Bottleneck, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
    200: (Bottleneck, (3, 24, 36, 3)),
}
# Published weights by depth, groups and width per group.
TORCHVISION_FAMILIES = {
    **{(depth, 1, 64): f"ResNet{depth}" for depth in (18, 34, 50, 101, 152)},
    (50, 32, 4): "ResNeXt50_32X4D",
    (101, 32, 8): "ResNeXt101_32X8D",
    (101, 64, 4): "ResNeXt101_64X4D",
    (50, 1, 128): "Wide_ResNet50_2",
    (101, 1, 128): "Wide_ResNet101_2",
}


class ResNet(ResidualTrunk):
    """Deep residual network with four levels, C2 to C5 (strides 4, 8, 16, 32).

    He et al., "Deep residual learning for image recognition", 2016; layers, names and numbers follow
    ``torchvision.models.resnet`` without the classifier, so that its weights load as they are. Variants
    have the parameter names that timm gives them. ResNeXt-50 32x4d is ``groups=32, width_per_group=4``,
    Wide ResNet-50-2 is ``width_per_group=128``.

    Args:
        depth: 10, 18, 34 (basic blocks), 26, 50, 101, 152 or 200 (bottlenecks).
        weights: None for a random start; ``torchvision`` for the best weights torchvision has for this
            network; one of its names, as ``IMAGENET1K_V1`` or ``ResNet50_Weights.IMAGENET1K_V1``; or a file,
            see :func:`.weights.load_weights`. Not loaded inside :func:`.weights.skip_pretrained`.
        norm: every normalisation layer of the network: ``batch``, ``frozen_batch`` (fixed statistics and
            affine map, for pretrained weights), ``sync_batch`` (over all processes), ``group`` (32 groups)
            or ``instance``.
        frozen_stages: how many stages stay as they are, parameters and running statistics: 0 none, 1 the
            stem, 2 the stem and ``layer1``, ... 5 everything. Counts as detectron2's ``FREEZE_AT``.
        in_channels: channels of the image. Pretrained weights for three are summed (one channel) or
            repeated and rescaled (any other number).
        output_stride: 32, or 16 or 8 to replace the stride of the last one or two stages by dilation. Every
            cell of the undilated network keeps its value; new cells lie between. (Not so with ``anti_alias``
            or ``average`` shortcuts: their filters are left out together with the stride.)
        zero_init_residual: start every block as the identity (Goyal et al. 2017) by zeroing its last norm
            (its last convolution with ``pre_activation``).
        ndim: 2 for images ``[B, C, H, W]``, 3 for volumes ``[B, C, D, H, W]``.
        groups: groups of the 3x3 convolutions of bottlenecks (Xie et al. 2017).
        width_per_group: their channels per group in ``layer1``, where 64 in one group is the plain ResNet.
        width: channels of the stem and base width of ``layer1``; a smaller one makes a smaller network.
        activation: every activation of the network.
        pre_activation: norm and activation before each convolution (He et al. 2016b, "v2"; timm's
            ``resnetv2``).
        stem: ``7x7``, or ``deep`` for three 3x3 convolutions (He et al. 2019, "ResNet-C/D").
        shortcut: where a block changes size or channels: ``projection`` (strided 1x1 convolution),
            ``average`` (average pool, then 1x1; "ResNet-D"), ``pad`` (no parameters: subsampled, new
            channels zero; option A of the paper), or ``none`` for the plain network without any shortcut.
        stride_in_1x1: stride of a bottleneck in its first 1x1 convolution, as in the paper and in
            detectron2's MSRA weights, rather than in the 3x3.
        squeeze_excitation: a gate on the channels at the end of every block (Hu et al. 2018).
        stochastic_depth: rate at which the last block's branch is left out in training, for each image by
            itself; it grows linearly from block to block (Huang et al. 2016).
        anti_alias: subsample by a blur after the blocks' strided 3x3 convolutions and the max pool (Zhang
            2019); stem and shortcuts keep their strides, as in timm's ``resnetblur50``.
        checkpointing: keep only the blocks' inputs for the backward pass and compute the rest again: less
            memory, about a third more time, the same result.
        strides: of the stem, the max pool and the stages ``layer2`` to ``layer4``: five entries of 1 or 2,
            each one number or one per axis, for scans with unequal spacing. A max pool of stride 1 is left
            out. None for all 2.
        inflation: how 2-D weights fill 3-D kernels, ``centre`` or ``mean``; see
            :func:`.weights.load_weights`.

    Raises:
        ValueError: if an argument is not one of the values above or has no effect on the network asked for,
            or the weights do not fit.
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
        ndim: Dimensions = 2,
        groups: int = 1,
        width_per_group: int = 64,
        width: int = 64,
        activation: Activation = "relu",
        pre_activation: bool = False,
        stem: Stem = "7x7",
        shortcut: Shortcut = "projection",
        stride_in_1x1: bool = False,
        squeeze_excitation: bool = False,
        stochastic_depth: float = 0.0,
        anti_alias: bool = False,
        checkpointing: bool = False,
        strides: list[int | list[int]] | None = None,
        inflation: Inflation = "centre",
    ) -> None:
        super().__init__()
        _check_choices(depth, frozen_stages, output_stride, stem, inflation)
        check_common(ndim, norm, activation, shortcut, in_channels, width, stochastic_depth)
        block, counts = ARCHITECTURES[depth]
        options = BlockOptions(
            ndim=ndim,
            norm=norm,
            activation=activation,
            shortcut=shortcut,
            groups=groups,
            width_per_group=width_per_group,
            stride_in_1x1=stride_in_1x1,
            squeeze_excitation=squeeze_excitation,
            anti_alias=anti_alias,
        )
        _check_block(block, options, width)
        self.depth, self.ndim = depth, ndim
        self.groups, self.width_per_group, self.stride_in_1x1 = groups, width_per_group, stride_in_1x1
        self.checkpointing = checkpointing
        first, pool, *steps = check_strides(strides, ("stem", "max pool", "layer2", "layer3", "layer4"), ndim)
        self._build_stem(stem, in_channels, width, (first, pool), options, pre_activation)
        steps, stride = [(1,) * ndim, *steps], times(first, pool)
        widths = [width * 2**index for index in range(len(counts))]
        self._build_stages(
            block, counts, widths, steps, stride, options, pre_activation, stochastic_depth, output_stride
        )
        initialise_trunk(self)
        if zero_init_residual:
            self._zero_branches(norm, shortcut)
        if weights is not None and not pretrained_is_skipped():
            family, network = _published(depth, options, width, pre_activation, stem)
            load_weights(self, torchvision_name(weights, family, network), inflation=inflation)
        warn_of_frozen(weights, frozen_stages=frozen_stages, norm=norm == "frozen_batch" and norm)
        self._freeze_stages(frozen_stages)

    def _build_stem(
        self,
        stem: Stem,
        inputs: int,
        width: int,
        strides: tuple[Axes, Axes],
        options: BlockOptions,
        pre_activation: bool,
    ) -> None:
        first, pool = strides
        self.conv1 = _make_stem(stem, inputs, width, first, options)
        if not pre_activation:
            self.bn1 = options.make_norm(width)
            self.relu = options.make_activation()
        self.maxpool = _make_pool(width, pool, options.anti_alias)

    def expectations(self, layout: str, **facts: Any) -> dict[str, Any]:
        """Say where bottlenecks of that layout have their stride, if ours have it elsewhere."""
        wanted = facts.get("stride_in_1x1", self.stride_in_1x1)
        return {} if wanted == self.stride_in_1x1 else {"stride_in_1x1": wanted}

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute C2 to C5 of ``image`` ``[B, in_channels, *S]``; sizes are rounded up at each halving."""
        return self._run_stages(self.maxpool(self._run_stem(image)))

    def _run_stem(self, image: Tensor) -> Tensor:
        # A function of its own: its output, the largest map, must not be kept while the stages run.
        if self.pre_activation:
            return self.conv1(image)
        return self.relu(conv_then_norm(self.conv1, self.bn1, image))


def _check_choices(depth: int, frozen_stages: int, output_stride: int, stem: str, inflation: str) -> None:
    check_choice("depth", depth, get_args(Depth))
    check_choice("frozen_stages", frozen_stages, tuple(range(6)))
    check_choice("output_stride", output_stride, get_args(OutputStride))
    check_choice("stem", stem, get_args(Stem))
    check_choice("inflation", inflation, get_args(Inflation))


def _check_block(block: type[ResidualBlock], options: BlockOptions, width: int) -> None:
    if block is BasicBlock:
        for name, value in (("groups", 1), ("width_per_group", 64), ("stride_in_1x1", False)):
            if getattr(options, name) != value:
                raise ValueError(
                    f"{name} is for bottlenecks (depth 26, 50 and up); basic blocks have none: set {name} to "
                    f"{str(value).lower()}"
                )
    if options.groups < 1 or options.width_per_group < 1 or width * options.width_per_group < 64:
        raise ValueError(
            f"groups {options.groups} and width_per_group {options.width_per_group} leave no channel; both "
            "must be at least 1, and width * width_per_group at least 64"
        )
    if options.anti_alias and options.stride_in_1x1:
        raise ValueError("anti_alias blurs after the 3x3 convolution; it needs stride_in_1x1: false")


def _published(
    depth: int, options: BlockOptions, width: int, pre_activation: bool, stem: Stem
) -> tuple[str | None, str]:
    """Return what torchvision calls a network with these parameters, if it has it, and how errors call it."""
    usual = {
        "groups": (options.groups, 1),
        "width_per_group": (options.width_per_group, 64),
        "width": (width, 64),
        "stem": (stem, "7x7"),
        "pre_activation": (pre_activation, False),
        "shortcut": (options.shortcut, "projection"),
        "squeeze_excitation": (options.squeeze_excitation, False),
    }
    other = [f"{name} {str(value).lower()}" for name, (value, default) in usual.items() if value != default]
    network = ", ".join([f"depth {depth}", *other])
    if all(note.startswith(("groups", "width_per_group", "shortcut average")) for note in other):
        return TORCHVISION_FAMILIES.get((depth, options.groups, options.width_per_group)), network
    return None, network


def _make_stem(stem: Stem, inputs: int, width: int, stride: Axes, options: BlockOptions) -> nn.Module:
    if stem == "7x7":
        return options.make_conv(inputs, width, 7, stride)
    inner = max(1, width // 2)
    return ConvNormSequential(
        options.make_conv(inputs, inner, 3, stride),
        options.make_norm(inner),
        options.make_activation(),
        options.make_conv(inner, inner, 3),
        options.make_norm(inner),
        options.make_activation(),
        options.make_conv(inner, width, 3),
    )


def _make_pool(channels: int, stride: Axes, anti_alias: bool) -> nn.Module:
    if max(stride) == 1:
        return nn.Identity()
    if anti_alias:
        return nn.Sequential(make_max_pool(3, (1,) * len(stride)), BlurPool(channels, stride))
    return make_max_pool(3, stride)
