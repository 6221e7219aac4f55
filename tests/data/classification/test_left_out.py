"""Files that are no images of a class, folders that are no classes, and classes over the splits."""

import logging
import os

import pytest
from class_files import class_names, module, packed, paths, picture, ready, table
from PIL import Image

from trunkline.data.classification.names import LabelError
from trunkline.data.shared.summary import require_learnable


def coloured(path, number):
    return picture(path, (number, 255 - number, 0))


@pytest.fixture
def colours(tmp_path):
    """Two classes of pictures of different colours, one more for each split."""
    root = tmp_path / "set"
    names = ("train/cat/a.png", "train/cat/b.png", "train/dog/c.png", "val/cat/d.png", "val/dog/e.png")
    for number, name in enumerate(names):
        coloured(root / name, 20 * number)
    return root


def test_what_is_left_out_is_counted_and_named_once(colours, caplog):
    train = colours / "train"
    for name in (
        "cat/x.heic",
        "cat/._a.png",
        ".ipynb_checkpoints/a.png",
        "__MACOSX/cat/a.png",
        "cat/.t/a.png",
    ):
        picture(train / "one.png").rename(train / "x.tmp")
        (train / name).parent.mkdir(parents=True, exist_ok=True)
        (train / "x.tmp").rename(train / name)
    (train / "cow").write_text("a file named like a class")
    (train / "cat/.DS_Store").write_text("never told")
    os.mkfifo(train / "dog/pipe.png")
    made = ready(colours)
    assert class_names(made) == ["cat", "dog"] and len(made.splits["train"]) == 3
    made.setup("fit")
    assert caplog.text.count("train: 7 files or folders are left out:") == 1
    for line in (
        "  4 hidden, or made by a system: .ipynb_checkpoints/, __MACOSX/, cat/._a.png, cat/.t/",
        ": cat/x.heic, cow",
        "  1 no files, but pipes, sockets or devices: dog/pipe.png",
    ):
        assert line in caplog.text
    made.prepare_data()


def test_folders_named_like_images_and_links_in_circles(colours, caplog):
    (colours / "train/cat/loop").symlink_to(colours / "train")
    (colours / "train/cat/up").symlink_to("..")
    coloured(colours / "train/cat/deep.jpg/f.png", 9)
    coloured(colours / "train/x.jpg/g.png", 8)
    (colours / "train/dog/gone.png").symlink_to("nowhere.png")
    made = ready(colours)
    assert class_names(made) == ["cat", "dog", "x.jpg"]
    assert [path[len(f"{colours}/train/") :] for path in paths(made.splits["train"])] == [
        "cat/a.png", "cat/b.png", "cat/deep.jpg/f.png", "dog/c.png", "dog/gone.png", "x.jpg/g.png",
    ]  # fmt: skip
    assert "2 links to a folder that holds them: cat/loop/, cat/up/" in caplog.text
    assert "classes named like images: the folders x.jpg" in caplog.text
    with pytest.raises(ValueError, match=r"1 of 8 images cannot be used:\n.*gone.png: no such file"):
        made.prepare_data()


@pytest.mark.parametrize("zipped", [False, True])
def test_splits_and_parts_are_no_classes(colours, tmp_path, zipped, caplog):
    root = packed(colours, tmp_path / "all.zip") if zipped else colours
    if not zipped:  # in a zip the folder of the split is found
        with pytest.raises(LabelError, match="the folders train, val are splits or parts of a dataset"):
            ready(train=str(root))
    for name in ("images", "masks"):
        coloured(tmp_path / "parts" / name / "a.png", 3)
    parts = packed(tmp_path / "parts", tmp_path / "parts.zip") if zipped else tmp_path / "parts"
    with pytest.raises(LabelError, match="parts.*: the folders images, masks are splits or parts"):
        ready(train=str(parts))
    coloured(colours / "train/masks/m.png", 77)
    ready(train=str(packed(colours / "train", tmp_path / "t.zip") if zipped else colours / "train"))
    assert "the folders masks are taken for classes" in caplog.text


def test_classes_one_folder_deeper_are_said(tmp_path, caplog):
    for number, name in enumerate(("day1/cat/a", "day1/dog/b", "day2/cat/c", "day2/dog/d")):
        coloured(tmp_path / f"{name}.png", number)
    assert class_names(ready(train=str(tmp_path))) == ["day1", "day2"]
    assert (
        "the classes are the folders day1, day2, and each image lies in a folder inside them (cat, dog)"
        in (caplog.text)
    )


