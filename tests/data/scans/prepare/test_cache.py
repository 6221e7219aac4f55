"""Prepared cases on disk, in memory and on the fly: the same content, complete or not there, never stale."""

import errno
import json
import os
import pickle
import threading
import time

import numpy as np
import pytest

from trunkline.data.scans.cases.types import Case, CasesError
from trunkline.data.scans.formats.files import write_scan
from trunkline.data.scans.formats.scan import Grid
from trunkline.data.scans.prepare import cache as module
from trunkline.data.scans.prepare import entries as entries_module
from trunkline.data.scans.prepare.cache import CacheError, PreparedCases, default_folder
from trunkline.data.scans.prepare.intensity import Intensity
from trunkline.data.scans.prepare.prepare import Preparation, prepare_case
from trunkline.data.shared.labels.classes import LabelClass

IDS = (0, 4, 9)
CLASSES = tuple(LabelClass(number, f"n{number}", (0, 0, 0)) for number in IDS)
IGNORE_ID = 77
AFFINE = np.diag([-1.0, 1, 2, 1])
HOW = Preparation(spacing=[2, 1, 1], crop=True)


def write_case(folder, number, shape=(8, 7, 6), labelled=True, **options):
    rng = np.random.default_rng(number)
    grid = Grid(shape, options.get("affine", AFFINE))
    image, label = folder / f"scan {number}.nii.gz", folder / f"label {number}.nii.gz"
    write_scan(image, rng.normal(100, 9, shape).astype(np.float32), grid)
    if labelled:
        ids = rng.choice([*IDS, IGNORE_ID], size=shape).astype(np.uint8)
        write_scan(label, options.get("ids", ids), Grid(shape, options.get("label_affine", AFFINE)))
    return Case(f"case {number}", (str(image),), str(label) if labelled else None, f"patient {number}")


@pytest.fixture
def cases(tmp_path):
    (tmp_path / "data").mkdir()
    return [write_case(tmp_path / "data", n, (8 + n, 7, 6), labelled=n != 2) for n in range(4)]


@pytest.fixture
def prepared_names(monkeypatch):
    """Names of the cases that are read and prepared, in turn."""
    names = []
    real = module.prepare_case

    def noting(case, *rest):
        names.append(case.name)
        return real(case, *rest)

    monkeypatch.setattr(module, "prepare_case", noting)
    return names


def on_disk(cases, tmp_path, how=HOW, classes=CLASSES, ignore_id=IGNORE_ID):
    return PreparedCases(cases, how, classes, ignore_id, folder=tmp_path / "cache")


def entries(tmp_path):
    return sorted(entry for entry in os.listdir(tmp_path / "cache") if not entry.startswith("."))


@pytest.mark.parametrize("cache", ["disk", "memory", "none"])
@pytest.mark.parametrize("built", [True, False])
def test_content_is_that_of_preparing_each_case(cases, tmp_path, cache, built):
    prepared = PreparedCases(
        cases, HOW, CLASSES, IGNORE_ID, cache, tmp_path / "c" if cache == "disk" else None
    )
    if built:
        prepared.build(workers=2)
    assert len(prepared) == 4
    counts = prepared.counts()
    assert counts.shape == (4, 4)
    assert counts.dtype == np.int64
    for source in (prepared, pickle.loads(pickle.dumps(prepared))):
        for index, case in enumerate(cases):
            expected = prepare_case(case, HOW, CLASSES, IGNORE_ID)
            got = source[index]
            assert np.array_equal(got.image, expected.image)
            assert got.image.dtype == np.float32
            assert isinstance(got.image, np.memmap) == (cache == "disk")
            assert got.placement.to_json() == expected.placement.to_json()
            if case.label is None:
                assert got.mask is None
                assert not counts[index].any()
                assert source.locations(index) == {}
                continue
            assert np.array_equal(got.mask, expected.mask)
            assert counts[index].tolist() == [int((expected.mask == label).sum()) for label in (0, 1, 2, 255)]
            assert list(source.locations(index)) == [1, 2]
            for label, voxels in source.locations(index).items():
                assert voxels.dtype == np.int32
                assert np.array_equal(voxels, np.argwhere(expected.mask == label))
    assert np.array_equal(prepared[-1].image, prepared[3].image)
    with pytest.raises(IndexError):
        prepared[4]


def test_labels_become_the_numbers_of_their_classes(cases):
    raw = Preparation(orientation=None, intensity=[Intensity(scale="none")])
    rng = np.random.default_rng(0)
    rng.normal(100, 9, (8, 7, 6))
    ids = rng.choice([*IDS, IGNORE_ID], size=(8, 7, 6))
    mask = prepare_case(cases[0], raw, CLASSES, IGNORE_ID).mask
    for number, label in zip([*IDS, IGNORE_ID], (0, 1, 2, 255), strict=True):
        assert np.array_equal(mask == label, ids == number)


