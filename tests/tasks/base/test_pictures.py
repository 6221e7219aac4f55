"""Pictures go to the loggers that take some, and to no others."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from memory_tasks import HEADS, Everything, multi, single, trainer
from own_parts import PixelCount
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.logger import DummyLogger

from trunkline.evaluation.segmentation import SegmentationEvaluator
from trunkline.tasks.base.writer import TakesPictures


class Album(DummyLogger):
    """A logger of a user, whose experiment takes pictures."""

    def __init__(self):
        super().__init__()
        self.shown = {}
        self.album = SimpleNamespace(add_image=self.add_image)

    @property
    def experiment(self):
        return self.album

    def add_image(self, tag, img_tensor, global_step, dataformats):
        assert dataformats == "HWC" and img_tensor.dtype == np.uint8 and img_tensor.shape[2] == 3
        self.shown[tag] = (global_step, img_tensor.shape)


def test_a_logger_takes_pictures_if_its_experiment_has_the_method():
    assert isinstance(Album().experiment, TakesPictures)
    assert not isinstance(object(), TakesPictures)


@pytest.mark.parametrize("name", [*HEADS, ""])
def test_a_logger_without_pictures_gets_the_metrics_alone(tmp_path, name):
    task = single(name) if name else multi()
    run = trainer(tmp_path, logger=CSVLogger(tmp_path, name="", version="log"))
    run.fit(task, Everything(name))
    assert not isinstance(run.logger.experiment, TakesPictures)
    assert {path.suffix for path in (tmp_path / "log").rglob("*") if path.is_file()} <= {
        *(".csv", ".json", ".yaml", ".png")
    }
    assert "val/" in (tmp_path / "log/metrics.csv").read_text()


@pytest.mark.parametrize(("name", "titles"), [("boxes", 4), ("land", 4), ("scene", 1), ("", 4)])
def test_a_logger_with_pictures_gets_as_many_as_asked_for(tmp_path, name, titles):
    task = single(name, pictures=4) if name else multi(pictures=4)
    album = Album()
    trainer(tmp_path, logger=album).validate(task, Everything(name), verbose=False)
    pictures = {tag for tag in album.shown if "image " in tag or tag == "val/pictures"}
    assert len(pictures) == titles
    assert all(tag.startswith("val/") for tag in album.shown)


def test_what_evaluators_draw_goes_to_the_logger_too(tmp_path):
    task = single("land", evaluators=[SegmentationEvaluator(), PixelCount()])
    assert task.branch.result_pictures() == {}  # nothing before the first evaluation
    album = Album()
    trainer(tmp_path, logger=album).validate(task, Everything("land"), verbose=False)
    drawn = task.branch.result_pictures()
    assert drawn["shares"].shape == (4, 6, 3) and len(drawn) == 2  # and the confusion matrix
    assert {f"val/{title}" for title in drawn} <= set(album.shown)
    assert album.shown["val/shares"] == (0, (4, 6, 3))


def test_drawings_of_several_heads_carry_their_names(tmp_path):
    album = Album()
    task = multi(evaluators={"land": [PixelCount()]})
    trainer(tmp_path, logger=album).validate(task, Everything(), verbose=False)
    assert "val/land/shares" in album.shown and "val/shares" not in album.shown


def test_the_first_logger_decides_and_no_logger_is_fine(tmp_path):
    album = Album()
    loggers = [CSVLogger(tmp_path, name="", version="log"), album]
    trainer(tmp_path, logger=loggers).validate(single("land"), Everything("land"), verbose=False)
    assert album.shown == {}
    trainer(tmp_path).validate(single("land"), Everything("land"), verbose=False)
    assert json.loads((tmp_path / "log/val/metrics.json").read_text())["metrics"]
