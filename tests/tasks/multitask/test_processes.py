"""Two processes evaluate boxes and masks like one, and train together."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
import pytorch_lightning as pl, torch
from trunkline.backbones import FPN, ResNet
from trunkline.data.multi import CocoDetectionAndMasks
from trunkline.heads import FasterRCNN, SemanticFPN
from trunkline.heads.detection import RoIOptions
from trunkline.heads.segmentation import CrossEntropy
from trunkline.tasks.multi import MultiTask

torch.set_num_threads(1)
folder, devices, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
pl.seed_everything(0)
loss = CrossEntropy(class_weights="balanced")
task = MultiTask(
    backbone=ResNet(depth=18), neck=lambda t: FPN(t, channels=16),
    heads={
        "boxes": lambda levels: FasterRCNN(levels, num_classes=3, roi=RoIOptions(score_threshold=0.0)),
        "stuff": lambda levels: SemanticFPN(levels, num_classes=4, channels=8, loss=loss),
    },
)
loss.set_class_weights([1.0, 2.0, 3.0, 4.0])
torch.nn.init.normal_(task.head.heads["boxes"].roi.classifier.weight, std=0.3)
data = CocoDetectionAndMasks(root=folder, batch_size=2, workers=0, short_side=64, long_side=96)
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
run = pl.Trainer(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=1,
                 num_sanity_val_steps=0, **quiet)
metrics = run.validate(task, data, verbose=False)[0]
confusion = task.branches["stuff"].result.confusion.tolist()
if len(sys.argv) > 4:
    run.fit(task, data)
weights = loss.class_weights
every = run.strategy.all_gather(torch.tensor(weights)).tolist()
if run.is_global_zero:
    json.dump({"metrics": metrics, "confusion": confusion, "steps": run.global_step, "weights": every,
               "finite": all(bool(torch.isfinite(p).all()) for p in task.parameters())}, open(out, "w"))
"""


@pytest.mark.slow
def test_two_processes_evaluate_like_one_and_train_together(shapes_with_masks, tmp_path):
    script, found = tmp_path / "run.py", {}
    script.write_text(SCRIPT)
    for devices, more in ((1, []), (2, ["fit"])):
        out = tmp_path / f"{devices}.json"
        done = subprocess.run(
            [sys.executable, str(script), str(shapes_with_masks), str(devices), str(out), *more],
            capture_output=True,
            text=True,
            timeout=500,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[devices] = json.loads(out.read_text())
    one, two = found[1], found[2]
    assert two["confusion"] == one["confusion"] and sum(map(sum, one["confusion"])) > 0
    for name, value in one["metrics"].items():
        if name.startswith(("val/boxes/A", "val/stuff/")):
            assert two["metrics"][name] == pytest.approx(value, rel=1e-5, nan_ok=True), name
    assert two["steps"] == 2 and two["finite"]  # 8 images, 2 processes with 2 images each
    assert two["weights"][0] == two["weights"][1] != one["weights"]  # by the data's counts, on both
