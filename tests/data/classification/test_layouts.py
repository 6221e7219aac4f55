"""Class folders, zips and CSVs: what is found, how it is numbered, and what is refused."""

import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trunkline.data.classification import archive
from trunkline.data.classification.archive import ArchiveError, read_archive, read_member
from trunkline.data.classification.index import LabelError
from trunkline.data.classification.module import ImageClassification
from trunkline.data.shared.io import ImageError
from trunkline.data.shared.locate import DataNotFoundError

OPTIONS = {"workers": 0, "size": 8, "batch_size": 4}


def picture(path, colour=(200, 100, 50)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 8), colour).save(path)
    return path


def module(root=None, **options):
    return ImageClassification(None if root is None else str(root), **OPTIONS | options)


def ready(root=None, stage="fit", **options):
    made = module(root, **options)
    made.setup(stage)
    return made


def class_names(made):
    return [entry.name for entry in made.label_classes("classification")]


def paths(index):
    return [index.path(n) for n in range(len(index))]


@pytest.fixture
def folders(tmp_path):
    root = tmp_path / "set"
    for name in ("train/cat/b.png", "train/cat/deep/er/a.PNG", "train/ant/x.jpg", "train/dog/y.jpeg"):
        picture(root / name)
    for name in ("val/dog/1.png", "val/cat/2.png"):
        picture(root / name)
    (root / "train/cat/notes.txt").write_text("no image")
    return root


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


# -- zips


def packed(folder, target, top="", compression=zipfile.ZIP_STORED, with_folders=False):
    with zipfile.ZipFile(target, "w", compression) as opened:
        if with_folders:
            opened.writestr(f"{top}train/bee/", b"")
        for path in sorted((path for path in folder.rglob("*") if path.is_file()), reverse=True):
            opened.write(path, top + path.relative_to(folder).as_posix())
        opened.writestr("__MACOSX/train/cat/._b.png", b"noise")
    return target


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("top", ["", "data/set-1.0/"])
def test_a_zip_gives_what_its_folders_give(folders, tmp_path, compression, top):
    made = ready(packed(folders, tmp_path / "set.zip", top, compression))
    plain = ready(folders)
    assert class_names(made) == class_names(plain)
    for split in ("train_index", "val_index"):
        one, other = getattr(made, split), getattr(plain, split)
        assert one.labels.tolist() == other.labels.tolist()
        assert [one.content(n) for n in range(len(one))] == [
            Path(other.path(n)).read_bytes() for n in range(len(other))
        ]
        assert paths(one) == [
            f"{tmp_path}/set.zip/{top}" + str(p)[len(str(folders)) + 1 :] for p in paths(other)
        ]
    made.prepare_data()


def test_folders_that_a_zip_lists_are_classes(folders, tmp_path):
    assert class_names(ready(packed(folders, tmp_path / "s.zip", with_folders=True))) == [
        "ant",
        "bee",
        "cat",
        "dog",
    ]


def test_zips_as_splits_with_and_without_a_folder_around(folders, tmp_path):
    packed(folders / "train", tmp_path / "a.zip")
    packed(folders / "val", tmp_path / "val.zip", "val/")
    made = ready(tmp_path, train="a.zip")
    assert class_names(made) == ["ant", "cat", "dog"] and made.splits["val"].labels.tolist() == [1, 2]
    picture(folders / "train/train/1.png")  # a class of that name
    made = ready(train=str(packed(folders / "train", tmp_path / "b.zip")))
    assert class_names(made) == ["ant", "cat", "dog", "train"]


def test_folders_inside_a_zip_can_be_named(folders, tmp_path):
    target = packed(folders, tmp_path / "set.zip", "top/")
    assert paths(ready(target, val="train").splits["val"]) == paths(ready(target).splits["train"])
    with pytest.raises(DataNotFoundError, match="set.zip has no folder gone"):
        ready(target, val="gone")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as opened:
        opened.writestr("cat/1.png", b"")
    with pytest.raises(DataNotFoundError, match=r"(?s)no train data.*other.zip/train"):
        ready(tmp_path / "other.zip")


