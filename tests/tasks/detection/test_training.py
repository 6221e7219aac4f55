"""Training as a whole: precision, pictures, resuming, several processes."""

import json
import os
import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trunkline.backbones import FPN, ResNet
from trunkline.data.detection.module import CocoDetection
from trunkline.heads import FasterRCNN
from trunkline.tasks.detection.task import Detection


def detector(**arguments):
    return Detection(
        backbone=ResNet(depth=18),
        neck=lambda trunk: FPN(trunk, channels=16),
        head=lambda levels: FasterRCNN(levels, num_classes=3),
        **arguments,
    )


def data_module(folder, **arguments):
    return CocoDetection(
        root=folder, **{"batch_size": 4, "workers": 0, "short_side": 64, "long_side": 96, **arguments}
    )


def trainer(folder, **arguments):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    settings = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        **quiet,
    }
    return pl.Trainer(default_root_dir=folder, **{**settings, **arguments})


@pytest.mark.parametrize("channels_last", [False, True])
def test_bf16_training_keeps_losses_and_weights_in_float32(shapes, tmp_path, channels_last):
    task, seen = detector(channels_last=channels_last), {}

    def note(module, inputs, output):
        seen["map"] = output[0].dtype

    task.backbone.register_forward_hook(note)
    losses = task.head.losses

    def noting(raw, targets):
        seen["losses"] = losses(raw, targets)
        return seen["losses"]

    task.head.losses = noting
    before = task.head.roi.fc7.weight.detach().clone()
    trainer(tmp_path, precision="bf16-mixed", max_steps=1, limit_val_batches=0).fit(task, data_module(shapes))
    assert seen["map"] == torch.bfloat16
    assert {loss.dtype for loss in seen["losses"].values()} == {torch.float32}
    after = task.head.roi.fc7.weight
    assert after.dtype == torch.float32 and not torch.equal(after, before) and torch.isfinite(after).all()


def test_half_precision_weights_learn_from_boxes_that_are_not_rounded(shapes, tmp_path):
    task, seen = detector(), []
    step = task.training_step

    def noting(batch, batch_idx):
        seen.append((batch.boxes, step(batch, batch_idx)))
        return seen[-1][1]

    task.training_step = noting
    data = data_module(shapes)
    trainer(tmp_path, precision="bf16-true", max_steps=1, limit_val_batches=1).fit(task, data)
    ((boxes, loss),) = seen
    assert boxes.dtype == torch.float32 and not torch.equal(boxes, boxes.bfloat16().float())
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert task.head.roi.fc7.weight.dtype == torch.bfloat16


def test_metrics_and_the_asked_number_of_pictures_reach_tensorboard(shapes, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    run = trainer(tmp_path, logger=logger, limit_train_batches=1)
    run.fit(detector(pictures=3), data_module(shapes, eval_batch_size=2))
    board = EventAccumulator(logger.log_dir)
    board.Reload()
    assert len(board.Tags()["images"]) == 3
    scalars = set(board.Tags()["scalars"])
    for name in ("loss", "rpn_objectness", "rpn_box", "roi_class", "roi_box", "AP", "AP50", "AR100"):
        assert f"val/{name}" in scalars, name


@pytest.mark.parametrize("bar", [True, False])
def test_fit_ends_with_the_metrics_once(shapes, tmp_path, capsys, bar):
    run = trainer(
        tmp_path, enable_progress_bar=bar, limit_train_batches=1, max_epochs=2, num_sanity_val_steps=1
    )
    run.fit(detector(), data_module(shapes))
    text = capsys.readouterr().out
    assert text.count("Average Precision") == 6 and text.count("Average Recall") == 6
    assert text.count("triangle") == 1


def test_no_pictures_when_none_are_asked_for(shapes, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    trainer(tmp_path, logger=logger, limit_train_batches=1).fit(detector(pictures=0), data_module(shapes))
    board = EventAccumulator(logger.log_dir)
    board.Reload()
    assert board.Tags()["images"] == []


def test_resuming_continues_the_count_and_the_categories(shapes, tmp_path):
    first = trainer(tmp_path, limit_val_batches=1)
    first.fit(detector(), data_module(shapes))
    first.save_checkpoint(tmp_path / "one.ckpt")
    task = detector()
    second = trainer(tmp_path, max_epochs=2, limit_val_batches=1)
    second.fit(task, data_module(shapes), ckpt_path=tmp_path / "one.ckpt")
    assert second.global_step == 2 * first.global_step
    assert [row["name"] for row in task.branch.classes] == ["circle", "rectangle", "triangle"]


DDP = """
import json, sys
import pytorch_lightning as pl, torch
from trunkline.backbones import FPN, ResNet
from trunkline.data.detection import CocoDetection
from trunkline.heads import FasterRCNN
from trunkline.heads.detection import RoIOptions
from trunkline.tasks.detection import Detection

torch.set_num_threads(1)
folder, devices, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
pl.seed_everything(0)
task = Detection(
    backbone=ResNet(depth=18), neck=lambda t: FPN(t, channels=16),
    head=lambda levels: FasterRCNN(levels, num_classes=3, roi=RoIOptions(score_threshold=0.0)),
)
torch.nn.init.normal_(task.head.roi.classifier.weight, std=0.3)
data = CocoDetection(root=folder, batch_size=2, workers=0, short_side=64, long_side=96)
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
run = pl.Trainer(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=1,
                 num_sanity_val_steps=0, **quiet)
metrics = run.validate(task, data, verbose=False)[0]
if len(sys.argv) > 4:
    run.fit(task, data)
if run.is_global_zero:
    weight = task.head.roi.fc7.weight
    json.dump({"metrics": metrics, "steps": run.global_step, "images": task.result.images,
               "finite": bool(torch.isfinite(weight).all())}, open(out, "w"))
"""


@pytest.mark.slow
def test_two_processes_evaluate_like_one_and_train_together(shapes, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(DDP)
    found = {}
    for devices, more in ((1, []), (2, ["fit"])):
        out = tmp_path / f"{devices}.json"
        done = subprocess.run(
            [sys.executable, str(script), str(shapes), str(devices), str(out), *more],
            capture_output=True,
            text=True,
            timeout=500,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[devices] = json.loads(out.read_text())
    for name, value in found[1]["metrics"].items():
        if "AP" in name or "AR" in name:
            assert found[2]["metrics"][name] == pytest.approx(value, abs=1e-9, nan_ok=True), name
    assert found[1]["metrics"]["val/AR100"] > 0
    assert found[2]["images"] == 6 and found[2]["finite"]
    assert found[2]["steps"] == 2  # 8 images, 2 processes with 2 images each
