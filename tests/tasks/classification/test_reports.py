"""What evaluations of the classification task log, draw and write."""

import json

import numpy as np
import pytest
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_metrics_and_pictures_reach_tensorboard(tiny, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    run = tiny.trainer(tmp_path, logger=logger, log_every_n_steps=1)
    run.fit(tiny.classifier(pictures=5), tiny.Memory())
    board = EventAccumulator(logger.log_dir)
    board.Reload()
    assert sorted(board.Tags()["images"]) == ["val/confusion", "val/pictures"]
    scalars = set(board.Tags()["scalars"])
    assert {"val/accuracy", "val/mean_class_accuracy", "val/loss", "train/loss"} <= scalars
    (sheet,) = board.Images("val/pictures")
    assert (sheet.width, sheet.height) == (4 * 168 + 8, 2 * 168 + 8)  # 5 of 160 pixels, 4 in a row


@pytest.mark.parametrize(("options", "ndim"), [({"pictures": 0}, 2), ({}, 3)])
def test_no_pictures_where_none_are_asked_for_nor_of_scans(tiny, tmp_path, options, ndim):
    logger = TensorBoardLogger(tmp_path)
    task = tiny.classifier(ndim=ndim, **options)
    tiny.trainer(tmp_path, logger=logger).fit(task, tiny.Memory(ndim=ndim))
    board = EventAccumulator(logger.log_dir)
    board.Reload()
    assert board.Tags()["images"] == ["val/confusion"]


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_metrics_and_confusion_matrix_are_written_beside_the_log(tiny, tmp_path, capsys, stage):
    logger = TensorBoardLogger(tmp_path)
    run, task = tiny.trainer(tmp_path, logger=logger, max_epochs=2), tiny.classifier()
    getattr(run, stage)(task, tiny.Memory())
    split = "test" if stage == "test" else "val"
    found = json.loads((tmp_path / "lightning_logs" / "version_0" / split / "metrics.json").read_text())
    assert found["metrics"] == task.result.metrics and found["images"] == 11
    assert np.array_equal(found["confusion"], task.result.confusion)
    assert [row["name"] for row in found["classes"]] == ["dark", "grey", "light"]
    picture = tmp_path / "lightning_logs" / "version_0" / split / "confusion.png"
    assert Image.open(picture).size[0] > 3 * 48
    text = capsys.readouterr().out
    assert text.count("mean of the classes' accuracies") == 1 and str(picture) in text
    assert text.count("grey") == 1  # the table of classes, once


@pytest.mark.parametrize("options", [{}, {"fast_dev_run": True}])
def test_nothing_is_written_without_a_logger(tiny, tmp_path, capsys, options):
    tiny.trainer(tmp_path, **options).fit(tiny.classifier(), tiny.Memory())
    assert list(tmp_path.iterdir()) == []
    assert "accuracy" in capsys.readouterr().out


def test_several_labels_have_no_confusion_matrix(tiny, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    task = tiny.classifier(head={"multi_label": True})
    tiny.trainer(tmp_path, logger=logger).validate(task, tiny.Memory(several=True), verbose=False)
    found = json.loads((tmp_path / "lightning_logs" / "version_0" / "val" / "metrics.json").read_text())
    assert "confusion" not in found and found["classes"][0].keys() == {"name", "images", "AP", "F1"}
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("pictures", "chosen"), [(5, [[0, 2], [0, 3], [1]]), (1, [[0], [], []]), (0, [[], [], []])]
)
def test_pictures_come_from_all_over_the_data(tiny, tmp_path, pictures, chosen):
    """Three batches of up to four: of twelve places every 12/5th, rounded down, is 0, 2, 4, 7 and 9."""
    task = tiny.classifier(pictures=pictures)
    tiny.trainer(tmp_path).validate(task, tiny.Memory(), verbose=False)  # the trainer knows of three batches
    assert [task._board._chosen(size, index, True) for index, size in enumerate((4, 4, 3))] == chosen


def test_all_pictures_are_shown_where_there_are_fewer_than_asked_for(tiny, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    tiny.trainer(tmp_path, logger=logger).test(tiny.classifier(pictures=100), tiny.Memory(), verbose=False)
    board = EventAccumulator(logger.log_dir)
    board.Reload()
    (sheet,) = board.Images("test/pictures")
    assert (sheet.width, sheet.height) == (4 * 168 + 8, 3 * 168 + 8)  # all 11
