"""When the last state of a run is saved besides ends of epochs and validations: ``--save_every``."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass
class SaveEvery:
    """A number of optimiser steps or a time between two checkpoints.

    Attributes:
        steps: from one to the next; 0 for not by steps.
        seconds: likewise; 0 for not by time.
    """

    steps: int = 0
    seconds: float = 0.0
    _saved: float = field(default_factory=time.monotonic)

    @classmethod
    def parse(cls, value: str | int | None) -> SaveEvery:
        """Read an option: ``500`` for steps, ``30s``, ``10m`` or ``2h`` for a time, None for neither.

        Raises:
            ValueError: if it is none of these, or not above 0.
        """
        if value is None:
            return cls()
        number = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([smh]?)\s*", str(value))
        amount = float(number[1]) if number else 0.0
        if number is None or amount <= 0 or (not number[2] and amount != int(amount)):
            raise ValueError(
                f"--save_every {value}: expected a number of optimiser steps such as 500, or a time such as "
                "30s, 10m or 2h, above 0"
            )
        return cls(seconds=amount * UNITS[number[2]]) if number[2] else cls(steps=int(amount))

    def due(self, step: int) -> bool:
        """Return whether it is time, after an optimiser step."""
        late = bool(self.seconds) and time.monotonic() - self._saved >= self.seconds
        return late or (bool(self.steps) and step % self.steps == 0)

    def saved(self) -> None:
        """Begin to count anew."""
        self._saved = time.monotonic()
