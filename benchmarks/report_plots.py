"""The plots of report.py: ratios as bars, and growth as curves."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

if TYPE_CHECKING:
    from report import Result

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:olive")
SIDES = {"ours": ("-", "o"), "peer": ("--", "s")}
TITLES = {
    "batch": "images in a batch",
    "side": "side of the images, pixels",
    "objects": "objects per image",
    "classes": "classes",
    "images": "images evaluated",
}


def draw(groups: Iterable[Sequence[Result]], folder: Path) -> list[Path]:
    """Draw the results of each device into the folder and return the files."""
    paths = []
    for results in groups:
        device, slug = results[0].device, results[0].slug
        compared = {result.question: result.rows for result in results if result.kind == "speed"}
        if compared:
            paths.append(_bars(compared, device, folder / f"speed_{slug}.png"))
        for result in results:
            if result.kind == "growth":
                paths.append(_curves(result.rows, device, folder / f"growth_{slug}.png"))
    return paths


def _bars(compared: dict[str, list[dict[str, Any]]], device: str, path: Path) -> Path:
    """One horizontal bar per row, from 1 to its ratio, with the extremes."""
    rows = [(question, row) for question, rows in compared.items() for row in rows]
    figure, axis = plt.subplots(figsize=(11, 1.2 + 0.34 * len(rows)), constrained_layout=True)
    for place, (question, row) in enumerate(rows):
        colour = COLOURS[list(compared).index(question) % len(COLOURS)]
        ratio = row["ratio"]
        middle, low, high = (ratio[name] for name in ("median", "lowest", "highest"))
        axis.barh(place, middle - 1, left=1, color=colour, alpha=0.75, height=0.7)
        axis.plot([low, high], [place, place], color="black", linewidth=1.2, marker="|")
        axis.annotate(f"{middle:.2f}", (max(high, 1), place), (6, -3), textcoords="offset points", fontsize=8)
        if row["target"] is not None:
            axis.plot(row["target"], place, marker="D", color="tab:red", markersize=4, linestyle="")
    for question in compared:
        axis.barh(0, 0, color=COLOURS[list(compared).index(question) % len(COLOURS)], label=question)
    axis.plot([], [], marker="D", color="tab:red", linestyle="", markersize=4, label="target")
    axis.set_yticks(range(len(rows)), [f"{row['name']}\n{row['peer']}" for _, row in rows], fontsize=7)
    axis.invert_yaxis()
    axis.axvline(1, color="black", linewidth=1)
    axis.set_xscale("log")
    lowest = min(row["ratio"]["lowest"] for _, row in rows)
    highest = max(row["ratio"]["highest"] for _, row in rows)
    axis.set_xlim(min(0.8, lowest * 0.9), max(1.5, highest * 1.5))
    ticks = [tick for tick in (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 50, 100, 200) if _within(tick, axis)]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("times as fast as the peer: median, and lowest to highest of pairs that took turns")
    axis.legend(fontsize=8, loc="lower right")
    return _save(figure, device, path)


def _within(tick: float, axis: Axes) -> bool:
    low, high = axis.get_xlim()
    return low <= tick <= high


def _curves(rows: Sequence[dict[str, Any]], device: str, path: Path) -> Path:
    """Seconds and peak memory on logarithmic scales, one panel per quantity that grows, four in a row."""
    panels: list[tuple[str, list[dict[str, Any]], bool]] = []
    for metrics in (False, True):
        group = [row for row in rows if row["name"].startswith("COCO ") == metrics]
        names = dict.fromkeys(name for row in group for name in row["axes"])
        for seconds in (True, False):
            panels += [(name, [row for row in group if name in row["axes"]], seconds) for name in names]
    height = -(-len(panels) // 4)
    figure, axes = plt.subplots(height, 4, figsize=(14, 3.1 * height), layout="constrained", squeeze=False)
    for axis, (name, points, seconds) in zip(axes.flat, panels, strict=False):
        _lines(axis, name, points, seconds)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    return _save(figure, device, path)


def _lines(axis: Axes, name: str, points: Sequence[dict[str, Any]], seconds: bool) -> None:
    """One line per kind of work and side."""
    for index, work in enumerate(dict.fromkeys(row["name"] for row in points)):
        chosen = sorted((row for row in points if row["name"] == work), key=lambda row: row["settings"][name])
        values = [row["settings"][name] for row in chosen]
        for side, (style, marker) in SIDES.items():
            heights = [
                statistics.median(row["seconds"][side]) if seconds else row["peak_memory_bytes"][side] / 2**20
                for row in chosen
            ]
            who = "trunkline" if side == "ours" else chosen[0]["peer"].split("+")[0]
            options = {"color": COLOURS[index], "marker": marker, "markersize": 4}
            axis.plot(values, heights, style, label=f"{work}, {who}", **options)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(values, [f"{value:,}" for value in values])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.grid(alpha=0.3)
    axis.set_xlabel(TITLES[name])
    axis.set_ylabel("seconds, median" if seconds else "peak memory, MiB")
    if seconds:
        axis.legend(fontsize=7)


def _save(figure: Any, device: str, path: Path) -> Path:
    figure.suptitle(device, fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
