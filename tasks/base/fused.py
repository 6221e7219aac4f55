"""Optimisers whose step is one kernel for all parameters, where torch has them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch.optim import Optimizer

FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
DEVICES = ("cuda",)  # elsewhere torch's choice is kept
KINDS = ("foreach", "fused")  # options of how a step is computed, not of what


def fused_where_possible(optimizer: Optimizer, trainer: Trainer | None) -> Optimizer:
    """Return an optimiser with the same groups and options whose step is fused, or the given one.

    Fused are torch's SGD, Adam and AdamW of parameters on CUDA, unless the config says ``fused`` or
    ``foreach`` itself. Exceptions: in mixed precision clipped gradients, which Lightning refuses because a
    fused step would scale those of ``16-mixed`` back after the clipping; in ``16-mixed`` SGD with momentum,
    whose fused step begins with memory that nobody has written if the first step overflows (torch 2.15 and
    before); and parameters that a strategy divides among processes.

    The state of a checkpoint is taken over without its ``fused`` and ``foreach``, which belong to the device.

    Args:
        optimizer: just built, without state.
        trainer: of the run, if there is one.

    Raises:
        ValueError: if the config asks for a fused step where it cannot be had.
    """
    precision = "" if trainer is None else str(trainer.precision)
    clipped = trainer is not None and bool(trainer.gradient_clip_val) and precision.endswith("-mixed")
    refused = clipped or (precision == "16-mixed" and bool(optimizer.defaults.get("momentum")))
    if refused and optimizer.defaults.get("fused"):
        raise ValueError(
            f"optimizer.fused true does not go with precision {precision} if "
            f"{'gradients are clipped (trainer.gradient_clip_val)' if clipped else 'SGD has momentum'}: "
            "leave fused out, or set --trainer.precision 32-true"
        )
    divided = trainer is not None and trainer.strategy.restore_checkpoint_after_setup
    if type(optimizer) in FUSED and not refused and not divided and _open(optimizer):
        options = {
            name: value for name, value in optimizer.defaults.items() if name in _parameters(optimizer)
        }
        groups = [{k: v for k, v in group.items() if k not in KINDS} for group in optimizer.param_groups]
        optimizer = type(optimizer)(groups, **{**options, "fused": True})
    optimizer.register_load_state_dict_pre_hook(_with_own_kind)
    return optimizer


def _parameters(optimizer: Optimizer) -> set[str]:
    return set(inspect.signature(type(optimizer)).parameters)


def _open(optimizer: Optimizer) -> bool:
    """Whether the config leaves open how a step is computed, and all parameters can have it fused."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return (
        all(optimizer.defaults[name] is None for name in KINDS)
        and not optimizer.defaults["differentiable"]
        and all(p.device.type in DEVICES and p.is_floating_point() for p in parameters)
    )


def _with_own_kind(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Replace in a state to load what says how steps were computed where it was saved."""
    own = {name: optimizer.defaults[name] for name in KINDS if name in optimizer.defaults}
    return {**state, "param_groups": [{**group, **own} for group in state["param_groups"]]}
