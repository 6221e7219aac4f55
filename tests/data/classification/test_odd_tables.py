"""CSV files as people write them: fields that are no labels, contradictions, encodings, paths."""

import logging

import pytest
from class_files import class_names, paths, picture, ready, table

from trunkline.data.classification.index import LabelError

GOOD = "path,label\nimages/a.png,cat\nimages/b.png,dog\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\na.png,cat\nb.png,nan\n", ["line 3: the label is 'nan'"]),
        ("path,label\na.png,cat\nb.png,#N/A\n", ["line 3: the label is '#N/A'"]),
        ("path,labels\na.png,cat;NaN\n", ["line 2: the label is 'NaN'"]),
        ("path,label\na.png,1\nb.png,2\nc.png,1.0\n", ["line 4: the label 1.0 is 1 of line 2"]),
        ("path,labels\na.png,01;2\nb.png,1\n", ["line 3: the label 1 is 01 of line 2"]),
        (
            "path,label\na.png,cat\na.png,dog\n",
            ["line 3", "in line 2, with cat and not dog", "column labels"],
        ),
        ("path,cat,dog\na.png,1,0\na.png,0,1\n", ["line 3", "with cat and not dog", "belongs to one row"]),
        ("path,cat,dog\na.png,1,\n", ["line 2: column dog holds ''"]),
        ("path,cat,dog\na.png,1,-1\n", ["line 2: column dog holds '-1'"]),
        ("path,cat,dog\na.png,1,True\n", ["line 2: column dog holds 'True'"]),
        ("path,class\na.png,0\nb.png,1\n", ["line 1: column class", "label"]),
        ("path,cat,weight\na.png,0,1\n", ["line 1: column weight"]),
        ("path,Label\na.png,0\nb.png,1\n", ["line 1: column Label: write label"]),
        (",path,cat\n0,a.png,1\n1,b.png,0\n", ["line 1: column without a name"]),
        ("path,cat,,\na.png,1,,\n", ["column without a name is there twice"]),
        ("a.png,cat\nb.png,dog\n", ["no column path (there are a.png, cat)", "first line names the columns"]),
        ("path\tlabel\na.png\tcat\n", ["separate columns by commas"]),
        ('path,label\na.png,"cat\nb.png,dog\n', ["line 2: not readable as CSV", "quote that is not closed"]),
        ('path,label\na.png,"ca\nt"\n', ["names of classes", "'ca\\nt' holds a control character"]),
        ("path,label\na.png,c\tt\n", ["'c\\tt' holds a control character"]),
        ("path,label\na\x00.png,cat\n", ["line 2: the path 'a\\x00.png' holds a control character"]),
        (f"path,label\na.png,{'c' * 300}\n", ["has 300 letters, 255 are allowed"]),
        (f"path,label\na.png,{'1' * 5000}\nb.png,2\n", ["has 5000 letters"]),
        ('path,"cat;dog"\na.png,1\n', ["'cat;dog' holds a ;"]),
        ("path,label\nimages\\a.png,cat\n", ["line 2: images\\a.png is a path of Windows", "write /"]),
        ("path,label\nhttp://x.org/a.png,cat\n", ["line 2", "is an address"]),
        ("path,label\n,\n", ["line 2: the path is empty"]),
    ],
)
def test_what_is_no_label_or_path_is_refused_by_line(pictures, text, words):
    with pytest.raises(LabelError) as caught:
        ready(pictures, train=table(pictures, text).name)
    for word in ["list.csv", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.replace("\n", "\r\n").encode(),
        GOOD.replace("\n", "\r").encode(),
        b'"path", "label"\n"images/a.png", "cat"\n\n images/b.png , dog \n',
        GOOD.replace("images", "./images").encode(),
    ],
)
def test_marks_line_ends_quotes_and_spaces_change_nothing(pictures, content):
    (pictures / "list.csv").write_bytes(content)
    made = ready(pictures, train="list.csv")
    assert class_names(made) == ["cat", "dog"] and made.splits["train"].labels.tolist() == [0, 1]
    made.prepare_data()


def test_other_encodings_are_refused_with_the_line(pictures):
    (pictures / "list.csv").write_bytes(GOOD.replace("dog", "b\u00e4r").encode("latin-1"))
    with pytest.raises(LabelError, match=r"list.csv, line 3: .*0xe4 is not UTF-8; save it as UTF-8"):
        ready(pictures, train="list.csv")
    (pictures / "list.csv").write_bytes(GOOD.encode("utf-16"))
    with pytest.raises(LabelError, match=r"list.csv, line 1: .* is not UTF-8"):
        ready(pictures, train="list.csv")


def test_the_same_file_under_two_paths_is_found(pictures):
    text = f"path,label\nimages/a.png,cat\nimages/b.png,dog\n{pictures}/images/../images/a.png,dog\n"
    with pytest.raises(LabelError, match="line 4: .*a.png is there already, in line 2, with cat and not dog"):
        ready(pictures, train=table(pictures, text).name)


def test_paths_may_be_absolute_or_lead_outside(pictures, tmp_path):
    picture(tmp_path / "other/x.png")
    text = f"path,label\n{pictures}/images/a.png,cat\n../other/x.png,dog\n"
    with pytest.raises(
        LabelError, match=r"line 3: \.\./other/x\.png leads out of .*data\.allow_outside_root"
    ):
        ready(pictures, train=table(pictures, text).name)
    made = ready(pictures, train=table(pictures, text).name, allow_outside_root=True)
    made.prepare_data()
    assert paths(made.splits["train"])[0] == f"{pictures}/images/a.png"


def test_classes_that_look_alike_are_named(pictures, caplog):
    text = "path,label\nimages/a.png,cat\nimages/b.png,Cat \nimages/c.png,e\u0301\nimages/d.png,\u00e9\n"
    made = ready(pictures, train=table(pictures, text).name)
    assert class_names(made) == ["Cat", "cat", "e\u0301", "\u00e9"]
    assert "list.csv: classes of almost the same name" in caplog.text and "'Cat' and 'cat'" in caplog.text
    text = "path,label,split\nimages/a.png,cat,train\nimages/b.png,dog,train\nimages/c.png,Cat,val\n"
    with pytest.raises(LabelError, match=r"line 4: Cat\n.*case, spaces and accents: 'Cat' is 'cat' there"):
        ready(table(pictures, text))


def test_columns_without_effect_are_said(pictures, caplog):
    text = "path,label,weight\nimages/a.png,cat,2\nimages/b.png,dog,1\n"
    ready(pictures, train=table(pictures, text).name)
    assert "column weight has no effect" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "trunkline"):
        ready(pictures, train=table(pictures, text.replace("weight", "age")).name)
    assert "not used are the columns age" in caplog.text


def test_several_names_without_semicolon_are_said(pictures, caplog):
    text = 'path,labels\nimages/a.png,"cat,dog"\nimages/b.png,cat\n'
    made = ready(pictures, train=table(pictures, text).name)
    assert class_names(made) == ["cat", "cat,dog"] and "no row of the column labels has a ;" in caplog.text


def test_a_table_to_predict_on_needs_nothing_but_paths(pictures):
    listed = table(pictures, "Label,path,class,labels\nnan,images/b.png,x,nan\n,images/a.png,,\n")
    made = ready(None, "predict", predict=str(listed))
    assert [path.name for path in made.prediction_paths().values()] == ["b.png", "a.png"]
    with pytest.raises(LabelError, match="line 3: images/a.png is there already, in line 2; an image"):
        ready(None, "predict", predict=str(table(pictures, "path\nimages/a.png\nimages/a.png\n")))
