"""One image that cannot be read costs no other prediction: the rest is written, and it is named."""

import csv
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from memory_tasks import Everything, single, trainer
from PIL import Image

from trunkline.data.classification import ImageClassification
from trunkline.data.detection import CocoDetection
from trunkline.data.segmentation import ImageSegmentation
from trunkline.data.shared import FailedBatch, FailedImage

GOOD = ("a.png", "c.png", "e.png", "g.png")


def write_images(folder, bad):
    folder.mkdir()
    for number, name in enumerate(sorted((*GOOD, *(("b.png", "d.png", "f.png") if bad else ())))):
        noise = np.random.default_rng(GOOD.index(name) if name in GOOD else number + 10)
        Image.fromarray(noise.integers(0, 256, (40, 64, 3), dtype=np.uint8)).save(folder / name)
    if bad:
        (folder / "b.png").write_text("no image")
        content = (folder / "d.png").read_bytes()
        (folder / "d.png").write_bytes(content[: len(content) // 2])  # the header is whole
        (folder / "f.png").unlink()
        (folder / "f.png").write_bytes(b"")


def data_of(name, folder, **options):
    options = {"predict": str(folder), "batch_size": 2, "workers": 0, **options}
    if name == "boxes":
        return CocoDetection(short_side=48, long_side=96, **options)
    if name == "land":
        return ImageSegmentation(**options)
    return ImageClassification(size=32, **options)


def predict(name, folder, out, **options):
    task, run = single(name), trainer(out.parent)
    run.callbacks.append(task.prediction_writer(out, True, 0.5))
    run.predict(task, data_of(name, folder, **options), return_predictions=False)


def results(name, out):
    """What was predicted, by file."""
    files = {
        row["id"]: os.path.basename(row["file_name"]) for row in json.loads((out / "images.json").read_text())
    }
    if name == "boxes":
        rows = json.loads((out / "predictions.json").read_text())
        return files, sorted((files[row["image_id"]], row["bbox"], row["score"]) for row in rows)
    rows = [list(row.values()) for row in csv.DictReader((out / "predictions.csv").open())]
    if name == "land":
        return files, [[os.path.basename(row[1]), *row[2:]] for row in rows]
    return files, [[os.path.basename(row[0]), *row[1:]] for row in rows]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *[(name, {}) for name in ("boxes", "land", "scene")],
        ("boxes", {"check_images": "decode"}),
        ("land", {"workers": 1}),
        ("scene", {"workers": 1, "check_images": "off"}),
    ],
)
def test_the_rest_is_predicted_as_if_the_bad_files_were_not_there(tmp_path, capsys, name, options):
    write_images(tmp_path / "good", False)
    write_images(tmp_path / "mixed", True)
    predict(name, tmp_path / "good", tmp_path / "expected", **options)
    assert not (tmp_path / "expected/failed.csv").exists()
    with pytest.raises(ValueError, match="^3 of 7 images could not be predicted on; the others") as caught:
        predict(name, tmp_path / "mixed", tmp_path / "out", **options)
    assert capsys.readouterr().out.count(" 4 images: ") == 2
    files, found = results(name, tmp_path / "out")
    _, expected = results(name, tmp_path / "expected")
    assert [row[0] for row in found] == [row[0] for row in expected]
    if name != "boxes":  # whose canvases follow from all images that have a size
        assert found == expected
    assert Counter(files.values()) == Counter(["b.png", "d.png", "f.png", *GOOD])
    failed = list(csv.DictReader((tmp_path / "out/failed.csv").open()))
    assert sorted(os.path.basename(row["file_name"]) for row in failed) == ["b.png", "d.png", "f.png"]
    for row in failed:
        assert files[int(row["image_id"])] == os.path.basename(row["file_name"])
        assert row["file_name"] in row["error"] and row["error"] in str(caught.value)


@pytest.mark.parametrize("name", ["boxes", "land", "scene"])
def test_all_images_may_be_bad(tmp_path, name):
    (tmp_path / "in").mkdir()
    for letter in "abc":
        (tmp_path / f"in/{letter}.png").write_text("no image")
    with pytest.raises(ValueError, match=r"3 of 3 images (?s:.*)a.png: is no image"):
        predict(name, tmp_path / "in", tmp_path / "out")


def test_a_json_to_predict_on_may_name_missing_and_other_images(tmp_path):
    write_images(tmp_path / "images", False)
    (tmp_path / "images/a.png").unlink()
    records = [
        {"id": 7 + n, "file_name": name, "height": 40, "width": 60 if name == "c.png" else 64}
        for n, name in enumerate(GOOD)
    ]
    (tmp_path / "in.json").write_text(json.dumps({"images": records}))
    with pytest.raises(ValueError, match="2 of 4 images") as caught:
        predict("boxes", tmp_path / "in.json", tmp_path / "out")
    assert "a.png: no such file" in str(caught.value)
    assert "c.png: is 40x64 pixels (height x width), the annotations say 40x60" in str(caught.value)
    rows = csv.DictReader((tmp_path / "out/failed.csv").open())
    assert [row["image_id"] for row in rows] == ["7", "8"]
    _, found = results("boxes", tmp_path / "out")
    assert {row[0] for row in found} == {"e.png", "g.png"}


def test_a_data_module_of_ones_own_names_them_in_its_batches(tmp_path):
    class Own(Everything):
        def prediction_failures(self):
            return [FailedImage(0, str(self.paths[0]), "looked odd")]

        def predict_dataloader(self):
            first, second = self.batches
            second.failed = (FailedImage(1, str(self.paths[1]), "vanished"),)
            return iter([FailedBatch([FailedImage(8, "eight.png", "gone")]), second])

    task, run = single("land"), trainer(tmp_path)
    data = Own("land", tmp_path)
    run.callbacks.append(task.prediction_writer(tmp_path / "out", False, 0.5))
    with pytest.raises(ValueError, match=r"3 of 5 images(?s:.*)looked odd(?s:.*)eight.png: gone"):
        run.predict(task, data, return_predictions=False)
    rows = list(csv.DictReader((tmp_path / "out/predictions.csv").open()))
    assert [row["image_id"] for row in rows] == ["2", "3", "4"]


SCRIPT = """
import sys
from pathlib import Path
from memory_tasks import single, trainer
from test_failures import data_of

folder = Path(sys.argv[1])
task = single("land")
run = trainer(folder, devices=2, strategy="ddp", use_distributed_sampler=False)
run.callbacks.append(task.prediction_writer(folder / "out", False, 0.5))
run.predict(task, data_of("land", folder / "mixed", batch_size=1), return_predictions=False)
"""


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path):
    write_images(tmp_path / "mixed", True)
    with pytest.raises(ValueError, match="3 of 7"):
        predict("land", tmp_path / "mixed", tmp_path / "expected", batch_size=1)
    (tmp_path / "run.py").write_text(SCRIPT)
    folders = [os.path.dirname(sys.modules[single.__module__].__file__), os.path.dirname(__file__)]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "run.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=400,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "PYTHONPATH": os.pathsep.join(folders),
        },
    )
    assert done.returncode == 1 and "3 of 7 images could not be predicted on" in done.stderr
    assert results("land", tmp_path / "out") == results("land", tmp_path / "expected")
    for name in ("failed.csv", "images.json"):
        assert (tmp_path / "out" / name).read_text() == (tmp_path / "expected" / name).read_text()
