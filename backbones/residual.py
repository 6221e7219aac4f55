"""What all residual trunks share: stages of blocks, their levels, and checks of common arguments.

Letters in shapes: B images, C channels, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from torch import Tensor, nn

from .base import Backbone, FeatureLevel
from .blocks import BlockOptions, Place, ResidualBlock, Shortcut
from .layers import Axes, Norm, check_choice, check_layers, run_checkpointed, times


class ResidualTrunk(Backbone):
    """Stages of residual blocks after a stem; :class:`.resnet.ResNet`, :class:`.cifar.CifarResNet` and
    :class:`.residual_encoder.ResidualEncoder` build the stem.

    The levels are the stages' outputs. With pre-activation they are what the next stage reads: the sum
    after its norm and activation; ``norm`` closes the last stage.
    """

    stage_names: tuple[str, ...]

    def _build_stages(
        self,
        block: type[ResidualBlock],
        counts: Sequence[int],
        widths: Sequence[int],
        steps: Sequence[Axes],
        stride: Axes,
        options: BlockOptions,
        pre_activation: bool = False,
        stochastic_depth: float = 0.0,
        output_stride: int | None = None,
        kernels: Sequence[Axes] | None = None,
    ) -> None:
        """Add the stages and declare their levels.

        Args:
            block: kind of block.
            counts: blocks per stage.
            widths: base width of each stage; the first is also the stem's.
            steps: stride of each stage, per axis.
            stride: of the stem, per axis.
            options: shared by all blocks.
            pre_activation: kind of block.
            stochastic_depth: drop rate of the last block.
            output_stride: largest stride; what exceeds it becomes dilation. None for no limit.
            kernels: of each stage's convolutions, per axis; None for 3 everywhere.
        """
        self.pre_activation = pre_activation
        self.stage_names = tuple(f"layer{index + 1}" for index in range(len(counts)))
        channels, dilation, levels, position = widths[0], (1,) * len(stride), [], 0
        for index, (name, count) in enumerate(zip(self.stage_names, counts, strict=True)):
            previous = dilation
            step, dilation = _trade_for_dilation(steps[index], dilation, stride, output_stride)
            stride = times(stride, step)
            stage = nn.Sequential()
            for number in range(count):
                position += 1
                rate = stochastic_depth * position / sum(counts)
                first = number == 0
                # A layer that has lost its stride still reads its input at the spacing of the stage before.
                place = Place(
                    channels,
                    widths[index],
                    step if first else (1,) * len(step),
                    (previous if first else dilation, dilation),
                    rate,
                    3 if kernels is None else kernels[index],
                )
                stage.append(block(place, options, pre_activation))
                channels = place.width * block.expansion
            self.add_module(name, stage)
            levels.append(FeatureLevel(channels, stride))
        self.levels = tuple(levels)
        if pre_activation:
            self.norm = options.make_norm(channels)
            self.act = options.make_activation()

    @property
    def blocks(self) -> list[ResidualBlock]:
        """All blocks, in order."""
        return [block for name in self.stage_names for block in getattr(self, name)]

    def _run(self, block: ResidualBlock, x: Tensor, activated: Tensor | None = None) -> Tensor:
        if not self.checkpointing or not self.training:
            return block(x, activated)
        return run_checkpointed(block, x, activated)

    def _run_stages(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for name in self.stage_names:
            first, *others = getattr(self, name)
            activated = None
            if self.pre_activation and maps:
                activated = first.activate(x)
                maps[-1] = activated
            x = self._run(first, x, activated)
            for block in others:
                x = self._run(block, x)
            maps.append(x)
        if self.pre_activation:
            maps[-1] = self.act(self.norm(x))
        return maps

    def _zero_branches(self, norm: Norm, shortcut: Shortcut) -> None:
        if norm == "frozen_batch" and not self.pre_activation:
            raise ValueError("zero_init_residual needs norms that learn; frozen_batch would keep the zeros")
        if shortcut == "none":
            raise ValueError("zero_init_residual needs shortcuts: without them nothing would pass a block")
        for block in self.blocks:
            block.zero_branch()

    def _freeze_stages(self, count: int) -> None:
        if count > 0:
            stem = ("conv1",) if self.pre_activation else ("conv1", "bn1")
            self.freeze(*stem, *self.stage_names[: count - 1])


def check_common(
    ndim: int,
    norm: str,
    activation: str,
    shortcut: str,
    in_channels: int,
    width: int,
    stochastic_depth: float,
) -> None:
    """Check what all residual trunks take."""
    check_layers(ndim, norm, activation, in_channels)
    check_choice("shortcut", shortcut, get_args(Shortcut))
    if width < 1:
        raise ValueError(f"width is {width}; a network has at least one channel")
    if not 0 <= stochastic_depth < 1:
        raise ValueError(f"stochastic_depth is {stochastic_depth}; a rate is at least 0 and below 1")
    if stochastic_depth and shortcut == "none":
        raise ValueError("stochastic_depth needs shortcuts: without them nothing would pass a dropped block")


def _trade_for_dilation(step: Axes, dilation: Axes, stride: Axes, limit: int | None) -> tuple[Axes, Axes]:
    """Turn a stage's stride into dilation along the axes where it would exceed the limit."""
    kept, spread = [], []
    for size, spacing, so_far in zip(step, dilation, stride, strict=True):
        exceeds = limit is not None and so_far * size > limit
        kept.append(1 if exceeds else size)
        spread.append(spacing * size if exceeds else spacing)
    return tuple(kept), tuple(spread)
