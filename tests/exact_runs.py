"""Small runs of every task that are stopped and go on, and what must be equal at their ends.

``finish(case, folder, ...)`` trains in a forked process until the run is done, and starts it again whenever
it was killed, from the newest checkpoint that was written between two steps.
"""

import json
import os
import random
import signal
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.cli import ReduceLROnPlateau
from pytorch_lightning.loggers.logger import Logger
from torch import nn

from trunkline.backbones import FPN
from trunkline.backbones.base import Backbone, FeatureLevel
from trunkline.data.classification import ImageClassification
from trunkline.data.detection import CocoDetection
from trunkline.data.multitask import CocoDetectionAndMasks
from trunkline.data.scans.module import ScanSegmentation
from trunkline.data.segmentation import ImageSegmentation
from trunkline.heads import FCN, Classifier, FasterRCNN
from trunkline.heads.detection import AnchorOptions, RoIOptions
from trunkline.tasks.base.optimization import OptimizationOptions
from trunkline.tasks.classification import Classification
from trunkline.tasks.detection import Detection
from trunkline.tasks.multitask import MultiTask
from trunkline.tasks.run.averaging import WeightEMA
from trunkline.tasks.run.experiment import Command
from trunkline.tasks.run.state import KEY
from trunkline.tasks.segmentation import SemanticSegmentation
from trunkline.tasks.volumes import VolumeSegmentation


class Trunk(Backbone):
    """Two levels with batch norm, whose statistics a resumed run has to keep."""

    def __init__(self, ndim=2, channels=3):
        super().__init__()
        convolution, norm = (nn.Conv2d, nn.BatchNorm2d) if ndim == 2 else (nn.Conv3d, nn.InstanceNorm3d)
        self.one = nn.Sequential(convolution(channels, 4, 3, stride=2, padding=1), norm(4), nn.ReLU())
        self.two = nn.Sequential(convolution(4, 6, 3, stride=2, padding=1), nn.ReLU())
        self.levels = (FeatureLevel(4, (2,) * ndim), FeatureLevel(6, (4,) * ndim))

    def forward(self, image):
        first = self.one(image)
        return [first, self.two(first)]


def boxes(levels):
    roi = RoIOptions(hidden=8, pool_size=3, score_threshold=0.0, levels=2, detections_per_image=5)
    return FasterRCNN(levels, num_classes=3, anchors=AnchorOptions(scale=4.0), roi=roi)


def masks(levels, classes=4):
    return FCN(levels, classes, channels=4, dropout=0.5)


def fpn(trunk):
    return FPN(trunk, channels=8)


FLIP = [{"HorizontalFlip": {"p": 0.5}}]
SMALL = {"batch_size": 2, "seed": 3}


def detection(root, **data):
    data = CocoDetection(str(root), short_side=32, long_side=48, augment=FLIP, **SMALL, **data)
    return lambda **task: Detection(backbone=Trunk(), neck=fpn, head=boxes, **task), data


def segmentation(root, **data):
    crop = [{"RandomCrop": {"height": 32, "width": 32, "pad_if_needed": True}}]
    data = ImageSegmentation(str(root), augment=[*FLIP, *crop], **SMALL, **data)
    return lambda **task: SemanticSegmentation(backbone=Trunk(), head=masks, **task), data


def classification(root, **data):
    data = ImageClassification(str(root), size=16, augment=FLIP, random_erasing=0.5, **SMALL, **data)

    def head(levels):
        return Classifier(levels, 3, dropout=0.5)

    return lambda **task: Classification(backbone=Trunk(), head=head, mixup=0.2, cutmix=1.0, **task), data


def multitask(root, **data):
    data = CocoDetectionAndMasks(root=str(root), short_side=32, long_side=48, augment=FLIP, **SMALL, **data)
    heads = {"boxes": boxes, "masks": masks}
    return lambda **task: MultiTask(backbone=Trunk(), neck=fpn, heads=heads, **task), data


def scans(root, **data):
    data = ScanSegmentation(
        str(root), patch=[8, 8, 8], steps_per_epoch=4, cache="memory",
        augment=[{"RandFlip": {"prob": 0.5, "spatial_axis": 0}}], **SMALL, **data,
    )  # fmt: skip
    return lambda **task: VolumeSegmentation(
        backbone=Trunk(3, 1), head=lambda levels: FCN(levels, 3, channels=4, dropout=0.5), **task
    ), data


TASKS = {each.__name__: each for each in (detection, segmentation, classification, multitask, scans)}


@dataclass
class Case:
    """One experiment: a task, its data, and how it is trained."""

    task: str
    root: Path
    workers: int = 0
    ema: bool = True
    epochs: int = 3
    trainer: dict = field(default_factory=dict)
    callbacks: object = None  # makes more of them
    schedule: str = "step"  # of the learning rate: step or plateau
    save_every: object = None


class Curves(Logger):
    """Appends what is logged to a file, so that a killed process loses nothing."""

    def __init__(self, path):
        self.path = path

    name = version = "curves"
    experiment = None

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        with open(self.path, "a") as file:
            for name, value in metrics.items():
                file.write(json.dumps([step, name, float(value).hex()]) + "\n")


