"""Names of files that are made up from other names fit every file system, and no two are one."""

import os
import unicodedata

import pytest

from trunkline.evaluation.files import write_atomically, write_csv
from trunkline.evaluation.names import safe_name, unique_names

ODD = ["a/b", "a\\b", "line\nfeed", "tab\t", "nul\0", "old \udce9", "x" * 300, "猫" * 100, "", "..", "."]


@pytest.mark.parametrize("name", ODD)
def test_an_odd_name_becomes_one_that_can_be_written(tmp_path, name):
    path = write_atomically(tmp_path / f"{safe_name(name)}.nii.gz", b"1")
    assert path.parent == tmp_path and os.listdir(tmp_path) == [path.name]
    assert path.name.encode().decode().isprintable()


def test_a_name_that_is_one_stays():
    for name in ("a", "IMG 0012 (1)", "été.v2", "猫", "x" * 240):
        assert safe_name(name) == name


def test_odd_names_stay_different():
    assert len({safe_name(name) for name in (*ODD, "a_b", "x" * 301, "line feed")}) == len(ODD) + 3


def test_no_two_names_are_one_on_any_file_system():
    accented = "e\u0301t\u00e9"
    wanted = [
        "a",
        "a",
        "a_1",
        "b",
        "A_0",
        "IMG",
        "img",
        unicodedata.normalize("NFC", accented),
        accented,
        "a_1_1",
    ]
    names = unique_names(dict(enumerate(wanted)))
    folded = {unicodedata.normalize("NFC", name).casefold() for name in names.values()}
    assert len(folded) == len(wanted)
    assert names[2] == "a_1" and names[3] == "b" and names[4] == "A_0" and names[9] == "a_1_1"
    assert names == unique_names(dict(reversed(list(enumerate(wanted)))))


def test_a_table_keeps_what_is_no_text_readable(tmp_path):
    path = write_csv(tmp_path / f"{'t' * 250}.csv", ["na\nme", 'q"'], [["old \udce9", "1,2"]])
    assert path.read_bytes() == b'"na\nme","q"""\nold \\udce9,"1,2"\n'
