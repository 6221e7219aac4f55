"""What predict writes for classifications: the CSV and the sheet of pictures."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trunkline.evaluation.pictures.boxes import class_colour
from trunkline.tasks.classification.branch import as_picture, draw_label, label_texts, prediction_rows

NAMES = ["ant", "bee, big", "cat"]


def predict(tiny, folder, task, data, pictures=False, min_score=0.5):
    run = tiny.trainer(folder, callbacks=[task.prediction_writer(folder / "out", pictures, min_score)])
    run.predict(task, data, return_predictions=False)
    with open(folder / "out" / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def predictions_csv(*arguments):
    text = io.StringIO(newline="")
    header, rows = prediction_rows(*arguments)
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def test_table_of_single_labels_by_hand():
    rows = [("a, b.png", np.array([0.25, 0.7, 0.05])), ('say "x".png', np.array([1.0, 0.0, 0.0]))]
    assert predictions_csv(rows, NAMES) == (
        'path,label,score,ant,"bee, big",cat\n'
        '"a, b.png","bee, big",0.7,0.25,0.7,0.05\n'
        '"say ""x"".png",ant,1,1,0,0\n'
    )


def test_table_of_several_labels_by_hand():
    rows = [("a.png", np.array([0.25, 0.7, 0.6])), ("b.png", np.array([0.1, 0.2, 0.3]))]
    assert predictions_csv(rows, NAMES, 0.5).splitlines() == [
        'path,labels,ant,"bee, big",cat',
        'a.png,"bee, big;cat",0.25,0.7,0.6',
        "b.png,,0.1,0.2,0.3",
    ]
    assert "\nb.png,cat," in predictions_csv(rows, NAMES, 0.3)


def test_a_class_named_like_a_column_stays_apart():
    header = predictions_csv([], ["label", "path", "labels"]).strip().split(",")
    assert header == ["path", "label", "score", "class label", "class path", "labels"]


def test_predict_writes_every_image_with_its_path_and_the_networks_probabilities(tiny, tmp_path, capsys):
    task, data = tiny.classifier(), tiny.Memory()
    data.batches.reverse()  # the table is in the order of the ids, not of the batches
    rows = predict(tiny, tmp_path, task, data)
    assert [row["path"] for row in rows] == [f"folder/{i}, really.png" for i in range(11)]
    data.batches.reverse()
    with torch.no_grad():
        expected = torch.cat([task.eval()(b.image, b.image_sizes).probabilities for b in data.batches])
    for row, probabilities in zip(rows, expected.tolist(), strict=True):
        assert [float(row[name]) for name in data.names] == pytest.approx(probabilities, rel=1e-5)
        best = max(range(3), key=lambda k: probabilities[k])
        assert row["label"] == data.names[best] and float(row["score"]) == float(row[row["label"]])
    assert str((tmp_path / "out" / "predictions.csv").resolve()) in capsys.readouterr().out
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["images.json", "predictions.csv"]  # no pictures
    images = json.loads((tmp_path / "out" / "images.json").read_text())
    assert images == [{"id": i, "file_name": f"folder/{i}, really.png"} for i in range(11)]


def test_min_score_chooses_the_labels_where_there_may_be_several(tiny, tmp_path):
    data = tiny.Memory(several=True)
    task = tiny.classifier(head={"multi_label": True})
    for min_score in (0.4, 0.55):
        for row in predict(tiny, tmp_path / str(min_score), task, data, min_score=min_score):
            chosen = [name for name in data.names if float(row[name]) >= min_score]
            assert row["labels"] == ";".join(chosen)


def test_the_checkpoints_names_are_used_for_prediction(tiny, tmp_path):
    task = tiny.classifier()
    tiny.trainer(tmp_path).fit(task, tiny.Memory())
    run = tiny.trainer(tmp_path)
    run.strategy.connect(task)
    run.save_checkpoint(tmp_path / "one.ckpt")
    fresh = tiny.classifier()
    writer = fresh.prediction_writer(tmp_path / "out", False, 0.5)
    tiny.trainer(tmp_path, callbacks=[writer]).predict(
        fresh, tiny.Memory(names=("x", "y")), ckpt_path=tmp_path / "one.ckpt", return_predictions=False
    )
    header = (tmp_path / "out" / "predictions.csv").read_text().splitlines()[0]
    assert header == "path,label,score,dark,grey,light"


def test_pictures_show_the_first_images_and_scans_have_none(tiny, tmp_path, capsys):
    predict(tiny, tmp_path, tiny.classifier(), tiny.Memory(), pictures=True)
    sheet = Image.open(tmp_path / "out" / "pictures" / "sheet.jpg")
    assert sheet.size == (8 * 168 + 8, 2 * 168 + 8)  # 11 pictures of 160 pixels, 8 in a row
    assert str(tmp_path / "out" / "pictures") in capsys.readouterr().out
    (tmp_path / "scans").mkdir()
    predict(tiny, tmp_path / "scans", tiny.classifier(ndim=3), tiny.Memory(ndim=3), pictures=True)
    assert not (tmp_path / "scans" / "out" / "pictures" / "sheet.jpg").exists()


def test_a_sheet_holds_at_most_64_pictures(tiny, tmp_path):
    predict(tiny, tmp_path, tiny.classifier(), tiny.Memory(sizes=(60, 60)), pictures=True)
    assert Image.open(tmp_path / "out" / "pictures" / "sheet.jpg").size == (8 * 168 + 8,) * 2


@pytest.mark.parametrize(
    ("several", "probabilities", "truth", "texts"),
    [
        (False, [0.2, 0.7, 0.1], None, ("bee, big 70%", "")),
        (False, [0.2, 0.7, 0.1], 1, ("bee, big 70%", "")),
        (False, [0.2, 0.7, 0.1], -1, ("bee, big 70%", "")),
        (False, [0.2, 0.7, 0.1], 2, ("bee, big 70%", "truth: cat")),
        (True, [0.9, 0.1, 0.6], [1, 0, 1], ("ant 90%, cat 60%", "")),
        (True, [0.9, 0.1, 0.6], [0, 1, 1], ("ant 90%, cat 60%", "truth: bee, big, cat")),
        (True, [0.1, 0.1, 0.1], [0, 0, 0], ("none", "")),
        (True, [0.1, 0.1, 0.1], [0, 0, 1], ("none", "truth: cat")),
        (True, [0.9, 0.1, 0.1], [0, 0, 0], ("ant 90%", "truth: none")),
        (True, [0.9, 0.1, 0.1], [-1, -1, -1], ("ant 90%", "")),
    ],
)
def test_texts_by_hand(several, probabilities, truth, texts):
    truth = None if truth is None else torch.tensor(truth)
    assert label_texts(torch.tensor(probabilities), NAMES, several, truth) == texts


def test_long_texts_are_cut_where_the_picture_ends():
    names = ["a" * 40, "b" * 27, "c"]
    text, truth = label_texts(torch.tensor([0.6, 0.3, 0.1]), names, False, torch.tensor(1))
    assert text == "a" * 22 + "… 60%" and truth == "truth: " + "b" * 19 + "…"
    text, _ = label_texts(torch.tensor([0.9, 0.8, 0.1]), names, True)
    assert text == "a" * 22 + "… 90…"


def test_which_images_are_pictures():
    grey = torch.randint(0, 256, (1, 4, 5), dtype=torch.uint8)
    np.testing.assert_array_equal(as_picture(grey), grey[0, :, :, None].expand(4, 5, 3))
    rgb = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    np.testing.assert_array_equal(as_picture(rgb)[..., 2], rgb[2])
    assert as_picture(torch.rand(3, 4, 5)) is None  # float
    assert as_picture(torch.zeros(2, 4, 5, dtype=torch.uint8)) is None
    assert as_picture(torch.zeros(1, 3, 4, 5, dtype=torch.uint8)) is None  # a volume


def test_small_pictures_are_enlarged_and_framed_in_the_colour_of_the_class():
    picture = np.arange(32 * 40 * 3, dtype=np.uint8).reshape(32, 40, 3)
    drawn = draw_label(picture, "ant", 2)
    assert drawn.shape == (160, 200, 3)  # five times
    assert tuple(drawn[159, 100]) == class_colour(2)
    # The middles of the enlarged pixels of row 20: far from the frame and from the label in a corner.
    np.testing.assert_array_equal(drawn[102, 12:190:5], picture[20, 2:38])
    wrong = draw_label(picture, "ant", 2, "truth: bee")
    # White and black dashes all around, and one more label: white on black in the lower left corner.
    assert set(wrong[159, 100:].flatten().tolist()) == {0, 255}
    np.testing.assert_array_equal(wrong[1:12, 1:20], drawn[1:12, 1:20])
    label = wrong[146:158, 2:40]
    assert (label == label[..., :1]).all() and label.min() == 0 and label.max() > 200
    large = np.zeros((300, 170, 3), np.uint8)
    assert draw_label(large, "ant", 2).shape == large.shape


@pytest.mark.parametrize("place", ["file", "file/inside", "locked/inside"])
def test_a_folder_that_cannot_be_written_is_found_before_anything_is_predicted(
    tiny, tmp_path, monkeypatch, place
):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "locked").mkdir()
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and allowed(path, mode))
    task = tiny.classifier()
    task.predict_step = lambda *_: pytest.fail("predicted")
    run = tiny.trainer(tmp_path, callbacks=[task.prediction_writer(tmp_path / place, True, 0.5)])
    words = "locked may not be written to" if "locked" in place else "file is no folder"
    with pytest.raises(OSError, match=f"output.folder: .*{words}; give another --output.folder"):
        run.predict(task, tiny.Memory(), return_predictions=False)
    assert (tmp_path / "file").read_text() == "mine" and not list((tmp_path / "locked").iterdir())


def test_a_full_disk_names_the_folder_and_leaves_no_part_of_a_file(tiny, tmp_path, monkeypatch):
    task, data = tiny.classifier(), tiny.Memory()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"output.folder: .*out cannot be written to .*No space.*make room"):
        predict(tiny, tmp_path, task, data)
    assert not (tmp_path / "out").exists()


DDP = """
import sys
from pathlib import Path
import importlib.util
spec = importlib.util.spec_from_file_location("parts", sys.argv[1])
parts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(parts)
import json, torch
from torch.utils.data import DataLoader

