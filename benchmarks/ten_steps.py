"""Shows that two versions of trunkline compute the same: ten steps of training for every task, bit by bit.

    OLD/.venv/bin/python ten_steps.py --output base.json     # the version installed there
    NEW/.venv/bin/python ten_steps.py --output main.json
    python ten_steps.py --compare base.json main.json

Every task trains ten optimiser steps from a shipped config, on synthetic data and one CPU thread, then
validates and predicts from the checkpoint. The file holds for each task: all weights before; images, losses
and rates of each step; losses and figures of the validation; all weights after; what was predicted, in memory
and in the files of masks and label volumes. Numbers are hexadecimal floats, arrays the beginning of their
SHA-256, so nothing is rounded.

``--compare`` prints a line per task, ``equal`` or the first difference, and exits with 1 if there is one.
Both files must come from one machine with the same packages: other processors and versions of PyTorch round
in another way. ``--only scans`` runs only the tasks with that in their names.

The script knows only the command line, so it runs unchanged on versions whose modules lie elsewhere. A
command is a fork of this process, which has imported Lightning but not trunkline; ``runpy`` then does what
``python -m trunkline`` does. That saves ten seconds of imports in each of 40 commands. For Linux.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.util
import itertools
import json
import multiprocessing
import os
import platform
import runpy
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image

Module = pl.LightningModule
STEPS = 10
COMMANDS = ("fit", "validate", "predict")
ARRAYS = ("boxes", "scores", "labels", "mask", "probabilities")  # what may be predicted
IDS = ("image_id", "image_ids", "ids")  # under which predictions say what they belong to
PRELOADED = ("pytorch_lightning.cli", "torchvision", "monai.transforms", "tensorboard.summary")

ALWAYS = """--seed_everything=0 --data.workers=0 --trainer.accelerator=cpu --trainer.devices=1
    --trainer.precision=32-true --trainer.deterministic=true --trainer.num_sanity_val_steps=0
    --trainer.enable_progress_bar=false --trainer.enable_model_summary=false --trainer.default_root_dir=run
    --trainer.callbacks+=ten_steps.Recorder"""
# Every data set has images for five steps an epoch; the second epoch shows another order and augmentation.
FIT = f"--trainer.max_steps={STEPS} --trainer.max_epochs=2 --trainer.check_val_every_n_epoch=2"

# By name: a shipped config, the data set (see ``write_data``), and what makes the config small.
R18 = "--model.backbone.weights=null --model.backbone.depth=18 --model.backbone.norm=batch"
DETECTOR = f"--data.batch_size=2 {R18} --model.backbone.frozen_stages=0 --model.neck.channels=32"
PICTURES = "--data.batch_size=3 --model.head.num_classes=3 --model.optimizer.lr=0.01"
PATCHES = "--data.batch_size=2 --data.steps_per_epoch=5"
TASKS = {
    "detection": """detection/faster_rcnn_r18_fpn_demo boxes
        --data.batch_size=2 --data.short_side=96 --data.long_side=128 --model.optimizer.lr=0.005""",
    # Several sizes of images, changes of brightness, an average of the weights.
    "detection, fine-tuning": f"""detection/faster_rcnn_r50_fpn_bccd boxes
        {DETECTOR} --data.short_side=[64,96] --data.long_side=128""",
    "segmentation": "segmentation/fcn_r18_demo masks --data.batch_size=2",
    # Scaled and jittered crops, an auxiliary classifier, an ignored class.
    "segmentation, road scenes": """segmentation/fcn_r18_camvid masks --data.batch_size=2
        --data.ignore=[triangle] --model.head.num_classes=3
        --model.backbone.weights=null --model.backbone.width=16""",
    "classification": f"classification/resnet20_cifar10 classes {PICTURES}",
    # Random sizes, a policy of augmentation, erasing, mixup and cutmix, an average of the weights.
    "classification, second recipe": f"""classification/resnet50_imagenet_v2 classes {PICTURES}
        --model.backbone.depth=18 --data.train_size=32 --data.size=40 --data.resize=44""",
    "classification of scans": """classification/resnet18_scans3d scan_classes
        --data.batch_size=2 --data.size=[24,24,24] --model.backbone.width=16""",
    "scans": f"scans/unet_3d_demo scans {PATCHES}",
    # The default augmentation, in three dimensions and in two.
    "scans, by default": f"""scans/unet_3d_hippocampus scans {PATCHES}
        --data.patch=[32,32,24] --data.preparation.spacing=[2.0,2.0,3.0] --model.head.num_classes=4
        --model.head.channels=[32,16,8] --model.backbone.channels=[8,16,32,64]
        --model.backbone.blocks=[1,1,1,1]""",
    "scans by slices": f"""scans/unet_2d_membrane scans {PATCHES}
        --data.patch=[72,72] --model.head.num_classes=4 --model.backbone.width=8""",
    "boxes and masks": f"""multitask/detection_and_stuff_coco boxes
        {DETECTOR} --data.short_side=96 --data.long_side=128 --model.heads.boxes.num_classes=3
        --model.heads.stuff.num_classes=4""",
}
# What ``trunkline sample`` writes, how many images for training and for validation.
DATA = {
    "boxes": ("detection", 10, 6),
    "masks": ("segmentation", 10, 6),
    "classes": ("classification", 15, 6),
    "scans": ("scans", 10, 2),
}
PREDICTED = {"classes": "val/circle", "scan_classes": "scans.csv"}  # where it is not images/val


def digest(array: Any) -> str:
    """Return type and shape of an array or tensor, and the beginning of the SHA-256 of all three."""
    tensor = torch.as_tensor(array).detach().cpu().contiguous()
    kind = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
    content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{kind} {hashlib.sha256(kind.encode() + content).hexdigest()[:32]}"


def weight_digests(module: torch.nn.Module) -> dict[str, str]:
    """Return the SHA-256 of all weights and buffers, apart from their names and order, and with names."""
    named = {name: digest(tensor) for name, tensor in module.state_dict().items()}
    rows = {"values": sorted(named.values()), "names and values": sorted(named.items())}
    return {name: hashlib.sha256(json.dumps(row).encode()).hexdigest() for name, row in rows.items()}


def numbers(metrics: dict[str, Any], stage: str) -> dict[str, str]:
    """Return the metrics of a stage as hexadecimal floats, sorted by name."""
    names = sorted(name for name in metrics if name.startswith(f"{stage}/"))
    return {name: float(metrics[name]).hex() for name in names}


def images_of(found: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield id and arrays of each image, whether predictions come as rows of a batch or one by one."""
    if dataclasses.is_dataclass(found):
        found = vars(found)
    if isinstance(found, list | tuple):
        yield from itertools.chain.from_iterable(map(images_of, found))
        return
    key = next((key for key in IDS if key in found), None)
    if key is None:  # several heads
        for head, each in found.items():
            for image, arrays in images_of(each):
                yield image, {f"{head} {name}": array for name, array in arrays.items()}
        return
    ids = np.asarray(found[key])
    for place in np.ndindex(ids.shape):  # () for one image
        yield str(ids[place]), {name: found[name][place] for name in ARRAYS if name in found}


