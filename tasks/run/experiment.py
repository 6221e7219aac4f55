"""Which experiment a checkpoint belongs to: the settings of the command that has written it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .changes import changes

KEY = "experiment"
SECTIONS = ("model", "data", "trainer", "seed_everything")

# What does not change where a run ends, up to rounding, or is handled when it goes on (number of processes),
# and what messages advise to go on with after a fault.
_FREE = (
    "data.allow_outside_root", "data.cache_folder", "data.check_images", "data.check_masks",
    "data.max_bad_images", "data.on_bad_image", "data.on_changed_data", "data.predict", "data.workers",
    "model.picture_score", "model.pictures", "model.skip_nonfinite_steps",
    "trainer.accelerator", "trainer.barebones", "trainer.default_root_dir", "trainer.devices",
    "trainer.enable_checkpointing", "trainer.enable_model_summary", "trainer.enable_progress_bar",
    "trainer.log_every_n_steps", "trainer.logger", "trainer.max_time", "trainer.num_nodes",
    "trainer.num_sanity_val_steps", "trainer.profiler", "trainer.strategy",
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """What the command of a run says beyond the settings of its parts.

    Attributes:
        going_on: words after ``trunkline`` that go on with the run; empty for a run started in Python.
        settings: of the experiment, as the command gave them, in plain values.
        save_every: see :class:`~trunkline.tasks.run.saving.SaveEvery`.
        automatic: whether the command goes on by itself when it is started again.
    """

    going_on: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    save_every: str | int | None = None
    automatic: bool = False

    def store(self, checkpoint: dict[str, Any]) -> None:
        """Let a checkpoint say which experiment it belongs to."""
        if self.settings:
            checkpoint[KEY] = dict(self.settings)


def differing(checkpoint: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return the keys by which a checkpoint belongs to another experiment; none if it is the same.

    A longer or shorter run of the same kind is the same experiment, as long as the checkpoint is not beyond
    its end.

    Args:
        checkpoint: with the settings of its command, see :meth:`Command.store`.
        settings: of the command that looks for its checkpoints.
    """
    found = []
    for key, (_, now) in changes(checkpoint[KEY], settings).items():
        done = {"trainer.max_epochs": epochs_of(checkpoint), "trainer.max_steps": steps_of(checkpoint)}
        longer = key in done and (now in (None, -1) or now >= done[key])
        if not longer and not key.startswith(_FREE):
            found.append(key)
    return found


def finished(checkpoint: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """Return what says that nothing is left to train of an experiment; None if something is.

    Args:
        checkpoint: of the experiment, written between two steps.
        settings: of the command.
    """
    trainer = settings.get("trainer") or {}
    for what, done in (("epochs", epochs_of(checkpoint)), ("steps", steps_of(checkpoint))):
        limit = trainer.get(f"max_{what}")
        if limit is not None and 0 <= limit <= done:
            return f"{done} {what} of {limit} are done"
    early = all(
        (trainer.get(f"min_{what}") or 0) <= done
        for what, done in (("epochs", epochs_of(checkpoint)), ("steps", steps_of(checkpoint)))
    )
    if checkpoint["between_steps"]["should_stop"] and early:
        return f"a callback has stopped it after step {steps_of(checkpoint)}"
    return None


def epochs_of(checkpoint: Mapping[str, Any]) -> int:
    """Return how many epochs a checkpoint has had."""
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {}).get("current", {})
    return int(progress.get("processed", 0))


def steps_of(checkpoint: Mapping[str, Any]) -> int:
    """Return how many optimiser steps a checkpoint has had."""
    return int(checkpoint.get("global_step", 0))
