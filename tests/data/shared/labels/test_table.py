"""The table of classes: the labels of values and colours, and what is left to learn."""

import numpy as np
import pytest

from trunkline.data.shared.labels.classes import LabelClass, voc_colour
from trunkline.data.shared.labels.lists import (
    VOC_ROWS,
)
from trunkline.data.shared.labels.table import ClassTable, MaskError, rows_of_names

ROWS = [LabelClass(0, "sky"), LabelClass(4, "road"), LabelClass(9, "car"), LabelClass(300, "void")]


def test_colours_of_voc_are_those_of_its_development_kit():
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 5: (128, 0, 128)}
    known |= {8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 21: (128, 64, 128), 255: (224, 224, 192)}
    for number, colour in known.items():
        assert voc_colour(number) == colour
    assert len({voc_colour(number) for number in range(3000)}) == 3000
    assert [row.name for row in VOC_ROWS[::5]] == ["background", "bottle", "cow", "person", "tvmonitor"]


def test_labels_follow_the_order_of_the_table_without_what_is_ignored():
    table = ClassTable(ROWS, ignore=["void", 7])
    assert [(c.id, c.name, c.colour) for c in table.classes] == [
        (0, "sky", (0, 0, 0)),
        (4, "road", (0, 0, 128)),
        (9, "car", (192, 0, 0)),
    ]
    values = np.array([[9, 0, 4], [7, 300, 255], [1, 256, 65535]], dtype=np.uint16)
    assert table.labels(values).tolist() == [[2, 0, 1], [255, 255, 255], [-1, -1, -1]]
    assert ClassTable(ROWS[::-1]).labels(np.array([300, 9, 4, 0])).tolist() == [0, 1, 2, 3]


def test_255_can_be_a_class():
    table = ClassTable(rows_of_names(["nothing", "cell"], [0, 255]))
    assert table.labels(np.array([0, 255, 1], dtype=np.uint8)).tolist() == [0, 1, -1]
    assert table.classes[1].id == 255


def test_categories_pick_and_order_and_the_rest_becomes_background():
    table = ClassTable(ROWS, categories=["car", 4])
    assert [(c.id, c.name) for c in table.classes] == [(0, "background"), (9, "car"), (4, "road")]
    assert table.labels(np.array([0, 4, 9, 300, 255])).tolist() == [0, 2, 1, 0, 255]
    assert (table.background, table.rest) == (0, 0)
    table = ClassTable(ROWS, categories=["car", "sky"], ignore=["void"])  # the id 0 is taken
    assert [(c.id, c.name) for c in table.classes] == [(1, "background"), (9, "car"), (0, "sky")]
    assert table.labels(np.array([0, 4, 9, 300])).tolist() == [2, 0, 1, 255]
    table = ClassTable(ROWS, categories=["car", "sky"], background="ignore")
    assert [c.name for c in table.classes] == ["car", "sky"] and table.background is None
    assert table.labels(np.array([0, 4, 9, 300])).tolist() == [1, 255, 0, 255]


def test_a_background_of_the_table_serves_as_such_wherever_it_stands():
    rows = [LabelClass(3, "Background"), LabelClass(1, "cat"), LabelClass(2, "dog")]
    table = ClassTable(rows, categories=["dog"])
    assert [c.id for c in table.classes] == [3, 2]
    assert table.labels(np.array([1, 2, 3])).tolist() == [0, 1, 0]
    table = ClassTable(rows, categories=["dog", "Background"])
    assert [c.id for c in table.classes] == [2, 3] and table.background == 1
    assert table.labels(np.array([1, 2, 3])).tolist() == [1, 0, 1]


def test_colours_become_labels_and_unknown_ones_are_told():
    rows = [LabelClass(0, "a", (255, 0, 0)), LabelClass(1, "b", (0, 0, 1)), LabelClass(2, "void", (0, 0, 0))]
    table = ClassTable(rows, ignore=["void"])
    codes = np.array([255 << 16, 1, 0, 256, 255 << 16 | 1], dtype=np.uint32)
    assert table.labels(codes).tolist() == [0, 1, 255, -1, -1] and table.coloured
    plain = ClassTable(ROWS)
    assert not plain.coloured and plain.labels(codes).tolist() == [-1] * 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ignore": ["viod"]}, r"data.ignore: list.txt has no class 'viod'; did you mean 'void'"),
        ({"categories": ["plane"]}, "data.categories: .* 'plane' .*sky, road, car, void"),
        ({"categories": [4, 5]}, "have to be different classes"),
        ({"categories": [4, "road"]}, "have to be different classes"),
        ({"categories": [4], "ignore": ["road"]}, "not ignored"),
        ({"ignore": [0, 4, 9, 300]}, "0 classes are left"),
        ({"ignore": [-1]}, "data.ignore: -1 is no value of a mask: 0 to 65535"),
        ({"ignore": ["--5"]}, "data.ignore: list.txt has no class '--5'"),
        ({"ignore": ["9" * 5000]}, "data.ignore: list.txt has no class"),
    ],
)
def test_wrong_choices_are_errors(options, words):
    with pytest.raises(MaskError, match=words):
        ClassTable(ROWS, source="list.txt", **options)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([LabelClass(0, "a"), LabelClass(0, "b")], "id 0 is there twice"),
        ([LabelClass(0, "a"), LabelClass(1, "a")], "name a is there twice"),
        ([LabelClass(65536, "a")], "ids are 0 to 65535"),
        (
            [LabelClass(n, f"n{n}") for n in range(256)],
            "256 classes are left to learn; there can be 1 to 255",
        ),
        ([LabelClass(0, "a", (1, 2, 3)), LabelClass(1, "b", (1, 2, 3))], r"b and another .* \(1, 2, 3\)"),
        ([], "0 classes"),
    ],
)
def test_wrong_tables_are_errors(rows, words):
    with pytest.raises(MaskError, match=words):
        ClassTable(rows)


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\u2028b"])
def test_names_without_letters_or_with_control_characters_are_errors(name):
    with pytest.raises(MaskError, match="data.classes: .* is empty or holds a control character"):
        rows_of_names(["sky", name])


def test_two_ignored_classes_may_share_a_colour_and_255_classes_fit():
    rows = [LabelClass(0, "a", (1, 2, 3)), LabelClass(1, "b", (0, 0, 0)), LabelClass(2, "c", (0, 0, 0))]
    assert len(ClassTable(rows, ignore=[1, 2])) == 1
    table = ClassTable([LabelClass(n, f"n{n}") for n in range(255)])
    assert table.labels(np.array([254, 255])).tolist() == [254, 255]


def test_names_with_values_of_their_own():
    assert rows_of_names(["a", "b"]) == [LabelClass(0, "a"), LabelClass(1, "b")]
    with pytest.raises(MaskError, match="3 values, but there are 2 classes"):
        rows_of_names(["a", "b"], [1, 2, 3])
