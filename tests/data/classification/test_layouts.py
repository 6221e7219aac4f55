"""Class folders: what is found, how it is numbered, and what is refused."""

import logging

import numpy as np
import pytest
from class_files import (
    class_names,
    module,
    paths,
    picture,
    ready,
)
from PIL import Image

from trunkline.data.classification.index import LabelError
from trunkline.data.shared.io import ImageError
from trunkline.data.shared.locate import DataNotFoundError


def test_class_folders_are_numbered_by_sorted_name(folders):
    made = ready(folders)
    assert class_names(made) == ["ant", "cat", "dog"] and not made.multi_label()
    assert paths(made.splits["train"]) == [
        str(folders / "train" / name)
        for name in ("ant/x.jpg", "cat/b.png", "cat/deep/er/a.PNG", "dog/y.jpeg")
    ]
    assert made.splits["train"].labels.tolist() == [0, 1, 1, 2]
    assert made.splits["val"].labels.tolist() == [1, 2]  # a class may lack images, and keeps its number
    assert made.label_counts("classification") == [1, 2, 1]


def test_hidden_files_and_folders_are_passed_over(folders):
    picture(folders / "train/.cache/a.png")
    picture(folders / "train/cat/.thumbs/a.png")
    (folders / "train/cat/._b.png").write_bytes(b"from macOS")
    assert len(ready(folders).splits["train"]) == 4


@pytest.mark.parametrize("name", ["valid", "validation", "test"])
def test_other_names_of_the_validation_folder(folders, name, caplog):
    (folders / "val").rename(folders / name)
    with caplog.at_level(logging.WARNING, "trunkline"):
        made = ready(folders)
    assert paths(made.splits["val"])[0] == str(folders / name / "cat/2.png")
    assert ("test data" in caplog.text) == (name == "test")


def test_the_test_stage_takes_test_data_where_there_are_any(folders, caplog):
    assert paths(ready(folders, "test").splits["test"]) == paths(ready(folders, "validate").splits["val"])
    assert "there are no test data: the val data" in caplog.text
    picture(folders / "test/cat/t.png")
    assert paths(ready(folders, "test").splits["test"]) == [str(folders / "test/cat/t.png")]
    made = ready(folders, "test", test="val")
    assert len(made.splits["test"]) == 2


def test_training_without_validation_says_so(folders, caplog):
    (folders / "val").rename(folders / "other")
    assert ready(folders).val_dataloader() == []
    assert "training without validation" in caplog.text
    assert len(ready(folders, val="other").splits["val"]) == 2
    with pytest.raises(DataNotFoundError, match=r"data.val: .*gone does not exist"):
        ready(folders, val="gone")


def test_nothing_found_names_the_places(tmp_path, folders):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataNotFoundError, match=r"(?s)no train data.*empty/train, .*train.csv .*give data.root"
    ):
        ready(tmp_path / "empty")
    with pytest.raises(DataNotFoundError, match="data.root: .*gone does not exist"):
        ready(tmp_path / "gone")
    with pytest.raises(DataNotFoundError, match="give data.root or data.train"):
        ready()
    (folders / "train2/cat").mkdir(parents=True)
    (folders / "train2/cat/readme.txt").write_text("x")
    with pytest.raises(DataNotFoundError, match="no images found in class folders in .*train2 .*1 folders"):
        ready(folders, train="train2")


def test_an_image_outside_class_folders_is_listed(folders):
    picture(folders / "train/stray.jpg")
    with pytest.raises(LabelError, match=r"(?s)1 image in no class folder:.*stray.jpg.*move each"):
        ready(folders)


def test_an_empty_class_folder_is_a_class_and_a_warning(folders, caplog):
    (folders / "train/bee").mkdir()
    made = ready(folders)
    assert (
        class_names(made) == ["ant", "bee", "cat", "dog"]
        and "no images in the class folders bee" in caplog.text
    )
    assert made.label_counts("classification") == [1, 0, 2, 1]


def test_a_class_that_training_lacks_is_an_error(folders):
    picture(folders / "val/zebra/1.png")
    with pytest.raises(LabelError, match=r"/val: the training data lack the class zebra; they have ant, cat"):
        ready(folders)


def test_validation_alone_is_numbered_by_the_training_classes(folders, caplog):
    assert ready(folders, "validate").splits["val"].labels.tolist() == [1, 2]
    (folders / "train").rename(folders / "gone")
    made = ready(folders, "validate")
    assert class_names(made) == ["cat", "dog"] and "there are no training data" in caplog.text


def test_unreadable_images_are_listed_as_thoroughly_as_asked(folders):
    noise = np.random.default_rng(0).integers(0, 256, size=(64, 64, 3), dtype=np.uint8)
    path = folders / "train/cat/b.png"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    module(folders, check_images="header").prepare_data()
    with pytest.raises(ImageError, match=r"(?s)1 of 6 images.*b.png: damaged image.*replace or remove"):
        module(folders, check_images="decode").prepare_data()
    path.write_text("nothing")
    with pytest.raises(ImageError, match="is no image that Pillow can read"):
        module(folders, check_images="header").prepare_data()
    module(folders, check_images="off").prepare_data()


def test_one_class_folder_with_images_is_nothing_to_tell_apart(folders):
    for name in ("cat", "dog"):
        for path in (folders / "train" / name).rglob("*.*"):
            path.unlink()
    with pytest.raises(LabelError, match=r"train: all training images are of one class \(ant\)"):
        ready(folders)
