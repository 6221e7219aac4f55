"""What the palettes of masks say: the class of each entry, and whether all masks mean the same by a number.

Letters in shapes: n entries of a palette.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ...constants import IGNORE_INDEX
from ..shared.labels.table import UNKNOWN, ClassTable, MaskError

CONTRADICTORY = -2
_ENTRIES = 256
_MOST_PALETTES = 256  # that are remembered; most data have one


class PaletteLabels:
    """The labels of the entries of palettes, for a table whose classes have colours.

    An entry is what its colour is; one beyond the end of a short palette is its number. Where the table has
    numbers too, they have to agree: an entry with the colour of one class and the number of another is
    contradictory. Entries of unknown colour are ignored if their number is (255, and what ``ignore``
    names), else unknown.

    Args:
        table: of the classes, ``coloured``.
    """

    def __init__(self, table: ClassTable):
        self.table = table
        self._known: dict[bytes, np.ndarray] = {}
        self._rows = {row.id: row for row in table.rows}

    def of(self, palette: np.ndarray) -> np.ndarray:
        """Return the ``[256]`` int16 labels of the entries of ``[n]`` uint32 colours; -1, -2 as above."""
        key = palette.tobytes()
        if key not in self._known:
            if len(self._known) >= _MOST_PALETTES:
                self._known.clear()
            self._known[key] = self._labels(palette)
        return self._known[key]

    def check(self, used: np.ndarray, palette: np.ndarray, name: str) -> None:
        """Refuse a mask that uses a contradictory entry.

        Args:
            used: the different values of the mask.
            palette: ``[n]`` uint32 colours.
            name: of the file.

        Raises:
            MaskError: naming the entry.
        """
        labels = self.of(palette)[used]
        if CONTRADICTORY not in labels:
            return
        entry = int(used[labels == CONTRADICTORY][0])
        colour = int(palette[entry])
        named = next(row for row in self.table.rows if row.colour == _triple(colour))
        raise MaskError(
            f"{name}: entry {entry} of the palette has the colour {written_colour(colour)} of "
            f"{named.name} and the number of {self._rows[entry].name} in {self.table.source}; correct the "
            "palette or the list, or leave the numbers out of the list: colours alone count then"
        )

    def _labels(self, palette: np.ndarray) -> np.ndarray:
        by_value = self.table.labels(np.arange(_ENTRIES, dtype=np.uint16))
        by_colour = by_value.copy()  # what the palette does not reach goes by its number
        by_colour[: len(palette)] = self.table.labels(palette)
        for entry, row in self._rows.items():
            if entry >= len(palette) or by_colour[entry] == UNKNOWN:
                continue  # this entry has no colour, or one that no class has
            if row.colour == _triple(int(palette[entry])):
                by_colour[entry] = by_value[entry]
            elif self.table.numbered and by_colour[entry] != by_value[entry]:
                by_colour[entry] = CONTRADICTORY
        ignored = (by_colour == UNKNOWN) & (by_value == IGNORE_INDEX)
        ignored[[entry for entry in self._rows if entry < _ENTRIES]] = False
        return np.where(ignored, IGNORE_INDEX, by_colour).astype(np.int16)


def used_entries(values: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Return each different value below n with its colour as one number, ``2**24 value + colour``, uint32."""
    inside = values[values < len(palette)].astype(np.uint32)
    return inside << 24 | palette[inside]


def check_same_palette(masks: Iterable[tuple[str, np.ndarray]]) -> None:
    """Refuse masks whose palettes give one number different colours, where only the numbers are known.

    Args:
        masks: name and ``used_entries`` of each.

    Raises:
        MaskError: naming the first two that differ.
    """
    colours: dict[int, tuple[int, str]] = {}
    seen: set[bytes] = set()
    for name, used in masks:
        if (key := used.tobytes()) in seen:
            continue
        seen.add(key)
        for code in used.tolist():
            entry, colour = code >> 24, code & 0xFFFFFF
            known, other = colours.setdefault(entry, (colour, name))
            if known != colour:
                raise MaskError(
                    f"{other} and {name}: entry {entry} is {written_colour(known)} in the palette of one and "
                    f"{written_colour(colour)} in that of the other: one number may mean two classes; give "
                    "data.classes a CSV with the columns name, r, g and b, by which each entry goes by its "
                    "colour; or, if the numbers are right, save the masks as grey"
                )


def written_colour(code: int) -> str:
    """Return ``(R,G,B)`` of ``65536 R + 256 G + B``."""
    return "({},{},{})".format(*_triple(code))


def _triple(code: int) -> tuple[int, int, int]:
    return code >> 16, code >> 8 & 255, code & 255
