"""What the segmentation task writes: masks, tables, pictures for the logger."""

import csv
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from segmentation_tasks import CLASSES, Memory, segmenter, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trunkline.data.shared.io import read_mask
from trunkline.data.shared.labels.classes import LabelClass


def test_predict_writes_the_datas_own_ids_with_its_colours(tmp_path, capsys):
    task, data = segmenter(), Memory(tmp_path / "images")
    run = trainer(tmp_path)
    run.callbacks.append(task.prediction_writer(tmp_path / "out", True, 0.5))
    run.predict(task, data, return_predictions=False)
    out, values = tmp_path / "out", np.array([3, 7, 255])
    assert sorted(path.name for path in (out / "masks").iterdir()) == [
        "other.png",
        "same_1.png",
        "same_2.png",
        "same_3.png",
        "same_4.png",
    ]
    task.eval()
    with torch.no_grad():
        logits = task.raw(data.batches[0].image, data.batches[0].image_sizes).logits
    resized = F.interpolate(logits, (24, 32), mode="bilinear", align_corners=False).argmax(1).numpy()
    with Image.open(out / "masks" / "other.png") as mask:
        assert mask.mode == "P" and (np.asarray(mask) == values[resized[0]]).all()
        palette = np.array(mask.getpalette()).reshape(-1, 3)
    assert palette[3].tolist() == [10, 20, 30] and palette[255].tolist() == [0, 0, 250]
    with open(out / "classes.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[:2] == [["id", "name", "r", "g", "b"], ["3", "road", "10", "20", "30"]]
    images = json.loads((out / "images.json").read_text())
    assert [row["id"] for row in images] == [0, 1, 2, 3, 4] and images[0]["file_name"].endswith("other.png")
    overlay = np.asarray(Image.open(out / "pictures" / "other_0.jpg"))
    assert overlay.shape[0] > 14 * 24 and overlay.shape[1] == 14 * 32  # enlarged, and a legend below
    assert "masks of 5 images" in capsys.readouterr().out


def test_ids_above_255_are_written_with_16_bits_and_spare_classes_get_free_ids(tmp_path):
    classes = [*CLASSES[:2], LabelClass(id=300, name="sky", colour=(0, 0, 250))]
    task, data = segmenter(num_classes=7), Memory(tmp_path / "images", classes)
    run = trainer(tmp_path)
    run.callbacks.append(task.prediction_writer(tmp_path / "out", False, 0.5))
    run.predict(task, data, return_predictions=False)
    task.eval()
    with torch.no_grad():
        logits = task.raw(data.batches[0].image, data.batches[0].image_sizes).logits
    labels = F.interpolate(logits, (24, 32), mode="bilinear", align_corners=False)[0].argmax(0).numpy()
    ids = [3, 7, 300, 0, 1, 2, 4]
    assert (read_mask(tmp_path / "out" / "masks" / "other.png") == np.array(ids)[labels]).all()
    with open(tmp_path / "out" / "classes.csv", newline="") as file:
        assert [int(row["id"]) for row in csv.DictReader(file)] == ids


def test_a_folder_that_cannot_be_written_is_an_error_before_the_work(tmp_path):
    task, data = segmenter(), Memory(tmp_path / "images")
    (tmp_path / "out").write_text("a file")
    run, calls = trainer(tmp_path), []
    task.trunk.register_forward_hook(lambda *_: calls.append(1))
    run.callbacks.append(task.prediction_writer(tmp_path / "out", False, 0.5))
    with pytest.raises(OSError, match="is no folder; give another --output.folder"):
        run.predict(task, data, return_predictions=False)
    assert not calls


def test_pictures_and_metrics_go_to_the_logger(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    run = trainer(tmp_path, logger=logger, limit_train_batches=1, log_every_n_steps=1)
    run.fit(segmenter(pictures=3), Memory())
    board = EventAccumulator(logger.log_dir)
    board.Reload()
    assert sorted(board.Tags()["images"]) == ["val/confusion", *(f"val/image {n}" for n in range(3))]
    assert {"val/mIoU", "val/loss", "train/cross_entropy"} <= set(board.Tags()["scalars"])
    written = json.loads((tmp_path / "lightning_logs" / "version_0" / "val" / "metrics.json").read_text())
    assert written["metrics"].keys() >= {"mIoU", "pixel_accuracy", "mean_Dice"}
    assert Image.open(tmp_path / "lightning_logs" / "version_0" / "val" / "confusion.png").size[0] > 100
