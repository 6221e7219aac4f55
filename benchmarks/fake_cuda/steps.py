"""Runs the steps of shipped configs on CUDA tensors that hold no data, and prints what the device would do.

    python benchmarks/fake_cuda/steps.py [CONFIG ...] [--precision 32-true bf16-mixed 16-mixed]
        [--stages fit predict] [--size 128x160 96x128] [--batch 2] [--rows 16] [--places 20]
        [--more --model.channels_last=true]

Needs no GPU, only gcc. Lightning itself runs: sanity check, training steps with clipping, scaling, optimiser
and weight averaging, a validation with its metrics; predictions on the optimised copy. Devices, types and
shapes are computed, values are not (FakeTensorMode; see runs.py). For each step it prints every wait of the
host with its line in the package, how many operators ran on the device (of a training step: forward,
backward, optimiser), and which make float64 there. ``--places N`` lists the N lines that start most
operators, with those of the backward pass by the line of the forward pass.

CONFIG is a shipped config (detection/faster_rcnn_r50_fpn_coco) or a file; all of them by default. Exits with
1 if one fails: a tensor of another device, of a wrong type, a parameter without gradient.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fake_cuda.stub import restart_with_stub  # noqa: E402

if __name__ == "__main__":
    restart_with_stub()
    warnings.filterwarnings("ignore")

import torch  # noqa: E402
from fake_cuda.runs import STAGES, Step, fit_steps, predict_steps  # noqa: E402
from fake_cuda.tasks import Canvas, built  # noqa: E402

from trunkline.cli import shipped_configs  # noqa: E402

SIZES = {2: ((128, 160), (96, 128)), 3: ((64, 64, 64), (32, 64, 64))}


def steps_of(config: str, stage: str, options: argparse.Namespace, precision: str) -> list[Step]:
    """Run one stage of one config."""
    with tempfile.TemporaryDirectory() as folder:
        cli = built(config, Path(folder), [f"--trainer.precision={precision}", *options.more])
        axes = len(cli.model.backbone.levels[0].stride)
        canvases: list[Canvas] = [size for size in options.size if len(size) == axes] or [*SIZES[axes]]
        if stage == "predict":
            return predict_steps(cli, canvases, options.batch)
        with torch.autograd.set_detect_anomaly(options.places > 0, check_nan=False):
            return fit_steps(cli, canvases, options.batch, options.rows)


def show(steps: list[Step], places: int) -> None:
    """Print what happened in each step."""
    for step in steps:
        parts = ", ".join(f"{name} {number}" for name, number in step.parts.items())
        total = sum(step.operators.values())
        print(
            f"  {step.stage:<10} {'x'.join(map(str, step.canvas)):<12} {sum(step.waits.values())} waits, "
            f"{total} operators{f' ({parts})' if parts else ''}"
        )
        for what, number in step.waits.most_common():
            print(f"      wait x{number} {what}")
        for what, number in step.wide.most_common(5):
            print(f"      float64 x{number} {what}")
    last = {step.stage: step for step in steps}
    for stage in ("train", "validate", "predict") if places else ():
        if stage in last:
            print(f"  most operators of the last step of {stage}:")
            for what, number in last[stage].places.most_common(places):
                print(f"      {number:>5} {what}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*")
    parser.add_argument("--precision", nargs="+", default=["32-true", "bf16-mixed", "16-mixed"])
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--size", nargs="+", type=lambda t: tuple(map(int, t.split("x"))), default=[])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--places", type=int, default=0)
    parser.add_argument("--more", nargs=argparse.REMAINDER, default=[])
    options = parser.parse_args()
    failed = 0
    for config in options.configs or list(shipped_configs()):
        for precision in options.precision:
            for stage in options.stages:
                start = time.time()
                try:
                    steps = steps_of(config, stage, options, precision)
                except Exception:
                    failed += 1
                    print(f"FAILED {config} {precision} {stage}", flush=True)
                    traceback.print_exc(limit=-8)
                    continue
                print(f"{config} {precision} {stage}: {time.time() - start:.0f} s", flush=True)
                show(steps, options.places)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
