"""Odd checkpoints, and configs that do not suit them or the length of the run."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import yaml
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from trunkline.tasks.base.optimization import OptimizationOptions, build_schedulers
from trunkline.tasks.run.changes import changes
from trunkline.tasks.run.checkpoints import read_checkpoint
from trunkline.tasks.run.found import newest_checkpoint
from trunkline.tasks.run.resume import check_changes, stored_settings
from trunkline.tasks.run.schedule import Run, schedule_problems

from .case import OddFile

TOPIC = "Runs and checkpoints"
SETTINGS = {
    "class_path": "trunkline.tasks.detection.Detection",
    "init_args": {
        "backbone": {"class_path": "ResNet", "init_args": {"depth": 18, "frozen_stages": 0}},
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.02}},
    },
}


def write_half(folder: Path) -> None:
    path = folder / "last.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(100)}, "global_step": 10}, path)
    path.write_bytes(path.read_bytes()[:500])


def write_weights_alone(folder: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3)}, folder / "resnet18.pth")


def write_other_rate(folder: Path) -> None:
    stored = SETTINGS["init_args"] | {"_class_path": SETTINGS["class_path"]}  # type: ignore[operator]
    torch.save({"state_dict": {}, "hyper_parameters": stored}, folder / "last.ckpt")
    settings = {
        "backbone": {"class_path": "ResNet", "init_args": {"depth": 18, "frozen_stages": 2}},
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.005}},
    }
    config = {"model": {"class_path": "Detection", "init_args": settings}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def read_other_rate(folder: Path) -> None:
    before = stored_settings(read_checkpoint(str(folder / "last.ckpt"), "--ckpt_path"))
    check_changes(changes(before, yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))))


def write_short_schedule(folder: Path) -> None:
    (folder / "config.yaml").write_text(
        "model:\n  lr_scheduler:\n    class_path: torch.optim.lr_scheduler.CosineAnnealingLR\n"
        "    init_args: {T_max: 6}\ntrainer:\n  max_epochs: 12\n",
        encoding="utf-8",
    )


def read_short_schedule(folder: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    length = config["model"]["lr_scheduler"]["init_args"]["T_max"]
    problems = schedule_problems(
        lambda groups: SGD(groups, lr=0.02),
        lambda optimizer: build_schedulers(
            optimizer, lambda each: CosineAnnealingLR(each, length), OptimizationOptions()
        ),
        0.02,
        Run(100 * config["trainer"]["max_epochs"], 100),
    )
    logging.getLogger("trunkline").warning("%s", problems)


ODD_FILES = [
    OddFile(
        "half_a_checkpoint",
        TOPIC,
        "A checkpoint that was cut short, and --ckpt_path last",
        write_half,
        lambda folder: newest_checkpoint([folder], "last"),
        "Some program, not trunkline, copied half of the file. It is passed over; there was no other.",
        "Copy the file again, or give the path of another checkpoint.",
    ),
    OddFile(
        "weights_as_checkpoint",
        TOPIC,
        "A file of weights given as --ckpt_path",
        write_weights_alone,
        lambda folder: read_checkpoint(str(folder / "resnet18.pth"), "--ckpt_path"),
        "It holds tensors, but no state of a run to go on from.",
        "Give it as `--model.weights`, or as `--model.backbone.weights` if it is of a trunk.",
    ),
    OddFile(
        "another_rate_at_resume",
        TOPIC,
        "A config that contradicts the checkpoint it goes on from",
        write_other_rate,
        read_other_rate,
        "The optimiser's state is in the checkpoint, so another rate would have no effect, and other frozen "
        "stages would not fit.",
        "Leave the settings out to go on; or begin a new run with `--model.weights FILE`.",
    ),
    OddFile(
        "schedule_half_as_long_as_the_run",
        TOPIC,
        "A schedule of 6 epochs in a run of 12",
        write_short_schedule,
        read_short_schedule,
        "The cosine goes up again in the second half of the run.",
        "Set `T_max` to the number of epochs, or of steps with `optimization.interval: step`.",
    ),
]
