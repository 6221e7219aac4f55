"""The residual and plain networks for small images of He et al. 2016, section 4.2.

Letters in shapes: B images, C channels, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from .blocks import BasicBlock, BlockOptions, Shortcut
from .layers import Activation, Dimensions, Inflation, Norm, check_choice, initialise_trunk
from .norms import conv_then_norm
from .residual import ResidualTrunk, check_common
from .weights.load import load_weights, pretrained_is_skipped, warn_of_frozen
from .weights.published import torchvision_name


class CifarResNet(ResidualTrunk):
    """Residual network for small images, with three levels of strides 1, 2 and 4 (He et al. 2016, 4.2).

    A 3x3 convolution and three stages of n basic blocks, 6n + 2 layers with the classifier: ResNet-20, 32,
    44, 56, 110 and 1202 of the paper. ``shortcut: none`` gives its plain networks.

    Args:
        depth: 6n + 2 for a whole n of at least 1.
        weights: None for a random start, or a file, see :func:`.weights.load_weights`.
        norm: every normalisation layer, as for :class:`.resnet.ResNet`.
        frozen_stages: 0 none, 1 the stem, 2 the stem and ``layer1``, ... 4 everything.
        in_channels: channels of the image.
        zero_init_residual: start every block as the identity.
        ndim: 2 for images, 3 for volumes.
        width: channels of the stem and of ``layer1``; the next stages have two and four times as many.
        activation: every activation.
        pre_activation: norm and activation before each convolution.
        shortcut: ``pad`` (the paper's: no parameters), ``projection``, ``average`` or ``none``.
        stochastic_depth: drop rate of the last block, as for :class:`.resnet.ResNet`.
        checkpointing: compute again instead of keeping, as for :class:`.resnet.ResNet`.
        inflation: how 2-D weights fill 3-D kernels, ``centre`` or ``mean``.

    Raises:
        ValueError: if an argument is not one of the values above, or the weights do not fit.
    """

    def __init__(
        self,
        depth: int = 20,
        weights: str | None = None,
        norm: Norm = "batch",
        frozen_stages: int = 0,
        in_channels: int = 3,
        zero_init_residual: bool = False,
        ndim: Dimensions = 2,
        width: int = 16,
        activation: Activation = "relu",
        pre_activation: bool = False,
        shortcut: Shortcut = "pad",
        stochastic_depth: float = 0.0,
        checkpointing: bool = False,
        inflation: Inflation = "centre",
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(
                f"depth is {depth}; a CIFAR network has 6n + 2 layers: 20, 32, 44, 56, 110, 1202"
            )
        check_choice("frozen_stages", frozen_stages, tuple(range(5)))
        check_choice("inflation", inflation, get_args(Inflation))
        check_common(ndim, norm, activation, shortcut, in_channels, width, stochastic_depth)
        self.depth, self.ndim, self.checkpointing = depth, ndim, checkpointing
        options = BlockOptions(ndim=ndim, norm=norm, activation=activation, shortcut=shortcut)
        one, two = (1,) * ndim, (2,) * ndim
        self.conv1 = options.make_conv(in_channels, width, 3)
        if not pre_activation:
            self.bn1 = options.make_norm(width)
            self.relu = options.make_activation()
        counts, widths = ((depth - 2) // 6,) * 3, (width, 2 * width, 4 * width)
        self._build_stages(
            BasicBlock, counts, widths, [one, two, two], one, options, pre_activation, stochastic_depth
        )
        initialise_trunk(self)
        if zero_init_residual:
            self._zero_branches(norm, shortcut)
        if weights is not None and not pretrained_is_skipped():
            load_weights(self, torchvision_name(weights, None, f"depth {depth}"), inflation=inflation)
        warn_of_frozen(weights, frozen_stages=frozen_stages, norm=norm == "frozen_batch" and norm)
        self._freeze_stages(frozen_stages)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute the three maps of ``image`` ``[B, in_channels, *S]``; sizes are rounded up."""
        if self.pre_activation:
            return self._run_stages(self.conv1(image))
        return self._run_stages(self.relu(conv_then_norm(self.conv1, self.bn1, image)))
