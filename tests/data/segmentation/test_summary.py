"""The table at the start of training: counts of images and pixels."""

import numpy as np
import pytest
from mask_files import SMALL, change, fitted, mask, picture
from PIL import Image

from trunkline.data.segmentation.module import ImageSegmentation
from trunkline.data.segmentation.summary import summarise
from trunkline.data.shared.labels.table import MaskError
from trunkline.data.shared.summary import require_learnable


def test_pixels_are_those_of_the_files(own, monkeypatch):
    (own / "classes.csv").write_text((own / "classes.csv").read_text() + "\n9,hexagon,1,2,3\n")
    change(own / "masks/train/000001.png", lambda values: values.fill(255))
    change(own / "masks/train/000002.png", lambda values: values.__setitem__((0, slice(5)), 255))
    made = ImageSegmentation(str(own), **SMALL)
    made.prepare_data()
    monkeypatch.setattr(type(made.splits["train"].masks), "survey", None)  # nothing is read again
    made.setup("fit")
    found = made.summaries()
    for split, count in (("train", 4), ("val", 3)):
        values = [np.array(Image.open(path)).reshape(-1) for path in (own / "masks" / split).iterdir()]
        every = np.concatenate(values)
        assert dict(found[split].counts) == {
            "images": count,
            "images wholly ignored": sum((each == 255).all() for each in values),
            "labelled pixels": (every != 255).sum(),
            "ignored pixels": (every == 255).sum(),
            "classes never seen": 5 - len(set(every.tolist()) - {255}),
        }
        assert found[split].learnable == (every != 255).sum()


def test_without_the_check_there_are_no_pixels_and_images_count(own):
    made = fitted(own, check_masks=False)
    made.prepare_data()
    assert made.summaries()["train"].counts == {"images": 4} and made.summaries()["train"].learnable == 4


def test_images_left_out_are_counted(own):
    change(own / "masks/train/000001.png", lambda values: values.fill(0))
    empty = sum(not np.array(Image.open(path)).any() for path in (own / "masks/train").iterdir())
    summary = fitted(own, min_pixels=1).summaries()
    assert summary["train"].counts["images"] == 4 - empty
    assert summary["train"].counts["images left out: min_pixels"] == empty > 0
    assert "images left out: min_pixels" not in summary["val"].counts


def test_nothing_but_ignored_pixels_is_refused(tmp_path):
    picture(tmp_path / "images/train/a.png"), mask(tmp_path / "masks/train/a.png", 0)
    made = fitted(tmp_path, classes=["x", "y", "z"], ignore=["x", "y"])
    with pytest.raises(MaskError, match="all training pixels are ignored"):
        made.prepare_data()
    made = fitted(tmp_path, classes=["x", "y", "z"], ignore=["x", "y"])
    made.label_counts("segmentation")
    with pytest.raises(ValueError, match="nothing to learn; all pixels of the masks are ignored: look at"):
        require_learnable(made.summaries())


def test_annotations_of_no_class_are_nothing_to_learn(own, monkeypatch):
    index = fitted(own).splits["train"]
    monkeypatch.setattr(type(index.masks), "present", lambda _: np.array([False, False]))
    assert summarise(index, None).learnable == 0 and summarise(index, None).counts["classes never seen"] == 2
