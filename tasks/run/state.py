"""What a checkpoint holds beside Lightning's content, so that a run goes on exactly where it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytorch_lightning.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from torch import Tensor

from ...evaluation.distributed import gather_objects
from .loops import exact_counters, use_exact_loops
from .random_states import random_states, restore_random_states

KEY = "between_steps"  # of a checkpoint that was written when all of a step was done
FOLLOWED = ("_last_global_step_saved", "_defer_save_until_validation", "current_score")  # not restored


class RunState:
    """Stores and restores random states, metrics that callbacks look at, and the means of half an epoch."""

    def __init__(self) -> None:
        self._means: dict[str, Mapping[str, Tensor]] = {}

    def store(self, trainer: Any, checkpoint: dict[str, Any], between: bool) -> None:
        """Add the state of a run to a checkpoint. All processes must call it.

        Args:
            trainer: of the run.
            checkpoint: with Lightning's content; changed in place.
            between: whether all of a step is done. If not, the run goes on by Lightning's rules.
        """
        checkpoint["random_states"] = random_states()
        if not between:
            return
        checkpoint[KEY] = {
            "position": exact_counters(checkpoint["loops"]["fit_loop"]),
            "should_stop": bool(trainer.should_stop),
            "metrics": {
                "callback": _plain(trainer.callback_metrics),
                "logged": _plain(trainer.logged_metrics),
                "progress_bar": _plain(trainer.progress_bar_metrics),
            },
            "means": gather_objects(_means(trainer.fit_loop.epoch_loop._results)),
            "model_checkpoints": {
                each.state_key: {name: vars(each)[name] for name in FOLLOWED}
                for each in trainer.checkpoint_callbacks
                if isinstance(each, ModelCheckpoint)
            },
        }

    def load(self, trainer: Any, checkpoint: dict[str, Any]) -> None:
        """Take over a checkpoint; random states are restored right before the next batch is read.

        Args:
            trainer: its own state has not been restored.
            checkpoint: what is restored.
        """
        loops = use_exact_loops(trainer)
        state = checkpoint.get(KEY)
        position = None if state is None else state["position"]

        def first() -> None:
            if state is not None:
                self._restore(trainer, state)
            if checkpoint.get("random_states"):
                restore_random_states(checkpoint["random_states"], trainer.global_rank)

        loops.resumed = position
        if position == "epoch":
            loops.first = first
        else:
            loops.epoch_loop.first = first
        if state is not None:
            trainer.num_sanity_val_steps = 0  # it has validated; and it would clear the metrics
            trainer.should_stop = state["should_stop"]

    def _restore(self, trainer: Any, state: Mapping[str, Any]) -> None:
        connector = trainer._logger_connector
        connector._callback_metrics.update(state["metrics"]["callback"])
        connector._logged_metrics.update(state["metrics"]["logged"])
        connector._progress_bar_metrics.update(state["metrics"]["progress_bar"])
        for each in trainer.checkpoint_callbacks:
            if isinstance(each, ModelCheckpoint):
                kept = state["model_checkpoints"].get(each.state_key, {})
                vars(each).update({name: kept[name] for name in FOLLOWED if name in kept})
        if state["position"] == "step":
            for each in trainer.callbacks:
                if isinstance(each, GradientAccumulationScheduler):  # of which Lightning skips the hook
                    each.on_train_epoch_start(trainer)
            means = state["means"]
            if trainer.global_rank < len(means):
                self._go_on(trainer.fit_loop.epoch_loop._results, dict(means[trainer.global_rank]))

    def _go_on(self, results: Any, means: dict[str, Mapping[str, Tensor]]) -> None:
        """Let what is logged for an epoch go on from what was logged of it before."""
        self._means, update = means, results.update_metrics

        def updated(key: str, value: Any, batch_size: int) -> None:
            before = self._means.pop(key, None)
            if before is not None and results[key].is_tensor:
                for name, kept in before.items():
                    vars(results[key])[name] = kept.to(value.device)
            update(key, value, batch_size)

        results.update_metrics = updated

    def end_epoch(self) -> None:
        """Forget the means of before the resume: their epoch is at its end."""
        self._means.clear()


def _plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.detach().cpu().clone() if isinstance(value, Tensor) else value
        for name, value in metrics.items()
    }


def _means(results: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Return the sums of what is logged for the epoch under way, by Lightning's keys; no torchmetrics."""
    return {
        key: _plain({name: vars(metric)[name] for name in metric._defaults})
        for key, metric in results.items()
        if metric.meta.on_epoch and metric.is_tensor and not metric.has_reset
    }
