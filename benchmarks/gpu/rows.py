"""One row of `run.sh`: measures, and writes one or several JSON files as it goes.

    python benchmarks/gpu/rows.py NAME FOLDER [--tiny]

Rows are the functions of ``ROWS``. The comparisons are those of benchmarks/speed_*.py. With ``--tiny`` sizes
are small, and where there is no GPU, code that only GPUs run is left out or replaced: torch.compile then uses
``aot_eager``, which traces all and generates nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from common import write_result
from pairs import Pair, compare, synchronisations, timed

ROOT = Path(__file__).resolve().parents[2]
CUDA = torch.cuda.is_available()
BACKEND = "inductor" if CUDA else "aot_eager"


@dataclasses.dataclass(frozen=True)
class Row:
    """Where a row writes, and how large it is."""

    name: str
    out: Path
    tiny: bool

    def write(self, part: str, what: str, rows: list[dict[str, Any]]) -> None:
        """Write a file that benchmarks/report.py reads, if this ran on a GPU and at full size."""
        kind = "tiny" if self.tiny else "speed"
        result = {"question": f"{self.name}{part}".replace("_", " "), "what": what, "rows": rows}
        write_result(self.out / f"{kind}_{self.name}{part}.json", {**result, "tiny": self.tiny})

    def compare(self, what: str, pairs: Iterable[Pair], repeats: int) -> list[dict[str, Any]]:
        """Compare pair after pair, and write after each what there is."""
        rows: list[dict[str, Any]] = []
        for pair in pairs:
            rows.append(compare(pair, 1 if self.tiny else repeats))
            self.write("", what, rows)
        return rows


# -- the tests


def tests(row: Row) -> None:
    """The tests marked ``gpu``; tiny, one head's, on the CPU with both sides there if there is no GPU."""
    report = row.out / "tests.xml"
    words = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
    words += ["-k", "fcn or land"] if row.tiny else []
    environment = {**os.environ, **({} if CUDA else {"TRUNKLINE_GPU_TESTS_ON": "cpu"})}
    with contextlib.chdir(ROOT):
        code = subprocess.run([sys.executable, *words, "tests/gpu/cuda"], env=environment).returncode
    result = {"question": "tests", "exit_code": code, "report": report.name}
    write_result(row.out / "tests.json", result)
    if code:
        raise SystemExit(code)


# -- training steps of the detector


def setting(row: Row, batch: int = 16):
    import speed_detection

    if row.tiny:
        return speed_detection.Setting(min(batch, 2), (64, 96), objects=3)
    return speed_detection.Setting(batch, (800, 1344))


def step(row: Row) -> None:
    """The training step as it is, how often it synchronises the device, and its share of the peak."""
    training(row, False)


def step_compiled(row: Row) -> None:
    training(row, True)


def step_graphed(row: Row) -> None:
    """With CUDA graphs, which a CPU lacks."""
    training(row, "reduce-overhead" if CUDA else True)


def training(row: Row, mode: bool | str) -> None:
    import speed_detection

    from trunkline.tasks.base import compilation

    compilation.BACKEND = BACKEND
    sizes = setting(row)
    pair = speed_detection.training(sizes, 4.0, 0.75, mode)
    [result] = row.compare("a training step of Faster R-CNN R50-FPN, images on the device", [pair], 7)
    result["note"] = facts(pair.ours, sizes.batch, mode is False)
    row.write("", "a training step of Faster R-CNN R50-FPN, images on the device", [result])


def facts(call: Callable[[], Any], batch: int, count: bool) -> str:
    """Images a second, synchronisations and, with ``count``, the share of the measured bf16 peak."""
    seconds = sorted(timed(call) for _ in range(3))[1]
    told = [f"{batch / seconds:.1f} images a second", f"{waits(call)} synchronisations in a step"]
    if count:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            call()
        rate = counter.get_total_flops() / seconds
        told.append(f"{rate / 1e12:.2f} TFLOP/s, {rate / peak():.1%} of a large matrix product in bf16")
    return "; ".join(told)


def waits(call: Callable[[], Any]) -> int:
    """How often a call synchronises the device, as torch counts it; 0 without one."""
    if not CUDA:
        call()
        return 0
    found = synchronisations(call)
    for text in found:
        print(f"  {text}")
    return len(found)