class Recorder(pl.Callback):
    """Writes what a command computes to ``fit.json``, ``validate.json`` or ``predict.json``."""

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Module) -> None:
        self.record["weights before"] = weight_digests(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Module, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        rates = {group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups}
        step = {
            "images": digest(getattr(batch, "images" if hasattr(batch, "images") else "image")),
            "losses": numbers(trainer.callback_metrics, "train"),
            "rates after": [float(rate).hex() for rate in sorted(rates)],
        }
        self.record.setdefault("steps", []).append(step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Module) -> None:
        self.record["figures"] = numbers(trainer.callback_metrics, "val")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Module) -> None:
        self.record["weights after"] = weight_digests(pl_module)
        trainer.save_checkpoint("ten_steps.ckpt", weights_only=False)

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: Module, outputs: Any, *_: Any) -> None:
        images = self.record.setdefault("images", {})
        for image, arrays in images_of(outputs):
            images.setdefault(image, {}).update({name: digest(array) for name, array in arrays.items()})

    def teardown(self, trainer: pl.Trainer, pl_module: Module, stage: str) -> None:
        Path(f"{trainer.state.fn.value}.json").write_text(json.dumps(self.record))


def file_digests(folder: Path) -> dict[str, str]:
    """Return the decoded content of all masks and label volumes below a folder of predictions."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.parent.name in ("masks", "labels"):
            if path.suffix == ".png":
                found[path.name] = digest(np.array(Image.open(path)))
            else:
                volume = nibabel.load(path)
                found[path.name] = f"{digest(np.asarray(volume.dataobj))}, affine {digest(volume.affine)}"
    return found


def trunkline(folder: Path, *words: str) -> None:
    """Run ``python -m trunkline`` in a fork of this process; what it prints goes to a file in the folder."""
    log = folder / f"{words[0]}.log"
    process = multiprocessing.get_context("fork").Process(target=_run_module, args=(folder, log, words))
    process.start()
    process.join()
    if process.exitcode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        sys.exit(f"{end}\n\ntrunkline {' '.join(words)}: exit status {process.exitcode}")


def _run_module(folder: Path, log: Path, words: tuple[str, ...]) -> None:
    os.chdir(folder)
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["trunkline", *words]
    runpy.run_module("trunkline", run_name="__main__", alter_sys=True)


def write_data(root: Path) -> None:
    """Write the data sets, all but a few masks and a table by ``trunkline sample``."""
    for name, (kind, train, val) in DATA.items():
        trunkline(root, "sample", kind, str(root / name), f"--train={train}", f"--val={val}")
    _add_masks(root / "boxes")
    scans = sorted((root / "scans" / "images").rglob("*.nii.gz"))  # each of one of two classes
    rows = [f"../{p.relative_to(root)},{'ab'[i % 2]},{p.parent.name}" for i, p in enumerate(scans)]
    (root / "scan_classes").mkdir()
    (root / "scan_classes" / "scans.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")


def _add_masks(root: Path) -> None:
    """Write masks beside the boxes, in which every box is filled with its category id."""
    for split in ("train", "val"):
        (root / "masks" / split).mkdir(parents=True)
        content = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
        for image in content["images"]:
            mask = np.zeros((image["height"], image["width"]), dtype=np.uint8)
            for row in content["annotations"]:
                if row["image_id"] == image["id"]:
                    x, y, width, height = row["bbox"]
                    mask[y : y + height, x : x + width] = row["category_id"]
            path = root / "masks" / split / image["file_name"]
            Image.fromarray(mask).save(path.with_suffix(".png"))
    names = {0: "nothing", **{row["id"]: row["name"] for row in content["categories"]}}
    lines = ["id,name", *(f"{number},{name}" for number, name in names.items())]
    (root / "classes.csv").write_text("\n".join(lines) + "\n")


def run_task(name: str, root: Path, folder: Path) -> dict[str, Any]:
    """Train, validate and predict; return what was computed."""
    config, data, *options = TASKS[name].split()
    folder.mkdir()
    target = root / data / PREDICTED.get(data, "images/val")
    source = target if target.suffix == ".csv" else root / data
    always, checkpoint = ALWAYS.split(), "--ckpt_path=ten_steps.ckpt"
    fit = ["--config", config, f"--data.root={source}", *options, *FIT.split()]
    trunkline(folder, "fit", *fit, *always)
    trunkline(folder, "validate", checkpoint, *always)
    trunkline(folder, "predict", checkpoint, f"--data.predict={target}", "--output.folder=out", *always)
    record = {command: json.loads((folder / f"{command}.json").read_text()) for command in COMMANDS}
    record["files"] = file_digests(folder / "out")
    steps, images = record["fit"].get("steps", []), record["predict"].get("images", {})
    if len(steps) != STEPS or not all(step["losses"] for step in steps):
        sys.exit(f"{name}: {len(steps)} steps with losses instead of {STEPS}")
    if not images or not all(images.values()) or not all(record[c].get("figures") for c in COMMANDS[:2]):
        sys.exit(f"{name}: no figures, or predictions without any of {', '.join(ARRAYS)}")
    return record


def run_all(only: str, folder: Path) -> dict[str, Any]:
    """Return the records of all tasks with ``only`` in their names, and where they come from."""
    torch.set_num_threads(1)
    for name in PRELOADED:
        importlib.import_module(name)
    source = str(Path(importlib.util.find_spec("trunkline").origin).parent)
    packages = f"Python {platform.python_version()}, PyTorch {torch.__version__}, Lightning {pl.__version__}"
    (folder / "data").mkdir()
    write_data(folder / "data")
    records = {}
    for name in TASKS:
        if only in name:
            start = time.perf_counter()
            records[name] = run_task(name, folder / "data", folder / name)
            print(f"{name}: {time.perf_counter() - start:.0f} s, {_summary(records[name])}", flush=True)
    return {"trunkline": source, "packages": f"{packages}, {platform.node()}", "tasks": records}


def _summary(record: dict[str, Any]) -> str:
    """Say in words what a task computed, to see that it was not nothing."""
    first, last = (float.fromhex(record["fit"]["steps"][i]["losses"]["train/loss"]) for i in (0, -1))
    figures = record["validate"]["figures"].items()
    shown = ", ".join(f"{name.removeprefix('val/')} {float.fromhex(value):.3g}" for name, value in figures)
    return f"loss {first:.4f} to {last:.4f}; {len(record['predict']['images'])} predictions; {shown}"


def differences(one: Any, other: Any, place: str = "") -> Iterator[str]:
    """Yield every place where two records differ, with both values."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one | other:
            inside = f"{place} / {key}".removeprefix(" / ")
            if key in one and key in other:
                yield from differences(one[key], other[key], inside)
            else:
                yield f"{inside}: only in the {'first' if key in one else 'second'} file"
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, (a, b) in enumerate(zip(one, other, strict=True), start=1):
            yield from differences(a, b, f"{place} {i}")
    elif one != other:
        yield f"{place}: {_shown(one)} against {_shown(other)}"


