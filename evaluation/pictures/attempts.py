"""Pictures never cost results: what goes wrong while one is drawn is said once, and the run goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from ..files import shown

T = TypeVar("T")

logger = logging.getLogger("trunkline")


class Attempts:
    """Draws and writes pictures as far as that is possible.

    Attributes:
        lost: how many pictures there are not.
    """

    def __init__(self) -> None:
        self.lost = 0
        self._full = False  # whether pictures cannot be written at all

    def attempt(self, what: str, draw: Callable[[], T]) -> T | None:
        """Return what ``draw`` returns; None if it fails, which is logged the first time.

        After an OSError, as of a full disk, nothing more is tried.

        Args:
            what: is drawn, for people: the image.
            draw: draws, and writes, a picture.
        """
        if self._full:
            self.lost += 1
            return None
        try:
            return draw()
        except Exception as error:  # of any kind: a picture is not worth a run
            self._full = isinstance(error, OSError)
            if not self.lost:
                logger.warning(
                    "no picture of %s: %s%s; the results are not affected, and %s",
                    shown(what),
                    "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: ",
                    error,
                    "no more pictures are drawn"
                    if self._full
                    else "pictures that fail from now on are only counted",
                )
            self.lost += 1
            return None

    def finish(self) -> None:
        """Log how many pictures there are not, if more than was said before, and forget them."""
        if self.lost > 1:
            logger.warning("%d pictures could not be drawn or written", self.lost)
        self.lost, self._full = 0, False
