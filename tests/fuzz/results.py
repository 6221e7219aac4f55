"""The counts of campaigns, as benchmarks/results/fuzz.json keeps them."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .campaign import Outcome

_LIBRARIES = (
    "atheris",
    "hypothesis",
    "torch",
    "numpy",
    "pillow",
    "nibabel",
    "SimpleITK",
    "pydicom",
    "safetensors",
    "pycocotools",
    "PyYAML",
)


def add(path: Path, name: str, outcome: Outcome) -> None:
    """Add the counts of a target to those in a file."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    targets = content.get("targets", {})
    entry = targets.get(name, {"inputs": {}, "read": 0, "seconds": 0.0, "findings": []})
    for engine, count in outcome.inputs.items():
        entry["inputs"][engine] = entry["inputs"].get(engine, 0) + count
    entry["read"] += outcome.read
    entry["seconds"] = round(entry["seconds"] + outcome.seconds, 1)
    entry["findings"] = sorted({*entry["findings"], *outcome.found})
    targets[name] = entry
    total = sum(sum(each["inputs"].values()) for each in targets.values())
    written = {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {_processor()}; shared with other work",
        "python": platform.python_version(),
        "versions": {library: _version(library) for library in _LIBRARIES},
        "inputs": total,
        "seconds": round(sum(each["seconds"] for each in targets.values()), 1),
        "findings": sum(len(each["findings"]) for each in targets.values()),
        "targets": dict(sorted(targets.items())),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(written, indent=1) + "\n")


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
