"""What ``trunkline plan`` prints: the fingerprint of a dataset as a table.

Letters in shapes: N cases, n spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..data.shared.common import number_of
from .plan import Plan

_AXES = "RAS"


def one_line(text: str) -> str:
    """Make a name fit into a comment."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def table(plan: Plan) -> str:
    """Return the fingerprint as text for the terminal."""
    prints = plan.fingerprint
    names = [f"{axis} ({_AXES[axis]})" if prints.axes == 3 else f"{axis}" for axis in range(prints.axes)]
    rows = [["axis", *names], ["voxels", *_ranges(prints.shapes)]]
    if prints.axes == 3:
        rows.append(["spacing (mm)", *_ranges(prints.spacings)])
    lines = [heading(plan), "", *_aligned(rows), "  (smallest .. median .. largest)", ""]
    lines += [f"  cropping to what is not 0 removes {prints.removed:.0%} of the median scan", ""]
    of = "foreground" if prints.foreground else "labelled voxels"
    rows = [["channel", "mean", "std", "min", "0.5 %", "median", "99.5 %", "max"]]
    for channel in prints.channels:
        values = (
            channel.mean,
            channel.std,
            channel.minimum,
            channel.low,
            channel.median,
            channel.high,
            channel.maximum,
        )
        rows.append([one_line(channel.name), *(f"{value:.4g}" for value in values)])
    lines += [*_aligned(rows), f"  (intensities of the {of})", ""]
    rows = [["class", "id", "voxels", "cases"]]
    total = max(1, int(prints.counts.sum()))
    for label, entry in enumerate(plan.dataset.classes):
        count = prints.counts[:, label]
        rows.append(
            [one_line(entry.name), str(entry.id), f"{count.sum() / total:.3%}", str(int((count > 0).sum()))]
        )
    if prints.counts[:, -1].any():
        count = prints.counts[:, -1]
        rows.append(
            [
                "(ignored)",
                str(plan.dataset.ignore_id),
                f"{count.sum() / total:.3%}",
                str(int((count > 0).sum())),
            ]
        )
    return "\n".join([*lines, *_aligned(rows), ""])


def heading(plan: Plan) -> str:
    """Return what the dataset is, in a line."""
    splits = ", ".join(f"{len(cases)} {split}" for split, cases in plan.dataset.cases.items())
    classes = number_of(len(plan.dataset.classes), "class").replace("classs", "classes")
    channels = number_of(len(plan.fingerprint.channels), "channel")
    read = number_of(len(plan.fingerprint.shapes), "case")
    return f"{one_line(plan.root.name)}: {read} with labels ({splits}), {channels}, {classes}"


def _ranges(values: np.ndarray) -> list[str]:
    return [
        " .. ".join(f"{number:.4g}" for number in (column.min(), np.median(column), column.max()))
        for column in values.T
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
