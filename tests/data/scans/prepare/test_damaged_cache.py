"""Damage to the cache of prepared scans: the case is prepared again, or an error says why not."""

import errno
import json
import logging
import os
import shutil
import threading

import numpy as np
import pytest

from trunkline.data.scans.cases.types import Case
from trunkline.data.scans.formats.files import write_scan
from trunkline.data.scans.formats.scan import Grid
from trunkline.data.scans.prepare import entries
from trunkline.data.scans.prepare.cache import PreparedCases
from trunkline.data.scans.prepare.entries import CacheError
from trunkline.data.scans.prepare.prepare import Preparation, prepare_case
from trunkline.data.scans.prepare.stamps import stamp
from trunkline.data.shared.labels.classes import LabelClass

CLASSES = (LabelClass(0, "background", (0, 0, 0)), LabelClass(4, "liver", (1, 0, 0)))
SHAPE = (6, 5, 4)


@pytest.fixture(autouse=True)
def warnings_only(caplog):
    caplog.set_level("WARNING", logger="trunkline")


@pytest.fixture
def case(tmp_path):
    rng = np.random.default_rng(0)
    grid = Grid(SHAPE, np.eye(4))
    write_scan(tmp_path / "image.nii", rng.normal(size=SHAPE).astype(np.float32), grid)
    write_scan(tmp_path / "label.nii", rng.choice([0, 4], size=SHAPE).astype(np.uint8), grid)
    return Case("case", (str(tmp_path / "image.nii"),), str(tmp_path / "label.nii"), "p")


def cached(case, tmp_path):
    return PreparedCases([case], Preparation(), CLASSES, 255, folder=tmp_path / "cache")


def entry(tmp_path):
    (found,) = [path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")]
    return found


def truncate(name, keep):
    def damage(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:keep])

    return damage


def bytes_of(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def array(name, values, **options):
    return lambda folder: np.save(folder / name, values, **options)


def changed_meta(**changes):
    def damage(folder):
        content = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps({**content, **changes}))

    return damage


def changed_placement(**changes):
    def damage(folder):
        content = json.loads((folder / "meta.json").read_text())
        content["placement"] |= changes
        (folder / "meta.json").write_text(json.dumps(content))

    return damage


def without(key):
    def damage(folder):
        content = json.loads((folder / "meta.json").read_text())
        del content[key]
        (folder / "meta.json").write_text(json.dumps(content))

    return damage


def folder_in_place(name):
    def damage(folder):
        (folder / name).unlink()
        (folder / name / "inside").mkdir(parents=True)

    return damage


def fifo(folder):
    (folder / "image.npy").unlink()
    os.mkfifo(folder / "image.npy")


def file_in_place_of_the_entry(folder):
    shutil.rmtree(folder)
    folder.write_text("a file")


def dangling_link(folder):
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")


def unknown_version(folder):
    """The arrays of a numpy of the future."""
    path = folder / "image.npy"
    path.write_bytes(b"\x93NUMPY\x09\x00" + path.read_bytes()[8:])


