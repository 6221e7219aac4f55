"""The synthetic volumes: complete, correct in the world, reproducible, and careful with folders."""

import hashlib

import nibabel
import numpy as np
import pytest

from trunkline.data.scans.formats.files import read_labels, read_scan
from trunkline.data.scans.formats.scan import difference
from trunkline.data.synthetic.scans import SCAN_CLASSES, draw_scan, write_scans


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("made") / "scans", train=9, val=3, progress=False)


def pairs(folder):
    for path in sorted((folder / "images").rglob("*.nii.gz")):
        yield path, folder / "labels" / path.relative_to(folder / "images")


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = b"".join(str(path.relative_to(folder)).encode() + path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()


def test_every_image_has_labels_on_its_grid_with_all_classes(folder):
    assert (folder / "classes.txt").read_text().split() == list(SCAN_CLASSES)
    for split, count in (("train", 9), ("val", 3)):
        assert len(list((folder / "images" / split).iterdir())) == count
    names = [path.name for path, _ in pairs(folder)]
    assert len(set(names)) == 12
    for image, label in pairs(folder):
        scan, (ids, grid) = read_scan(image), read_labels(label)
        assert difference(scan.grid, grid, 0) is None and scan.dtype == np.int16
        assert np.unique(ids).tolist() == [0, 1, 2, 3] and np.bincount(ids.ravel()).min() > 300


def test_orientations_spacings_and_origins_vary(folder):
    images = [nibabel.load(path) for path, _ in pairs(folder)]
    assert {"".join(nibabel.aff2axcodes(image.affine)) for image in images} == {"LPS", "RAS", "LAS"}
    zooms = np.array([image.header.get_zooms() for image in images])
    assert len(np.unique(zooms, axis=0)) == 12 and (zooms[:, 2] > 1.6 * zooms[:, 0]).all()
    assert np.ptp([image.affine[:3, 3] for image in images], axis=0).min() > 50
    shapes = np.array([image.shape for image in images])
    assert (shapes >= (60, 60, 36)).all() and (shapes <= (68, 68, 44)).all()


def test_organs_lie_in_the_world_as_in_a_patient(folder):
    """By nibabel alone: liver on the right, spleen on the left, kidneys behind and below, on both sides."""
    for image, label in pairs(folder):
        opened, values = nibabel.load(label), np.asarray(nibabel.load(image).dataobj)
        ids = np.asarray(opened.dataobj)
        place = {k: nibabel.affines.apply_affine(opened.affine, np.argwhere(ids == k)) for k in (1, 2, 3)}
        liver, spleen, kidneys = (place[k].mean(axis=0) for k in (1, 2, 3))
        assert liver[0] > spleen[0] + 30
        assert kidneys[1] < min(liver[1], spleen[1]) - 5 and kidneys[2] < min(liver[2], spleen[2]) - 5
        assert place[3][:, 0].min() < kidneys[0] - 10 and place[3][:, 0].max() > kidneys[0] + 10
        air = np.concatenate([values[0].ravel(), values[-1].ravel()])
        assert abs(air.mean() + 1000) < 25 and values.max() > 300 and values.min() >= -1024


def test_intensities_of_organs_overlap_so_that_none_tells_the_class(folder):
    values = {k: [] for k in range(4)}
    for image, label in pairs(folder):
        voxels, ids = read_scan(image).voxels[0], read_labels(label)[0]
        for k, found in values.items():
            found.append(voxels[ids == k])
    spans = {k: np.percentile(np.concatenate(found), (5, 95)) for k, found in values.items()}
    for a, b in ((1, 2), (2, 3)):
        assert spans[a][1] > spans[b][0] and spans[b][1] > spans[a][0]
    body = np.concatenate(values[0])
    for k in (1, 2, 3):  # more voxels of the background than of the organ are as bright as the organ
        low, high = spans[k]
        assert ((body > low) & (body < high)).sum() > sum(map(len, values[k])) / 2


def test_the_same_seed_gives_the_same_files(tmp_path):
    a = write_scans(tmp_path / "a", 2, 1, seed=3, progress=False)
    b = write_scans(tmp_path / "b", 2, 1, seed=3, progress=False)
    c = write_scans(tmp_path / "c", 2, 1, seed=4, progress=False)
    assert digest(a) == digest(b) != digest(c)


def test_splits_differ():
    draws = [draw_scan(np.random.default_rng([0, split]))[0] for split in (0, 1)]
    assert draws[0].shape != draws[1].shape or (draws[0] != draws[1]).any()


def test_only_folders_of_its_own_are_replaced(tmp_path):
    made = write_scans(tmp_path / "a", 1, 1, progress=False)
    write_scans(made, 2, 1, progress=False)
    assert len(list((made / "images/train").iterdir())) == 2
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "classes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="classes.txt"):
        write_scans(tmp_path / "b", 1, 1, progress=False)
    assert (tmp_path / "b" / "classes.txt").read_text() == "mine"
    write_scans(tmp_path / "b", 1, 1, overwrite=True, progress=False)
    assert (tmp_path / "b" / "classes.txt").read_text() != "mine"


@pytest.mark.parametrize("counts", [{"train": 0}, {"val": 0}])
def test_empty_splits_are_refused(tmp_path, counts):
    with pytest.raises(ValueError, match="a scan per split"):
        write_scans(tmp_path / "a", **counts)
    assert not (tmp_path / "a").exists()


def test_progress_is_shown_if_asked(tmp_path, capfd):
    write_scans(tmp_path / "a", 1, 1, progress=True)
    assert "making scans" in capfd.readouterr().err
    write_scans(tmp_path / "b", 1, 1, progress=False)
    assert capfd.readouterr().err == ""
