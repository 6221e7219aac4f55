"""Two processes evaluate and predict scans like one, also where there are fewer scans than processes."""

import csv
import json
import os
import runpy
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
import pytorch_lightning as pl, torch
from trunkline.backbones import ResidualEncoder
from trunkline.data.scans.module import ScanSegmentation
from trunkline.data.scans.prepare import Preparation
from trunkline.heads import UNet
from trunkline.tasks.volume_inference import VolumeInference
from trunkline.tasks.volumes import VolumeSegmentation

torch.set_num_threads(1)
folder, devices, out = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
out.mkdir(exist_ok=True)
pl.seed_everything(0)
task = VolumeSegmentation(
    backbone=ResidualEncoder(channels=[4, 8], blocks=[1, 1], strides=[1, 2], norm="instance"),
    head=lambda levels: UNet(levels, 4, norm="instance"),
    inference=VolumeInference(window=[24, 24, 16], overlap=0),
)
data = ScanSegmentation(
    root=str(folder), patch=[16, 16, 16], workers=0, augment=[], cache_folder=str(out / "cache"),
    preparation=Preparation(spacing=[6, 6, 6]), predict=str(folder / "images/val/scan_003.nii.gz"),
)
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
run = pl.Trainer(
    accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto",
    callbacks=[task.prediction_writer(out, True, 0.5)], **quiet,
)
run.validate(task, data, verbose=False)
cases = task.result.as_dict()
run.predict(task, data, return_predictions=False)
if run.is_global_zero:
    (out / "found.json").write_text(json.dumps(cases))
"""


@pytest.mark.slow
def test_two_processes_evaluate_and_predict_like_one(monkeypatch, tmp_path):
    from trunkline.data.synthetic.scans import write_scans

    write_scans(tmp_path / "scans", train=2, val=3, seed=2, progress=False)
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    folders = {devices: tmp_path / str(devices) for devices in (1, 2)}
    words = [[str(script), str(tmp_path / "scans"), str(n), str(out)] for n, out in folders.items()]
    monkeypatch.setattr(sys, "argv", words[0])
    runpy.run_path(str(script))  # one process: this one, as importing takes longer than all else
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, *words[1]], capture_output=True, text=True, timeout=500, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((out / "found.json").read_text()) for out in folders.values())
    assert two == one and one["cases"] == 3
    one, two = (list(csv.DictReader((out / "predictions.csv").open())) for out in folders.values())
    assert two == one and len(one) == 3  # one scan, three regions
    assert [len(list((out / "labels").iterdir())) for out in folders.values()] == [1, 1]
