"""Text from files as a terminal and a log may show it: control characters in names do nothing."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from types import TracebackType

# C0 but for line feed and tab, delete, C1, marks and overrides of direction, separators of lines and
# paragraphs, halves of characters, and letters that nothing shows.
_HARMFUL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def harmless(text: str) -> str:
    """Return a text whose control characters are written as ``\\x1b``; line feeds and tabs stay.

    So escapes do not move the cursor, set colours or titles, or write into the clipboard, and overrides of
    direction (https://trojansource.codes) show in which order letters stand.
    """
    return _HARMFUL.sub(_written, text)


def one_line(text: str) -> str:
    """Return :func:`harmless` text in which line feeds are written as ``\\n``, as for a name."""
    return harmless(text).replace("\n", "\\n")


def _written(match: re.Match[str]) -> str:
    number = ord(match[0])
    if number < 1 << 8:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 1 << 16 else f"\\U{number:08x}"


class HarmlessRecords(logging.Filter):
    """Lets every record of a logger pass, with its text :func:`harmless`."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                one_line(str(each)) if isinstance(each, os.PathLike) else each for each in record.args
            )
        text = record.getMessage()
        if (shown := harmless(text)) != text:
            record.msg, record.args = shown, None
        return True


def guard_log() -> None:
    """Have the log of the package show harmless text, whoever handles it; once is enough."""
    logger = logging.getLogger("trunkline")
    if not any(isinstance(each, HarmlessRecords) for each in logger.filters):
        logger.addFilter(HarmlessRecords())


def show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback as Python does, with harmless text; for ``sys.excepthook``."""
    sys.stderr.write(harmless("".join(traceback.format_exception(kind, error, trace))))
