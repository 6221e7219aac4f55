"""Writes the tables of docs/performance.md and the plots beside the results, from the result files alone.

    python benchmarks/report.py
    python benchmarks/report.py --check      exits with 1 if the tables are out of date; draws nothing

It reads speed_*.json, counts_*.json, memory_*.json (those with rows) and growth_*.json in benchmarks/results.
Rows that lose are shown like all others.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trunkline.evaluation.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
MIB = 2**20
SHOWN_PACKAGES = ("torch", "torchvision", "numpy")
# Files that were measured by version 0.1 have other terms than the scripts now write.
TERMS = {
    "COCO figures": "COCO metrics",
    "the 12 figures": "the 12 metrics",
    "in a data set": "in a dataset",
    "waits of the host": "synchronisations",
    "what makes a device wait for its host or for new code": "synchronisations and new code of a device",
}


@dataclasses.dataclass(frozen=True)
class Result:
    """One result file.

    Attributes:
        path: of the file.
        question: what its rows answer, in a word.
        what: what was measured, in a sentence.
        rows: as :func:`pairs.compare` writes them; the scripts of other kinds write their own.
        environment: as :func:`common.environment` writes it.
    """

    path: Path
    question: str
    what: str
    rows: list[dict[str, Any]]
    environment: dict[str, Any]

    @property
    def kind(self) -> str:
        """``speed``, ``counts``, ``memory`` or ``growth``."""
        return self.path.stem.partition("_")[0]

    @property
    def device(self) -> str:
        """What it ran on, for people."""
        return self.environment["gpu"] or f"{self.environment['cpu']}, {self.environment['cores']} cores"

    @property
    def slug(self) -> str:
        """What it ran on, as a piece of a file name."""
        return (self.environment["gpu"] or "cpu").lower().replace(" ", "-")


def read(folder: Path) -> list[Result]:
    """Return the result files of a folder: GPUs after CPUs, then by kind and question."""
    found = []
    for kind in ("speed", "counts", "memory", "growth"):
        # Those of `make gpu` lie in a folder of their own.
        for path in sorted([*folder.glob(f"{kind}_*.json"), *folder.glob(f"gpu/{kind}_*.json")]):
            written = path.read_text(encoding="utf-8")
            for old, new in TERMS.items():
                written = written.replace(old, new)
            content = json.loads(written)
            if "rows" in content:
                names = ("question", "what", "rows", "environment")
                found.append(Result(path, *(content[name] for name in names)))
    return sorted(found, key=lambda result: (result.slug != "cpu", result.device))


def by_device(results: Iterable[Result]) -> dict[str, list[Result]]:
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.device, []).append(result)
    return grouped


# -- tables


def text(results: Sequence[Result]) -> dict[str, str]:
    """Return what belongs between each pair of markers of the page, by the markers' name."""
    parts: dict[str, list[str]] = {"speed": [], "growth": []}
    for device, group in by_device(results).items():
        for name, kinds in (("speed", ("speed", "counts", "memory")), ("growth", ("growth",))):
            chosen = [result for result in group if result.kind in kinds]
            if chosen:
                picture = f"{name}_{chosen[0].slug}.png"
                parts[name].append(f"### {device}")
                if any(result.kind == name for result in chosen):
                    parts[name].append(f"![{name}](../benchmarks/results/{picture})")
                parts[name] += [section(result) for result in chosen]
    return {name: "\n\n".join(pieces) or "No results yet." for name, pieces in parts.items()}


def section(result: Result) -> str:
    """Return the part of the page about one result file."""
    makers = {"speed": speed_table, "counts": counts_table, "memory": memory_table, "growth": growth_table}
    table = makers[result.kind](result.rows)
    if result.kind == "growth":
        table = f"<details><summary>All points</summary>\n\n{table}\n\n</details>"
    title = [] if result.kind == "growth" else [f"#### {result.question.capitalize()}"]
    what = result.what[:1].upper() + result.what[1:].rstrip(".") + "."
    return "\n\n".join([*title, what, table, *remarks(result.rows), provenance(result)])


def speed_table(rows: Sequence[dict[str, Any]]) -> str:
    head = ("", "beside", "times as fast (lowest to highest)", "target", "peak memory, ours / peer", "target")
    head += ("results differ by",)
    cells = []
    for row in rows:
        share = memory_share(row)
        cells.append(
            (
                row["name"],
                row["peer"],
                ratio_cell(row["ratio"]),
                target_cell(row["target"], "≥", row["ratio"]["median"]),
                "" if share is None else f"{share:.2f}",
                target_cell(row["peak_target"], "≤", share),
                f"{row['difference']['value']:.1g}",
            )
        )
    return markdown(head, cells, right=(2, 4, 6))


def counts_table(rows: Sequence[dict[str, Any]]) -> str:
    head = ("", "beside", "unit", "ours", "peer", "target")
    cells = [
        (
            row["name"],
            row["peer"],
            row["unit"],
            f"{row['ours']:,g}",
            f"{row['theirs']:,g}",
            target_cell(row["target"], "≤", row["ours"]),
        )
        for row in rows
    ]
    return markdown(head, cells, right=(3, 4))


