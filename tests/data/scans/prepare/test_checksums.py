"""Numbers of the cache of prepared scans are compared with checksums; clocks that jump do no harm."""

import json
import os

import numpy as np
import pytest

from trunkline.data.scans.cases.types import Case
from trunkline.data.scans.formats.files import write_scan
from trunkline.data.scans.formats.scan import Grid
from trunkline.data.scans.prepare import cache, entries
from trunkline.data.scans.prepare.cache import PreparedCases
from trunkline.data.scans.prepare.prepare import Preparation
from trunkline.data.shared.labels.classes import LabelClass

CLASSES = (LabelClass(0, "background"), LabelClass(4, "liver"))


@pytest.fixture
def case(tmp_path):
    rng, shape = np.random.default_rng(0), (6, 5, 4)
    write_scan(tmp_path / "image.nii", rng.normal(size=shape).astype(np.float32), Grid(shape, np.eye(4)))
    write_scan(
        tmp_path / "label.nii", rng.choice([0, 4], size=shape).astype(np.uint8), Grid(shape, np.eye(4))
    )
    return Case("case", (str(tmp_path / "image.nii"),), str(tmp_path / "label.nii"), "p")


def cached(case, tmp_path):
    return PreparedCases([case], Preparation(), CLASSES, 255, folder=tmp_path / "cache")


def entry(tmp_path):
    (found,) = [path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")]
    return found


@pytest.mark.parametrize("name", ["image.npy", "mask.npy", "locations.npy"])
def test_a_changed_number_is_found_at_the_next_start(case, tmp_path, caplog, name):
    made = cached(case, tmp_path)
    made.build()
    expected = {file.name: file.read_bytes() for file in entry(tmp_path).glob("*.npy")}
    path = entry(tmp_path) / name
    content = bytearray(path.read_bytes())
    content[-4] ^= 1  # one bit of one of the last numbers
    path.write_bytes(content)
    again = cached(case, tmp_path)
    again.build()
    assert f"is damaged ({name}: numbers, not as it was written)" in caplog.text
    assert {file.name: file.read_bytes() for file in entry(tmp_path).glob("*.npy")} == expected


def test_what_was_compared_is_read_again_only_after_a_change_or_a_week(case, tmp_path, monkeypatch):
    looked = []
    original = entries._checksum
    monkeypatch.setattr(entries, "_checksum", lambda path: looked.append(path.name) or original(path))
    cached(case, tmp_path).build()
    looked.clear()
    cached(case, tmp_path).build()
    assert sorted(looked) == ["image.npy", "locations.npy", "mask.npy"]
    looked.clear()
    cached(case, tmp_path).build()
    assert looked == []
    mark = entry(tmp_path) / ".verified"
    for jump in (-8, 8):  # days; also if the clock went back
        when = mark.stat().st_mtime + jump * 24 * 3600
        os.utime(mark, (when, when))
        cached(case, tmp_path).build()
        assert sorted(looked) == ["image.npy", "locations.npy", "mask.npy"]
        looked.clear()


def test_an_entry_of_before_there_were_checksums_is_used(case, tmp_path, caplog):
    cached(case, tmp_path).build()
    path = entry(tmp_path) / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "checksums": {}}))
    cached(case, tmp_path).build()
    assert not caplog.text


def test_an_entry_of_another_version_is_left_alone(case, tmp_path, monkeypatch):
    cached(case, tmp_path).build()
    before = {path: path.stat().st_mtime_ns for path in entry(tmp_path).iterdir()}
    monkeypatch.setattr(cache, "_VERSION", cache._VERSION + 1)
    cached(case, tmp_path).build()
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_a_jump_of_the_clock_removes_nothing_that_is_being_written(case, tmp_path):
    mine = tmp_path / "cache" / f"{entries.UNFINISHED}{entries._writer()}abc"
    ended = tmp_path / "cache" / mine.name.replace(str(os.getpid()), "99999999")
    for folder in (mine, ended):
        folder.mkdir(parents=True)
        os.utime(folder, (1, 1))
    cached(case, tmp_path).build()
    assert mine.exists() and not ended.exists()
