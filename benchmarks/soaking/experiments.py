"""The small experiments that are run under faults: one for each task, with everything that a run may keep.

Each has a schedule with a warm-up, momentum, an average of the weights, running statistics, a best checkpoint
by a metric, and something random in the model: sampled boxes, dropout, mixed images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from trunkline.data.synthetic.pictures import write_classification, write_detection, write_segmentation
from trunkline.data.synthetic.scans import write_scans

TASKS = ("detection", "scans", "segmentation", "classification", "multitask")
STEPS = 20  # of an epoch
CONFIG = "config.yaml"
DATA = "data"
MODULES = {
    "detection": "CocoDetection",
    "scans": "ScanSegmentation",
    "segmentation": "ImageSegmentation",
    "classification": "ImageClassification",
    "multitask": "CocoDetectionAndMasks",
}

_TRUNK = {"class_path": "ResNet", "init_args": {"depth": 18, "width": 4, "norm": "batch", "weights": None}}
_NECK = {"class_path": "FPN", "init_args": {"channels": 8, "extra": "maxpool"}}
_BOXES = {
    "class_path": "FasterRCNN",
    "init_args": {
        "num_classes": "auto",
        "anchors": {"scale": 4},
        "rpn": {
            "batch_size": 32, "pre_nms_train": 60, "post_nms_train": 30, "pre_nms_test": 30,
            "post_nms_test": 20,
        },
        "roi": {"batch_size": 16, "hidden": 16},
    },
}  # fmt: skip
_FLIPS = [{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}]
_PICTURES = {"batch_size": 2, "short_side": 64, "long_side": 96, "augment": _FLIPS}


def write(task: str, folder: Path, epochs: int) -> Path:
    """Write the data and the config of an experiment, whose command is to be started in its folder.

    Args:
        task: one of ``TASKS``.
        folder: a new one; gets ``data/`` and ``config.yaml``.
        epochs: length of the run, of ``STEPS`` steps each.

    Returns:
        The config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arguments, monitor = _WRITERS[task](folder / DATA)
    content: dict[str, Any] = {
        "seed_everything": 0,
        "model": _model(task, epochs),
        "data": {"class_path": MODULES[task], "init_args": {"root": DATA, "workers": 0, **arguments}},
        "trainer": _trainer(monitor, epochs),
    }
    config = folder / CONFIG
    config.write_text(yaml.safe_dump(content, sort_keys=False))
    return config


def _trainer(monitor: str, epochs: int) -> dict[str, Any]:
    best = {"monitor": monitor, "mode": "max", "filename": "best", "enable_version_counter": False}
    return {
        "accelerator": "cpu",
        "devices": 1,
        "deterministic": True,
        "max_epochs": epochs,
        "precision": "32-true",
        "log_every_n_steps": 1,
        "gradient_clip_val": 10.0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 1,
        "logger": {
            "class_path": "pytorch_lightning.loggers.CSVLogger",
            "init_args": {"save_dir": "runs"},
        },
        "callbacks": [
            {"class_path": "ModelCheckpoint", "init_args": best},
            {"class_path": "LearningRateMonitor"},
            {"class_path": "trunkline.tasks.run.averaging.WeightEMA", "init_args": {"decay": 0.9}},
        ],
    }


def _model(task: str, epochs: int) -> dict[str, Any]:
    classes = {
        "detection": "Detection", "scans": "VolumeSegmentation", "segmentation": "SemanticSegmentation",
        "classification": "Classification", "multitask": "MultiTask",
    }  # fmt: skip
    schedule = {"T_max": epochs * STEPS}
    arguments: dict[str, Any] = {
        "backbone": _TRUNK,
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.002}},
        "lr_scheduler": {
            "class_path": "torch.optim.lr_scheduler.CosineAnnealingLR",
            "init_args": schedule,
        },
        "optimization": {"interval": "step", "warmup_steps": 10, "warmup_factor": 0.1},
    }
    if task == "detection":
        arguments |= {"neck": _NECK, "head": _BOXES}
    elif task == "multitask":
        stuff = {"num_classes": "auto", "channels": 8, "pyramid_levels": 4, "dropout": 0.1}
        arguments |= {
            "neck": _NECK,
            "heads": {"boxes": _BOXES, "stuff": {"class_path": "SemanticFPN", "init_args": stuff}},
        }
    elif task == "segmentation":
        head = {"num_classes": "auto", "channels": 8, "skips": 2, "dropout": 0.1}
        arguments |= {"head": {"class_path": "FCN", "init_args": head}}
    elif task == "classification":
        head = {"num_classes": "auto", "dropout": 0.2}
        arguments |= {"head": {"class_path": "Classifier", "init_args": head}, "mixup": 0.2, "cutmix": 1.0}
    else:
        arguments |= {"backbone": _ENCODER, "head": _DECODER, "inference": {"overlap": 0.25}}
    return {"class_path": classes[task], "init_args": arguments}


