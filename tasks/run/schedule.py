"""The learning rate over the steps of a run, computed before it begins, and whether it fits the run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler, ReduceLROnPlateau, SequentialLR

# Whose rate rises on purpose.
CYCLIC = ("ConstantLR", "CyclicLR", "OneCycleLR", "CosineAnnealingWarmRestarts", "LambdaLR")
MOST_STEPS = 2_000_000  # that are computed; a few microseconds each
TINY = 1e-3  # of the highest rate: nothing is learned any more
LONG = 0.1  # of a run
SHOWN = 8  # turning points
FEW = 3  # drops are milestones, more are a smooth curve by epochs


@dataclass(frozen=True)
class Run:
    """How long a run is.

    Attributes:
        steps: optimiser steps in all.
        epoch_steps: optimiser steps of an epoch.
    """

    steps: int
    epoch_steps: int

    @property
    def epochs(self) -> float:
        """Epochs in all."""
        return self.steps / self.epoch_steps


def curve(
    configurations: Sequence[dict[str, Any]], optimizer: Optimizer, run: Run
) -> list[tuple[int, float]]:
    """Return ``(step, rate)`` for the first step, every step at which the rate changes, and the last one.

    Args:
        configurations: schedulers as :func:`.optimization.build_schedulers` returns them; they and their
            optimiser are used up.
        optimizer: of the schedulers. The rate is that of its first group.
        run: how long the run is.
    """
    by_epoch = [each["scheduler"] for each in configurations if each["interval"] == "epoch"]
    by_step = [each["scheduler"] for each in configurations if each["interval"] == "step"]
    busy = max((_last_change(each, run) for each in by_step), default=0)
    moves = sorted({*range(1, busy), *range(run.epoch_steps, run.steps, run.epoch_steps)})
    group = optimizer.param_groups[0]
    rates = [(0, float(group["lr"]))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no step of the optimiser came before
        for step in moves:
            for each in (
                *(by_step if step < busy else ()),
                *(by_epoch if step % run.epoch_steps == 0 else ()),
            ):
                each.step()
            rate = float(group["lr"])
            if rate != rates[-1][1]:
                rates.append((step, rate))
    if rates[-1][0] != run.steps - 1:
        rates.append((run.steps - 1, rates[-1][1]))
    return rates


def _last_change(scheduler: LRScheduler, run: Run) -> int:
    """Return the step after which a scheduler that counts steps changes nothing; early for a warm-up."""
    if isinstance(scheduler, LinearLR):
        return min(scheduler.total_iters + 1, run.steps)
    return run.steps


def schedule_problems(
    make_optimizer: Callable[[list[dict[str, Any]]], Optimizer],
    make_schedulers: Callable[[Optimizer], list[dict[str, Any]]],
    rate: float,
    run: Run,
) -> str:
    """Say how the schedules of a run do not fit its length; empty if they do.

    Args:
        make_optimizer: the optimiser of the run, from parameter groups.
        make_schedulers: the schedulers of the run, for an optimiser.
        rate: of the first group.
        run: how long the run is.

    Returns:
        A sentence for each problem, and the rate's start, turning points and end.

    Raises:
        ValueError: if a schedule cannot make as many steps as the run.
    """
    if not 1 < run.steps <= MOST_STEPS or run.epoch_steps < 1:
        return ""
    optimizer = make_optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))]}])
    optimizer.param_groups[0]["lr"] = rate
    configurations = make_schedulers(optimizer)
    schedulers = [each["scheduler"] for each in configurations]
    if not schedulers or any(isinstance(each, ReduceLROnPlateau) for each in schedulers):
        return ""  # constant, or not known beforehand
    warmup = max(
        (each["scheduler"].total_iters for each in configurations if each["name"] == "lr-warmup"), default=0
    )
    main = next((each for each in configurations if each["name"] == "lr"), None)
    never = [] if main is None else _beyond(main, run)
    try:
        rates = curve(configurations, optimizer, run)
    except ValueError as error:  # OneCycleLR makes no more steps than it was built for
        raise ValueError(
            f"the schedule ends before this run of {_length(run)}, and cannot go on ({error}); make it as "
            "long as the run (total_steps), in the unit of optimization.interval"
        ) from error
    found = _warmup(warmup, run) + never + _of_curve(rates, warmup, main, run)
    if not found:
        return ""
    return (
        f"the learning rate does not fit this run of {_length(run)}: {'; '.join(found)}.\n{told(rates, run)}"
    )


def _warmup(warmup: int, run: Run) -> list[str]:
    if warmup < run.steps:
        return []
    return [
        f"the warm-up takes {warmup} steps, so the full rate is never reached (optimization.warmup_steps)"
    ]


def _beyond(main: dict[str, Any], run: Run) -> list[str]:
    """Name what the main schedule has planned for after the end of the run."""
    scheduler, unit = main["scheduler"], main["interval"]
    length = run.epochs if unit == "epoch" else run.steps
    given = vars(scheduler)
    milestones = given["_milestones"] if isinstance(scheduler, SequentialLR) else given.get("milestones", ())
    late = [each for each in sorted(milestones) if each >= length]
    counted = f"counted in {unit}s (optimization.interval), of which the run has {length:g}"
    found = []
    if late:
        found.append(f"milestones {', '.join(map(str, late))} are never reached; they are {counted}")
    if given.get("step_size", 0) >= length:
        found.append(f"step_size {given['step_size']} is never reached; it is {counted}")
    for name in ("T_max", "total_iters", "total_steps"):
        if given.get(name, 0) > 1.3 * length:
            found.append(
                f"{name} {given[name]} is longer than the run, so the rate stays high; it is {counted}"
            )
    return found


def _last_schedule(scheduler: LRScheduler) -> tuple[LRScheduler, int]:
    """Return the last of schedules that follow each other, and the step or epoch at which it begins."""
    begin = 0
    while isinstance(scheduler, SequentialLR):
        begin += scheduler._milestones[-1] if scheduler._milestones else 0
        scheduler = scheduler._schedulers[-1]
    return scheduler, begin


def _of_curve(
    rates: Sequence[tuple[int, float]], warmup: int, main: dict[str, Any] | None, run: Run
) -> list[str]:
    """Find where the rate rises after the warm-up, is nearly zero for long, or falls at once."""
    highest = max(rate for _, rate in rates)
    after = [(step, rate) for step, rate in rates if step >= warmup]
    if main is None or not after or highest <= 0:
        return []
    found = []
    unit = main["interval"]
    last, begin = _last_schedule(main["scheduler"])
    begin *= run.epoch_steps if unit == "epoch" else 1
    of_last = [(step, rate) for step, rate in after if step >= begin]
    if type(last).__name__ not in CYCLIC and of_last:
        low_step, low = min(of_last, key=lambda each: each[1])
        rise = max((rate for step, rate in of_last if step > low_step), default=low)
        if rise - low > 0.02 * highest:
            found.append(
                f"it rises again after step {low_step}: {type(last).__name__} counts {unit}s "
                f"(optimization.interval), and its length is not that of the run"
            )
    ends = [step for step, _ in rates[1:]] + [run.steps]
    idle = sum(
        end - step
        for (step, rate), end in zip(rates, ends, strict=True)
        if rate < TINY * highest and step >= warmup
    )
    if idle > LONG * run.steps:
        found.append(f"it is below a thousandth of its highest value for {idle / run.steps:.0%} of the steps")
    early = max(0.01 * run.steps, 1)
    drops = [step for (_, before), (step, rate) in pairwise(rates) if rate < 0.5 * before]
    if unit == "step" and drops and max(drops) < early:
        found.append(
            f"all its drops are in the first {int(early)} steps: its milestones look like epochs, but it "
            "counts steps (optimization.interval)"
        )
    return found


def told(rates: Sequence[tuple[int, float]], run: Run) -> str:
    """Return the start, the turning points and the end of a curve as text."""
    extremes, drops = set(), set()
    triples = zip(rates, rates[1:], rates[2:], strict=False)
    for (_, before), (step, rate), (_, after) in triples:
        if (rate - before) * (after - rate) < 0:
            extremes.add((step, rate))
        if rate < before:
            drops.add((step, rate))
    turning = sorted(extremes | (drops if len(drops) <= FEW else set()))
    kept = turning if len(turning) <= SHOWN else turning[: SHOWN - 1] + turning[-1:]
    points = dict([rates[0], *kept, rates[-1]])
    lines = [
        f"  step {step:>8} (epoch {step / run.epoch_steps:.1f}): {rate:.3g}" for step, rate in points.items()
    ]
    if len(kept) < len(turning):
        lines.insert(SHOWN, f"  ... {len(turning) - len(kept)} further turning points")
    return "learning rate:\n" + "\n".join(lines)


def _length(run: Run) -> str:
    return f"{run.steps} steps ({run.epochs:.4g} epochs)"