def _shown(value: Any) -> str:
    try:
        return f"{float.fromhex(value):.9g} ({value})"
    except (TypeError, ValueError):
        return str(value)


def compare(paths: list[Path]) -> int:
    """Print a line for each task; return 1 if something differs, else 0."""
    one, other = (json.loads(path.read_text()) for path in paths)
    print(f"{one['trunkline']} against {other['trunkline']}")
    if one["packages"] != other["packages"]:
        print(f"the rest differs too: {one['packages']} against {other['packages']}")
    different = False
    for name in one["tasks"] | other["tasks"]:
        found = list(differences(*(file["tasks"].get(name, {}) for file in (one, other))))
        print(f"{name}: differs in {len(found)} values, first {found[0]}" if found else f"{name}: equal")
        different |= bool(found)
    return int(different)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", type=Path, help="file to write")
    what.add_argument("--compare", type=Path, nargs=2, metavar="FILE", help="two such files")
    parser.add_argument("--only", default="", help="part of the names of the tasks to run")
    parser.add_argument("--keep", type=Path, help="new folder for data, logs and predictions")
    options = parser.parse_args()
    if options.compare:
        sys.exit(compare(options.compare))
    with tempfile.TemporaryDirectory(prefix="ten_steps_") as temporary:
        folder = (options.keep or Path(temporary) / "run").absolute()
        folder.mkdir(parents=True)
        os.environ.update(XDG_CACHE_HOME=str(folder / "cache"), NO_ALBUMENTATIONS_UPDATE="1")
        os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        result = run_all(options.only, folder)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
