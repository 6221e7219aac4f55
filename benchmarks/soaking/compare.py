"""What two runs have in common, to the last bit: their last checkpoints, and what their loggers wrote."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Where a run is, and how many processes read for it: differs, and means nothing.
PLACES = ("dirpath", "best_model_path", "last_model_path", "kth_best_model_path", "best_k_models")
PLACES += ("default_root_dir", "save_dir", "ckpt_path", "cache_folder", "workers")


def last_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the checkpoint of most steps below a folder, of several the newest; None if there is none."""
    found = None
    for path in folder.rglob("last*.ckpt"):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            key = (content["global_step"], path.stat().st_mtime_ns)
        except Exception:  # cut short by a fault
            continue
        if found is None or key > found[0]:
            found = key, content
    return None if found is None else found[1]


def differences(one: Any, other: Any, place: str = "") -> Iterator[str]:
    """Yield each value in which two checkpoints differ, by its keys."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            yield f"{place}: {one.dtype} {tuple(one.shape)}, {other.dtype} {tuple(other.shape)}"
        elif not _same_bits(one, other):
            largest = (one.double() - other.double()).abs().max().item()
            yield f"{place}: differ by up to {largest:.3g}"
    elif isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted({*one, *other}, key=str):
            if key in PLACES:
                continue
            inside = f"{place}.{key}".lstrip(".")
            if key not in one or key not in other:
                yield f"{inside}: only in the {'first' if key in one else 'second'}"
            else:
                yield from differences(one[key], other[key], inside)
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from differences(a, b, f"{place}[{number}]")
    elif one != other and not (_nan(one) and _nan(other)):
        yield f"{place}: {str(one)[:80]}, {str(other)[:80]}"


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return one.contiguous().view(-1).view(torch.uint8).equal(other.contiguous().view(-1).view(torch.uint8))


def _nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def logged(folder: Path) -> tuple[dict[tuple[int, str], str], int]:
    """Return what all loggers below a folder wrote, by step and name, and how many values they wrote twice.

    Of runs that follow each other the later one counts.
    """
    values: dict[tuple[int, str], str] = {}
    twice = 0
    for path in sorted(folder.rglob("metrics.csv"), key=_version):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if not (row.get("step") or "").isdecimal():
                    continue  # a line that a kill has cut short
                for name, value in row.items():
                    if name != "step" and value not in (None, ""):
                        twice += (int(row["step"]), name) in values
                        values[int(row["step"]), name] = str(value)
    return values, twice


def steps_redone(folder: Path) -> int:
    """Return how many training steps the loggers below a folder show again."""
    rows = 0
    steps = set()
    for path in folder.rglob("metrics.csv"):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row.get("train/loss") and (row.get("step") or "").isdecimal():
                    rows += 1
                    steps.add(row["step"])
    return rows - len(steps)


def _version(path: Path) -> tuple[int, str]:
    number = path.parent.name.rpartition("_")[2]
    return (int(number) if number.isdecimal() else -1), str(path)


def compared(quiet: Path, other: Path) -> tuple[list[str], int]:
    """Return how another run differs from the quiet one, and the number of logged values that were compared.

    Args:
        quiet: folder of the run that nothing has disturbed.
        other: folder of the other one.
    """
    found = []
    first, second = last_checkpoint(quiet), last_checkpoint(other)
    if first is None or second is None:
        found.append(f"no checkpoint in {quiet if first is None else other}")
    else:
        found += differences(first, second)
    values, _ = logged(quiet)
    others, _ = logged(other)
    for key in sorted({*values, *others}):
        a, b = values.get(key), others.get(key)
        if a != b:
            found.append(f"logged {key[1]} of step {key[0]}: {a}, {b}")
    return found, len(values)
