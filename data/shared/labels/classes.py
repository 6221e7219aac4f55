"""Classes and their standard colours. (Writing a sample dataset imports this, and needs no torch.)"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Colour = tuple[int, int, int]


class LabelClass(NamedTuple):
    """A class of the labels of a dataset.

    Attributes:
        id: what stands for it in the files (a category id, the value of its pixels); its number if they
            have no such thing.
        name: for people.
        colour: red, green and blue, 0 to 255; None if the dataset names none.
    """

    id: int
    name: str
    colour: Colour | None = None


def places_by_name(own: Sequence[LabelClass], wanted: Sequence[LabelClass]) -> list[int] | None:
    """Return where each own class is in ``wanted`` by its name; None unless both have the same, each once."""
    places = {entry.name: place for place, entry in enumerate(wanted)}
    names = {entry.name for entry in own}
    if not len(own) == len(names) == len(wanted) == len(places) or names != set(places):
        return None
    return [places[entry.name] for entry in own]


def voc_colour(number: int) -> Colour:
    """Return the standard colour of a class number, as in Pascal VOC's development kit.

    The bits of the number go to red, green and blue in turn, from the highest bit of each downwards. So 0 is
    black, 1 dark red, 2 dark green and so on; all below 2**24 differ.
    """
    channels = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            channels[channel] |= (number >> (3 * place + channel) & 1) << (7 - place)
    return channels[0], channels[1], channels[2]