def test_what_is_on_disk_is_not_prepared_again(cases, tmp_path, prepared_names, capsys):
    on_disk(cases, tmp_path).build()
    assert len(prepared_names) == 4
    assert "preparing scans" in capsys.readouterr().err
    assert len(entries(tmp_path)) == 4
    assert all(name.startswith("case_") for name in entries(tmp_path))
    again = on_disk(cases, tmp_path)
    again.build()
    assert capsys.readouterr().err == ""
    assert [again[index].image.shape[0] for index in range(4)] == [1] * 4
    again.counts()
    assert len(prepared_names) == 4
    assert not [name for name in os.listdir(tmp_path / "cache") if name.startswith(".")]
    with pytest.raises(ValueError, match="read-only"):
        again[0].image[:] = 0


def test_memory_and_none(cases, prepared_names):
    kept = PreparedCases(cases, HOW, CLASSES, IGNORE_ID, "memory")
    kept.build()
    kept.build()
    assert kept[1].image is kept[1].image
    assert len(prepared_names) == 4
    prepared_names.clear()
    fresh = PreparedCases(cases, HOW, CLASSES, IGNORE_ID, "none")
    fresh.build()
    assert prepared_names == []
    assert fresh[0].mask is not None
    assert fresh.locations(0)  # of the same preparation
    assert fresh[1].mask is not None
    assert fresh[0].mask is not None
    assert prepared_names == ["case 0", "case 1", "case 0"]


def test_a_changed_file_is_prepared_anew(cases, tmp_path, prepared_names):
    on_disk(cases, tmp_path).build()
    prepared_names.clear()
    write_scan(cases[1].images[0], np.ones((9, 7, 6), np.float32), Grid((9, 7, 6), AFFINE))
    os.utime(cases[3].label, ns=(1, 1))
    changed = on_disk(cases, tmp_path)
    changed.build()
    assert prepared_names == ["case 1", "case 3"]
    assert not changed[1].image.any()  # constant


@pytest.mark.parametrize(
    "options",
    [
        {"how": Preparation(spacing=[2, 1, 1.01], crop=True)},
        {"how": Preparation(spacing=[2, 1, 1], crop=True, intensity=[Intensity(nonzero=True)])},
        {"how": Preparation(spacing=[2, 1, 1], crop=True, anisotropy=2)},
        {"classes": CLASSES[::2] + CLASSES[1:2]},
        {"ignore_id": 78, "classes": (*CLASSES, LabelClass(77, "more", (0, 0, 0)))},
    ],
)
def test_a_changed_option_is_prepared_anew(cases, tmp_path, prepared_names, options):
    on_disk(cases, tmp_path).build()
    prepared_names.clear()
    on_disk(cases, tmp_path, **options).build()
    assert len(prepared_names) == 4
    prepared_names.clear()
    on_disk(cases, tmp_path).build()  # the older entries are still there
    assert prepared_names == []


def test_names_and_colours_of_classes_do_not_matter(cases, tmp_path, prepared_names):
    on_disk(cases, tmp_path).build()
    renamed = [LabelClass(entry.id, entry.name + "x", (1, 2, 3)) for entry in CLASSES]
    on_disk(cases, tmp_path, classes=renamed).build()
    assert len(prepared_names) == 4


def test_parts_of_a_scan_count_as_the_scan(tmp_path, prepared_names):
    grid = Grid((5, 4, 3), AFFINE)
    write_scan(tmp_path / "a.mhd", np.ones((5, 4, 3), np.float32), grid)
    case = [Case("a", (str(tmp_path / "a.mhd"),), None, "a")]
    on_disk(case, tmp_path).build()
    part = next(path for path in tmp_path.iterdir() if path.suffix in (".raw", ".zraw"))
    os.utime(part, ns=(1, 1))
    on_disk(case, tmp_path).build()
    assert prepared_names == ["a", "a"]


