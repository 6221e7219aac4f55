"""Tasks of shipped configs, and batches for them that hold no data.

Letters in shapes: B images, C channels, M box rows, S spatial axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

from trunkline.backbones.weights import skip_pretrained
from trunkline.cli import shipped_configs, with_null_overrides
from trunkline.data.classification.batches import ClassificationBatch
from trunkline.data.detection.batches import DetectionBatch
from trunkline.data.multitask.batches import MultiTaskBatch
from trunkline.data.scans.batches import EvaluationCase, ScanBatch
from trunkline.data.scans.cases.types import Case
from trunkline.data.scans.formats.scan import Grid
from trunkline.data.scans.prepare.prepare import Placement
from trunkline.data.segmentation.batches import SegmentationBatch
from trunkline.data.shared.labels.classes import LabelClass
from trunkline.data.shared.module import TrunklineData, VolumeSettings
from trunkline.tasks.base.task import Task
from trunkline.tasks.command import TrunklineCLI
from trunkline.tasks.settings.num_classes import auto_heads

CLASSES = 20  # of heads whose number of classes is that of the data
Canvas = tuple[int, ...]


class BuiltOnly(TrunklineCLI):
    """The command line up to where it would run: task, data module and trainer are there."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass

    def _number_classes(self) -> None:
        for head in auto_heads(self.config[self.subcommand].model):
            head.settings.init_args.num_classes = CLASSES


