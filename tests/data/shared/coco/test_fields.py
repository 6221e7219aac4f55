"""Types and ranges of the fields of COCO records."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from trunkline.data.shared.coco.annotations import read_categories, read_images
from trunkline.data.shared.coco.fields import (
    AnnotationError,
    are_numbers,
    areas,
    flags,
    is_integer,
    is_number,
    shown,
    text_problem,
)
from trunkline.data.shared.coco.json_file import read_json

FILE = Path("some.json")


@pytest.mark.parametrize(
    ("value", "crowd"), [(0, False), (1, True), (False, False), (True, True), (0.0, False), (1.0, True)]
)
def test_flags_that_are_clear(value, crowd):
    assert flags([{"iscrowd": value}], FILE).tolist() == [crowd]


def test_missing_flags_and_areas():
    assert flags([{}, {"iscrowd": None}], FILE).tolist() == [False, False]
    found = areas([{}, {"area": None}, {"area": 3}, {"area": 0.5}, {"area": 0}], FILE)
    np.testing.assert_array_equal(found, [math.nan, math.nan, 3, 0.5, 0])
    assert not len(flags([], FILE)) and not len(areas([], FILE))


@pytest.mark.parametrize("value", ["0", "1", "", "false", "0.0", math.nan, -1, 2, 0.5, math.inf, [], [0], {}])
def test_flags_that_are_not(value):
    with pytest.raises(
        AnnotationError, match="some.json: iscrowd is the number 0 .*\n  annotation id 8: iscrowd "
    ):
        flags([{"id": 7}, {"id": 8, "iscrowd": value}], FILE)


@pytest.mark.parametrize("value", ["3", math.nan, math.inf, -1, -0.5, True, [3], 10**400])
def test_areas_that_are_none(value):
    with pytest.raises(AnnotationError, match="some.json: an area is .*\n  annotation number 0: area "):
        areas([{"area": value}], FILE)


def test_numbers():
    assert is_integer(2**62) and is_integer(-(2**62))
    assert not any(map(is_integer, (True, 1.0, "1", None, 2**64, 10**400)))
    assert all(map(is_number, (0, 1.5, math.nan, math.inf, 2**1000)))
    assert not any(map(is_number, (True, "1", None, [], 10**400)))
    assert are_numbers([1, 2.5]) and are_numbers([]) and are_numbers([math.nan])
    assert not are_numbers([1.0, True]) and not are_numbers([1.0, 10**400]) and not are_numbers([[1.0]])


@pytest.mark.parametrize("name", ["cat", "Étoile", "猫", "a b", "cat/dog", "🐈", "a\u200db"])
def test_names_of_all_languages_are_taken(name):
    assert text_problem(name, one_line=True) == ""


@pytest.mark.parametrize(
    "name", ["", " ", "\n", "a\nb", "a\tb", "a\r", "a\0b", "\ud83d", "a\u2028b", "\x1b[31m"]
)
def test_names_that_break_lines_or_files_are_not(name):
    assert text_problem(name, one_line=True)
    with pytest.raises(
        AnnotationError, match="some.json: names that cannot be used.*\n  category id 4: name "
    ):
        read_categories([{"id": 4, "name": name}], FILE)


def test_values_in_messages_are_short():
    values = ["x" * 10_000, 10**4000, [[[[[1]]]]], [0] * 10_000, {n: n for n in range(1000)}]
    assert all(len(shown(value)) < 100 for value in values)


def test_categories_of_one_name_are_two_classes(caplog):
    rows = read_categories([{"id": 2, "name": "face"}, {"id": 1, "name": "face"}], FILE)
    assert [row.id for row in rows] == [1, 2]
    assert "categories of the same name: 'face'" in caplog.text


def test_ids_keep_their_value_in_the_arrays_of_the_evaluation():
    assert read_categories([{"id": 2**53 - 1, "name": "a"}], FILE)[0].id == int(float(2**53 - 1))
    for number in (2**53, -(2**53)):
        with pytest.raises(AnnotationError, match="below 2\\*\\*53"):
            read_categories([{"id": number, "name": "a"}], FILE)


def test_images_that_share_a_file_are_told(caplog):
    record = {"file_name": "a.jpg", "width": 5, "height": 6}
    ids, sizes, names = read_images([{"id": n, **record} for n in (3, 1, 2)], FILE)
    assert ids.tolist() == [3, 1, 2] and sizes.tolist() == [[6, 5]] * 3 and names == ["a.jpg"] * 3
    assert "2 images of a file that an earlier image has too" in caplog.text


def test_parsing_equals_json(tmp_path):
    content = {"a": [1, 2.5, None, True, {"b": "ü"}], "c": {}}
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        (tmp_path / "a.json").write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
        assert read_json(tmp_path / "a.json") == content
    assert read_json(tmp_path / "a.json", lambda record: len(record)) == 2


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 1}', '{"c": [{"id": 5, "a": 1, "a": 2}]}'])
def test_keys_that_occur_twice_are_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(AnnotationError, match=r"a.json: an object .*has the key 'a' more than once"):
        read_json(tmp_path / "a.json")