torch.set_num_threads(1)
devices, folder = int(sys.argv[2]), Path(sys.argv[3])

class Shared(parts.Memory):
    def train_dataloader(self):  # the module divides the batches itself: 2 for rank 0, 1 for rank 1
        share = self.batches[self.trainer.global_rank :: devices]
        return DataLoader(share, batch_size=None)
    val_dataloader = predict_dataloader = train_dataloader

task = parts.classifier()
run = parts.trainer(
    folder, devices=devices, strategy="ddp" if devices > 1 else "auto", use_distributed_sampler=False,
    callbacks=[task.prediction_writer(folder, False, 0.5)],
)
data = Shared(unknown=(4, 5, 6, 7))  # rank 1 has no label at all
metrics = run.validate(task, data, verbose=False)[0]
run.predict(task, data, return_predictions=False)
if run.is_global_zero:
    found = {"metrics": metrics, "confusion": task.result.confusion.tolist()}
    (folder / "found.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_two_processes_write_and_evaluate_like_one(tmp_path):
    """Also when the images of one of them have no labels."""
    script = tmp_path / "run.py"
    script.write_text(DDP)
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, script, Path(__file__).parents[1] / "conftest.py", str(devices), folder],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / str(n) / "found.json").read_text()) for n in (1, 2))
    assert two["confusion"] == one["confusion"] and sum(map(sum, one["confusion"])) == 7
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-5)
    tables = [(tmp_path / str(n) / "predictions.csv").read_text() for n in (1, 2)]
    rows, others = (list(csv.reader(io.StringIO(table))) for table in tables)
    assert len(rows) == 1 + 11
    assert [row[:2] for row in rows] == [row[:2] for row in others]
    for row, other in zip(rows[1:], others[1:], strict=True):
        assert [float(x) for x in row[2:]] == pytest.approx([float(x) for x in other[2:]], rel=1e-4)