_ENCODER = {
    "class_path": "ResidualEncoder",
    "init_args": {
        "ndim": 3, "in_channels": 1, "channels": [4, 8, 8, 8], "blocks": [1, 1, 1, 1],
        "strides": [1, 2, 2, 2], "norm": "batch",
    },
}  # fmt: skip
_DECODER = {
    "class_path": "UNet",
    "init_args": {
        "num_classes": "auto", "channels": [8, 8, 4], "convs": 1, "norm": "batch", "deep_supervision": True,
    },
}  # fmt: skip


def _detection(root: Path) -> tuple[dict[str, Any], str]:
    write_detection(root, train=2 * STEPS, val=6, size=(48, 64), seed=1, progress=False)
    return dict(_PICTURES), "val/AP"


def _multitask(root: Path) -> tuple[dict[str, Any], str]:
    write_detection(root, train=2 * STEPS, val=6, size=(48, 64), seed=1, progress=False)
    for split in ("train", "val"):
        _fill_boxes(root, split)
    (root / "classes.csv").write_text("id,name\n0,nothing\n1,circle\n3,rectangle\n7,triangle\n")
    return dict(_PICTURES), "val/boxes/AP"


def _fill_boxes(root: Path, split: str) -> None:
    """Write a mask for each image, in which every box is filled with the id of its category."""
    (root / "masks" / split).mkdir(parents=True)
    content = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
    for image in content["images"]:
        mask = np.zeros((image["height"], image["width"]), dtype=np.uint8)
        for row in content["annotations"]:
            if row["image_id"] == image["id"]:
                x, y, width, height = row["bbox"]
                mask[y : y + height, x : x + width] = row["category_id"]
        Image.fromarray(mask).save((root / "masks" / split / image["file_name"]).with_suffix(".png"))


def _segmentation(root: Path) -> tuple[dict[str, Any], str]:
    write_segmentation(root, train=2 * STEPS, val=6, size=(48, 64), seed=1, progress=False)
    crop = {"RandomCrop": {"height": 48, "width": 48, "pad_if_needed": True, "p": 1.0}}
    return {"batch_size": 2, "augment": [*_FLIPS, crop]}, "val/mIoU"


def _classification(root: Path) -> tuple[dict[str, Any], str]:
    write_classification(root, train=2 * STEPS, val=6, size=32, seed=1, progress=False)
    return {"batch_size": 2, "size": 32, "augment": _FLIPS[:1]}, "val/accuracy"


def _scans(root: Path) -> tuple[dict[str, Any], str]:
    write_scans(root, train=3, val=1, seed=1, progress=False)
    intensity = [{"clip": [-200, 300], "scale": "zscore", "mean": 0, "std": 100}]
    arguments = {
        "preparation": {"orientation": "RAS", "spacing": [4.0, 4.0, 6.0], "intensity": intensity},
        "patch": [16, 16, 12],
        "batch_size": 2,
        "steps_per_epoch": STEPS,
        "foreground": 0.5,
        "augment": [
            {"RandFlip": {"prob": 0.5, "spatial_axis": 1}},
            {"RandGaussianNoise": {"prob": 0.5, "std": 0.1}},
        ],
        "cache": "disk",
        "cache_folder": "cache",
    }
    return arguments, "val/mean_Dice"


_WRITERS = {
    "detection": _detection,
    "scans": _scans,
    "segmentation": _segmentation,
    "classification": _classification,
    "multitask": _multitask,
}
