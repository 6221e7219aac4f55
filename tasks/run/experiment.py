"""Which experiment a checkpoint belongs to: the settings of the command that has written it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KEY = "experiment"


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
