"""One odd file of the collection, and what the package says when it meets it."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PLACE = "DATA"  # takes the place of the folder in messages


@dataclass(frozen=True)
class OddFile:
    """An odd file, or a few that are odd together.

    Attributes:
        name: of its folder in the collection: letters, digits and underscores.
        topic: the heading on the page under which it comes.
        oddity: what is odd about it, as a short phrase: "Boxes in fractions of the image".
        write: writes the files into an empty folder.
        read: gives the folder to the package. What it raises, warns or logs as a warning is the message.
            For a file that is read as it should be, it checks the values with ``assert`` and says nothing.
        means: what the message means, in a sentence or two; for a file that is read, what is done with it.
        remedy: what to do; empty for a file that is read.
    """

    name: str
    topic: str
    oddity: str
    write: Callable[[Path], None]
    read: Callable[[Path], object]
    means: str
    remedy: str = ""

    def message(self, folder: Path) -> str:
        """Return what is said about the file written to ``folder``; empty if it is read as it should be.

        Of several warnings each is on lines of its own, then the error. The folder is called ``DATA``.

        Raises:
            AssertionError: where the values of a file that is read are wrong.
        """
        with _heard() as said:
            try:
                self.read(folder)
            except AssertionError:
                raise
            except (ValueError, OSError, FloatingPointError) as error:
                said.append(str(error))
        return _without_places("\n".join(said), folder)


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Collect what the package logs as a warning; other libraries' warnings are not its message."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener = Listener(logging.WARNING)
    logger = logging.getLogger("trunkline")
    logger.addHandler(listener)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield said
    finally:
        logger.removeHandler(listener)


def _without_places(text: str, folder: Path) -> str:
    for place in (folder.resolve(), folder):
        text = text.replace(str(place), PLACE)
    return re.sub(r" at 0x[0-9a-f]+", "", text).strip()