@pytest.mark.parametrize("name", ["a\nb", "b\x07", "b\udce9"])
def test_names_of_classes_that_cannot_be_written_are_refused(colours, name):
    (colours / "train/dog").rename(colours / "train" / name)
    with pytest.raises(
        LabelError, match=r"train: names of classes that cannot be used:\n.*(control|no UTF-8)"
    ):
        ready(colours)


def test_names_with_commas_and_of_any_script_stay(colours):
    for split in ("train", "val"):
        (colours / split / "dog").rename(colours / split / "d, o; \u732b")
    assert class_names(ready(colours)) == ["cat", "d, o; \u732b"]


def test_classes_of_val_that_look_like_those_of_training_are_said(colours):
    (colours / "val/dog").rename(colours / "val/Dog ")
    with pytest.raises(
        LabelError, match="lack the class Dog .*case, spaces and accents: 'Dog ' is 'dog' there"
    ):
        ready(colours)


def test_summaries_count_images_and_classes(colours, pictures):
    (colours / "train/empty").mkdir()
    found = ready(colours).summaries()
    counts = {
        "images": 3,
        "classes": 3,
        "fewest images of a class": 1,
        "most images of a class": 2,
        "classes without images": 1,
        "images without a class": 0,
    }
    assert dict(found["train"].counts) == counts and found["train"].learnable == 3
    assert list(found) == ["train", "val"] and found["val"].counts["images"] == 2
    require_learnable(found)
    text = "path,split,a,b\nimages/a.png,train,1,1\nimages/b.png,train,0,0\nimages/c.png,val,0,1\n"
    found = ready(table(pictures, text)).summaries()
    assert found["train"].learnable == 1 and found["train"].counts["images without a class"] == 1


def test_classes_that_only_the_val_data_show_are_said(pictures, caplog):
    text = "path,split,a,b\nimages/a.png,train,1,0\nimages/b.png,train,0,0\nimages/c.png,val,0,1\n"
    with caplog.at_level(logging.INFO, "trunkline"):
        ready(table(pictures, text)).setup("fit")
    assert caplog.text.count("the val data have images of 1 class without any in the train data") == 1
    assert "the train data have no image of 1 of 2 classes, which the metrics leave out: b" in caplog.text


def test_the_same_files_in_train_and_val_are_said(colours, pictures, caplog):
    ready(colours, val="train")
    assert "3 images are in the train data and in the val data" in caplog.text
    assert str(colours / "train/cat/a.png") in caplog.text
    caplog.clear()
    one = table(pictures, "path,label\nimages/a.png,cat\nimages/b.png,dog\n", "one.csv").name
    two = table(pictures, f"path,label\n{pictures}/images/a.png,cat\nimages/c.png,dog\n", "two.csv").name
    ready(pictures, train=one, val=two)
    assert "1 image is in the train data and in the val data" in caplog.text
    caplog.clear()
    ready(colours)
    assert "and in the val data" not in caplog.text


@pytest.mark.parametrize("zipped", [False, True])
def test_equal_files_under_two_classes_or_in_two_splits_are_said(colours, tmp_path, zipped, caplog):
    made = module(packed(colours, tmp_path / "plain.zip") if zipped else colours)
    made.prepare_data()
    assert "same image" not in caplog.text and "copies" not in caplog.text
    (colours / "train/dog/copy.png").write_bytes((colours / "train/cat/a.png").read_bytes())
    (colours / "val/dog/leak.png").write_bytes((colours / "train/dog/c.png").read_bytes())
    Image.new("RGB", (9, 8)).save(colours / "val/dog/other.png")
    made = module(packed(colours, tmp_path / "set.zip") if zipped else colours)
    made.prepare_data()
    root = tmp_path / "set.zip" if zipped else colours
    assert "the train data hold the same image under different classes" in caplog.text
    assert f"{root}/train/cat/a.png is {root}/train/dog/copy.png" in caplog.text
    assert "1 image of the val data are copies of train data" in caplog.text
    assert f"{root}/train/dog/c.png is {root}/val/dog/leak.png" in caplog.text
