"""Standard colours of class numbers. (Nothing is imported: writing a sample dataset needs no torch.)"""

from __future__ import annotations

Colour = tuple[int, int, int]


def voc_colour(number: int) -> Colour:
    """Return the standard colour of a class number, as in Pascal VOC's development kit.

    The bits of the number are dealt to red, green and blue in turn, from the highest bit of each downwards,
    so 0 is black, 1 dark red, 2 dark green and so on; all below 2**24 differ.
    """
    channels = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            channels[channel] |= (number >> (3 * place + channel) & 1) << (7 - place)
    return channels[0], channels[1], channels[2]
