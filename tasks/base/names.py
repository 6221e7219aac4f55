"""Names of classes in messages."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[str], most: int = 20) -> list[str]:
    """Return the first names, and how many more there are."""
    return [*names] if len(names) <= most else [*names[:most], f"and {len(names) - most} more"]


def shortened(names: Sequence[str], most: int = 8) -> str:
    """Return the first names and the number of all as one text."""
    return f"[{', '.join(names[:most])}{', …' if len(names) > most else ''}] ({len(names)})"


def first_difference(known: Sequence[str], given: Sequence[str]) -> str:
    """Name the first class that differs, where :func:`shortened` may have cut the lists before it."""
    for index, (one, other) in enumerate(zip(known, given, strict=False)):
        if one != other:
            return f" (class {index} is {one!r} there and {other!r} here)"
    return ""