FILES = ("image.npy", "mask.npy", "locations.npy", "meta.json")
DAMAGES = {
    **{f"truncated {name}": truncate(name, -7) for name in FILES},
    **{f"header only {name}": truncate(name, 40) for name in FILES},
    **{f"empty {name}": truncate(name, 0) for name in FILES},
    **{f"garbage {name}": bytes_of(name, bytes(range(256)) * 3) for name in FILES},
    **{f"missing {name}": lambda folder, name=name: (folder / name).unlink() for name in FILES},
    **{f"folder {name}": folder_in_place(name) for name in FILES},
    **{
        f"garbage header {name}": bytes_of(name, b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f4', (((" + b" " * 50)
        for name in FILES[:3]
    },
    "huge array": bytes_of(
        "image.npy",
        b"\x93NUMPY\x01\x00\x76\x00"
        + f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'9' * 30}, 5, 4), }}".ljust(118).encode(),
    ),
    "a zip of arrays": lambda folder: np.savez(open(folder / "image.npy", "wb"), a=np.zeros(3)),  # noqa: SIM115
    "pickled objects": array("image.npy", np.array([{}, None], dtype=object), allow_pickle=True),
    "numpy of the future": unknown_version,
    "FIFO": fifo,
    "image of another type": array("image.npy", np.zeros((1, *SHAPE))),
    "image of another shape": array("image.npy", np.zeros((1, 6, 5, 3), np.float32)),
    "image without channels": array("image.npy", np.zeros(SHAPE, np.float32)),
    "image of no channel": array("image.npy", np.zeros((0, *SHAPE), np.float32)),
    "mask of another type": array("mask.npy", np.zeros(SHAPE, np.int64)),
    "mask of another shape": array("mask.npy", np.zeros((5, 6, 4), np.uint8)),
    "locations of another shape": array("locations.npy", np.zeros((99, 2), np.int32)),
    "locations outside": array("locations.npy", np.full((120, 3), 5, np.int32)),
    "too few locations": array("locations.npy", np.zeros((1, 3), np.int32)),
    "deep JSON": bytes_of("meta.json", b"[" * 100_000),
    "a long number in JSON": bytes_of("meta.json", b'{"counts": ' + b"9" * 5000 + b"}"),
    **{f"JSON {text}": bytes_of("meta.json", text.encode()) for text in ("null", "[]", "3", '"a"', "{}")},
    **{f"without {key}": without(key) for key in ("placement", "mask", "counts", "locations")},
    **{
        f"{key} {value!r}": changed_meta(**{key: value})
        for key, value in [
            ("placement", None), ("placement", []), ("placement", {"grid": 3}), ("mask", False),
            ("mask", "yes"), ("mask", 1), ("counts", None), ("counts", [60]), ("counts", [60, 60]),
            ("counts", ["a", 1, 2]),
            ("counts", [-1, 121, 0]), ("counts", [1, 2, 3]), ("counts", {}), ("locations", None),
            ("locations", []), ("locations", {"x": [0, 3]}), ("locations", {"1": 3}),
            ("locations", {"1": [0, 1, 2]}), ("locations", {"1": [5, 2]}), ("locations", {"1": [0, 1e9]}),
            ("locations", {"7": [0, 3]}),
        ]
    },
    **{
        f"placement {key} {value!r}": changed_placement(**{key: value})
        for key, value in [
            ("shape", [6, 5]), ("shape", ["6", 5, 4]), ("shape", 7), ("spacing", [1, 1]),
            ("spacing", [0, 1, 1]), ("spacing", ["a", 1, 1]), ("orientation", [[0, 1], [0, 1], [2, 1]]),
            ("orientation", [[0, 2], [1, 1], [2, 1]]), ("box", [[0, 6]]), ("box", None), ("coarse", 3),
            ("coarse", "x"), ("grid", {"shape": [6, 5, 4], "affine": [[0] * 4] * 4}), ("grid", {}),
        ]
    },
    "file in place of the entry": file_in_place_of_the_entry,
    "dangling link": dangling_link,
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_entry_is_named_and_prepared_again(case, tmp_path, caplog, name):
    expected = prepare_case(case, Preparation(), CLASSES, 255)
    cached(case, tmp_path).build()
    place = entry(tmp_path)
    DAMAGES[name](place)
    caplog.clear()
    again = cached(case, tmp_path)
    with caplog.at_level(logging.WARNING, "trunkline"):
        again.build()
    assert f"{place}: is damaged (" in caplog.text
    caplog.clear()
    for source in (again, cached(case, tmp_path)):
        assert np.array_equal(source[0].image, expected.image)
        assert np.array_equal(source[0].mask, expected.mask)
        assert source[0].placement.to_json() == expected.placement.to_json()
        assert np.array_equal(source.locations(0)[1], np.argwhere(expected.mask == 1))
        assert source.counts()[0].tolist() == np.bincount(expected.mask.ravel(), minlength=3).tolist()
    assert not caplog.text
    assert {path.name for path in place.iterdir()} == set(FILES)
    assert not list((tmp_path / "cache").glob(".writing-*"))


