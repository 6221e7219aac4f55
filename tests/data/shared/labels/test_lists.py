"""Lists of classes: reading them in the forms they come in, and the known ones."""

import os

import pytest

from trunkline.data.shared.labels.lists import (
    CITYSCAPES_IGNORED,
    CITYSCAPES_ROWS,
    cityscapes_train_rows,
    find_class_file,
    read_class_rows,
)
from trunkline.data.shared.labels.table import MaskError


def test_cityscapes_numbers_every_id_once():
    ids = [row.id for row in CITYSCAPES_ROWS]
    assert len(ids) == 19 and sorted([*ids, *CITYSCAPES_IGNORED]) == list(range(34))
    assert [(r.id, r.name) for r in cityscapes_train_rows()][::6] == [
        (0, "road"),
        (6, "traffic light"),
        (12, "rider"),
        (18, "bicycle"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("classes.txt", "sky\n big road \n\n", [(0, "sky", None), (1, "big road", None)]),
        ("labels.txt", "0: other\n12: big road\n", [(0, "other", None), (12, "big road", None)]),
        (
            "labelmap.txt",
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,64::\n",
            [(0, "background", (0, 0, 0)), (1, "cat", (128, 0, 64))],
        ),
        (
            "class_dict.csv",
            "name,r,g,b,class_11\nCar,64,0,128,1\nVoid,0,0,0,0\n",
            [(0, "Car", (64, 0, 128)), (1, "Void", (0, 0, 0))],
        ),
        (
            "classes.csv",
            "\ufeffId;Name;Colour\n255;road;#0a0Bff\n7;car;1,2,3\n",
            [(255, "road", (10, 11, 255)), (7, "car", (1, 2, 3))],
        ),
        ("classes.csv", 'name,rgb\na,"(1, 2, 3)"\nb,\n', [(0, "a", (1, 2, 3)), (1, "b", None)]),
        ("objects.csv", "Idx,Ratio,Name\n1,0.15,wall\n2,0.1,sky\n", [(1, "wall", None), (2, "sky", None)]),
        (
            "semantic_classes.tsv",
            "id\tname\tisthing\n0\tunlabeled\t0\n90\ttree, leafy\t1\n\n",
            [(0, "unlabeled", None), (90, "tree, leafy", None)],
        ),
    ],
)  # fmt: skip
def test_lists_of_classes_in_usual_forms(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_class_rows(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.txt", "a\n\nb\n", "line 2: is empty"),
        ("c.txt", "", "lists no classes"),
        ("c.csv", "title,id\nx,1\n", "line 1: no column name"),
        ("c.csv", "id,name\nx,a\n", "line 2: id is 'x'"),
        ("c.csv", "id,name\n1,a\n2\n", "line 3: '2' does not fit"),
        ("c.csv", "id,name\n1,\n", "line 2: .* does not fit"),
        ("c.csv", "name,colour\na,red\n", "line 2: colour 'red'"),
        ("c.csv", "name,r,g,b\na,1,2,256\n", "line 2: colour '1,2,256'"),
        ("c.csv", "name,r,g,b\na,0.5,0.1,1\n", "line 2: colour"),
        ("none.csv", None, "no readable list"),
        ("c.csv", "id,name\nNaN,a\n", "line 2: id is 'NaN', not a whole number of 0 or more"),
        ("c.csv", "id,name\n1,a\n1.0,b\n", "line 3: id is '1.0'"),
        ("c.csv", "id,name\n,a\n", "line 2: id is ''"),
        ("c.csv", "id,name\n-1,a\n", "line 2: id is '-1'"),
        ("c.csv", "id,name\n\u0663,a\n", "line 2: id is '\u0663'"),
        ("c.csv", f"id,name\n{'9' * 5000},a\n", "line 2: id is '99999999999999999999...', not"),
        ("c.csv", "id,name\n1,a\n\n1,b\n", "line 4: the id 1 is there twice, in line 2 too"),
        ("c.csv", "id,name\n1,a\n2, a \n", "line 3: the name a is there twice, in line 2 too"),
        ("c.csv", 'name\n"a\nb"\n', r"the name 'a\\nb' holds a control character"),
        ("c.csv", "name\na\x07\n", "line 2: the name .* holds a control character"),
        ("c.csv", "name,id,id\na,1,2\n", "line 1: the column id is there twice"),
        ("c.csv", "name,r,g\na,1,2\n", "line 1: of the columns r, g, b one is missing"),
        ("c.csv", "name,r,g,b\na,1,2,-3\n", "line 2: colour '1,2,-3'"),
        ("c.csv", "name,r,g,b\na,1,2,\n", "line 2: colour '1,2,'"),
        ("c.csv", "name,r,g,b\na,nan,2,3\n", "line 2: colour 'nan,2,3'"),
        ("c.csv", f"name,colour\na,{'9' * 5000}\n", "line 2: colour '9{40}...' is neither"),
        ("c.csv", 'name,colour\na,"1,2,3\nb,"4,5,6"\n', "line 3: no table of classes"),
        ("c.csv", f"name\n{'x' * 140000}\n", "line 2: no table of classes .field larger"),
        ("c.txt", "a\nb\na\n", "line 3: the name a is there twice, in line 1 too"),
        ("c.txt", "0: a\nb\n", "line 2: 'b' has no id, but line 1 has"),
        ("c.txt", "-1: a\n0: b\n", "line 1: id is '-1'"),
        ("c.txt", "1.0: a\n2.0: b\n", "line 1: id is '1.0'"),
        ("c.txt", "1 a\n2 b\n", "line 1: '1 a' may be an id with a name"),
        ("c.txt", "a, b, c\n", "line 1: 'a, b, c' may be .* several names"),
        ("c.txt", "# mine\na\n", "line 1: is a comment"),
        ("c.txt", "a\x0bb\n", "line 1: the name .* holds a control character"),
        ("c.txt", "a\nb\0\n", "line 2: .* zero byte"),
        ("c.txt", "# label:color_rgb:parts:actions\n:1,0,0::\n", "line 2: the class has no name"),
    ],
)
def test_wrong_lists_name_the_line(tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(MaskError, match=words):
        read_class_rows(tmp_path / name)


@pytest.mark.parametrize(("encoding", "line"), [("latin-1", 3), ("utf-16", 1)])
def test_other_encodings_are_named_with_the_line(tmp_path, encoding, line):
    (tmp_path / "c.csv").write_bytes("name\nsky\nwählbar\n".encode(encoding))
    with pytest.raises(
        MaskError, match=f"c.csv, line {line}: the list of classes is no UTF-8 text .*save it"
    ):
        read_class_rows(tmp_path / "c.csv")


def test_line_ends_of_all_systems_are_the_same(tmp_path):
    for end in ("\n", "\r\n", "\r"):
        for name, head in (("c.txt", ""), ("c.csv", f"name{end}")):
            (tmp_path / name).write_bytes(f"{head}a{end}b{end}".encode())
            assert [row[:2] for row in read_class_rows(tmp_path / name)] == [(0, "a"), (1, "b")]


def test_a_folder_or_a_pipe_is_no_list(tmp_path):
    (tmp_path / "c.csv").mkdir()
    os.mkfifo(tmp_path / "c.txt")
    for name in ("c.csv", "c.txt"):
        with pytest.raises(MaskError, match=f"{name}: is no file, but a list of classes is needed"):
            read_class_rows(tmp_path / name)


def test_a_list_is_found_by_its_usual_names(tmp_path):
    assert find_class_file(tmp_path) is None
    (tmp_path / "labelmap.txt").write_text("a\n")
    assert find_class_file(tmp_path) == tmp_path / "labelmap.txt"
    (tmp_path / "classes.csv").write_text("name\na\n")
    assert find_class_file(tmp_path) == tmp_path / "classes.csv"
