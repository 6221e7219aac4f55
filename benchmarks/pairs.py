"""Times two ways to the same result side by side: the piece that every speed script is made of.

A script builds one :class:`Pair` per question and hands them to :func:`run_pairs`, which first checks that
both sides agree, then lets them take turns in one process, so that what else the machine does slows both, and
writes medians of the ratios with their spread, and the peak memory of each side.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from common import write_result

RESULTS = Path(__file__).parent / "results"
SIDES = ("ours", "peer")


@dataclasses.dataclass
class Pair:
    """One row of a comparison.

    Attributes:
        name: what is done, in a few words; one row of the table.
        peer: whom we are compared with, and its version.
        ours, theirs: do the work once and return its result; on a GPU they need not wait for it.
        difference: of the two results, one number; for results that are random, compare something else that
            shows that both compute the same.
        tolerance: largest difference for which the two count as equal.
        agrees_on: what ``difference`` measures, for the reader.
        settings: sizes and options, for the reader.
        target: ratio (peer / ours) to be reached, or None.
        note: what a reader must know about the comparison.
        peak_target: largest share of the peer's peak memory, or None.
        repeats: timed runs of each side; None for the script's own.
    """

    name: str
    peer: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    difference: Callable[[Any, Any], float]
    tolerance: float
    agrees_on: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    target: float | None = None
    note: str = ""
    peak_target: float | None = None
    repeats: int | None = None


def bench_parser(description: str, repeats: int) -> argparse.ArgumentParser:
    """Return a parser with the options of every speed script."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=repeats, help=f"timed runs (default {repeats})")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="run only rows whose name contains this; write nothing")
    parser.add_argument("--output", type=Path, help="result file, instead of the one in benchmarks/results")
    return parser


def device_name() -> str:
    """``cpu``, or the GPU's name as a piece of a file name."""
    if not torch.cuda.is_available():
        return "cpu"
    return torch.cuda.get_device_name().lower().replace(" ", "-")


def run_pairs(question: str, what: str, pairs: Iterable[Pair], options: argparse.Namespace) -> None:
    """Compare pair after pair and write ``results/speed_QUESTION_DEVICE.json``.

    Args:
        question: names the result file.
        what: one sentence on what is measured, for the file.
        pairs: built lazily, so that one pair's models are gone before the next one's are made.
        options: of :func:`bench_parser`.
    """
    torch.set_num_threads(options.threads)
    rows = []
    for pair in pairs:
        if options.only in pair.name:
            rows.append(compare(pair, pair.repeats or options.repeats))
        del pair
        gc.collect()
    if not options.only:
        path = options.output or RESULTS / f"speed_{question}_{device_name()}.json"
        write_result(path, {"question": question, "what": what, "rows": rows})


def compare(pair: Pair, repeats: int) -> dict[str, Any]:
    """Check one pair, time it and return its row of the result file.

    Raises:
        SystemExit: if the two sides do not agree.
    """
    print(f"\n{pair.name}, beside {pair.peer}", flush=True)
    calls = dict(zip(SIDES, (pair.ours, pair.theirs), strict=True))
    results = {side: call() for side, call in calls.items()}
    difference = float(pair.difference(results["ours"], results["peer"]))
    print(f"  {pair.agrees_on}: differs by {difference:.2g} (at most {pair.tolerance:g})", flush=True)
    if not difference <= pair.tolerance:  # NaN included
        raise SystemExit(f"{pair.name}: the two sides do not agree; a comparison of times would mean nothing")
    del results
    memory = {side: peak_memory(call) for side, call in calls.items()}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for repeat in range(repeats):
        for side in SIDES if repeat % 2 == 0 else SIDES[::-1]:
            seconds[side].append(timed(calls[side]))
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["peer"], strict=True)]
    ratio = spread(ratios)
    middle = {side: statistics.median(values) for side, values in seconds.items()}
    print(
        f"  {ratio['median']:.2f} times as fast ({ratio['lowest']:.2f} to {ratio['highest']:.2f}), seconds "
        f"{middle['ours']:.4f} and {middle['peer']:.4f}, peak memory {memory['ours'] / 2**20:.0f} and "
        f"{memory['peer'] / 2**20:.0f} MiB",
        flush=True,
    )
    return {
        "name": pair.name,
        "peer": pair.peer,
        "settings": pair.settings,
        "note": pair.note,
        "target": pair.target,
        "peak_target": pair.peak_target,
        "ratio": ratio,
        "peak_memory_bytes": memory,
        "difference": {"value": difference, "tolerance": pair.tolerance, "of": pair.agrees_on},
        "seconds": seconds,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, quartiles and extremes, rounded to three digits behind the point."""
    ordered = sorted(values)
    quartiles = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
    names = ("lowest", "lower_quartile", "median", "upper_quartile", "highest")
    numbers = (ordered[0], quartiles[0], statistics.median(ordered), quartiles[2], ordered[-1])
    return {name: round(number, 3) for name, number in zip(names, numbers, strict=True)}


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one call, waiting for the device before and after."""
    synchronise()
    start = time.perf_counter()
    result = call()
    synchronise()
    seconds = time.perf_counter() - start
    del result
    return round(seconds, 6)


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def synchronisations(call: Callable[[], Any]) -> list[str]:
    """What torch says of each time that a call synchronises the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]


def peak_memory(call: Callable[[], Any]) -> int:
    """Bytes that a call takes at its peak beyond what was held before: of the GPU, else of this process.

    On the CPU the system's own high-water mark is reset before the call (Linux only; 0 elsewhere). What the
    allocator still held free from earlier calls is given back first, or it would hide part of the need.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - held
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        held = _status("VmRSS")
    except (OSError, AttributeError):
        return 0
    call()
    return max(0, _status("VmHWM") - held)


def _status(field: str) -> int:
    """Bytes in one field of this process's status, on Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def largest_difference(ours: Any, theirs: Any) -> float:
    """Largest absolute difference between two tensors, or between two equally nested lists of them."""
    if isinstance(ours, torch.Tensor):
        return float((ours.float() - theirs.float()).abs().max()) if ours.numel() else 0.0
    return max(largest_difference(one, other) for one, other in zip(ours, theirs, strict=True))