def peak() -> float:
    """FLOP a second of a product of large matrices in bf16."""
    side, device = (8192, "cuda") if CUDA else (256, "cpu")
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    for _ in range(3):
        torch.mm(a, b)
    return 2 * side**3 / min(timed(lambda: torch.mm(a, b)) for _ in range(10))


def inference(row: Row) -> None:
    """Batches of 8 and of 1, optimised() and compiled."""
    import speed_detection

    def pairs():
        for batch, target in ((8, 4.0), (1, 2.5))[row.tiny :]:
            yield speed_detection.inference(setting(row, batch), True, target)
            yield speed_detection.inference(setting(row, batch), True, target, BACKEND)

    row.compare("inference of Faster R-CNN R50-FPN, images on the device", pairs(), 9)


# -- fit, scans, segmentation


def fit(row: Row) -> None:
    """Training from JPEG files by the command line."""
    import speed_fit

    from photos import write_photos

    full = speed_fit.Setting(50, 800, 1333, 16, 14, 24, 6)
    sizes = speed_fit.Setting(18, 96, 160, 2, 0, 4, 1) if row.tiny or not CUDA else full
    speed_fit.quiet()
    options = argparse.Namespace(repeats=1, threads=torch.get_num_threads(), tolerance=0.0)
    with tempfile.TemporaryDirectory() as folder:
        root = write_photos(Path(folder), sizes.batch * sizes.batches)
        result = speed_fit.compare(root, sizes, options)
    row.write("", "images a second of training from JPEG files, whole steps", [result])
    if not result["difference"]["value"] <= options.tolerance:
        raise SystemExit("the two did not train on the same boxes")


def scans(row: Row) -> None:
    """Whole volumes and patches beside MONAI's."""
    import speed_scans

    if row.tiny:
        speed_scans.WINDOW, speed_scans.VOLUME, speed_scans.PATCH = [16] * 3, (24, 24, 16), [16] * 3
        speed_scans.SMALL = speed_scans.LARGE = speed_scans.SHIPPED = ((4, 8, 16), (1, 1, 1))

    def pairs():
        yield speed_scans.step_pair(3)
        yield speed_scans.network_pair(3)
        yield speed_scans.loss_pair(3)
        yield speed_scans.volume_pair(speed_scans.LARGE, 2, 3)

    row.compare("whole scans and training steps on patches of scans", pairs(), 5)


def segmentation(row: Row) -> None:
    """FCN beside torchvision's."""
    import speed_segmentation

    if row.tiny:
        speed_segmentation.CROP, speed_segmentation.BATCH, speed_segmentation.PICTURE = (64, 64), 2, (64, 96)
    row.compare("segmenters: training steps and inference", speed_segmentation.fcn_pairs(), 7)


# -- where the time goes


def profile(row: Row) -> None:
    """The 30 kernels of a training step that take most time, and the share of idle time, as text."""
    import speed_detection
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    call = speed_detection.training(setting(row), None, None).ours
    for _ in range(3):
        call()
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if CUDA else [])
    steps = 1 if row.tiny else 3
    with profiler(activities=kinds) as found:
        for _ in range(steps):
            call()
        if CUDA:
            torch.cuda.synchronize()
    device = torch.autograd.DeviceType.CUDA if CUDA else torch.autograd.DeviceType.CPU
    spans = sorted((e.time_range.start, e.time_range.end) for e in found.events() if e.device_type == device)
    busy, first, last = covered(spans), spans[0][0], max(end for _, end in spans)
    sort = "self_device_time_total" if CUDA else "self_cpu_time_total"
    table = found.key_averages().table(sort_by=sort, row_limit=30, max_name_column_width=90)
    text = f"{steps} training steps in {(last - first) / 1e3:.1f} ms, {len(spans)} kernels or operators; "
    text += f"nothing ran on the device in {1 - busy / (last - first):.1%} of the time\n\n{table}\n"
    (row.out / "profile.txt").write_text(text)
    print(text)


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals that are sorted by their begin."""
    total, reached = 0.0, float("-inf")
    for begin, end in spans:
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


ROWS: dict[str, Callable[[Row], None]] = {
    row.__name__: row
    for row in (tests, step, step_compiled, step_graphed, inference, fit, scans, segmentation, profile)
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=ROWS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if not CUDA and not options.tiny:
        raise SystemExit("there is no GPU here; --tiny runs small sizes on the CPU")
    ROWS[options.name](Row(options.name, options.folder, options.tiny))


if __name__ == "__main__":
    main()
