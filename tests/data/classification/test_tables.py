"""CSV files of images and classes: forms, wrong rows, classes that differ."""

import pytest
from class_files import (
    class_names,
    module,
    paths,
    ready,
    table,
)

from trunkline.data.classification.index import LabelError
from trunkline.data.classification.module import ImageClassification
from trunkline.data.shared.io import ImageError
from trunkline.data.shared.locate import DataNotFoundError


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
