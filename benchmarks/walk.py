"""How many of the package's files an image passes from YAML to AP, and a scan from NIfTI to labels.

    python benchmarks/walk.py
    python benchmarks/walk.py --edges --output walk.json

The image's way is ``trunkline validate`` with the detection demo's config and fresh weights; the scan's way
is ``trunkline predict`` with a checkpoint of the scans demo, trained for one step before the count begins.
Both run on a few synthetic samples, on the CPU, without loader processes or a logger.

A file counts where one of its functions runs. An edge is an ordered pair of files: a function of the second
is called from the first, either directly or through libraries (torch, Lightning, jsonargparse): a call
belongs to the nearest frame of the package up the stack. A thread's first call belongs to no file. What runs
while a module is imported does not count, nor do bodies of classes, nor methods that dataclasses generate.
Mutual pairs are those that call each other in both directions. No file of the package is named here, so
commits whose files differ can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from contextlib import redirect_stdout
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import trunkline.cli

ROOT = Path(sys.modules["trunkline"].__file__).parent
APART = {".venv", "site-packages", "tests", "benchmarks"}  # folders below ROOT that are not the package
QUIET = "--trainer.logger false --trainer.enable_progress_bar false --trainer.enable_model_summary false"


class Walk:
    """Counts the calls between files of the package while it is entered.

    Attributes:
        files: those in which a function ran, relative to the package.
        edges: functions by pair of files (caller, callee), with the number of calls.
        direct: those edges of which at least one call passes no library.
    """

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.edges: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self.direct: set[tuple[str, str]] = set()
        self._known: dict[CodeType, str | None] = {}

    def __enter__(self) -> Walk:
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    @property
    def mutual(self) -> list[tuple[str, str]]:
        """Pairs of files that call each other in both directions."""
        return sorted(pair for pair in self.edges if pair < pair[::-1] and pair[::-1] in self.edges)

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not (callee := self._file(code)) or not code.co_flags & CO_OPTIMIZED:
            return
        above = frame.f_back
        while above is not None and not self._file(above.f_code):
            above = above.f_back
        caller = callee if above is None else self._file(above.f_code)
        new = callee not in self.files or caller != callee and (caller, callee) not in self.edges
        if new and self._importing(above):
            return
        self.files.add(callee)
        if caller != callee:
            self.edges[caller, callee][code.co_qualname] += 1
            if above is frame.f_back:
                self.direct.add((caller, callee))

    def _file(self, code: CodeType) -> str | None:
        """Return the file of the package that holds this code, None for code of others."""
        if code not in self._known:
            path = Path(code.co_filename)
            inside = path.is_relative_to(ROOT) and not APART & set(path.relative_to(ROOT).parts)
            self._known[code] = path.relative_to(ROOT).as_posix() if inside else None
        return self._known[code]

    def _importing(self, frame: FrameType | None) -> bool:
        while frame is not None:
            if frame.f_code.co_name == "<module>" and self._file(frame.f_code):
                return True
            frame = frame.f_back
        return False


def prepare(words: str) -> None:
    """Run a command in a process of its own, so that nothing of it is cached when the count begins."""
    command = [sys.executable, "-m", "trunkline", *words.split()]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}\nfailed: trunkline {words}")


def walk(words: str) -> Walk:
    """Run a command in this process and count."""
    with redirect_stdout(sys.stderr), Walk() as counted:
        trunkline.cli.main(words.split())
    return counted


def image_walk() -> Walk:
    prepare("sample detection images --train 4 --val 2")
    return walk(
        "validate --config detection/faster_rcnn_r18_fpn_demo --data.root images --data.workers 0 "
        f"--trainer.accelerator cpu {QUIET}"
    )


def scan_walk() -> Walk:
    prepare("sample scans scans --train 2 --val 1")
    prepare(
        "fit --config scans/unet_3d_demo --data.root scans --data.workers 0 --data.steps_per_epoch 1 "
        "--trainer.accelerator cpu --trainer.max_epochs 1 --trainer.default_root_dir run"
    )
    checkpoint = next(Path("run").rglob("last.ckpt"))
    return walk(
        f"predict --ckpt_path {checkpoint} --data.predict scans/images/val --output.folder out {QUIET}"
    )


WALKS = {"image: YAML to AP": image_walk, "scan: NIfTI to labels": scan_walk}


def text(name: str, counted: Walk, edges: bool) -> str:
    edge_count = f"{len(counted.edges)} edges ({len(counted.direct)} direct)"
    lines = [f"{name}: {len(counted.files)} files, {edge_count}, {len(counted.mutual)} mutual pairs"]
    lines += [f"  {one} <-> {other}" for one, other in counted.mutual]
    if edges:
        lines.append("  edges, with calls and functions; ~ where all calls pass a library:")
        for pair, functions in sorted(counted.edges.items()):
            arrow = "->" if pair in counted.direct else "~>"
            names = ", ".join(sorted(functions))
            lines.append(f"    {pair[0]} {arrow} {pair[1]}  {functions.total()}: {names}")
    return "\n".join(lines)


def record(counted: Walk) -> dict[str, Any]:
    numbers = {name: len(getattr(counted, name)) for name in ("files", "edges", "direct", "mutual")}
    edges = [
        {
            "caller": pair[0],
            "callee": pair[1],
            "direct": pair in counted.direct,
            "functions": dict(sorted(functions.items())),
        }
        for pair, functions in sorted(counted.edges.items())
    ]
    return {"counts": numbers, "files": sorted(counted.files), "edges": edges, "mutual": counted.mutual}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--edges", action="store_true", help="list all edges")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write everything as JSON")
    options = parser.parse_args()

    start = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            counts = {name: run() for name, run in WALKS.items()}
        finally:
            os.chdir(start)
    print("\n\n".join(text(name, counted, options.edges) for name, counted in counts.items()))
    if options.output:
        written = {name: record(counted) for name, counted in counts.items()}
        options.output.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