def test_damage_while_it_is_in_use_is_repaired_too(case, tmp_path, caplog):
    prepared = cached(case, tmp_path)
    before = np.array(prepared[0].image)
    (entry(tmp_path) / "image.npy").unlink()
    assert np.array_equal(prepared[0].image, before)
    assert "image.npy is missing" in caplog.text


@pytest.mark.parametrize("lock", [True, False])
def test_processes_that_repair_at_once_end_with_one_good_entry(case, tmp_path, monkeypatch, lock):
    """All see the damage before any repairs it; without locks (some network file systems) too."""
    count, damaged = 4, threading.Barrier(4)
    if not lock:

        def unsupported(self):
            raise NotImplementedError

        monkeypatch.setattr("filelock.FileLock.acquire", unsupported)
    cached(case, tmp_path).build()
    expected = np.array(cached(case, tmp_path)[0].image)
    real = PreparedCases._make

    def make(self, index):
        made = real(self, index)
        damaged.wait(timeout=20)
        return made

    monkeypatch.setattr(PreparedCases, "_make", make)
    failures = []

    def repair():
        try:
            assert np.array_equal(cached(case, tmp_path)[0].image, expected)
        except BaseException as error:
            failures.append(error)

    for _ in range(5):
        truncate("image.npy", 40)(entry(tmp_path))
        threads = [threading.Thread(target=repair) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
    assert np.array_equal(cached(case, tmp_path)[0].image, expected)
    assert not list((tmp_path / "cache").glob(".writing-*"))


def test_a_repair_looks_again_before_it_takes_anything_away(case, tmp_path, monkeypatch):
    """What another process has repaired in the meantime stays, so what is mapped stays there too."""
    cached(case, tmp_path).build()
    made = cached(case, tmp_path)._make(0)
    inode = (entry(tmp_path) / "image.npy").stat().st_ino
    seen = []
    real = entries._is_good
    monkeypatch.setattr(entries, "_is_good", lambda *a: seen.append(1) or (len(seen) > 1 and real(*a)))
    entries.store_entry(entry(tmp_path), made, "case")
    assert len(seen) == 2
    assert (entry(tmp_path) / "image.npy").stat().st_ino == inode


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "get the permission to write there, or set data.cache_folder"),
        (errno.EROFS, "get the permission to write there"),
        (errno.ENOSPC, "make room, or set data.cache_folder"),
        (errno.ENOTDIR, "remove the file that is in the place of a folder"),
    ],
)
def test_an_error_names_the_remedy_for_its_cause(case, tmp_path, monkeypatch, number, remedy):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(entries.np, "save", fail)
    with pytest.raises(CacheError, match=rf"cache: cannot write the prepared case case .*; {remedy}"):
        cached(case, tmp_path).build()


def test_an_entry_that_may_not_be_read_is_prepared_again(case, tmp_path, monkeypatch, caplog):
    cached(case, tmp_path).build()
    real = np.load

    def load(path, **options):
        if not caplog.text:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, **options)

    monkeypatch.setattr(entries.np, "load", load)
    assert cached(case, tmp_path)[0].image.shape == (1, *SHAPE)
    assert "is damaged (Permission denied)" in caplog.text


def test_the_voxels_of_a_header_count_wherever_it_says_they_lie(tmp_path):
    (tmp_path / "a.nhdr").write_text("NRRD0004\ntype: uint8\ndata file: voxels of a.raw\n")
    (tmp_path / "b.mhd").write_text("NDims = 3\nElementDataFile = LIST\nb1.raw\nb2.raw\n")
    for name in ("voxels of a.raw", "b1.raw", "b2.raw", "c.raw"):
        (tmp_path / name).write_bytes(b"123")
    for header, parts in (
        ("a.nhdr", ["a.nhdr", "voxels of a.raw"]),
        ("b.mhd", ["b.mhd", "b1.raw", "b2.raw"]),
    ):
        _, found = stamp(str(tmp_path / header))
        assert [os.path.basename(file) for file, *_ in found] == parts


def test_files_in_folders_of_a_series_count(tmp_path):
    (tmp_path / "series/deep").mkdir(parents=True)
    (tmp_path / "series/deep/1.dcm").write_bytes(b"123")
    assert len(stamp(str(tmp_path / "series"))[1]) == 1
