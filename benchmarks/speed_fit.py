"""Training from JPEG files: the command ``trunkline fit`` beside torchvision's detector in a plain loop.

    python benchmarks/speed_fit.py
    python benchmarks/speed_fit.py --data COCO_FOLDER --workers 14

Images a second of whole steps: decoding, augmentation, transfer, forward, backward, optimiser. Both train a
Faster R-CNN with an FPN from scratch on the same files, flip half of them and resize the shorter side. The
peer is what torchvision's detection reference does: its COCO dataset with transforms v2 on Pillow images,
while the model resizes and normalises on the device. Whole runs of the two take turns; the first batches do
not count.

On a CPU: ResNet-18, shorter side 160, batch 2, with 0, 1 and 2 loader processes. On a GPU: ResNet-50, 800 x
1333, batch 16, 14 processes, bf16. Without --data, photograph-like JPEGs of 640 x 480 pixels are made.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.transforms import v2

from clock import Clock
from common import write_result
from pairs import RESULTS, SIDES, bench_parser, device_name, peak_memory, spread
from photos import write_photos
from trunkline.cli import main as trunkline

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
LEARNING_RATE = 1e-3
NOTE = (
    "waiting is the time from the end of a step to the next batch, in shares of all; on a GPU of the host's "
    "time, during which the GPU may still work"
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of one comparison."""

    depth: int
    short_side: int
    long_side: int
    batch: int
    workers: int
    batches: int
    skip: int


def settings(workers: list[int] | None) -> list[Setting]:
    """What is compared on this machine."""
    if CUDA:
        return [Setting(50, 800, 1333, 16, number, 120, 20) for number in workers or [14]]
    return [Setting(18, 160, 267, 2, number, 14, 4) for number in (workers or [0, 1, 2])]


def ours(root: Path, setting: Setting) -> Clock:
    """Run ``trunkline fit``."""
    config = {
        "model": {
            "class_path": "Detection",
            "init_args": {
                "backbone": {
                    "class_path": "ResNet",
                    "init_args": {"depth": setting.depth, "weights": None, "norm": "batch"},
                },
                "neck": {"class_path": "FPN", "init_args": {"channels": 256, "extra": "maxpool"}},
                "head": {"class_path": "FasterRCNN", "init_args": {"num_classes": 80}},
                "optimizer": {
                    "class_path": "torch.optim.SGD",
                    "init_args": {"lr": LEARNING_RATE, "momentum": 0.9},
                },
            },
        },
        "data": {
            "class_path": "CocoDetection",
            "init_args": {
                "root": str(root),
                "batch_size": setting.batch,
                "workers": setting.workers,
                "short_side": setting.short_side,
                "long_side": setting.long_side,
                "on_bad_box": "drop",
            },
        },
        "trainer": {
            "accelerator": "gpu" if CUDA else "cpu",
            "devices": 1,
            "precision": "bf16-mixed" if CUDA else "32-true",
            "max_epochs": 1,
            "limit_train_batches": setting.batches,
            "limit_val_batches": 0,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "clock.Clock", "init_args": {"skip": setting.skip}}],
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(json.dumps(config))  # every JSON file is a YAML file
        trunkline(["fit", "--config", str(path), "--trainer.default_root_dir", folder])
    return Clock.last


def plain_data(root: Path) -> Dataset:
    """torchvision's COCO dataset with the transforms of its detection reference."""
    transforms = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomHorizontalFlip(0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.ConvertBoundingBoxFormat(tv_tensors.BoundingBoxFormat.XYXY),
            v2.SanitizeBoundingBoxes(),
            v2.ToPureTensor(),
        ]
    )
    places = ("images/train", "train2017", "images/train2017", "images")
    images = next(root / place for place in places if (root / place).is_dir())
    files = (root / "annotations" / f"instances_train{year}.json" for year in ("", "2017"))
    with contextlib.redirect_stdout(io.StringIO()):
        data = torchvision.datasets.CocoDetection(
            images, next(f for f in files if f.is_file()), transforms=transforms
        )
    data.ids = [image_id for image_id in data.ids if data.coco.getAnnIds(image_id)]  # as the reference does
    return torchvision.datasets.wrap_dataset_for_transforms_v2(data, target_keys=("boxes", "labels"))


def plain_collate(samples: list[Any]) -> tuple[Any, ...]:
    """Collate as the reference does."""
    return tuple(zip(*samples, strict=True))