def memory_table(rows: Sequence[dict[str, Any]]) -> str:
    head = ("", "beside", "ours, MiB", "peer, MiB", "peer / ours")
    cells = []
    for row in rows:
        sizes = [row["memory_bytes"].get(side) for side in ("ours", "peer")]
        shown = ["not run" if size is None else f"{size / MIB:,.0f}" for size in sizes]
        cells.append((row["name"], row["peer"], *shown, ratio_cell(row["ratio"])))
    return markdown(head, cells, right=(2, 3, 4))


def growth_table(rows: Sequence[dict[str, Any]]) -> str:
    head = ("", "setting", "beside", "ours, s", "peer, s", "times as fast (lowest to highest)")
    head += ("ours, MiB", "peer, MiB")
    cells = []
    for row in rows:
        seconds = [f"{statistics.median(row['seconds'][side]):.3f}" for side in ("ours", "peer")]
        sizes = [f"{row['peak_memory_bytes'][side] / MIB:,.0f}" for side in ("ours", "peer")]
        cells.append(
            (row["name"], listed(row["settings"]), row["peer"], *seconds, ratio_cell(row["ratio"]), *sizes)
        )
    return markdown(head, cells, right=(3, 4, 5, 6, 7))


def ratio_cell(ratio: dict[str, float] | None) -> str:
    """Median and extremes; the median alone where there is one run."""
    if ratio is None:
        return ""
    extremes = [f"{ratio[name]:.2f}" for name in ("lowest", "highest")]
    spread = "" if len(set(extremes)) == 1 else f" ({' to '.join(extremes)})"
    return f"{ratio['median']:.2f}{spread}"


def target_cell(target: float | None, sign: str, value: float | None) -> str:
    """The target and whether it was met; nothing without one."""
    if target is None:
        return ""
    if value is None:
        return f"{sign} {target:g}: not measured"
    met = value >= target if sign == "≥" else value <= target
    return f"{sign} {target:g}: {'met' if met else 'missed'}"


def memory_share(row: dict[str, Any]) -> float | None:
    """Our peak memory in shares of the peer's, None where it was not measured."""
    sizes = row["peak_memory_bytes"]
    return sizes["ours"] / sizes["peer"] if sizes["ours"] and sizes["peer"] else None


def remarks(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Settings, agreement and notes of the rows in a list that unfolds; of other kinds, the notes."""
    if "axes" in rows[0] or "difference" not in rows[0]:
        return notes(rows)
    items = []
    for row in rows:
        agreed = f"{row['difference']['of']} differ by {row['difference']['value']:.1g}"
        parts = [part for part in (listed(row["settings"]), agreed, row["note"]) if part]
        items.append(f"- {row['name']}, beside {row['peer']}: {'; '.join(parts)}.")
    body = "\n".join(items)
    return [f"<details><summary>Settings, agreement and notes</summary>\n\n{body}\n\n</details>"]


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Every note once, after the names of its rows; nothing without notes."""
    told: dict[str, list[str]] = {}
    for row in rows:
        if row["note"]:
            told.setdefault(row["note"], []).append(row["name"])
    items = []
    for note, names in told.items():
        subject = "all rows" if len(names) == len(rows) else ", ".join(names)
        items.append(f"- {subject[0].upper()}{subject[1:]}: {note}.")
    return ["\n".join(items)] if items else []


def listed(settings: dict[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {'x'.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in settings.items()
    )


def provenance(result: Result) -> str:
    """Say where, when and with what a file came to be."""
    where = result.environment
    versions = ", ".join(f"{name} {where['versions'][name]}" for name in SHOWN_PACKAGES)
    hardware = where["gpu"] + " with " if where["gpu"] else ""
    hardware += f"{where['cpu']}, {where['cores']} cores, {where['torch_threads']} threads"
    commit = (where["commit"] or "unknown").partition("+")
    version = f"{commit[0][:9]}{' and changes' if commit[2] else ''}"
    place = "results/gpu" if result.path.parent.name == "gpu" else "results"
    link = f"[{result.path.name}](../benchmarks/{place}/{result.path.name})"
    return (
        f"{link}: {hardware}; Python {where['python']}, {versions}; commit {version}, {where['date'][:10]}."
    )


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int]) -> str:
    """Return a table; columns in ``right`` are aligned to the right."""
    rule = ["---:" if column in right else "---" for column in range(len(head))]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *cells])


def with_text(page: str, parts: dict[str, str]) -> str:
    """Return a page with every part between its two markers.

    Raises:
        ValueError: if a marker is missing.
    """
    for name, part in parts.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"the page lacks {begin} or {end}, between which results belong")
        page = f"{before}{begin}\n\n{part}\n\n{end}{after}"
    return page


def main(words: list[str] | None = None) -> int:
    """Rewrite the page and draw the plots, or check the page; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only compare; exit with 1 if out of date")
    parser.add_argument("--page", type=Path, default=PAGE, help="the Markdown page, docs/performance.md")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(words)
    results = read(options.results)
    page = options.page.read_text(encoding="utf-8")
    written = with_text(page, text(results))
    if options.check:
        if page != written:
            print(f"{options.page} is out of date; run python benchmarks/report.py")
        return int(page != written)
    write_atomically(options.page, written)
    print(f"wrote {options.page}")
    from report_plots import draw

    for path in draw(by_device(results).values(), options.results):
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
