"""The moving average of the weights (EMA), on the model's device, updated there by a few operators."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

logger = logging.getLogger("trunkline")


class WeightEMA(EMAWeightAveraging):
    """Lightning's ``EMAWeightAveraging`` without its copies between host and device.

    Lightning builds the average before the strategy moves the model, so it stays in main memory. Every update
    then copies the whole model to the host, tensor by tensor. Here the average follows the model and is
    updated by operators on lists of tensors, which synchronise nothing. Rates, steps, checkpoints,
    validation with the average, and the weights at the end are those of Lightning's callback, up to rounding.
    What is not floating point, such as the number of batches that a norm has seen, is copied.

    Args:
        decay: share of the old average that an update keeps, in [0, 1].
        update_every_n_steps: optimiser steps from one update to the next.
        update_starting_at_step: the first step, counted from 0, after which the average may be updated; None
            for the first of all. The first update copies the weights.
        update_starting_at_epoch: from this epoch on the average is updated at the end of epochs too; None for
            never.
        use_buffers: whether running statistics are averaged too; else those of the beginning are kept.
        device: where the average is; None for where the model is. ``cpu`` saves memory of the device and
            costs a copy of the whole model at every update.

    Raises:
        ValueError: if ``decay`` or ``update_every_n_steps`` is out of its range, or, when a run begins, if
            the strategy shards the model.
    """

    def __init__(
        self,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
        use_buffers: bool = True,
        device: str | None = None,
    ) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"WeightEMA: decay must lie in [0, 1], not {decay}")
        if update_every_n_steps < 1:
            raise ValueError(
                f"WeightEMA: update_every_n_steps must be at least 1, not {update_every_n_steps}"
            )
        super().__init__(
            device,
            use_buffers,
            decay,
            update_every_n_steps,
            update_starting_at_step,
            update_starting_at_epoch,
        )
        self._decay = decay

    @property
    def state_key(self) -> str:
        """That of Lightning's callback, so that each goes on from checkpoints of the other."""
        return EMAWeightAveraging.__qualname__

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            assert self._average_model is not None
            self._average_model = ListAverage(self._average_model.module, self._decay, self._use_buffers)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the average to where the strategy has put the model.

        Raises:
            ValueError: if the strategy has divided the model's weights among processes.
        """
        if trainer.strategy.restore_checkpoint_after_setup:  # strategies that shard say so
            raise ValueError(
                f"WeightEMA cannot average weights that {type(trainer.strategy).__name__} divides among "
                "processes; take WeightEMA out of trainer.callbacks, or set --trainer.strategy ddp"
            )
        assert self._average_model is not None
        self._average_model.module.to(self._device or pl_module.device)


class ListAverage(AveragedModel):
    """An average of a model's weights that is updated by operators on lists of tensors.

    ``n_averaged`` stays in main memory, where reading it does not synchronise the device.

    Args:
        average: a copy of the model, which becomes the average; it is not copied again.
        decay: share of the old average that an update keeps.
        use_buffers: whether buffers are averaged too.
    """

    def __init__(self, average: nn.Module, decay: float, use_buffers: bool) -> None:
        nn.Module.__init__(self)
        self.module = average
        self.register_buffer("n_averaged", torch.tensor(0))
        self.use_buffers = use_buffers
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Bring the average one update closer to the weights of ``model``; the first update copies them."""
        averages = list(_tensors(self.module, self.use_buffers))
        currents = list(_tensors(model, self.use_buffers))
        # Another device only where the user asked for it; another type in half precision.
        currents = [now.to(mean) for mean, now in zip(averages, currents, strict=True)]
        kept = self.decay if int(self.n_averaged) else 0.0
        by_kind: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
        for mean, now in zip(averages, currents, strict=True):
            means, nows = by_kind.setdefault((mean.device, mean.dtype), ([], []))
            means.append(mean)
            nows.append(now)
        for (_, dtype), (means, nows) in by_kind.items():
            if kept and dtype.is_floating_point:
                torch._foreach_lerp_(means, nows, 1 - kept)
            else:
                torch._foreach_copy_(means, nows)
        self.n_averaged += 1


def _tensors(model: nn.Module, use_buffers: bool) -> Any:
    return itertools.chain(model.parameters(), model.buffers() if use_buffers else ())


def warn_of_slow_average(trainer: Trainer) -> None:
    """Warn if a run on a device averages by Lightning's own callback, which copies the model to the host."""
    slow = any(type(callback) is EMAWeightAveraging for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if slow and trainer.strategy.root_device.type != "cpu" and trainer.is_global_zero:
        logger.warning(
            "EMAWeightAveraging keeps the average in main memory and copies the model there at every update; "
            "name WeightEMA in trainer.callbacks instead, which takes the same options and goes on from "
            "the same checkpoints"
        )
