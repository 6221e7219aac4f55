"""What a run will learn from, counted before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SplitSummary:
    """Counts of one split.

    Attributes:
        counts: by what is counted, such as ``images``, ``boxes``, ``boxes dropped: no area``; in the order of
            the columns of the table.
        learnable: how much of it there is to learn from: boxes that are no crowd, labelled pixels, images
            with a class. 0 ends the run before it begins.
        remedy: what to do if there is nothing to learn, as a sentence without its full stop.
    """

    counts: Mapping[str, int]
    learnable: int
    remedy: str = "look at the annotations"


def summary_table(summaries: Mapping[str, SplitSummary]) -> str:
    """Return a table with a row for each split, and a column for each thing that was counted."""
    columns = list(dict.fromkeys(name for each in summaries.values() for name in each.counts))
    rows = [["", *columns]]
    rows += [[split, *(f"{each.counts.get(c, 0):,}" for c in columns)] for split, each in summaries.items()]
    widths = [max(len(row[position]) for row in rows) for position in range(len(columns) + 1)]
    lines = []
    for row in rows:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers]))
    return "\n".join(lines)


def require_learnable(summaries: Mapping[str, SplitSummary]) -> None:
    """Raise a ValueError if the training data hold nothing to learn."""
    train = summaries.get("train")
    if train is not None and train.learnable == 0:
        table = summary_table(summaries)
        raise ValueError(f"the training data hold nothing to learn; {train.remedy}\n{table}")