def curves(folder):
    """What was logged by step and name. A value that a resumed run logs again must be the same."""
    found = {}
    for line in (folder / "curves.jsonl").read_text().splitlines():
        step, name, value = json.loads(line)
        assert found.setdefault((step, name), value) == value, f"{name} of step {step} differs after a resume"
    return found


class KillAt(Callback):
    """Kills this process without a word in a hook of a step, counted by optimiser steps done."""

    def __init__(self, hook, step, number=signal.SIGKILL):
        def act(trainer, *_):
            if trainer.global_step == step and not trainer.sanity_checking:
                os.kill(os.getpid(), number)

        setattr(self, hook, act)


class KillSaving(Callback):
    """Kills this process when a checkpoint is half written."""

    def __init__(self, count):
        self.count = count

    def on_fit_start(self, trainer, module):
        save = torch.save

        def half(content, file):
            self.count -= 1
            if self.count:
                return save(content, file)
            file.write(bytes(5000))
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half


def callbacks(case, folder):
    """Two that follow a metric, one that counts, and an average of the weights; each process has a folder."""
    metric = "val/loss" if case.task != "scans" else "val/mean_Dice"
    runs = folder / f"version_{len(list(folder.glob('version_*')))}"
    found = [
        ModelCheckpoint(runs, "best", monitor=metric, mode="min"),
        ModelCheckpoint(runs, "top-{step}", monitor=metric, mode="max", save_top_k=2),
        EarlyStopping(metric, patience=50, strict=False),
    ]
    found += [WeightEMA(0.9, update_starting_at_epoch=1)] if case.ema else []
    return [*found, *([] if case.callbacks is None else case.callbacks())]


def schedule(case):
    """A schedule of torch, or one that follows the training loss."""
    if case.schedule == "plateau":
        return lambda optimizer: ReduceLROnPlateau(optimizer, monitor="val/loss", patience=0, factor=0.5)
    return lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)


def train(case, folder, ckpt_path=None, *more):
    """Train in this process; return the trainer."""
    pl.seed_everything(7, verbose=False)
    build, data = TASKS[case.task](case.root, workers=case.workers)
    task = build(
        lr_scheduler=schedule(case), optimization=OptimizationOptions(warmup_steps=3),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.02, momentum=0.9), pictures=0,
    )  # fmt: skip
    task.command = Command(save_every=case.save_every)
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "accelerator": "cpu", "max_epochs": case.epochs, "enable_progress_bar": False, "deterministic": True,
        "enable_model_summary": False, "num_sanity_val_steps": 2, "log_every_n_steps": 1, **case.trainer,
    }  # fmt: skip
    trainer = pl.Trainer(
        default_root_dir=folder, logger=Curves(folder / "curves.jsonl"),
        callbacks=[*callbacks(case, folder), *more], **options,
    )  # fmt: skip
    # A process that is started again begins with other random numbers.
    torch.manual_seed(random.SystemRandom().randrange(2**31) if ckpt_path else 7)
    trainer.fit(task, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def forked(function, *arguments):
    """Run a function in a forked process; return its exit status, below 0 for a signal."""
    process = os.fork()
    if process == 0:
        status = 70
        try:
            function(*arguments)
            status = 0
        except SystemExit as error:
            status = error.code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def newest(folder):
    """The newest checkpoint of a folder that was written between two steps, or None."""
    files = sorted(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return next((path for path in reversed(files) if KEY in torch.load(path, weights_only=True)), None)


def finish(case, folder, kills):
    """Train to the end; the n-th process is stopped by the n-th callback. Return the exit statuses."""
    statuses = []
    for kill in [*kills, None]:
        more = [] if kill is None else [kill]
        statuses.append(forked(train, case, folder, newest(folder) if folder.exists() else None, *more))
    assert statuses[-1] == 0, "the run did not reach its end"
    return statuses


def last_state(folder):
    """What the last checkpoint holds: weights, optimiser, averages, schedules, callbacks, random states."""
    return torch.load(newest(folder), weights_only=True)


def differences(one, other, place=""):
    """Where two contents of checkpoints differ; paths count by their names."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            if key == "dirpath":
                continue  # each process of a run has a folder
            name = Path(key).name if isinstance(key, str) and key.startswith("/") else key
            yield from differences(_at(one, name), _at(other, name), f"{place}.{name}")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{place}[{number}]")
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        if not same or not bool(torch.equal(one.nan_to_num(7e7), other.nan_to_num(7e7))):
            yield place
    elif _named(one) != _named(other) and not (one != one and other != other):
        yield f"{place}: {one} != {other}"


def _at(content, name):
    return next(
        (v for k, v in content.items() if k == name or (isinstance(k, str) and Path(k).name == name)), None
    )


def _named(value):
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def assert_same_end(quiet, stopped):
    """The runs in two folders ended alike: state, curves and best checkpoints."""
    found = list(differences(last_state(quiet), last_state(stopped)))
    assert not found, found[:8]
    assert curves(quiet) == curves(stopped)
    ends = [last_state(folder)["callbacks"] for folder in (quiet, stopped)]
    for key in (key for key in ends[0] if key.startswith("ModelCheckpoint")):
        one, other = (torch.load(end[key]["best_model_path"], weights_only=True) for end in ends)
        found = list(differences(one["state_dict"], other["state_dict"], key))
        assert not found, found
