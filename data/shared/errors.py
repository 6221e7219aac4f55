"""Texts of errors that list many problems."""

from __future__ import annotations

from collections.abc import Sequence

LISTED = 20  # problems that a message names


def listing(problems: Sequence[str], total: int | None = None) -> str:
    """Format up to 20 problems, one a line, and say how many more there are."""
    total = len(problems) if total is None else total
    lines = [f"  {problem}" for problem in problems[:LISTED]]
    if total > len(lines):
        lines.append(f"  ... and {total - len(lines)} more")
    return "\n".join(lines)
