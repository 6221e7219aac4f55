"""The base of all tasks: joins trunk, neck and head, and trains them.

Letters in shapes: B images, C channels, S spatial axes of the padded canvas (H, W or D, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.core.mixins.hparams_mixin import _given_hyperparameters
from torch import Tensor, nn

from ...backbones.base import Backbone, FeatureLevel
from ...backbones.optimised import optimised
from ...backbones.weights.load import (
    check_pixels,
    explain_mismatch,
    load_weights,
    pretrained_is_skipped,
    skip_pretrained,
)
from ...heads.base import Head
from .optimization import OptimizationOptions, build_optimizer, build_schedulers

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by number of axes


class Task(LightningModule):
    """A Lightning module composed of a trunk, an optional neck and a head.

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
            most GPUs).
        pixel_mean: of uint8 images, per channel or one for all channels, on the 0..1 scale.
        pixel_std: the same for the standard deviation.

    Raises:
        ValueError: if parts do not fit each other, or ``weights`` do not fit the model.
    """

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
        pixel_mean: Sequence[float] = IMAGENET_MEAN,
        pixel_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if _given_hyperparameters.get() is not None:  # set by the command line and by load_from_checkpoint
            self.save_hyperparameters()
        self.backbone = backbone if neck is None else neck(backbone)
        self.head = head(self.backbone.levels)
        self.make_optimizer = optimizer or self.default_optimizer
        self.make_scheduler = lr_scheduler
        self.optimization = optimization
        self.channels_last = channels_last
        # Plain tensors, not buffers: weight averaging would run rounding errors into constants.
        self.pixel_mean = torch.tensor(pixel_mean)  # [C]
        self.pixel_std = torch.tensor(pixel_std)
        if min(pixel_std) <= 0:
            raise ValueError(f"pixel_std must be positive, not {tuple(pixel_std)}")
        if weights is not None and not pretrained_is_skipped(task=True):
            self.load_pretrained(weights)
        check_pixels(self, pixel_mean, pixel_std)
        if channels_last:
            for parameter in self.parameters():
                if parameter.ndim in CHANNELS_LAST:
                    parameter.data = parameter.data.contiguous(memory_format=CHANNELS_LAST[parameter.ndim])
        self._unchecked: tuple[Tensor, list[str], Tensor, int, torch.cuda.Event] | None = None

    def load_pretrained(self, source: str) -> None:
        """Load the ``weights`` that the whole task starts from, see :func:`.weights.load_weights`."""
        load_weights(self, source)

    @staticmethod
    def default_optimizer(parameters: Any) -> torch.optim.Optimizer:
        """SGD as in the detection recipes of He et al.: rate 0.02 for 16 images, momentum 0.9, decay 1e-4."""
        return torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=1e-4)

    @property
    def trunk(self) -> nn.Module:
        """The backbone below the neck, or the backbone itself."""
        return getattr(self.backbone, "bottom_up", self.backbone)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Task:
        """Rebuild a task from a checkpoint; the trunk's pretrained weights are not fetched again.

        Opens the file with ``weights_only=True`` unless told otherwise. Arguments as in
        ``LightningModule.load_from_checkpoint``.
        """
        kwargs.setdefault("weights_only", True)
        with skip_pretrained():
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
        gone, and its weights do not load back.

        Raises:
            ValueError: if the task's weights are not float32.
        """
        axes = len(self.backbone.levels[0].stride)
        some = next(self.parameters())
        size = tuple(2 * step for step in self.backbone.levels[-1].stride)  # no map is a single cell
        generator = torch.Generator().manual_seed(0)
        example = torch.randn(1, self._image_channels(axes) or 3, *size, generator=generator).to(some)
        attached = {id(thing): None for thing in (self._trainer, self._unchecked)}
        found = optimised(self, lambda task: task.head(task.backbone(example), size), attached)
        found.channels_last = found.channels_last or axes == 2
        return found

    def _image_channels(self, axes: int) -> int | None:
        """How many channels the trunk reads; None where it does not begin with a convolution."""
        kernel = next((p for p in self.trunk.parameters() if p.ndim == axes + 2), None)
        return None if kernel is None else kernel.shape[1]

    def require_fitting_trunk(self, channels: int, axes: int) -> None:
        """Raise a ValueError unless the trunk takes images with these numbers of channels and axes."""
        images = "scans (three axes)" if axes == 3 else "pictures (two axes)"
        ndim = len(self.backbone.levels[0].stride)
        if ndim != axes:
            raise ValueError(
                f"the images are {images}, the trunk has {ndim}; set --model.backbone.ndim {axes} and "
                f"--model.backbone.in_channels {channels}, or give other images"
            )
        wanted = self._image_channels(axes)
        if wanted not in (channels, None):
            raise ValueError(
                f"the images have {channels} channel{'s' if channels > 1 else ' only'}, the trunk takes "
                f"{wanted}; set --model.backbone.in_channels {channels}, or give other images"
            )

    def normalise(self, image: Tensor, image_sizes: Tensor) -> Tensor:
        """Bring images to the trunk's input scale, on their own device.

        Args:
            image: ``[B, C, *S]`` uint8, or floating point that is normalised already (scans).
            image_sizes: ``[B, n]`` int64, the size of each image inside the canvas.

        Returns:
            ``[B, C, *S]`` float32; zero (the mean colour) outside each image, as if padded after
            normalising.

        Raises:
            ValueError: if uint8 images have another number of channels than ``pixel_mean``.
        """
        inside = torch.ones((), dtype=torch.bool, device=image.device)
        for axis, size in enumerate(image.shape[2:], start=2):
            within = torch.arange(size, device=image.device) < image_sizes[:, axis - 2, None]  # [B, size]
            shape = [len(image)] + [1] * (image.ndim - 1)
            shape[axis] = size
            inside = inside & within.view(shape)  # [B, 1, *S] in the end
        normalised = (image.float() if image.is_floating_point() else self._standardised(image)) * inside
        if self.channels_last:
            normalised = normalised.contiguous(memory_format=CHANNELS_LAST[image.ndim])
        return normalised

    def _standardised(self, image: Tensor) -> Tensor:
        """Subtract the mean from uint8 images ``[B, C, *S]`` and divide by the standard deviation."""
        for constants in (self.pixel_mean, self.pixel_std):
            if len(constants) not in (1, image.shape[1]):
                raise ValueError(
                    f"the images have {image.shape[1]} channels, pixel_mean {len(self.pixel_mean)} and "
                    f"pixel_std {len(self.pixel_std)}; set --model.pixel_mean and --model.pixel_std"
                )
        if self.pixel_mean.device != image.device:  # once: copies to the device make the host wait
            self.pixel_mean, self.pixel_std = (
                self.pixel_mean.to(image.device),
                self.pixel_std.to(image.device),
            )
        shape = (-1,) + (1,) * (image.ndim - 2)  # [C] -> [C, 1, 1]
        return (image.float() / 255 - self.pixel_mean.view(shape)) / self.pixel_std.view(shape)

    def configure_optimizers(self) -> dict[str, Any] | tuple[list, list]:
        optimizer = build_optimizer(self.make_optimizer, self, self.trunk, self.optimization)
        return [optimizer], build_schedulers(optimizer, self.make_scheduler, self.optimization)

    def total_loss(self, losses: dict[str, Tensor], image_ids: Tensor) -> Tensor:
        """Sum the named losses, and stop the run if the sum is not finite.

        On an accelerator the check looks at the previous step, so that the host does not wait for this one.
        """
        names, parts = list(losses), torch.stack([loss.float() for loss in losses.values()])
        total = parts.sum()
        if not parts.is_cuda:
            self._raise_if_not_finite(names, parts.detach(), image_ids, self.global_step)
            return total
        self.check_previous_loss()
        host = torch.empty(parts.shape, dtype=parts.dtype, pin_memory=True)
        host.copy_(parts.detach(), non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._unchecked = (host, names, image_ids, self.global_step, copied)
        return total

    def check_previous_loss(self) -> None:
        """Look at the loss of the last step that has not been looked at, if there is one."""
        if self._unchecked is not None:
            host, names, image_ids, step, copied = self._unchecked
            self._unchecked = None
            copied.synchronize()
            self._raise_if_not_finite(names, host, image_ids, step)

    @staticmethod
    def _raise_if_not_finite(names: list[str], parts: Tensor, image_ids: Tensor, step: int) -> None:
        if bool(torch.isfinite(parts).all()):
            return
        values = ", ".join(f"{name} = {value:.4g}" for name, value in zip(names, parts.tolist(), strict=True))
        raise FloatingPointError(
            f"the loss is not finite at step {step} ({values}) on the images with ids {image_ids.tolist()}. "
            "Look at those images and their annotations; if they are sound, lower the learning rate, "
            "lengthen optimization.warmup_steps, set trainer.gradient_clip_val, or use bf16-mixed rather "
            "than 16-mixed"
        )

    def on_train_epoch_end(self) -> None:
        self.check_previous_loss()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_previous_loss()  # weights that a non-finite loss has touched are not worth keeping

    def prediction_writer(self, folder: Path, pictures: bool, min_score: float) -> Callback:
        """Return the callback that writes this task's predictions under ``folder``.

        Args:
            folder: created where needed.
            pictures: whether to draw overlays beside the results file.
            min_score: predictions below this score are written to the results but not drawn.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement prediction_writer")
