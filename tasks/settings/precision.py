"""Whether the precision of a run suits the device that it runs on."""

from __future__ import annotations

import logging

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.accelerators import CPUAccelerator, CUDAAccelerator

logger = logging.getLogger("trunkline")

AMPERE = (8, 0)  # compute capability of the first GPUs with bfloat16


def warn_of_precision(trainer: Trainer) -> None:
    """Warn if the precision costs speed on the trainer's device, as that of a config for other devices may.

    Args:
        trainer: with its devices chosen.
    """
    precision = str(trainer.precision)
    if not trainer.is_global_zero or not precision.endswith("-mixed"):
        return
    if isinstance(trainer.accelerator, CPUAccelerator):
        logger.warning(
            "trainer.precision is %s, which is made for GPUs; on this CPU it may be slower, and it is less "
            "exact: give --trainer.precision 32-true",
            precision,
        )
    elif isinstance(trainer.accelerator, CUDAAccelerator) and precision.startswith("bf16"):
        device = trainer.strategy.root_device
        if torch.cuda.get_device_capability(device) < AMPERE:
            logger.warning(
                "trainer.precision is %s, but the %s computes bfloat16 slowly: give --trainer.precision "
                "16-mixed",
                precision,
                torch.cuda.get_device_name(device),
            )
