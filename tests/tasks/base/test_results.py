"""The files of evaluations and predictions, the same ones for every task."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from memory_tasks import CLASSES, HEADS, Everything, multi, single, trainer
from pytorch_lightning.loggers import CSVLogger

PREDICTIONS = {
    "boxes": "predictions.json",
    "land": "predictions.csv",
    "sky": "predictions.csv",
    "scene": "predictions.csv",
}


@pytest.mark.parametrize("name", HEADS)
def test_validate_and_test_do_not_overwrite_each_other(tmp_path, name):
    task, data = single(name), Everything(name)
    run = trainer(tmp_path, logger=CSVLogger(tmp_path, name="", version="log"))
    run.validate(task, data, verbose=False)
    val = {path.name: path.read_bytes() for path in (tmp_path / "log/val").iterdir()}
    assert {"metrics.json", "metrics_per_class.csv"} <= set(val)
    assert not (tmp_path / "log/test").exists()
    data.batches = data.batches[:1]
    run.test(task, data, verbose=False)
    assert val == {path.name: path.read_bytes() for path in (tmp_path / "log/val").iterdir()}
    test = json.loads((tmp_path / "log/test/metrics.json").read_text())
    assert test != json.loads(val["metrics.json"])
    assert test["metrics"].keys() == json.loads(val["metrics.json"])["metrics"].keys()
    names = [row["class"] for row in csv.DictReader((tmp_path / "log/test/metrics_per_class.csv").open())]
    assert names == [c.name for c in CLASSES[name][1]]


def test_several_heads_have_folders_within_those_of_the_stages(tmp_path):
    run = trainer(tmp_path, logger=CSVLogger(tmp_path, name="", version="log"))
    run.validate(multi(), Everything(), verbose=False)
    run.test(multi(), Everything(), verbose=False)
    found = {path.relative_to(tmp_path / "log").parent for path in tmp_path.rglob("metrics.json")}
    assert {str(path) for path in found} == {f"{s}/{name}" for s in ("val", "test") for name in HEADS}


@pytest.mark.parametrize("pictures", [True, False])
@pytest.mark.parametrize("name", HEADS)
def test_predict_lists_the_images_beside_the_predictions(tmp_path, name, pictures):
    task, data, run = single(name), Everything(name, tmp_path), trainer(tmp_path)
    run.callbacks.append(task.prediction_writer(tmp_path / "out", pictures, 0.5))
    run.predict(task, data)
    listed = json.loads((tmp_path / "out/images.json").read_text())
    assert listed == [{"id": i, "file_name": str(path)} for i, path in sorted(data.paths.items())]
    assert (tmp_path / "out" / PREDICTIONS[name]).is_file()
    assert (tmp_path / "out/pictures").is_dir() == pictures


def pixels_of(masks):
    """Pixels of each class in masks of labels, image by image."""
    return {number: [int((mask == k).sum()) for k in range(3)] for number, mask in masks.items()}


def table_of(folder):
    rows = list(csv.DictReader((folder / "predictions.csv").open()))
    assert list(rows[0]) == ["image_id", "file_name", "mask", "pixels water", "pixels soil", "pixels rock"]
    return rows


def test_the_table_of_masks_counts_their_pixels(tmp_path):
    task, data, run = single("land"), Everything("land", tmp_path), trainer(tmp_path)
    run.callbacks.append(task.prediction_writer(tmp_path / "out", False, 0.5))
    predicted = [image for batch in run.predict(task, data) for image in batch]
    expected = pixels_of({image["image_id"]: image["mask"].numpy() for image in predicted})
    rows = table_of(tmp_path / "out")
    assert [int(row["image_id"]) for row in rows] == [0, 1, 2, 3, 4]
    for row in rows:
        counted = [int(row[f"pixels {c.name}"]) for c in CLASSES["land"][1]]
        assert counted == expected[int(row["image_id"])] and sum(counted) == 16 * 24
        assert (tmp_path / "out" / row["mask"]).is_file()
        assert row["file_name"] == str(data.paths[int(row["image_id"])])
    assert len({tuple(row.values())[3:] for row in rows}) > 1  # the images differ


SCRIPT = """
import sys
from pathlib import Path
import pytorch_lightning as pl, torch
from torch.utils.data import DataLoader
from memory_tasks import Everything, single, trainer

torch.set_num_threads(1)
folder, devices = Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir(exist_ok=True)

class Shared(Everything):
    def predict_dataloader(self):
        if devices == 1:
            return DataLoader(self.batches, batch_size=None)
        return DataLoader(self.batches[self.trainer.global_rank :: devices], batch_size=None)

task, data = single("land"), Shared("land", folder)
strategy = "ddp" if devices > 1 else "auto"
run = trainer(folder, devices=devices, strategy=strategy, use_distributed_sampler=False)
run.callbacks.append(task.prediction_writer(folder / "out", False, 0.5))
run.predict(task, data, return_predictions=False)
"""


@pytest.mark.slow
def test_two_processes_write_the_table_of_masks_that_one_writes(tmp_path):
    (tmp_path / "run.py").write_text(SCRIPT)
    tests = os.path.dirname(sys.modules[single.__module__].__file__)
    tables = []
    for devices in (1, 2):
        done = subprocess.run(
            [sys.executable, str(tmp_path / "run.py"), str(tmp_path / str(devices)), str(devices)],
            capture_output=True,
            text=True,
            timeout=400,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": tests},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        rows = table_of(tmp_path / str(devices) / "out")
        tables.append([[row["image_id"], row["mask"], *list(row.values())[3:]] for row in rows])
        assert len(list((tmp_path / str(devices) / "out/masks").iterdir())) == 5
        assert len(json.loads((tmp_path / str(devices) / "out/images.json").read_text())) == 5
    assert tables[0] == tables[1] and len(tables[0]) == 5
    assert np.array([row[2:] for row in tables[0]], dtype=int).sum() == 5 * 16 * 24