def test_an_interrupted_write_leaves_nothing(cases, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    prepared = on_disk(cases, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepared.build()
    assert os.listdir(tmp_path / "cache") == []
    with monkeypatch.context() as patch:
        patch.setattr(entries_module.json, "dumps", interrupted)
        with pytest.raises(KeyboardInterrupt):
            entries_module.write_entry(tmp_path, prepared._make(0))
    prepared.build()
    assert len(entries(tmp_path)) == 4


def test_remains_of_killed_processes_are_removed_after_a_day(cases, tmp_path):
    old, new = tmp_path / "cache" / ".writing-old", tmp_path / "cache" / ".writing-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "image.npy").write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    on_disk(cases, tmp_path).build()
    assert not old.exists()
    assert new.exists()


def test_a_full_disk_is_an_error_that_names_the_folder(cases, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(entries_module.np, "save", full)
    with pytest.raises(CacheError, match=r"cache: cannot write .*case 0 .*No space left.*data\.cache_folder"):
        on_disk(cases, tmp_path).build(workers=1)
    assert os.listdir(tmp_path / "cache") == []


def test_a_folder_that_cannot_be_made_is_an_error(cases, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CacheError, match=r"cannot write .* data\.cache_folder"):
        on_disk(cases, tmp_path)[0]


@pytest.mark.parametrize("name", ["image.npy", "mask.npy", "meta.json", "locations.npy"])
def test_damaged_entries_are_prepared_anew(cases, tmp_path, prepared_names, caplog, name):
    prepared = on_disk(cases[:1], tmp_path)
    prepared.build()
    expected = np.array(prepared[0].image)
    path = tmp_path / "cache" / entries(tmp_path)[0] / name
    path.write_bytes(path.read_bytes()[:-7])
    assert np.array_equal(prepared[0].image, expected)
    assert "is damaged" in caplog.text
    assert len(prepared_names) == 2
    path.unlink()
    assert np.array_equal(on_disk(cases[:1], tmp_path)[0].image, expected)
    prepared.build()
    assert len(prepared_names) == 3


def test_processes_that_prepare_the_same_case_do_not_harm_each_other(cases, tmp_path, monkeypatch):
    together = threading.Barrier(3)
    real = os.rename

    def at_the_same_time(source, target):
        together.wait(timeout=20)
        real(source, target)

    monkeypatch.setattr(module.os, "rename", at_the_same_time)
    failures = []

    def build():
        try:
            on_disk(cases[:1], tmp_path).build()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(os.listdir(tmp_path / "cache")) == 1
    expected = prepare_case(cases[0], HOW, CLASSES, IGNORE_ID)
    assert np.array_equal(on_disk(cases, tmp_path)[0].mask, expected.mask)


def test_many_voxels_are_drawn_with_a_fixed_seed(cases, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MOST_LOCATIONS", 20)
    disk, memory = on_disk(cases, tmp_path), PreparedCases(cases, HOW, CLASSES, IGNORE_ID, "memory")
    drawn = set()
    for index in (0, 1, 3):
        mask = disk[index].mask
        for label, voxels in disk.locations(index).items():
            assert (mask[tuple(voxels.T)] == label).all()
            assert len(np.unique(voxels, axis=0)) == 20
            assert np.array_equal(voxels, memory.locations(index)[label])
            drawn.update(tuple(voxel) for voxel in voxels[:, 1:].tolist())
    assert len(drawn) > 35  # of 7 * 12 columns, not the first ones alone


def test_all_cases_with_problems_are_named_and_the_others_prepared(cases, tmp_path):
    folder = tmp_path / "data"
    moved = AFFINE.copy()
    moved[0, 3] = 3
    bad = [
        write_case(folder, 10, label_affine=moved),
        write_case(folder, 11, ids=np.full((8, 7, 6), 5, np.uint8)),
        Case("case 12", (str(folder / "none.nii.gz"),), None, "p"),
    ]
    with pytest.raises(CasesError) as caught:
        on_disk([*bad, *cases], tmp_path).build(workers=2)
    message = str(caught.value)
    assert message.startswith("3 cases cannot be prepared")
    assert "label 10.nii.gz: lies on another grid than" in message
    assert "corners lie up to 3 mm apart" in message
    assert "label 11.nii.gz" in message
    assert "none.nii.gz" in message
    assert len(entries(tmp_path)) == 4
    missing = [Case(f"m{n}", (str(folder / "none.nii"),), None, "p") for n in range(25)]
    with pytest.raises(CasesError, match="25 cases cannot be prepared(.|\n)*and 5 more"):
        PreparedCases(missing, HOW, CLASSES, IGNORE_ID, "memory").build()


def test_several_channels_and_names_that_are_no_file_names(cases, tmp_path):
    two = Case("../a/b:c", cases[0].images * 2, cases[0].label, "p")
    prepared = on_disk([two], tmp_path)
    assert prepared[0].image.shape[0] == 2
    (entry,) = entries(tmp_path)
    assert entry.startswith("_a_b_c-")
    assert json.loads((tmp_path / "cache" / entry / "meta.json").read_text())["mask"] is True


def test_the_default_folder(monkeypatch, tmp_path, cases):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert default_folder() == tmp_path / "x" / "trunkline" / "scans"
    PreparedCases(cases[:1], HOW, CLASSES, IGNORE_ID).build()
    assert len(os.listdir(default_folder())) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "trunkline" / "scans"


def test_no_cases_and_wrong_options(tmp_path):
    none = on_disk([], tmp_path)
    none.build()
    assert none.counts().shape == (0, 4)
    with pytest.raises(ValueError, match=r"data\.cache is 'ram'"):
        PreparedCases([], HOW, CLASSES, IGNORE_ID, "ram")
    with pytest.raises(ValueError, match=r"data\.cache_folder has no effect with data\.cache memory"):
        PreparedCases([], HOW, CLASSES, IGNORE_ID, "memory", tmp_path)
