"""Tables of figures as text, for people."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(cells: Sequence[Sequence[str]]) -> list[str]:
    """Line columns up: the first to the left, the others to the right.

    Args:
        cells: rows of equally many texts; the first one is the header.
    """
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for name, *numbers in cells:
        padded = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *padded]))
    return lines
