"""Whether the optimiser and the schedules of a run are those whose state its checkpoint holds."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .checkpoints import CheckpointError

# Of a group: compared on their own, no settings, or settings of how a step is computed.
NOT_STATED = ("params", "lr", "initial_lr", "name", "foreach", "fused")
CYCLED = ("momentum", "betas")  # that some schedulers change, if they say so by cycle_momentum
COUNTERS = ("self", "optimizer", "last_epoch", "verbose")


def names_of(optimizer: Optimizer, schedulers: Sequence[LRScheduler]) -> dict[str, Any]:
    """Return the classes of an optimiser and its schedulers, in plain values for a checkpoint."""
    return {"optimizer": _path(optimizer), "schedulers": [_path(each) for each in schedulers]}


def _path(part: object) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


def check_restored(
    checkpoint: Mapping[str, Any], optimizer: Optimizer, schedulers: Sequence[LRScheduler]
) -> None:
    """Compare what was built with what a checkpoint is about to bring.

    Lightning replaces learning rates, options and the lengths of schedules by those of the checkpoint without
    a word, and fails with an error of torch if the groups do not fit.

    Args:
        checkpoint: holds ``optimizer_states``, ``lr_schedulers`` and, unless it is an old one,
            ``optimization_classes`` of :func:`names_of`.
        optimizer: as it was built, before its state is restored.
        schedulers: likewise, in the order of the checkpoint.

    Raises:
        CheckpointError: naming each setting with both values.
    """
    states = checkpoint.get("optimizer_states") or []
    if len(states) != 1:
        return
    names = checkpoint.get("optimization_classes") or {}
    lines = _classes(names.get("optimizer"), _path(optimizer), "optimizer")
    lines = lines or _groups(states[0]["param_groups"], optimizer, schedulers)
    lines += _schedules(checkpoint.get("lr_schedulers") or [], names.get("schedulers"), schedulers)
    if lines:
        raise contradiction(lines)


def _classes(stored: str | None, now: str, what: str) -> list[str]:
    if stored is None or stored == now:
        return []
    return [f"{what}: {now} is asked for, the checkpoint has the state of {stored}"]


def _groups(
    stored: Sequence[Mapping[str, Any]], optimizer: Optimizer, schedulers: Sequence[LRScheduler]
) -> list[str]:
    now = optimizer.param_groups
    sizes = [len(group["params"]) for group in now], [len(group["params"]) for group in stored]
    if sizes[0] != sizes[1]:
        return [
            f"trainable parameters: {_in_groups(now)} here, {_in_groups(stored)} in the checkpoint; other "
            "frozen_stages, norm, trunk_lr_factor, lr_factors or decay_norms_and_biases than in the run"
        ]
    cycled = any(vars(each).get("cycle_momentum") for each in schedulers)
    found: dict[str, list[str]] = {}  # by what differs, the groups
    for group, other in zip(now, stored, strict=True):
        rates = [each.get("initial_lr", each["lr"]) for each in (group, other)]
        pairs = {"lr": (f"{rates[0]:g}", f"{rates[1]:g}")}
        for key in group:
            if key not in NOT_STATED and key in other and not (cycled and key in CYCLED):
                pairs[key] = (str(_plain(group[key])), str(_plain(other[key])))
        for key, (here, there) in pairs.items():
            if here != there:
                line = f"optimizer.{key}{{}}: {here} is asked for, the checkpoint has {there}"
                found.setdefault(line, []).append(str(group.get("name", "no name")))
    return [
        line.format("" if len(names) == len(now) else f" (parameters: {', '.join(names)})")
        for line, names in found.items()
    ]


def _in_groups(groups: Sequence[Mapping[str, Any]]) -> str:
    parts = [f"{len(group['params'])} ({group.get('name', 'no name')})" for group in groups]
    return " + ".join(parts) + f" tensor{'s' if len(parts) > 1 or len(groups[0]['params']) > 1 else ''}"


def _schedules(
    stored: Sequence[Mapping[str, Any]], names: Sequence[str] | None, schedulers: Sequence[LRScheduler]
) -> list[str]:
    if len(stored) != len(schedulers):
        return [
            f"lr_scheduler and warm-up: {len(schedulers)} schedule(s) here, {len(stored)} in the checkpoint"
        ]
    lines = []
    for number, (scheduler, state) in enumerate(zip(schedulers, stored, strict=True)):
        other = names[number] if names else None
        different = _classes(other, _path(scheduler), "lr_scheduler")
        lines += different or _arguments(scheduler, state)
    return lines


def _arguments(scheduler: LRScheduler, state: Mapping[str, Any]) -> list[str]:
    """Compare what the user states of a scheduler: the arguments of its constructor that it keeps."""
    stated = [name for name in inspect.signature(type(scheduler)).parameters if name not in COUNTERS]
    now = vars(scheduler)
    return [
        f"{type(scheduler).__name__}.{name}: {_told(now[name])} is asked for, the checkpoint has "
        f"{_told(state[name])}"
        for name in stated
        if name in now and name in state and _plain(now[name]) != _plain(state[name])
    ]


def _plain(value: Any) -> Any:
    """Return a value in which tuples and lists, and counters of milestones, compare equal."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _told(value: Any) -> str:
    return str(sorted(value.elements())) if isinstance(value, Counter) else str(value)


def contradiction(lines: list[str]) -> CheckpointError:
    """Return the error for settings that contradict the state in a checkpoint."""
    return CheckpointError(
        "the settings contradict the checkpoint that the run goes on from:\n  " + "\n  ".join(lines) + "\n"
        "a resumed run keeps its optimiser, schedule and trainable layers; leave these settings out to go "
        "on, or begin anew from the weights with --model.weights FILE in place of --ckpt_path FILE"
    )
