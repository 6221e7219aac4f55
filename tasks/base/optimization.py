"""Parameter groups, warm-up and schedules, as every task builds them from its YAML file."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler

from ..run.schedule import Run, schedule_problems

logger = logging.getLogger("trunkline")

Made = TypeVar("Made")

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
)


@dataclass(frozen=True)
class OptimizationOptions:
    """How the optimiser treats groups of parameters, and how the learning rate starts.

    Attributes:
        warmup_steps: optimiser steps over which the rate grows linearly to its full value; 0 for none.
        warmup_factor: the share of the full rate at the first step, in (0, 1].
        interval: whether the scheduler counts epochs or optimiser steps.
        trunk_lr_factor: the trunk's learning rate as a multiple of everybody else's.
        lr_factors: beginnings of parameter names to multiples of the learning rate, such as
            ``head.aux_classifier: 10``; the longest that fits counts, before ``trunk_lr_factor``.
        decay_norms_and_biases: whether weight decay also applies to normalisation layers and biases.
    """

    warmup_steps: int = 0
    warmup_factor: float = 0.001
    interval: Literal["epoch", "step"] = "epoch"
    trunk_lr_factor: float = 1.0
    lr_factors: dict[str, float] = field(default_factory=dict)
    decay_norms_and_biases: bool = True

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"optimization.warmup_steps must be 0 or more, not {self.warmup_steps}")
        if not 0 < self.warmup_factor <= 1:
            raise ValueError(f"optimization.warmup_factor must lie in (0, 1], not {self.warmup_factor}")
        if self.trunk_lr_factor <= 0:
            raise ValueError(
                f"optimization.trunk_lr_factor must be positive, not {self.trunk_lr_factor}; "
                "to keep the trunk as it is, set backbone.frozen_stages"
            )
        for name, factor in self.lr_factors.items():
            if factor <= 0:
                raise ValueError(f"optimization.lr_factors: {name} must be positive, not {factor}")


class Recipe(Generic[Made]):
    """What makes an optimiser or a schedule, by the config; copies of a model have it in common.

    That of the command line knows the whole command, with data and trainer, which averages of weights (EMA)
    would copy too. Those of a run of several processes cannot be copied.

    Args:
        make: takes what the optimiser or schedule is for.
    """

    def __init__(self, make: Callable[[Any], Made]) -> None:
        self._make = make

    def __call__(self, subject: Any) -> Made:
        """Make one."""
        return self._make(subject)

    def __deepcopy__(self, memo: dict[int, Any]) -> Recipe[Made]:
        return self


def parameter_groups(
    model: nn.Module, trunk: nn.Module, options: OptimizationOptions
) -> list[dict[str, Any]]:
    """Split the trainable parameters by rate and by weight decay.

    Returns:
        Optimiser groups, each with ``params``, ``name``, ``lr_factor`` and, where it applies,
        ``weight_decay: 0.0``. Groups without parameters are left out.

    Raises:
        ValueError: if a name in ``lr_factors`` begins no trainable parameter's name.
    """
    in_trunk = {id(parameter) for parameter in trunk.parameters()}
    of_norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, NORMS)
        for parameter in module.parameters(recurse=False)
    }
    unused = set(options.lr_factors)
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, factor = "branches", 1.0
        if id(parameter) in in_trunk:
            part, factor = "trunk", options.trunk_lr_factor
        fitting = [start for start in options.lr_factors if f"{name}.".startswith(f"{start}.")]
        unused -= set(fitting)
        if fitting:
            part = max(fitting, key=len)
            factor = options.lr_factors[part]
        norm_or_bias = id(parameter) in of_norms or name.endswith("bias")
        decayed = options.decay_norms_and_biases or not norm_or_bias
        if (part, decayed) not in groups:
            groups[part, decayed] = {
                "params": [],
                "name": part + ("" if decayed else ", no decay"),
                "lr_factor": factor,
                **({} if decayed else {"weight_decay": 0.0}),
            }
        groups[part, decayed]["params"].append(parameter)
    if unused:
        known = dict.fromkeys(".".join(name.split(".")[:2]) for name, _ in model.named_parameters())
        raise ValueError(
            f"optimization.lr_factors: no trainable parameter begins with {', '.join(sorted(unused))}; "
            f"there are {', '.join(known)}"
        )
    return list(groups.values())


def build_optimizer(
    make: Callable[[Iterable], Optimizer], model: nn.Module, trunk: nn.Module, options: OptimizationOptions
) -> Optimizer:
    """Build the optimiser and scale the rate of each group by its ``lr_factor``."""
    groups = parameter_groups(model, trunk, options)
    if not groups:
        raise ValueError("no parameter is trainable: everything is frozen; lower backbone.frozen_stages")
    try:
        optimizer = make(groups)
    except RuntimeError as error:  # such as fused and foreach together
        raise ValueError(f"the options of model.optimizer cannot be used: {error}") from error
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_factor"]
    return optimizer


def build_schedulers(
    optimizer: Optimizer, make: Callable[[Optimizer], LRScheduler] | None, options: OptimizationOptions
) -> list[dict[str, Any]]:
    """Build the scheduler configurations for Lightning.

    Warm-up (per step) and the main schedule (per epoch or step) multiply the rate independently, which
    holds for PyTorch's chainable schedulers (MultiStepLR, StepLR, CosineAnnealingLR, PolynomialLR, LambdaLR
    excepted). The main schedule is built first so that its base rate is the full one.
    """
    configurations = []
    if make is not None:
        scheduler = make(optimizer)
        configuration = {"scheduler": scheduler, "interval": options.interval, "name": "lr"}
        if hasattr(scheduler, "monitor"):  # Lightning's ReduceLROnPlateau carries the metric's name
            configuration["monitor"] = scheduler.monitor
        configurations.append(configuration)
    if options.warmup_steps > 0:
        warmup = LinearLR(optimizer, start_factor=options.warmup_factor, total_iters=options.warmup_steps)
        configurations.append({"scheduler": warmup, "interval": "step", "name": "lr-warmup"})
    return configurations


def warn_of_schedule(task: Any, trainer: Any) -> None:
    """Warn if the schedules of a task do not fit the run that begins; says nothing of runs without an end.

    Args:
        task: a :class:`.task.Task`.
        trainer: of the task, with its loaders.
    """
    steps = trainer.estimated_stepping_batches
    if not trainer.is_global_zero or math.isinf(steps) or len(trainer.optimizers) != 1:
        return
    group = trainer.optimizers[0].param_groups[0]
    problems = schedule_problems(
        task.make_optimizer,
        lambda optimizer: build_schedulers(optimizer, task.make_scheduler, task.optimization),
        group.get("initial_lr", group["lr"]),
        Run(int(steps), max(1, int(trainer.num_training_batches) // trainer.accumulate_grad_batches)),
    )
    if problems:
        logger.warning("%s", problems)
