"""Steps whose loss or gradients are not finite: they stop the run, or are left out, up to a number."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import Callback, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from ...evaluation.distributed import process_count
from .fused import FUSED

logger = logging.getLogger("trunkline")


class SkipNonFinite(Callback):
    """Leaves out optimiser steps of which the loss or a gradient is not finite, up to a number in a run.

    Weights, state of the optimiser and buffers (running statistics of norms) stay as they were; the schedule
    goes on. All processes decide alike. On a GPU the fused steps of Adam, AdamW and SGD without momentum are
    left out on the device, which is not synchronised; with any other optimiser it is, once a step. The
    gradients of 16-mixed precision may overflow: its scaler leaves out such steps by itself, and they do not
    count.

    Args:
        most: how many steps; 0 for none, and then nothing is done here. See ``model.skip_nonfinite_steps``.

    Attributes:
        skipped: how many steps of the run were left out.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.skipped = 0
        self._buffers: list[Tensor] | None = None  # as before the step
        self._image_ids: list[Tensor] = []  # of the batches of the step
        self._unchecked: tuple[Tensor, int, list[int], torch.cuda.Event] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped} if self.skipped else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = int(state_dict.get("skipped", 0))

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self.most:
            return
        if self._buffers is None:
            self._buffers = [buffer.detach().clone() for buffer in pl_module.buffers()]
        self._image_ids.append(batch.in_main_memory("image_ids"))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Decide whether the step is left out, and leave it out.

        Raises:
            FloatingPointError: if more steps than ``most`` were to be left out.
        """
        if not self.most:
            return
        self.finish(pl_module)  # the step before
        scaled = vars(trainer.precision_plugin).get("scaler") is not None
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        bad = pl_module.loss_check.take()
        if gradients and not scaled:
            bad = bad | ~torch.isfinite(torch.nn.utils.get_total_norm(gradients))
        if process_count() > 1:
            bad = bad.float()
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        bad, image_ids = bad.bool(), torch.cat(self._image_ids).tolist()
        self._image_ids = []
        if not scaled and skips_on_device(optimizer):
            optimizer.grad_scale, optimizer.found_inf = None, bad.float()  # type: ignore[attr-defined]
            self._restore_on_device(pl_module, bad)
        elif bool(bad):
            for parameter in parameters:
                parameter.grad = None  # optimisers do nothing to parameters without a gradient
            self._restore_on_device(pl_module, bad)
        self._buffers = None
        self._remember(bad, pl_module.global_step, image_ids)
        if not bad.is_cuda:
            self.finish(pl_module)

    def _restore_on_device(self, module: nn.Module, bad: Tensor) -> None:
        for buffer, before in zip(module.buffers(), self._buffers or (), strict=True):
            buffer.copy_(torch.where(bad, before, buffer))

    def _remember(self, bad: Tensor, step: int, image_ids: list[int]) -> None:
        copied = torch.cuda.Event() if bad.is_cuda else None
        host = bad
        if copied is not None:
            host = torch.empty((), dtype=torch.bool, pin_memory=True)
            host.copy_(bad, non_blocking=True)
            copied.record()
        self._unchecked = (host, step, image_ids, copied)  # type: ignore[assignment]

    def finish(self, task: Any) -> None:
        """Count the last step that has not been looked at, if there is one.

        Raises:
            FloatingPointError: if it is one too many.
        """
        if self._unchecked is None:
            return
        host, step, image_ids, copied = self._unchecked
        self._unchecked = None
        if copied is not None:
            copied.synchronize()
        if not bool(host):
            return
        self.skipped += 1
        what = task.loss_check.told.pop(step, "a gradient, or the loss of another process")
        text = (
            f"step {step}: not finite: {what}, on the images with ids {image_ids}; the step is left out "
            f"({self.skipped} of at most {self.most}, model.skip_nonfinite_steps)"
        )
        if self.skipped > self.most:
            raise FloatingPointError(
                f"{text}. Look at those images and their annotations; if they are sound, lower the learning "
                "rate, lengthen optimization.warmup_steps, or set trainer.gradient_clip_val"
            )
        logger.warning("%s", text)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.finish(pl_module)
        self._buffers = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Refuse to save weights that are not finite: the checkpoint of before is worth more.

        Raises:
            FloatingPointError: naming a parameter.
        """
        self.finish(pl_module)
        weights = [
            weight for weight in checkpoint.get("state_dict", {}).values() if weight.is_floating_point()
        ]
        by_device: dict[torch.device, list[Tensor]] = {}
        for weight in weights:
            by_device.setdefault(weight.device, []).append(weight)
        if all(bool(torch.isfinite(torch.nn.utils.get_total_norm(some))) for some in by_device.values()):
            return
        trained = {name for name, _ in pl_module.named_parameters()}
        for name, weight in checkpoint["state_dict"].items():
            if name in trained and not bool(torch.isfinite(weight).all()):
                raise FloatingPointError(
                    f"the weights {name} are not finite at step {trainer.global_step}, so no checkpoint is "
                    "written; those of before are as they were. A gradient was not finite though the loss "
                    "was: lower the learning rate, set trainer.gradient_clip_val, or leave such steps out by "
                    "--model.skip_nonfinite_steps"
                )


def skips_on_device(optimizer: Optimizer) -> bool:
    """Return whether an optimiser leaves out a step by a flag that lies on the device.

    Fused SGD with momentum does not: if it leaves out the first step, it goes on from memory that nobody has
    written (torch 2.15 and before).
    """
    fused = type(optimizer) in FUSED and all(group.get("fused") for group in optimizer.param_groups)
    return fused and not any(group.get("momentum") for group in optimizer.param_groups)
