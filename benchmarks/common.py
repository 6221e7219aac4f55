"""What every benchmark writes beside its numbers."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from trunkline.evaluation.files import write_json

PACKAGES = (
    "monai",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "numpy",
    "pycocotools",
    "faster-coco-eval",
    "albumentations",
)


def environment() -> dict[str, Any]:
    """Return the hardware, versions, commit and date that a result belongs to."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def write_result(path: str | os.PathLike[str], result: dict[str, Any]) -> Path:
    """Write a result with its environment as indented JSON and say where."""
    written = write_json(path, {**result, "environment": environment()}, indent=2)
    print(f"wrote {written}")
    return written


def curve_parser(description: str, data: str, models: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser with the options of every script that trains one model and draws the curves of all.

    Args:
        description: the script's docstring.
        data: what the data folder holds.
        models: what may be trained.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help=data)
    parser.add_argument("--model", choices=models)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--tag", default="", help="appended to the result's file name, for example _seed1")
    parser.add_argument("--plot", action="store_true", help="only draw the committed curves")
    return parser


def with_metrics(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a learning curve that have ``metrics``, which older files call ``figures``."""
    rows = [{"metrics": row.get("figures"), **row} for row in result["curve"]]
    return [row for row in rows if row["metrics"]]


def train_or_plot(
    parser: argparse.ArgumentParser, train: Callable[[argparse.Namespace], None], plot: Callable[[], None]
) -> None:
    """Do what the command line asks for."""
    options = parser.parse_args()
    if options.plot:
        plot()
    elif options.data is None or options.model is None:
        parser.error("--data and --model are needed")
    else:
        train(options)


def _version(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's model name; ``platform`` knows only its architecture on Linux."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit that ran, with ``+changes`` if tracked files differ from it; None outside git."""
    describe = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    try:
        run = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()
