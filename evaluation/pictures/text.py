"""Texts as the font of the pictures can show them: in one line, short, without letters that it lacks."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import cast

from PIL import ImageFont

LONGEST = 32  # letters of a name
ELLIPSIS = "…"
# Letters that Unicode does not take apart into one of the font and an accent.
SPELT = {
    **{"ß": "ss", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L"},
    **{"đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ı": "i", "µ": "u", "×": "x"},
}


def font_of(size: int) -> ImageFont.FreeTypeFont:
    """Return the font of all pictures, Pillow's own."""
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))


def readable(text: str, number: int | None = None, longest: int = LONGEST) -> str:
    """Return a text in one line of letters that the font has.

    Line feeds, tabs and other control characters become spaces. Accents are left out where the font has only
    the plain letter (``é`` becomes ``e``). Other letters that it lacks become ``?``, one for all in a row,
    and the number of the class follows: ``? #3``. A text that is too long ends in ``…``.

    Args:
        text: any.
        number: of the class, from 0; None for none.
        longest: letters of the text, without the number.
    """
    spaced = "".join(" " if unicodedata.category(letter)[0] in "CZ" else letter for letter in text)
    parts: list[str] = []
    missing = False
    for letter in " ".join(spaced.split()):
        shown = _shown(letter)
        if shown == "?" and letter != "?":
            missing = True
            if parts and parts[-1] == "?":
                continue
        parts.append(shown)
    line = "".join(parts)
    if len(line) > longest:
        line = line[: longest - 1].rstrip() + ELLIPSIS
    return f"{line} #{number}" if number is not None and (missing or not line and text) else line


def readable_names(names: Sequence[str], longest: int = LONGEST) -> list[str]:
    """Return :func:`readable` of the names of classes, which are numbered from 0."""
    return [readable(name, number, longest) for number, name in enumerate(names)]


def fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Cut a line short where it is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + ELLIPSIS) > width:
        text = text[:-1]
    return text + ELLIPSIS


@cache
def _shown(letter: str) -> str:
    """Return what is drawn for a letter: itself, letters like it, or ``?``; nothing for an accent."""
    if _has(letter):
        return letter
    if letter in SPELT:
        return SPELT[letter]
    if unicodedata.category(letter) == "Mn":
        return ""
    apart = unicodedata.normalize("NFKD", letter)
    plain = "".join(part for part in apart if unicodedata.category(part) != "Mn")
    return plain if plain and all(map(_has, plain)) else "?"


@cache
def _has(letter: str) -> bool:
    return letter == " " or _picture(letter) != _picture("\U0010ffff")


def _picture(letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font_of(20).getmask(letter)
    return mask.size, bytes(mask)