def test_wrong_zips_are_named(tmp_path, folders, monkeypatch):
    (tmp_path / "no.zip").write_bytes(b"no zip")
    with pytest.raises(ArchiveError, match="no.zip: cannot be read as a zip"):
        ready(tmp_path / "no.zip")
    with pytest.raises(ArchiveError, match="compressed by method 14"):
        ready(packed(folders, tmp_path / "lzma.zip", compression=zipfile.ZIP_LZMA))
    target = packed(folders, tmp_path / "flag.zip")
    monkeypatch.setattr(archive, "_ENCRYPTED", 0)
    assert len(read_archive(target).names) == 7
    content = bytearray(target.read_bytes())
    content[content.find(b"PK\x01\x02") + 8] |= 1  # the encryption flag of the first record
    target.write_bytes(content)
    monkeypatch.undo()
    with pytest.raises(ArchiveError, match="is encrypted"):
        read_archive(target)


def test_a_damaged_member_is_noticed(tmp_path, folders):
    target = packed(folders, tmp_path / "set.zip")
    found = read_archive(target)
    row = found.table[0].tolist()
    content = bytearray(target.read_bytes())
    name = next(iter(found.names)).encode()
    content[content.find(name) + len(name) + 20] ^= 0xFF
    target.write_bytes(content)
    with pytest.raises(ArchiveError, match="CRC-32"):
        read_member(found.path, row)
    made = module(target)
    with pytest.raises(ImageError, match=r"(?s)1 of 6 images cannot be used.*set.zip/val/dog/1.png: damaged"):
        made.prepare_data()
    target.unlink()
    with pytest.raises(ArchiveError, match="No such file"):
        read_member(found.path, row)


# -- tables


