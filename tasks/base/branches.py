"""The branches of a task: one for each head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...evaluation.base import Evaluator, Prediction
from .branch import Branch, branch_class

if TYPE_CHECKING:
    from .task import Task

Evaluators = list[Evaluator] | dict[str, list[Evaluator]]


def make_branches(task: Task, evaluators: Evaluators | None) -> dict[str, Branch]:
    """Build the branch of every head of a task, by the name of the head.

    Args:
        task: with its head.
        evaluators: what computes metrics instead of what the branches usually have.

    Raises:
        ValueError: if the evaluators name no head, or a head is not for the task.
    """
    heads = task.head.named_heads()
    chosen = {"": evaluators} if isinstance(evaluators, list) else dict(evaluators or {})
    unknown = sorted(set(chosen) - set(heads))
    if unknown:
        known = "a list, for there is one head" if "" in heads else f"one list for each of {list(heads)}"
        raise ValueError(f"model.evaluators names {unknown}; give {known}")
    branches: dict[str, Branch] = {}
    for name, head in heads.items():
        option = f"model.heads.{name}" if name else "model.head"
        kind = branch_class(task.branch_names.get(head.branch, head.branch), head, option)
        if task.kind and kind.kind != task.kind:
            raise ValueError(
                f"{option} is a {type(head).__name__}, a head for {kind.kind or head.branch}; "
                f"{type(task).__name__} takes heads for {task.kind}: choose another head, or another task"
            )
        branches[name] = kind(head, option, name)
        given = chosen.get(name)
        options: Mapping[str, Any] = task.evaluator_options.get(kind.kind, {})
        usual = branches[name].default_evaluators(**options)
        branches[name].evaluators = usual if given is None else given
    return branches


def per_image(predictions: dict[str, list[Prediction]]) -> list[dict[str, Prediction]]:
    """Turn lists by branch into dictionaries by image."""
    return [dict(zip(predictions, each, strict=True)) for each in zip(*predictions.values(), strict=True)]
