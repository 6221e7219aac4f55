"""What names of classes and files may be."""

from __future__ import annotations

import logging
import os
import re
import stat
import unicodedata
from collections.abc import Sequence

from ..shared.common import listing
from ..shared.storage import Location, stored

logger = logging.getLogger("trunkline")

LONGEST = 255  # letters of a name, as file systems have it
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
# Folders that are no classes, wherever they are: of macOS, Synology, Python and file systems.
_SYSTEM = frozenset(("__macosx", "@eadir", "__pycache__", "lost+found", "$recycle.bin"))


class LabelError(ValueError):
    """Classes are missing, contradict each other, or differ between the splits."""


def is_hidden(part: str) -> bool:
    """Whether a file or folder of this name is never part of a dataset: hidden, or made by a system."""
    return part.startswith(".") or part.lower() in _SYSTEM


def control_characters(text: str) -> bool:
    """Whether a text holds line feeds, tabs, or other characters that are not to be shown."""
    return any(unicodedata.category(letter) == "Cc" for letter in text)


def number_written(name: str) -> float | None:
    """Return the number that a name is, such as ``1``, ``01`` or ``1.0``; None if it is none."""
    return float(name) if len(name) < 16 and _NUMBER.fullmatch(name) else None


def require_file(path: Location) -> None:
    """Raise a LabelError for what is there and is no file: to open a pipe waits without end."""
    plain = stored(path) is not None or not path.exists() or stat.S_ISREG(os.stat(str(path)).st_mode)
    if not plain or path.is_dir():
        raise LabelError(f"{path}: is a pipe, a device or a folder, not a file")


def require_class_names(names: Sequence[str], where: str, several: bool = False) -> None:
    """Check names of classes, and warn of those that look alike.

    Args:
        names: of the classes.
        where: the file or folder that they are of, for messages.
        several: whether an image may show several: predictions are then written with ``;`` between names.

    Raises:
        LabelError: if a name is too long, no UTF-8, or holds a control character; or ``;``, if ``several``.
    """
    problems = [f"{shown(name)} {fault}" for name in names if (fault := _fault(name, several))]
    if problems:
        raise LabelError(f"{where}: names of classes that cannot be used:\n{listing(problems)}\nrename them")
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(look(name), []).append(name)
    pairs = [" and ".join(map(shown, group)) for group in alike.values() if len(group) > 1]
    if pairs:
        logger.warning(
            "%s: classes of almost the same name, which stay separate classes:\n%s\nrename "
            "them if they are one",
            where,
            listing(pairs),
        )


def look(name: str) -> str:
    """Return a name without what is easily overlooked: case, spaces, and how accents are encoded."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def shown(name: str) -> str:
    """Return a name between quotes, short, with everything in it that is not to be seen."""
    return ascii(name[:60]) + ("..." if len(name) > 60 else "") if not name.isprintable() else repr(name[:60])


def unknown_classes(unknown: Sequence[str], known: Sequence[str]) -> str:
    """Return how names look like known ones, as an addition to a message; empty if none does."""
    looks = {look(name): name for name in known}
    pairs = [f"{ascii(name)} is {ascii(looks[look(name)])} there" for name in unknown if look(name) in looks]
    return f"; look at case, spaces and accents: {', '.join(pairs[:5])}" if pairs else ""


def _fault(name: str, several: bool) -> str:
    if not name:
        return "is empty"
    if len(name) > LONGEST:
        return f"has {len(name)} letters, {LONGEST} are allowed"
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        return "is no UTF-8"
    if control_characters(name):
        return "holds a control character, such as a line feed or a tab"
    if several and ";" in name:
        return "holds a ; which stands between names in predictions"
    return ""
