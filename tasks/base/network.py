"""A trunk, a neck and a head as one Lightning module: composition, input, and the copy for inference.

Letters in shapes: B images, C channels, S spatial axes of the padded canvas (H, W or D, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, Self

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.core.mixins.hparams_mixin import _given_hyperparameters
from pytorch_lightning.strategies import Strategy
from torch import Tensor

from ...backbones.base import Backbone, FeatureLevel
from ...backbones.constants import WithConstants, move_constants
from ...backbones.maps import check_maps, single_value
from ...backbones.optimised import optimised
from ...backbones.weights.files import require_stored
from ...backbones.weights.load import (
    check_pixels,
    explain_mismatch,
    load_weights,
    pretrained_is_skipped,
    skip_pretrained,
)
from ...data.shared.trusted import checked_settings
from ...evaluation.base import Evaluator
from ...heads.base import Head
from ..run.experiment import Command
from .optimization import OptimizationOptions, Recipe

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by number of axes


class Network(WithConstants, LightningModule):
    """A Lightning module composed of a trunk, an optional neck and a head; :class:`.task.Task` trains it.

    Under the command line the constructor's arguments are stored as plain dictionaries, so a checkpoint
    opens with ``weights_only=True`` and rebuilds the model by itself. A task composed in Python stores none:
    pass the same parts to ``load_from_checkpoint``.

    Args:
        backbone: the trunk.
        head: builds the head from the levels that the trunk (or the neck) declares.
        neck: builds the neck around the trunk, or None.
        optimizer: builds the optimiser from parameter groups; None for SGD with the task's usual
            rate (:meth:`default_optimizer`).
        lr_scheduler: builds the learning-rate schedule from the optimiser; None for a constant rate.
        optimization: warm-up, schedule interval, the trunk's rate, weight decay of norms and biases.
        weights: a file or a torchvision weights name to start the whole task from, or None.
        channels_last: keep the weights of convolutions and images in channels-last memory order (faster on
            most GPUs). Not for ``group`` and ``instance`` norms: on GPUs torch's copy every map to
            channels first.
        matmul_precision: of float32 matrix products on GPUs, for the whole process, while a trainer runs the
            task: ``highest``, ``high`` (TF32, several times as fast) or ``medium``; see
            ``torch.set_float32_matmul_precision``. None leaves it as it is. torch lets convolutions use TF32
            anyway.
        pixel_mean: of uint8 images, per channel or one for all channels, on the 0..1 scale.
        pixel_std: the same for the standard deviation.
        skip_nonfinite_steps: how many optimiser steps of a run may be left out because their loss or a
            gradient is not finite; with 0 the first such loss ends it. On a GPU this synchronises the device
            once a step, unless the optimiser is a fused Adam, AdamW or SGD without momentum.

    Raises:
        ValueError: if parts do not fit each other, or ``weights`` do not fit the model.
    """

    command: Command = Command()  # that started the run
    pixel_factor: Tensor
    pixel_shift: Tensor

    def __init__(
        self,
        backbone: Backbone,
        head: Callable[[Sequence[FeatureLevel]], Head],
        neck: Callable[[Backbone], Backbone] | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        optimization: OptimizationOptions = OptimizationOptions(),
        weights: str | None = None,
        channels_last: bool = False,
        matmul_precision: Literal["highest", "high", "medium"] | None = None,
        pixel_mean: Sequence[float] = IMAGENET_MEAN,
        pixel_std: Sequence[float] = IMAGENET_STD,
        skip_nonfinite_steps: int = 0,
    ) -> None:
        super().__init__()
        if skip_nonfinite_steps < 0:
            raise ValueError(f"skip_nonfinite_steps is {skip_nonfinite_steps}; it must be at least 0")
        self.skip_nonfinite_steps = skip_nonfinite_steps
        if _given_hyperparameters.get() is not None:  # set by the command line and by load_from_checkpoint
            self.save_hyperparameters()
        self.backbone = backbone if neck is None else neck(backbone)
        for part in (backbone, self.backbone):
            if not part.levels:
                raise ValueError(
                    f"{type(part).__name__} declares no levels; a backbone sets self.levels, a FeatureLevel "
                    "for each map that it returns"
                )
        self.head = head(self.backbone.levels)
        self.make_optimizer = self.default_optimizer if optimizer is None else Recipe(optimizer)
        self.make_scheduler = None if lr_scheduler is None else Recipe(lr_scheduler)
        self.optimization = optimization
        self.channels_last = channels_last
        self.matmul_precision = matmul_precision
        self._checked_sizes: set[tuple[int, ...]] = set()  # of images, on which maps are as declared
        if min(pixel_std) <= 0:
            raise ValueError(f"pixel_std must be positive, not {tuple(pixel_std)}")
        self.pixel_mean, self.pixel_std = (
            torch.tensor(pixel_mean),
            torch.tensor(pixel_std),
        )  # [C], for readers
        self._pixel_channels = len(pixel_mean), len(pixel_std)
        mean, std = self.pixel_mean.double(), self.pixel_std.double()
        self.set_constant("pixel_factor", lambda: (1 / (255 * std)).float())  # [C]
        self.set_constant("pixel_shift", lambda: (-mean / std).float())
        if weights is not None and not pretrained_is_skipped(task=True):
            self.load_pretrained(weights)
        check_pixels(self, pixel_mean, pixel_std)
        if channels_last:
            for parameter in self.parameters():
                if parameter.ndim in CHANNELS_LAST:
                    parameter.data = parameter.data.contiguous(memory_format=CHANNELS_LAST[parameter.ndim])

    def load_pretrained(self, source: str) -> None:
        """Load the ``weights`` that the whole task starts from, see :func:`.weights.load_weights`."""
        load_weights(self, source)

    @staticmethod
    def default_optimizer(parameters: Any) -> torch.optim.Optimizer:
        """SGD as in the detection recipes of He et al.: rate 0.02 for 16 images, momentum 0.9, decay 1e-4."""
        return torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=1e-4)

    @property
    def trunk(self) -> Backbone:
        """The backbone below the neck, or the backbone itself."""
        return self.backbone.trunk

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Rebuild a task from a checkpoint; the trunk's pretrained weights are not fetched again.

        Opens the file with ``weights_only=True`` unless told otherwise. Then classes that the file names have
        to be of this package, of the libraries that it builds on, or of packages whose models, metrics or
        data modules the program has imported. Arguments as in ``LightningModule.load_from_checkpoint``.

        Raises:
            UntrustedClassError: if the file names others; ``weights_only=False`` trusts it as a program.
        """
        kwargs.setdefault("weights_only", True)
        checked = checked_settings(checkpoint_path, "hyper_parameters", kwargs["weights_only"], [Evaluator])
        if isinstance(checkpoint_path, str | PathLike) and kwargs["weights_only"] is not False:
            require_stored(checkpoint_path)
        with skip_pretrained(), checked:
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a state dict as any module does; where it is of another model, say in what they differ.

        Raises:
            ValueError: if tensors are missing, unknown or of another shape.
        """
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            raise ValueError(explain_mismatch(self, state_dict, "the checkpoint")) from error

    @torch.inference_mode(False)
    def optimised(self) -> Self:
        """Return a copy for inference, faster and with the same outputs up to rounding.

        See :func:`.optimised.optimised` for what is done. Train the task itself, not the copy: its norms are
        gone, and its weights do not load back. The copy has the number type of the task.

        Raises:
            ValueError: if the task's weights are floating point of 8 bits.
        """
        axes = len(self.backbone.levels[0].stride)
        some = next(self.parameters())
        exact = torch.promote_types(some.dtype, torch.float32)  # in which norms are folded
        size = tuple(2 * step for step in self.backbone.levels[-1].stride)  # no map is a single cell
        generator = torch.Generator().manual_seed(0)
        example = torch.randn(1, self.trunk.image_channels or 3, *size, generator=generator).to(
            some.device, exact
        )
        attached = {id(self._trainer): None}
        copy = optimised(self, lambda task: task.head(task.backbone(example), size), attached)
        copy.channels_last = copy.channels_last or axes == 2
        return copy

    def prepare_device(self, strategy: Strategy) -> None:
        """Prepare the device of a run, before the network moves there."""
        if self.matmul_precision is not None and strategy.root_device.type != "cpu":
            torch.set_float32_matmul_precision(self.matmul_precision)
        if strategy.restore_checkpoint_after_setup:  # those that shard move parameters and buffers alone
            move_constants(self, strategy.root_device)
        # In bf16-true and 16-true Lightning would cast whole batches: half precision moves boxes by pixels.
        # Images are brought to the network's type by normalise().
        strategy.precision_plugin.convert_input = lambda data: data  # type: ignore[method-assign]

    def require_sound_precision(self, device: torch.device, precision: str) -> None:
        """Refuse to train where torch computes wrong gradients.

        Raises:
            ValueError: for volumes in bfloat16 on a CPU. There (torch 2.15) the gradient of the weights of a
                3-D convolution over small maps reads memory that nobody has written.
        """
        volumes = len(self.backbone.levels[0].stride) == 3
        if volumes and device.type == "cpu" and precision.startswith("bf16"):
            raise ValueError(
                f"trainer.precision is {precision}, in which torch computes wrong gradients of 3-D "
                "convolutions on a CPU: give --trainer.precision 32-true"
            )

    def require_fitting_trunk(self, channels: int, axes: int) -> None:
        """Raise a ValueError unless the trunk takes images with these numbers of channels and axes."""
        images = "scans (three axes)" if axes == 3 else "2D (two axes)"
        ndim = len(self.backbone.levels[0].stride)
        if ndim != axes:
            raise ValueError(
                f"the images are {images}, the trunk has {ndim}; set --model.backbone.ndim {axes} and "
                f"--model.backbone.in_channels {channels}, or give other images"
            )
        wanted = self.trunk.image_channels
        if wanted not in (channels, None):
            raise ValueError(
                f"the images have {channels} channel{'s' if channels > 1 else ' only'}, the trunk takes "
                f"{wanted}; set --model.backbone.in_channels {channels}, or give other images"
            )

    def run(self, normalised: Tensor) -> Any:
        """Run trunk, neck and head on normalised images ``[B, C, *S]``: raw outputs.

        Raises:
            ValueError: if the maps are not those that the backbone declares, or a norm gets a single value to
                compute statistics from.
        """
        size = tuple(normalised.shape[2:])
        try:
            features = self.backbone(normalised)
            # While torch.compile reads the code, always: looking at a set would make it compile anew later.
            if torch.compiler.is_compiling():
                check_maps(self.backbone, features, size)
            elif size not in self._checked_sizes:
                check_maps(self.backbone, features, size)
                self._checked_sizes.add(size)
            return self.head(features, size)
        except ValueError as error:
            reason = single_value(str(error), len(normalised), size)
            if reason is None:
                raise
            raise ValueError(reason) from error

    def normalise(self, image: Tensor, image_sizes: Tensor) -> Tensor:
        """Bring images to the trunk's input scale, on their own device.

        A pixel v becomes v / (255 std) - mean / std in float32, which differs from (v / 255 - mean) / std by
        rounding (at most 1e-6 for ImageNet's constants). Memory order and number type are the network's, so
        that there are two passes over the images and no further ones: under autocast, and for weights of half
        precision, the result is what the first convolution would round its input to.

        Args:
            image: ``[B, C, *S]`` uint8, or floating point that is normalised already (scans).
            image_sizes: ``[B, n]`` int64, the size of each image inside the canvas.

        Returns:
            ``[B, C, *S]`` in the type of the weights, or of autocast; zero (the mean colour) outside each
            image, as if padded after normalising.

        Raises:
            ValueError: if uint8 images have another number of channels than ``pixel_mean``.
        """
        order = CHANNELS_LAST[image.ndim] if self.channels_last else torch.contiguous_format
        wanted, inside = self._input_type(image.device), self._inside(image, image_sizes)
        if image.is_floating_point():
            return (image * inside).to(wanted, memory_format=order)
        shift, factor = self._scale(image)
        if torch.compiler.is_compiling():  # which fuses all of it, and would lose the order of ``out``
            return (torch.addcmul(shift, image, factor) * inside).to(wanted, memory_format=order)
        normalised = torch.empty(image.shape, dtype=wanted, device=image.device, memory_format=order)
        return torch.addcmul(shift, image, factor, out=normalised).mul_(inside)

    def _scale(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``[C, 1, ...]`` what is added to uint8 images, and what they are multiplied by before."""
        for count in self._pixel_channels:
            if count not in (1, image.shape[1]):
                mean, std = self._pixel_channels
                raise ValueError(
                    f"the images have {image.shape[1]} channels, pixel_mean {mean} and pixel_std {std}; set "
                    "--model.pixel_mean and --model.pixel_std"
                )
        shape = (-1,) + (1,) * (image.ndim - 2)  # [C] -> [C, 1, 1]
        return self.pixel_shift.view(shape), self.pixel_factor.view(shape)

    def _input_type(self, device: torch.device) -> torch.dtype:
        """Return the number type that the first layer computes in."""
        # torch 2.11 cannot compile the first question, whose answer only differs on devices without autocast.
        known = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device.type)
        if known and torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        return next((weight.dtype for weight in self.backbone.parameters()), torch.float32)

    @staticmethod
    def _inside(image: Tensor, image_sizes: Tensor) -> Tensor:
        """Return ``[B, 1, *S]`` bool, where the canvas shows the image."""
        inside = None
        for axis, size in enumerate(image.shape[2:]):
            within = torch.arange(size, device=image.device) < image_sizes[:, axis, None]  # [B, size]
            shape = [len(image)] + [1] * (image.ndim - 1)
            shape[axis + 2] = size
            inside = within.view(shape) if inside is None else inside & within.view(shape)
        assert inside is not None  # images have two or three axes
        return inside
