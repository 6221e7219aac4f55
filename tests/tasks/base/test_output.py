"""The folder that predict writes to: results of two predictions never mix, and pictures cost none."""

import json

import numpy as np
import pytest
from memory_tasks import Everything, single, trainer
from PIL import Image
from pytorch_lightning.loggers.logger import DummyLogger

from trunkline.tasks.base.output import OutputLock
from trunkline.tasks.base.writer import PictureBoard, TakesPictures


def predict(tmp_path, task, pictures=False, existing="error"):
    (tmp_path / "in").mkdir(exist_ok=True)
    run, data = trainer(tmp_path), Everything("land", tmp_path / "in")
    writer = task.prediction_writer(tmp_path / "out", pictures, 0.5)
    writer.existing = existing
    run.callbacks.append(writer)
    run.predict(task, data, return_predictions=False)


def test_a_folder_with_results_is_refused_or_they_are_moved(tmp_path):
    own = tmp_path / "out/masks/mine.png"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    (tmp_path / "out/notes.txt").write_text("mine too")
    with pytest.raises(OSError, match="out holds masks already, .*--output.existing move"):
        predict(tmp_path, single("land"))
    assert own.read_text() == "mine" and len(list(own.parent.iterdir())) == 1
    predict(tmp_path, single("land"), existing="move")
    assert (tmp_path / "out/earlier_1/masks/mine.png").read_text() == "mine"
    assert (tmp_path / "out/notes.txt").exists() and len(list(own.parent.iterdir())) == 5
    predict(tmp_path, single("land"), existing="move")
    assert len(json.loads((tmp_path / "out/earlier_2/images.json").read_text())) == 5


def test_a_picture_that_cannot_be_drawn_costs_no_result(tmp_path, monkeypatch, caplog):
    task = single("land")
    monkeypatch.setattr(type(task.branch), "draw", lambda *_: 1 / 0)
    predict(tmp_path, task, pictures=True)
    assert len(list((tmp_path / "out/masks").iterdir())) == 5 and not (tmp_path / "out/pictures").exists()
    assert caplog.text.count("ZeroDivisionError: division by zero") == 1
    assert "5 pictures could not be drawn" in caplog.text


def test_a_logger_that_fails_costs_no_evaluation(tmp_path, monkeypatch, caplog):
    class Broken(DummyLogger):
        @property
        def experiment(self):
            class Experiment:
                def add_image(self, tag, img_tensor, global_step, dataformats):
                    raise RuntimeError("no pictures today")

            return Experiment()

    assert isinstance(Broken().experiment, TakesPictures) and PictureBoard
    (metrics,) = trainer(tmp_path, logger=Broken()).validate(
        single("land"), Everything("land"), verbose=False
    )
    assert np.isfinite(metrics["val/mIoU"]) and caplog.text.count("no pictures today") == 1


def test_masks_of_images_whose_names_would_collide_are_all_there(tmp_path):
    class Colliding(Everything):
        def prediction_paths(self):
            names = ["x/a.png", "y/a.png", "x/a_1.png", "x/A_0.png", f"x/{'n' * 250}.png"]
            return dict(enumerate(tmp_path / name for name in names))

    task, run = single("land"), trainer(tmp_path)
    run.callbacks.append(task.prediction_writer(tmp_path / "out", False, 0.5))
    run.predict(task, Colliding("land"), return_predictions=False)
    masks = list((tmp_path / "out/masks").iterdir())
    assert len({path.name.casefold() for path in masks}) == 5 and (tmp_path / "out/masks/a_1.png").is_file()
    assert all(Image.open(path).size == (24, 16) for path in masks)


def test_two_predictions_into_one_folder_at_once_are_refused(tmp_path):
    first = OutputLock(tmp_path / "out")
    first.acquire()
    with pytest.raises(OSError, match="another prediction is writing to .*out; give another --output.folder"):
        predict(tmp_path, single("land"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".predicting.lock"]
    first.release()
    assert not (tmp_path / "out").exists()
    predict(tmp_path, single("land"))
    assert not (tmp_path / "out/.predicting.lock").exists()