def table(folder, text, name="list.csv"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


@pytest.fixture
def pictures(tmp_path):
    for name in "abcd":
        picture(tmp_path / "set/images" / f"{name}.png")
    return tmp_path / "set"


def test_a_table_with_splits_and_labels(pictures):
    text = "path,split,label,age\nimages/a.png,train,10,5\nimages/b.png,Training,9,\nimages/c.png,valid,10,\n"
    made = ready(table(pictures, text + "images/d.png,test,9,1\n"))
    assert class_names(made) == ["9", "10"]  # as numbers
    assert made.splits["train"].labels.tolist() == [1, 0] and made.splits["val"].labels.tolist() == [1]
    assert paths(made.splits["train"]) == [str(pictures / "images" / name) for name in ("a.png", "b.png")]
    made.prepare_data()
    made.setup("test")
    assert paths(made.splits["test"]) == [str(pictures / "images/d.png")]


def test_paths_may_be_relative_to_root(pictures, tmp_path):
    table(tmp_path / "lists", "path,label\nimages/a.png,cat\nimages/b.png,ant\n")
    made = ready(pictures, train="../lists/list.csv")
    assert paths(made.splits["train"]) == [str(pictures / f"images/{name}.png") for name in "ab"]
    made.prepare_data()


def test_tables_in_root_stand_for_splits(pictures):
    (pictures / "train").mkdir()
    table(pictures, "path,label\nimages/a.png,cat\nimages/b.png,ant\n", "train.csv")
    table(pictures, "path,label\nimages/c.png,cat\n", "val.csv")
    made = ready(pictures)
    assert class_names(made) == ["ant", "cat"] and made.splits["val"].labels.tolist() == [1]


def test_several_names_make_many_labels(pictures):
    text = "path,split,labels\nimages/a.png,train,dog; cat\nimages/b.png,train,\nimages/c.png,val,cat;cat\n"
    made = ready(table(pictures, text))
    assert made.multi_label() and class_names(made) == ["cat", "dog"]
    assert [made.splits["train"].label(n).tolist() for n in range(2)] == [[1.0, 1.0], [0.0, 0.0]]
    assert made.splits["val"].label(0).tolist() == [1.0, 0.0] and made.label_counts("classification") == [
        1,
        1,
    ]
    (batch,) = made.val_dataloader()
    assert batch.label.tolist() == [[1.0, 0.0]] and batch.label.is_floating_point()


def test_columns_of_zeros_and_ones_make_many_labels(pictures):
    made = ready(
        pictures,
        train=table(pictures, "path,z,a\nimages/a.png,1,0\nimages/b.png,1.0,1\n", "t.csv").name,
        val=table(pictures, "a,path,z\n0,images/c.png,1\n", "v.csv").name,
    )
    assert class_names(made) == ["z", "a"] and made.label_counts("classification") == [2, 1]
    assert made.splits["val"].label(0).tolist() == [1.0, 0.0]  # by name, not by place


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label\na.png,cat\n", ["line 1", "no column path", "file, label"]),
        ("path;label\na.png;cat\n", ["no column path", "commas"]),
        ("path,split\na.png,train\n", ["line 1", "add a column label"]),
        ("path,label,labels\na.png,cat,dog\n", ["remove one"]),
        ("path,path,label\na.png,a.png,cat\n", ["column path is there twice"]),
        ("path,label\n", ["no rows"]),
        ("", ["no column path", "none"]),
        (
            "path,label\na.png,cat\n,dog\nb.png,\n",
            ["2 wrong rows", "line 3: the path is empty", "line 4: the label"],
        ),
        ("path,label\na.png\n", ["line 2: 1 fields, the header has 2"]),
        ("path,label,split\na.png,cat,trian\n", ["line 2: split is 'trian', not train, val or test"]),
        ("path,x,y\na.png,1,0\nb.png,0,2\n", ["line 3: column y holds '2', not 0 or 1"]),
        (
            "path,label,split\na.png,cat,train\n./a.png,cat,val\n",
            ["line 3: ./a.png is there already, in line 2", "one split"],
        ),
    ],
)
def test_wrong_rows_are_named_by_line(pictures, text, words):
    with pytest.raises(LabelError) as caught:
        ready(pictures, train=table(pictures, text).name)
    for word in ["list.csv", *words]:
        assert word in str(caught.value)


def test_classes_unknown_in_training_are_named_by_line(pictures):
    text = "path,label,split\nimages/a.png,cat,train\nimages/b.png,dog,val\n"
    with pytest.raises(LabelError, match=r"(?s)training data lack:.*line 3: dog.*training data have cat"):
        ready(table(pictures, text))


def test_one_table_for_two_splits_needs_a_column(pictures):
    name = table(pictures, "path,label\nimages/a.png,cat\n").name
    with pytest.raises(DataNotFoundError, match="list.csv has no column split"):
        ready(pictures / name)
    with pytest.raises(LabelError, match="holds both the training and the val data"):
        ready(pictures, train=name, val=name)
    only = table(pictures, "path,label,split\nimages/a.png,cat,val\n", "only.csv")
    with pytest.raises(
        DataNotFoundError, match="no train data found: .*only.csv has no row whose split is train"
    ):
        ready(only)


def test_splits_must_agree_in_the_number_of_labels(pictures):
    one = table(pictures, "path,label\nimages/a.png,cat\n", "one.csv").name
    many = table(pictures, "path,labels\nimages/b.png,cat\n", "many.csv").name
    with pytest.raises(
        LabelError, match="many.csv: an image shows any number of classes, unlike in the training"
    ):
        ready(pictures, train=one, val=many)


def test_missing_files_are_named_by_line_before_training(pictures):
    text = "path,label,split\nimages/a.png,cat,train\nimages/gone.png,cat,train\nimages/b.png,cat,val\n"
    made = module(table(pictures, text))
    with pytest.raises(ImageError, match=r"(?s)1 of 3 images.*list.csv, line 3: .*gone.png: no such file"):
        made.prepare_data()
    module(pictures / "list.csv", check_images="off").prepare_data()


