"""Lightning's training loops with a moment between two steps, and an exact beginning at such a moment.

Lightning 2.6 saves in the middle of a step: in a hook of the batch, of the validation after it, or of the end
of the epoch. What the step still has to do then (schedules that follow a metric, curves, other callbacks) is
lost at resume or done twice. Here checkpoints to go on from are written when all of a step is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pytorch_lightning.loops.fit_loop import _FitLoop
from pytorch_lightning.loops.loop import _Loop
from pytorch_lightning.loops.training_epoch_loop import RestartStage, _TrainingEpochLoop

Position = Literal["step", "epoch"]  # within an epoch, after a step; or after an epoch, before the next


def nothing(*_: Any) -> None:
    """Do nothing."""


class ExactEpochLoop(_TrainingEpochLoop):
    """An epoch that can begin after any of its optimiser steps.

    Attributes:
        between: called when an optimiser step and all that belongs to it is done, unless the epoch is at its
            end; with whether training ends here.
        first: called once before the next batch is read.
        resumed: whether the counters come from a checkpoint that was written between two steps.
    """

    between: Callable[[bool], None] = staticmethod(nothing)
    first: Callable[[], None] = staticmethod(nothing)
    resumed: Position | None = None

    def reset(self) -> None:
        """Begin an epoch; after a resume leave the counters as they are, all that they count is done."""
        if self.resumed == "step":
            self.resumed = None
            self.trainer.fit_loop._restarting = False  # else schedules by metrics miss the end of this epoch
            self.restarting = False
            self._restart_stage = RestartStage.NONE
        else:
            super().reset()

    def advance(self, data_fetcher: Any) -> None:
        first, self.first = self.first, nothing
        first()
        super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: Any) -> None:
        super().on_advance_end(data_fetcher)
        if not self._num_ready_batches_reached() and not self._should_accumulate():
            self.between(bool(self.done))


class ExactFitLoop(_FitLoop):
    """Epochs that can begin from a checkpoint between any two optimiser steps.

    Attributes:
        between: called when an epoch, its last validation and all that belongs to them is done.
        first: called once before the first epoch begins.
        resumed: as in :class:`ExactEpochLoop`.
    """

    between: Callable[[], None] = staticmethod(nothing)
    first: Callable[[], None] = staticmethod(nothing)
    resumed: Position | None = None
    epoch_loop: ExactEpochLoop

    def reset(self) -> None:
        if self.resumed == "epoch":  # with max_steps Lightning takes any resume for one within an epoch
            _Loop.restarting.fset(self, False)  # type: ignore[attr-defined]
        super().reset()
        self.epoch_loop.resumed, self.resumed = self.resumed, None

    def on_advance_start(self) -> None:
        if self.epoch_loop.resumed != "step":
            first, self.first = self.first, nothing
            first()
        super().on_advance_start()

    def on_advance_end(self) -> None:
        super().on_advance_end()
        if self.epoch_loop._num_ready_batches_reached():
            self.between()


def use_exact_loops(trainer: Any) -> ExactFitLoop:
    """Let a trainer train by these loops, with the state that its own have; return them."""
    if isinstance(trainer.fit_loop, ExactFitLoop):
        return trainer.fit_loop
    before = trainer.fit_loop
    fit = ExactFitLoop(trainer)
    epoch = ExactEpochLoop(trainer)
    vars(epoch).update(vars(before.epoch_loop))
    vars(fit).update(vars(before), epoch_loop=epoch)
    trainer.fit_loop = fit
    return fit


def exact_counters(loops: dict[str, Any]) -> Position:
    """Bring stored counters into the form that the loops here begin from.

    Args:
        loops: ``loops["fit_loop"]`` of a checkpoint that is written between two steps; changed in place.

    Returns:
        Whether an epoch is under way.
    """
    epochs = loops["epoch_progress"]["current"]
    position: Position = "step" if epochs["ready"] > epochs["completed"] else "epoch"
    if position == "epoch":
        batches = loops["epoch_loop.batch_progress"]
        batches["is_last_batch"] = False
        batches["current"] = dict.fromkeys(batches["current"], 0)
    return position
