"""The residual encoder of nnU-Net's U-Nets, with any number of stages (Isensee et al. 2024).

Letters in shapes: B images, C channels, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from torch import Tensor

from .blocks import BasicBlock, BlockOptions, Shortcut
from .layers import (
    Activation,
    Dimensions,
    Inflation,
    Norm,
    check_choice,
    check_kernels,
    check_strides,
    initialise_trunk,
)
from .norms import conv_then_norm
from .residual import ResidualTrunk, check_common
from .weights.load import load_weights, pretrained_is_skipped, warn_of_frozen
from .weights.published import torchvision_name


class ResidualEncoder(ResidualTrunk):
    """Residual trunk for U-Nets: any number of stages, the first at full resolution, a level for each.

    Isensee et al., "nnU-Net revisited", 2024 ("ResEnc"), and ``ResidualEncoder`` of their ``dynamic-network-
    architectures``: a convolution, norm and activation at full resolution, and stages of basic blocks, of
    which the first one has the stride. Where a block has a stride, its shortcut is an average pool, with a
    1x1 convolution and norm after it only if the channels change. The defaults are the widths, blocks and
    layers of their 3-D networks with six stages. What differs: convolutions before norms have no bias, which
    the norm would cancel. Maps of odd size are rounded up, where that one fails. The gate of
    ``squeeze_excitation`` comes before stochastic depth. Initial values count the fan out.

    Args:
        channels: of each stage, one entry per stage; the first is also the first convolution's.
        blocks: number of residual blocks of each stage.
        strides: of each stage, 1 or 2: one number, or one per axis for scans with unequal spacing. None for 1
            and then 2, 2, ...
        kernels: of both convolutions of each stage's blocks, 1, 3 or 5: one number, or one per axis, such as
            [1, 3, 3] while the spacing along the first axis is much coarser. The first convolution has the
            first stage's. None for 3.
        in_channels: channels of the image.
        ndim: 2 for images ``[B, C, H, W]``, 3 for volumes ``[B, C, D, H, W]``.
        norm: every normalisation layer, as for :class:`.resnet.ResNet`.
        activation: every activation.
        shortcut: where a block changes size or channels: ``average`` (see above), ``projection`` (strided 1x1
            convolution), ``pad`` or ``none``, as for :class:`.resnet.ResNet`.
        zero_init_residual: start every block as its shortcut by zeroing its last norm, as nnU-Net does.
        stochastic_depth: drop rate of the last block, as for :class:`.resnet.ResNet`.
        squeeze_excitation: a gate on the channels at the end of every block (Hu et al. 2018).
        checkpointing: compute again instead of keeping, as for :class:`.resnet.ResNet`.
        weights: None for a random start, or a file, see :func:`.weights.load_weights`.
        inflation: how 2-D weights fill 3-D kernels, ``centre`` or ``mean``.

    Raises:
        ValueError: if an argument is not one of the values above, or the weights do not fit.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (32, 64, 128, 256, 320, 320),
        blocks: tuple[int, ...] = (1, 3, 4, 6, 6, 6),
        strides: list[int | list[int]] | None = None,
        kernels: list[int | list[int]] | None = None,
        in_channels: int = 1,
        ndim: Dimensions = 3,
        norm: Norm = "instance",
        activation: Activation = "leaky_relu",
        shortcut: Shortcut = "average",
        zero_init_residual: bool = True,
        stochastic_depth: float = 0.0,
        squeeze_excitation: bool = False,
        checkpointing: bool = False,
        weights: str | None = None,
        inflation: Inflation = "centre",
    ) -> None:
        super().__init__()
        check_choice("inflation", inflation, get_args(Inflation))
        _check_stages(channels, blocks)
        check_common(ndim, norm, activation, shortcut, in_channels, min(channels), stochastic_depth)
        names = tuple(f"layer{index + 1}" for index in range(len(channels)))
        steps = check_strides([1, *[2] * (len(names) - 1)] if strides is None else strides, names, ndim)
        sizes = check_kernels("kernels", kernels, names, ndim)
        self.ndim, self.checkpointing = ndim, checkpointing
        options = BlockOptions(
            ndim=ndim,
            norm=norm,
            activation=activation,
            shortcut=shortcut,
            squeeze_excitation=squeeze_excitation,
            always_project=False,
        )
        self.conv1 = options.make_conv(in_channels, channels[0], sizes[0])
        self.bn1 = options.make_norm(channels[0])
        self.relu = options.make_activation()
        self._build_stages(
            BasicBlock,
            blocks,
            channels,
            steps,
            (1,) * ndim,
            options,
            stochastic_depth=stochastic_depth,
            kernels=sizes,
        )
        initialise_trunk(self)
        if zero_init_residual:
            self._zero_branches(norm, shortcut)
        if weights is not None and not pretrained_is_skipped():
            network = f"ResidualEncoder with channels {list(channels)}"
            load_weights(self, torchvision_name(weights, None, network), inflation=inflation)
        warn_of_frozen(weights, norm=norm == "frozen_batch" and norm)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute the stages' maps of ``image`` ``[B, in_channels, *S]``; sizes are rounded up."""
        return self._run_stages(self.relu(conv_then_norm(self.conv1, self.bn1, image)))


def _check_stages(channels: Sequence[int], blocks: Sequence[int]) -> None:
    if not channels or min(channels) < 1:
        raise ValueError(
            f"channels is {list(channels)}; give at least one stage, each with at least one channel"
        )
    if len(blocks) != len(channels) or min(blocks) < 1:
        raise ValueError(
            f"blocks is {list(blocks)}; give {len(channels)} numbers of at least 1, one per stage in channels"
        )
