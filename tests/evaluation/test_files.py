"""Files are whole or not there, and the JSON is strict."""

import json
import math
import os

import numpy as np
import pytest

from trunkline.evaluation.files import write_atomically, write_json


def test_text_and_bytes_arrive_as_they_are(tmp_path):
    path = write_atomically(str(tmp_path / "new" / "deeper" / "a.txt"), "Köln\r\n")
    assert path.read_bytes() == "Köln\r\n".encode()
    assert write_atomically(path, b"\x00\xff").read_bytes() == b"\x00\xff"
    assert os.listdir(path.parent) == ["a.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = write_atomically(tmp_path / "a.txt", "old")

    def fail(*_):
        raise OSError("disk is full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk is full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_interruption_leaves_no_new_file(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.txt", "new")
    assert os.listdir(tmp_path) == []


def test_wrong_content_changes_nothing(tmp_path):
    path = write_atomically(tmp_path / "a.txt", "old")
    with pytest.raises(TypeError):
        write_atomically(path, 5)
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_others_may_read_the_file_as_any_new_file(tmp_path):
    usual = tmp_path / "usual"
    usual.write_text("")
    assert write_atomically(tmp_path / "a.txt", "").stat().st_mode == usual.stat().st_mode


def test_json_has_null_for_nan_and_plain_numbers(tmp_path):
    value = {
        "nan": math.nan,
        "deep": [1, (2.5, np.float32("nan")), {"inside": np.int64(3)}],
        "array": np.array([[1.0, np.nan]]),
        "flag": np.bool_(True),
        "text": "NaN",
        "nothing": None,
    }
    path = write_json(tmp_path / "a.json", value)

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(path.read_text(), parse_constant=refuse) == {
        "nan": None,
        "deep": [1, [2.5, None], {"inside": 3}],
        "array": [[1.0, None]],
        "flag": True,
        "text": "NaN",
        "nothing": None,
    }
    assert math.isnan(value["nan"])  # the value itself stays as it was


def test_json_has_null_for_infinity(tmp_path):
    path = write_json(tmp_path / "a.json", [math.inf, -math.inf, np.float32("inf"), 1.5])
    assert path.read_text() == "[null, null, null, 1.5]\n"


def test_json_indent(tmp_path):
    assert write_json(tmp_path / "a.json", [1, 2]).read_text() == "[1, 2]\n"
    assert write_json(tmp_path / "a.json", [1, 2], indent=1).read_text() == "[\n 1,\n 2\n]\n"
