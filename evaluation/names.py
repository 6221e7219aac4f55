"""Names of files that are made up from other names: of images, of cases."""

from __future__ import annotations

import itertools
import unicodedata
import zlib
from collections import Counter
from collections.abc import Mapping

LONGEST = 240  # bytes of a name without its suffix; file systems take 255 with it


def safe_name(name: str, longest: int = LONGEST) -> str:
    """Return a name that every file system takes as that of a file, without its suffix.

    A name that is one already stays as it is. Else slashes, control characters and bytes that are no UTF-8
    become ``_``, and what is too long is cut; eight digits that depend on the whole name are added, so that
    different names stay different.

    Args:
        name: any text.
        longest: bytes of the result in UTF-8, at least 16.
    """
    text = "".join("_" if _unfit(letter) else letter for letter in name)
    if text == name and len(name.encode()) <= longest and name.strip(". "):
        return name
    mark = f"_{zlib.crc32(name.encode('utf-8', 'surrogatepass')):08x}"
    return text.encode()[: longest - len(mark)].decode(errors="ignore") + mark


def unique_names(wanted: Mapping[int, str], longest: int = LONGEST) -> dict[int, str]:
    """Return a name for the file of each image; no two are one on any file system.

    A name that only one image has is taken as it is. Images of one name get their id behind it, and where
    that is another's name already, one more number. Names that differ only in case, or in how accents are
    encoded, count as one: some file systems see no difference.

    Args:
        wanted: by id, such as the image's own name without its suffix.
        longest: bytes of a name, as in :func:`safe_name`.
    """
    safe = {number: safe_name(name, longest) for number, name in wanted.items()}
    counts = Counter(map(_folded, safe.values()))
    taken = set(counts)  # a name that several images have is given to none of them
    names: dict[int, str] = {}
    for number, name in sorted(safe.items()):
        if counts[_folded(name)] > 1:
            choices = (f"{name}_{number}{f'_{more}' if more else ''}" for more in itertools.count())
            name = next(
                choice
                for choice in (safe_name(choice, longest) for choice in choices)
                if _folded(choice) not in taken
            )
            taken.add(_folded(name))
        names[number] = name
    return names


def _unfit(letter: str) -> bool:
    return letter in "/\\" or unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