# -- checks and kinds


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


# -- prediction


def test_predict_takes_files_folders_and_lists(folders):
    picture(folders / "new/b.png")
    picture(folders / "new/a.jpg")
    (folders / "new/c.txt").write_text("x")
    found = [str(folders / "new/a.jpg"), str(folders / "new/b.png")]
    made = ready(folders, "predict", predict=str(folders / "new"))
    assert made.prediction_paths() == dict(enumerate(found)) and class_names(made) == ["ant", "cat", "dog"]
    (batch,) = made.predict_dataloader()
    assert batch.label.tolist() == [-1, -1] and batch.image_ids.tolist() == [0, 1]
    made = ready(None, "predict", predict=[found[1], str(folders / "new")])
    assert made.prediction_paths() == {0: found[1], 1: found[0]} and class_names(made) == []


def test_predict_takes_a_zip_and_a_table(folders, tmp_path, pictures):
    target = packed(folders / "val", tmp_path / "new.zip")
    made = ready(None, "predict", predict=str(target))
    assert list(made.prediction_paths().values()) == [f"{target}/cat/2.png", f"{target}/dog/1.png"]
    assert next(iter(made.predict_dataloader())).label.tolist() == [-1, -1]
    listed = table(pictures, "id,path\n1,images/b.png\n2,images/a.png\n")
    made = ready(None, "predict", predict=str(listed))
    assert list(made.prediction_paths().values()) == [str(pictures / f"images/{name}.png") for name in "ba"]


def test_predict_has_a_row_of_unknown_labels_per_class_if_there_can_be_several(pictures):
    source = table(pictures, "path,split,labels\nimages/a.png,train,dog;cat\nimages/b.png,val,cat\n")
    made = ready(source, "predict", predict=str(pictures / "images/c.png"))
    assert made.multi_label() and next(iter(made.predict_dataloader())).label.tolist() == [[-1.0, -1.0]]


def test_predict_problems_are_named(tmp_path, folders):
    with pytest.raises(DataNotFoundError, match="nothing to predict on"):
        ready(folders, "predict")
    with pytest.raises(DataNotFoundError, match="no such file or folder: .*gone"):
        ready(folders, "predict", predict=str(tmp_path / "gone"))
    with pytest.raises(DataNotFoundError, match=r"no image in .*folders|no image in .*set"):
        ready(None, "predict", predict=str(folders))
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as opened:
        opened.writestr("a.txt", b"")
    with pytest.raises(DataNotFoundError, match="no image in .*none.zip"):
        ready(None, "predict", predict=str(tmp_path / "none.zip"))
    with pytest.raises(RuntimeError, match="call setup"):
        module(folders).predict_dataloader()
    with pytest.raises(RuntimeError, match="call setup"):
        module(folders).label_counts("classification")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("path,label\nimages/a.png,cat\nimages/b.png,cat\n", r"list.csv: all .* of one class \(cat\); add"),
        ("path,cat,dog\nimages/a.png,0,0\nimages/b.png,0,0\n", "list.csv: no training image shows any class"),
    ],
)
def test_nothing_to_tell_apart_is_an_error_in_training_alone(pictures, content, words):
    table(pictures, content)
    with pytest.raises(LabelError, match=words):
        ready(pictures, train="list.csv")
    made = ImageClassification(str(pictures), val="list.csv", workers=0)
    made.setup("validate")
    assert len(made.splits["val"]) == 2


def test_one_class_folder_with_images_is_nothing_to_tell_apart(folders):
    for name in ("cat", "dog"):
        for path in (folders / "train" / name).rglob("*.*"):
            path.unlink()
    with pytest.raises(LabelError, match=r"train: all training images are of one class \(ant\)"):
        ready(folders)
