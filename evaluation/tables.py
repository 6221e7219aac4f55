"""Tables of metrics as text, for people."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(cells: Sequence[Sequence[str]], left: int = 0) -> list[str]:
    """Line columns up: one of them, that of the names, to the left, the others to the right.

    Args:
        cells: rows of equally many texts; the first one is the header.
        left: number of the column of the names.
    """
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column == left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