def theirs(root: Path, setting: Setting) -> Clock:
    """Train torchvision's detector in a plain loop."""
    torch.manual_seed(0)
    trunk = resnet_fpn_backbone(
        backbone_name=f"resnet{setting.depth}", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    model = FasterRCNN(trunk, num_classes=91, min_size=setting.short_side, max_size=setting.long_side)
    model = model.to(DEVICE).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    loader = DataLoader(
        plain_data(root),
        batch_size=setting.batch,
        shuffle=True,
        drop_last=True,
        num_workers=setting.workers,
        collate_fn=plain_collate,
        pin_memory=CUDA,
    )
    clock = Clock(setting.skip)
    for number, (images, targets) in enumerate(loader):
        if number == setting.batches:
            break
        images = [image.to(DEVICE, non_blocking=True) for image in images]
        targets = [
            {key: t[key].to(DEVICE, non_blocking=True) for key in ("boxes", "labels")} for t in targets
        ]
        clock.start(len(images), torch.tensor(sum(len(target["labels"]) for target in targets)))
        with torch.autocast(DEVICE, torch.bfloat16, enabled=CUDA):
            loss = sum(model(images, targets).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        clock.end()
    clock.stop()
    return clock


def compare(root: Path, setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """Let whole runs take turns and return their row of the result file."""
    runs = {"ours": ours, "peer": theirs}
    results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    memory: dict[str, int] = {}

    def run(side: str) -> None:
        results[side].append(runs[side](root, setting).result())

    for repeat in range(options.repeats):
        for side in SIDES if repeat % 2 == 0 else SIDES[::-1]:
            torch.set_num_threads(options.threads)
            memory[side] = peak_memory(partial(run, side))
            gc.collect()
    boxes = {side: runs[0]["boxes"] for side, runs in results.items()}
    speed = {side: [run["images_per_second"] for run in runs] for side, runs in results.items()}
    ratio = spread([one / other for one, other in zip(speed["ours"], speed["peer"], strict=True)])
    waiting = {side: spread([run["waiting"] for run in runs]) for side, runs in results.items()}
    middle = {side: spread(values)["median"] for side, values in speed.items()}
    print(
        f"{setting.workers} workers: {ratio['median']:.2f} times as fast ({ratio['lowest']:.2f} to "
        f"{ratio['highest']:.2f}), {middle['ours']:.2f} and {middle['peer']:.2f} images a second, waiting "
        f"{waiting['ours']['median']:.0%} and {waiting['peer']['median']:.0%}, boxes {boxes}",
        flush=True,
    )
    images = (setting.batches - setting.skip) * setting.batch
    return {
        "name": f"fit from files, {setting.workers} loader processes",
        "peer": f"torchvision {torchvision.__version__}, plain loop",
        "settings": {**dataclasses.asdict(setting), "precision": "bf16" if CUDA else "float32"},
        "note": f"{middle['ours']:.1f} and {middle['peer']:.1f} images a second; steps wait for data "
        f"{waiting['ours']['median']:.0%} and {waiting['peer']['median']:.0%} of the time; {NOTE}",
        "target": None,
        "peak_target": None,
        "ratio": ratio,
        "peak_memory_bytes": memory,
        "difference": {
            "value": abs(boxes["ours"] / boxes["peer"] - 1),
            "tolerance": options.tolerance,
            "of": "numbers of boxes in the batches",
        },
        "seconds": {side: [round(images / value, 4) for value in values] for side, values in speed.items()},
        "images_per_second": speed,
        "waiting": waiting,
    }


def quiet() -> None:
    """Keep what Lightning says about every run out of the way."""
    warnings.filterwarnings("ignore")
    for name in ("trunkline", "pytorch_lightning", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)


def rows(options: argparse.Namespace, root: Path) -> Iterator[dict[str, Any]]:
    for setting in settings(options.workers):
        row = compare(root, setting, options)
        if not row["difference"]["value"] <= options.tolerance:
            raise SystemExit(f"{row['name']}: the two did not train on the same boxes")
        yield row


def main() -> None:
    parser = bench_parser(__doc__, repeats=3)
    parser.add_argument("--data", type=Path, help="COCO folder with training images and annotations")
    parser.add_argument("--workers", type=int, nargs="+", help="loader processes, one comparison each")
    options = parser.parse_args()
    # Of photos that are made here, both see each once; of others, each draws its own.
    options.tolerance = 0.0 if options.data is None else 0.25
    torch.set_num_threads(options.threads)
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        need = max(setting.batch * setting.batches for setting in settings(options.workers))
        root = options.data or write_photos(Path(folder), need)
        results = list(rows(options, root))
    what = "images a second of training from JPEG files, whole steps with all that belongs to them"
    path = options.output or RESULTS / f"speed_fit_{device_name()}.json"
    write_result(path, {"question": "fit", "what": what, "rows": results})


if __name__ == "__main__":
    main()
