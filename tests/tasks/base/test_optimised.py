"""A task's copy for inference, and predictions made with it."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from trunkline.backbones import FPN, ResidualEncoder, ResNet
from trunkline.data.detection.batches import DetectionSample, collate_detection
from trunkline.data.shared.module import TrunklineData
from trunkline.heads import FCN, Classifier, FasterRCNN, UNet
from trunkline.heads.detection import RoIOptions
from trunkline.tasks.base.predicting import OptimisedPrediction
from trunkline.tasks.classification.task import Classification
from trunkline.tasks.detection.task import Detection
from trunkline.tasks.multitask.task import MultiTask
from trunkline.tasks.segmentation.task import SemanticSegmentation

SIZES = torch.tensor([[64, 96], [64, 64]])


def detection_head(levels):
    return FasterRCNN(levels, 3, roi=RoIOptions(hidden=32, score_threshold=0.2))


def pyramid(trunk):
    return FPN(trunk, channels=16)


TASKS = {
    "boxes": lambda: Detection(backbone=ResNet(18), neck=pyramid, head=detection_head),
    "masks": lambda: SemanticSegmentation(backbone=ResNet(18), head=lambda levels: FCN(levels, 3)),
    "classes": lambda: Classification(backbone=ResNet(18), head=lambda levels: Classifier(levels, 3)),
    "both": lambda: MultiTask(
        backbone=ResNet(18),
        neck=pyramid,
        heads={"boxes": detection_head, "stuff": lambda levels: FCN(levels, 3)},
    ),
    "volumes": lambda: SemanticSegmentation(
        backbone=ResidualEncoder(ndim=3, in_channels=1, channels=[4, 8], blocks=[1, 1], norm="batch"),
        head=lambda levels: UNet(levels, 3, channels=[4]),
    ),
}


def randomised(task):
    torch.manual_seed(0)
    for module in task.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.2)
    return task.eval()


def norms_of(task):
    return sum(isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d) for module in task.modules())


@pytest.mark.parametrize("kind", TASKS)
def test_raw_outputs_of_every_task_stay(kind):
    task = randomised(TASKS[kind]())
    copy = task.optimised()
    assert norms_of(task) > 0 and norms_of(copy) == 0
    shape = (2, 1, 16, 24, 32) if kind == "volumes" else (2, 3, 64, 96)
    image = torch.randn(shape) if kind == "volumes" else torch.randint(0, 256, shape, dtype=torch.uint8)
    sizes = torch.tensor([shape[2:]] * 2)
    with torch.no_grad():
        expected, found = task.raw(image, sizes), copy.raw(image, sizes)
    pairs = [(expected, found)]
    if kind == "both":
        pairs = [(expected[name], found[name]) for name in ("boxes", "stuff")]
    for one, other in pairs:
        for name, value in vars(one).items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(getattr(other, name), value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "kind", sorted(TASKS.keys() - {"volumes"})
)  # torch has no pools of half precision for them
def test_tasks_of_half_precision_predict_with_their_copy(kind, precision):
    """The same labels as with the task itself, almost everywhere; types as before."""
    task = randomised(TASKS[kind]()).to(precision)
    copy = task.optimised()
    assert norms_of(copy) == 0 and {p.dtype for p in copy.parameters()} == {precision}
    shape = (2, 1, 16, 24, 32) if kind == "volumes" else (2, 3, 64, 96)
    image = torch.randn(shape) if kind == "volumes" else torch.randint(0, 256, shape, dtype=torch.uint8)
    sizes = torch.tensor([shape[2:]] * 2)
    with torch.no_grad():
        pairs = [(copy.raw(image, sizes), task.raw(image, sizes))]
        copy.head.predict(pairs[0][0], sizes)
    if kind == "both":
        pairs = [(pairs[0][0][name], pairs[0][1][name]) for name in ("boxes", "stuff")]
    for found, expected in pairs:
        for name, value in vars(expected).items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                other = vars(found)[name]
                assert other.dtype == value.dtype
                assert (other - value).abs().max() <= 0.1 * value.abs().max()


@pytest.mark.parametrize("onednn", [True, False])
def test_the_second_stage_of_the_copy_detects_the_same(onednn, monkeypatch):
    if not onednn:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    task = randomised(TASKS["boxes"]())
    with torch.no_grad():
        nn.init.normal_(task.head.roi.classifier.weight, std=0.3)
        copy = task.optimised()
        assert isinstance(copy.head.roi.fc6, nn.Conv2d if onednn else nn.Linear)
        features = [torch.randn(2, 16, 64 // step, 96 // step) for step in (4, 8, 16, 32)]
        corner = torch.rand(2, 30, 2) * 40
        boxes = torch.cat([corner, corner + 20], dim=-1)
        found, expected = copy.head.roi(features, boxes), task.head.roi(features, boxes)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert isinstance(task.head.roi.fc6, nn.Linear)


def test_images_of_the_copy_lie_channels_last_too():
    copy = TASKS["boxes"]().optimised()
    out = copy.normalise(torch.zeros(2, 3, 64, 96, dtype=torch.uint8), SIZES)
    assert out.is_contiguous(memory_format=torch.channels_last) and not out.is_contiguous()
    assert not TASKS["boxes"]().channels_last


class Images(TrunklineData):
    label_kinds = ("detection",)

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        none = {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "crowd": torch.zeros(0, dtype=torch.bool),
        }
        samples = [
            DetectionSample(
                image=torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator),
                **none,
                image_id=n,
                original_size=tuple(size),
                canvas=(64, 96),
            )
            for n, size in enumerate(SIZES.tolist())
        ]
        self.batch = collate_detection(samples)

    def image_layout(self):
        return 3, 2

    def label_classes(self, kind, head=""):
        return ()

    def predict_dataloader(self):
        return DataLoader([self.batch], batch_size=None)


class Watch(pl.Callback):
    def __init__(self):
        self.norms = []

    def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.norms.append(norms_of(pl_module))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "16-true"])
def test_prediction_uses_the_copy_and_leaves_the_task_as_it_was(tmp_path, precision):
    task, watch = randomised(TASKS["boxes"]()), Watch()
    parts, before = SimpleNamespace(backbone=task.backbone, head=task.head), norms_of(task)

    def predict(*callbacks):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        where = {"default_root_dir": tmp_path, "accelerator": "cpu", "precision": precision}
        trainer = pl.Trainer(**where, **quiet, callbacks=list(callbacks))
        return trainer.predict(task, Images())[0]

    expected, found = predict(), predict(OptimisedPrediction(), watch)
    assert watch.norms == [0]
    assert task.backbone is parts.backbone and task.head is parts.head and not task.channels_last
    assert norms_of(task) == before
    for one, other in zip(expected, found, strict=True):
        assert len(one["boxes"]) > 0
        if precision == "32-true":
            torch.testing.assert_close(other["boxes"], one["boxes"], rtol=0, atol=0.01)
            torch.testing.assert_close(other["scores"], one["scores"], rtol=0, atol=1e-4)


def test_a_task_that_has_been_fitted_can_be_copied(tmp_path):
    task = randomised(TASKS["boxes"]())
    task.trainer = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False)
    copy = task.optimised()
    assert copy._trainer is None and task._trainer is not None


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_the_command_predicts_with_the_copy(monkeypatch, tmp_path, precision):
    from trunkline import cli
    from trunkline.data.synthetic.pictures import write_detection

    write_detection(tmp_path / "data", train=1, val=2, seed=0)
    used = []
    original = OptimisedPrediction.on_predict_start

    def note(self, trainer, task):
        original(self, trainer, task)
        used.append(norms_of(task))

    monkeypatch.setattr(OptimisedPrediction, "on_predict_start", note)
    words = ["predict", "--config", "detection/faster_rcnn_r18_fpn_demo"]
    words += ["--model.head.num_classes", "3", "--output.folder", str(tmp_path / "out")]
    words += ["--data.predict", str(tmp_path / "data/images/val"), "--trainer.accelerator", "cpu"]
    words += ["--trainer.logger", "false", "--trainer.devices", "1", "--data.workers", "0"]
    words += ["--output.pictures", "false", "--trainer.precision", precision]
    cli.main(words)
    assert used == [0] and (tmp_path / "out" / "predictions.json").is_file()
