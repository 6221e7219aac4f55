"""Counts what a training step asks of a GPU, beside torchvision's: memory, operators, waits. Needs no GPU.

    python benchmarks/counts_device.py [--batch 16] [--size 800x1333] [--objects 100] [--output FILE]

Both are Faster R-CNN R50-FPN with frozen norms, the stem and the first stage frozen, SGD with momentum, bf16
autocast, on tensors that hold no data (see fake_cuda/). Memory is the largest set of tensors that live at the
same time, of all sizes; what cuDNN needs inside an operator is not in it. Operators are those that PyTorch
dispatches and that start kernels. An operator of an optimiser on a list of tensors counts as one.

torchvision's shapes depend on values. Its masks are taken to choose 512 rows of the proposals of an image,
256 anchors an image, and a quarter of the boxes for each level of the pyramid; suppression keeps 1,000 boxes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fake_cuda.stub import restart_with_stub  # noqa: E402

if __name__ == "__main__":
    restart_with_stub()
    warnings.filterwarnings("ignore")

import torch  # noqa: E402
import torchvision  # noqa: E402
from fake_cuda.live import LiveRecorder  # noqa: E402
from fake_cuda.runs import fake_device, fit_steps  # noqa: E402
from fake_cuda.tasks import built  # noqa: E402
from torchvision.models.detection import FasterRCNN  # noqa: E402
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone  # noqa: E402

from common import write_result  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "counts_fake_cuda.json"
CONFIG = "detection/faster_rcnn_r50_fpn_coco"
SAMPLED = 512  # boxes of an image that the second stage learns from


class SampledRows(LiveRecorder):
    """Takes the numbers of rows that torchvision samples for those of its masks."""

    batch = 0

    def rows(self, mask: torch.Tensor) -> int:
        number = mask.numel()
        if number == SAMPLED * self.batch:
            return number // 4  # a level of the pyramid
        if number > 10**6:
            return 256 * self.batch
        return min(number, 256 if number > 10**5 else SAMPLED)


def ours(batch: int, size: tuple[int, int], objects: int) -> dict[str, Any]:
    """Count a training step of the shipped config, as Lightning runs it."""
    canvas = tuple(-(-length // 32) * 32 for length in size)
    rows = -(-objects // 16) * 16
    with tempfile.TemporaryDirectory() as folder:
        words = ["--trainer.precision=bf16-mixed", "--trainer.limit_val_batches=0"]
        cli = built(CONFIG, Path(folder), words)
        steps = fit_steps(cli, [canvas], batch, rows, LiveRecorder)
    step = [step for step in steps if step.stage == "train"][-1]
    return summary(step.peak, step.parts, step.waits, step.held, step.places)


def theirs(batch: int, size: tuple[int, int], objects: int) -> dict[str, Any]:
    """Count a training step of torchvision's detector."""
    norm = torchvision.ops.FrozenBatchNorm2d
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=norm, trainable_layers=3
    )
    model = FasterRCNN(backbone, 21, min_size=min(size), max_size=max(size))
    SampledRows.batch = batch
    with fake_device(SampledRows) as recorder:
        model.to("cuda").train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.SGD(trained, lr=0.02, momentum=0.9, weight_decay=1e-4)
        for _ in range(2):  # the first one makes what the optimiser keeps
            optimiser.zero_grad()
            images = [torch.zeros(3, *size, device="cuda") for _ in range(batch)]
            boxes = torch.tensor([[8.0, 8.0, 64.0, 64.0]]).repeat(objects, 1)
            targets = [
                {"boxes": boxes.cuda(), "labels": torch.ones(objects, dtype=torch.int64, device="cuda")}
                for _ in range(batch)
            ]
            recorder.clear()
            with torch.autocast("cuda", torch.bfloat16):
                loss = sum(model(images, targets).values())
            parts = {"forward": sum(recorder.operators.values())}
            loss.backward()
            parts["backward"] = sum(recorder.operators.values()) - sum(parts.values())
            optimiser.step()
            parts["optimiser"] = sum(recorder.operators.values()) - sum(parts.values())
        return summary(recorder.peak, parts, recorder.waits, recorder.held, recorder.places)


def summary(peak: int, parts: Any, waits: Any, held: Any, places: Any) -> dict[str, Any]:
    """Return the counts of one step."""
    return {
        "peak_GiB": round(peak / 2**30, 2),
        "operators": {**parts, "total": sum(parts.values())},
        "waits": sum(waits.values()),
        "waits_by_place": dict(waits.most_common()),
        "held_at_peak_GiB": {w: round(n / 2**30, 2) for w, n in held.most_common(15)},
        "most_operators": dict(places.most_common(25)),
    }


def main() -> None:
    shown = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shown)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=lambda text: tuple(map(int, text.split("x"))), default=(800, 1333))
    parser.add_argument("--objects", type=int, default=100)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    settings = (options.batch, options.size, options.objects)
    result: dict[str, Any] = {"batch": options.batch, "size": options.size, "objects": options.objects}
    result["ours"], result["torchvision"] = ours(*settings), theirs(*settings)
    mine, other = result["ours"], result["torchvision"]
    result["memory_ratio"] = round(mine["peak_GiB"] / other["peak_GiB"], 3)
    result["operators_ratio"] = round(mine["operators"]["total"] / other["operators"]["total"], 3)
    result["how"] = " ".join((__doc__ or "").split("\n\n", 2)[2].split())
    for name in ("memory_ratio", "operators_ratio"):
        print(name, result[name])
    for name in ("ours", "torchvision"):
        print(
            name, result[name]["peak_GiB"], "GiB", result[name]["operators"], result[name]["waits"], "waits"
        )
    write_result(options.output, result)


if __name__ == "__main__":
    main()
