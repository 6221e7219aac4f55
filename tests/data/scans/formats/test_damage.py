"""Damaged files are named, and files are written whole or not at all."""

import gzip
import os

import nibabel
import numpy as np
import pytest

from trunkline.data.scans.formats.files import (
    SCAN_SUFFIXES,
    ScanError,
    read_grid,
    read_labels,
    read_scan,
    write_labels,
    write_scan,
)
from trunkline.data.scans.formats.scan import Grid
from trunkline.data.shared.io import ImageError

SHAPE = (5, 6, 7)


each_suffix = pytest.mark.parametrize("suffix", SCAN_SUFFIXES)


@each_suffix
@pytest.mark.parametrize("damage", ["cut", "empty", "other", "missing"])
def test_damaged_files_are_named(tmp_path, voxels, suffix, damage):
    path = tmp_path / f"broken{suffix}"
    write_scan(path, voxels, Grid(SHAPE, np.eye(4)))
    with_data = path if suffix != ".mhd" else next(tmp_path.glob("*raw"))
    content = with_data.read_bytes()
    with_data.unlink()
    if damage == "cut":
        with_data.write_bytes(content[: len(content) // 2])
    elif damage != "missing":
        path.write_bytes(b"" if damage == "empty" else b"hello " * 100)
    with pytest.raises(ScanError, match=f"broken{suffix}: ") as caught:
        read_scan(path)
    assert isinstance(caught.value, ImageError) and "again" in str(caught.value) or damage == "missing"


def test_damage_in_the_middle_of_a_compressed_file_is_noticed(tmp_path, voxels):
    path = tmp_path / "a.nii.gz"
    write_scan(path, voxels, Grid(SHAPE, np.eye(4)))
    whole = path.read_bytes()
    for place in (len(whole) // 2, len(whole) - 6):  # the voxels; the checksum
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(ScanError, match=r"a\.nii\.gz: damaged"):
            read_scan(path)


def test_names_that_do_not_fit_the_content(tmp_path, voxels):
    write_scan(tmp_path / "a.nii", voxels, Grid(SHAPE, np.eye(4)))
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(content)
    (tmp_path / "c.nii").write_bytes(gzip.compress(content))
    (tmp_path / "d.nrrd").write_bytes(content)
    for name in ("b.nii.gz", "c.nii", "d.nrrd"):
        with pytest.raises(ScanError, match=f"{name}: .*its name says"):
            read_scan(tmp_path / name)
    (tmp_path / "a.dcm").write_bytes(content)
    with pytest.raises(ScanError, match="give the folder that holds the series"):
        read_scan(tmp_path / "a.dcm")
    with pytest.raises(ScanError, match="without DICOM slices"):
        read_scan(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read(tmp_path, voxels):
    write_scan(tmp_path / "a.nii", voxels, Grid(SHAPE, np.eye(4)))
    (tmp_path / "a.nii").chmod(0)
    with pytest.raises(ScanError, match="check the permissions"):
        read_scan(tmp_path / "a.nii")


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_voxels_that_are_not_finite_are_counted(tmp_path, suffix, bad):
    values = np.zeros(SHAPE)
    values[0, 0, :2] = bad
    write_scan(tmp_path / f"a{suffix}", values, Grid(SHAPE, np.eye(4)))
    with pytest.raises(ScanError, match=f"a{suffix}: 2 of 210 voxels are infinite or not a number"):
        read_scan(tmp_path / f"a{suffix}")


def test_large_finite_voxels_pass(tmp_path):
    write_scan(tmp_path / "a.nii", np.full(SHAPE, 3e38, np.float32), Grid(SHAPE, np.eye(4)))
    assert (read_scan(tmp_path / "a.nii").voxels == np.float32(3e38)).all()


@pytest.mark.parametrize("matrix", [np.diag((1, 0, 1)), np.diag((1, np.nan, 1)), np.ones((3, 3))])
def test_affines_that_are_no_grid_are_refused(tmp_path, voxels, matrix):
    image = nibabel.Nifti1Image(voxels, None)
    image.header["srow_x"][:3], image.header["srow_y"][:3], image.header["srow_z"][:3] = matrix
    image.header["sform_code"] = 1
    image.to_filename(tmp_path / "a.nii")
    for read in (read_scan, read_labels, read_grid):
        with pytest.raises(ScanError, match=r"a\.nii: the affine, .*repair its header"):
            read(tmp_path / "a.nii")
    text = " ".join(str(number) for number in matrix.ravel())
    header = (
        f"ObjectType = Image\nNDims = 3\nDimSize = 5 6 7\nTransformMatrix = {text}\nElementType = MET_SHORT\n"
    )
    (tmp_path / "a.mha").write_bytes(header.encode() + b"ElementDataFile = LOCAL\n" + voxels.tobytes())
    with pytest.raises(ScanError, match=r"a\.mha: "):
        read_scan(tmp_path / "a.mha")


@pytest.mark.parametrize("suffix", SCAN_SUFFIXES)
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, voxels, suffix, monkeypatch):
    path = tmp_path / f"a{suffix}"
    write_scan(path, voxels, Grid(SHAPE, np.eye(4)))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ScanError, match=rf"a{suffix}: cannot be written .*no space left"):
        write_labels(path, voxels * 0, like=path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_written_file_may_be_read_by_whom_the_umask_lets(tmp_path, voxels):
    write_scan(tmp_path / "new" / "a.nii.gz", voxels, Grid(SHAPE, np.eye(4)))
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "new/a.nii.gz").stat().st_mode == (tmp_path / "plain").stat().st_mode