def built(config: str, folder: Path, words: Sequence[str] = ()) -> TrunklineCLI:
    """Build what ``trunkline fit --config CONFIG WORDS`` builds on a machine with one GPU, without weights.

    Args:
        config: name of a shipped config, or a file.
        folder: for files of the run.
        words: further options, as on the command line.
    """
    path = config if Path(config).is_file() else shipped_configs()[config]
    given = [f"--config={path}", "--trainer.accelerator=gpu", "--trainer.devices=1", "--trainer.logger=false"]
    given += [f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false"]
    given += ["--trainer.enable_model_summary=false", "--trainer.check_val_every_n_epoch=1"]
    with skip_pretrained():
        return BuiltOnly(args=["fit", *with_null_overrides([*given, *words])])


class EmptyData(TrunklineData):
    """The data module of a run on batches without data.

    Args:
        task: that is trained.
        batches: by ``train``, ``val`` and ``predict``, makers of the batches, called one after the other.
        rows: M of images with boxes.
    """

    def __init__(self, task: Task, batches: Mapping[str, Sequence[Callable[[], Any]]]) -> None:
        super().__init__()
        self._task = task
        self._batches = batches
        self.label_kinds = tuple({branch.kind for branch in task.branches.values()})

    def image_layout(self) -> tuple[int, int]:
        axes = len(self._task.backbone.levels[0].stride)
        return channels_of(self._task), axes

    def label_classes(self, kind: str, head: str = "") -> Sequence[LabelClass]:
        number = self._task.branches[head].head.num_classes
        return [LabelClass(k, f"class {k}") for k in range(number)]

    def label_counts(self, kind: str, head: str = "") -> Sequence[int]:
        return [1 + k for k in range(self._task.branches[head].head.num_classes)]

    def multi_label(self, head: str = "") -> bool:
        return bool(getattr(self._task.branches[head].head, "multi_label", False))

    def evaluation_truth(self, kind: str, stage: str, head: str = "") -> Any:
        classes = self.label_classes(kind, head)
        box = {"category_id": 0, "bbox": [0, 0, 8, 8], "iscrowd": 0, "area": 64}
        return {
            "images": [{"id": number} for number in range(64)],
            "categories": [{"id": c.id, "name": c.name} for c in classes],
            "annotations": [{"id": 1 + i, "image_id": i, **box} for i in range(64)],
        }

    def prediction_paths(self) -> Mapping[int, Path]:
        return {number: Path(f"{number}.png") for number in range(64)}

    def volume_settings(self) -> VolumeSettings:
        axes = len(self._task.backbone.levels[0].stride)
        return VolumeSettings(patch=PATCH[axes], slice_axis=2 if axes == 2 else None)

    def train_dataloader(self) -> Any:
        return Batches(self._batches["train"])

    def val_dataloader(self) -> Any:
        return Batches(self._batches["val"])

    def predict_dataloader(self) -> Any:
        return Batches(self._batches["predict"])


PATCH = {2: (64, 64), 3: (32, 32, 32)}  # voxels of a window over scans


class Batches:
    """A loader that makes its batches when they are asked for, in the page-locked memory of the host."""

    def __init__(self, makers: Sequence[Callable[[], Any]]) -> None:
        self._makers = makers

    def __len__(self) -> int:
        return len(self._makers)

    def __iter__(self) -> Iterator[Any]:
        return (make() for make in self._makers)


def channels_of(task: Task) -> int:
    """Return C of the images that a task takes."""
    return task.trunk.image_channels or (1 if len(task.backbone.levels[0].stride) == 3 else 3)


def training_batch(task: Task, size: Canvas, batch: int = 2, rows: int = 16, first: int = 0) -> Any:
    """Return a batch as the loader of training and of 2-D evaluation yields it, without data, on the host.

    Args:
        task: decides the kind of batch.
        size: S, one number per axis.
        batch: B.
        rows: M.
        first: the id of the first image.
    """
    kinds = {branch.kind for branch in task.branches.values()}
    scans = "volumes" in kinds or len(size) == 3
    picture = torch.zeros(batch, channels_of(task), *size, dtype=torch.float32 if scans else torch.uint8)
    with _disable_current_modes():  # the host knows their values
        ids = torch.arange(first, first + batch)
        sizes = torch.tensor([list(size)] * batch)
    common = {"image": picture, "image_sizes": sizes, "image_ids": ids}
    boxes = {
        "boxes": torch.tensor([[0.0, 0.0, 8.0, 8.0]]).repeat(batch, rows, 1),
        "labels": torch.zeros(batch, rows, dtype=torch.int64),
        "crowd": torch.zeros(batch, rows, dtype=torch.bool),
        "original_sizes": sizes.clone(),
    }
    mask = torch.zeros(batch, *size, dtype=torch.uint8)
    truth = tuple(torch.zeros(*size, dtype=torch.uint8) for _ in range(batch))
    if kinds == {"detection"}:
        return DetectionBatch(**common, **boxes)
    if "detection" in kinds:
        return MultiTaskBatch(**common, **boxes, mask=mask, truth=truth)
    if kinds == {"volumes"}:
        return ScanBatch(**common, mask=mask)
    if kinds == {"segmentation"}:
        return SegmentationBatch(**common, mask=mask, truth=truth, original_sizes=sizes.clone())
    head: Any = task.head
    with _disable_current_modes():
        kind = torch.float32 if head.multi_label else torch.int64
        label = torch.zeros((batch, head.num_classes) if head.multi_label else (batch,), dtype=kind)
    return ClassificationBatch(**common, label=label)


def evaluation_batch(task: Task, size: Canvas, batch: int = 2, rows: int = 16, first: int = 0) -> Any:
    """Return a batch as the loader of evaluation yields it: as in training, or a whole scan."""
    if not any(branch.kind == "volumes" for branch in task.branches.values()):
        return training_batch(task, size, batch, rows, first)
    with _disable_current_modes():
        shape = (48, 40, 36)
        image = np.zeros((channels_of(task), *shape), dtype=np.float32)
        placement = Placement(
            grid=Grid(shape, np.eye(4)),
            orientation=((0, 1), (1, 1), (2, 1)),
            box=tuple((0, length) for length in shape),
            shape=shape,
            spacing=(1.0, 1.0, 1.0),
        )
        truth = np.zeros(shape, dtype=np.uint8)
        case = Case(f"case {first}", (f"{first}.nii",), None, f"{first}")
        return EvaluationCase(image, placement, case, truth, np.array([first]))
