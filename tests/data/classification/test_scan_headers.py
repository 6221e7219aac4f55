"""Scans to classify whose headers claim what cannot be, or that are not what their names say."""

import gzip
import io
import os
import pickle

import numpy as np
import pytest
from nifti_files import VALUES, nifti

from trunkline.data.classification import scan_headers
from trunkline.data.classification.scans import read_scan, scan_shape
from trunkline.data.shared.io import ImageError


def refused(path, said, shape=True):
    """By both readers, from the file and from its bytes."""
    for read in (read_scan, scan_shape) if shape else (read_scan,):
        for content in (None, path.read_bytes()):
            with pytest.raises(ImageError, match=f"{path.name}: .*{said}"):
                read(path, content)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, "30000 x 30000 x 30000 voxels of 2 bytes"),
        ({"dim": [3, -2, 3, 4, 1, 1, 1, 1]}, "no voxels"),
        ({"dim": [0, 2, 3, 4, 1, 1, 1, 1]}, "no voxels"),
        ({"datatype": 999}, "unknown datatype 999"),
        ({"vox_offset": np.nan}, "vox_offset nan, where no voxels can begin"),
        ({"vox_offset": 0}, "vox_offset 0, where no voxels can begin"),
        ({"sform_code": 0, "pixdim": [1, -1, 1, 1, 0, 0, 0, 0]}, "pixdim.* are -1 x 1 x 1"),
        ({"sform_code": 0, "pixdim": [1, 1, 0, 1, 0, 0, 0, 0]}, "pixdim.* are 1 x 0 x 1"),
    ],
)
def test_nifti_headers(tmp_path, suffix, fields, said):
    refused(nifti(tmp_path / f"a{suffix}", **fields), said)


@pytest.mark.parametrize("row", [[0, 0, 0, 0], [np.nan, 0, 0, 0]])
def test_affines_that_place_nothing(tmp_path, row):
    refused(nifti(tmp_path / "a.nii", srow_x=row), "affine.*singular or not finite", shape=False)


def test_a_header_without_forms_is_said_once(tmp_path, caplog):
    scan_headers._reported.clear()
    path = nifti(tmp_path / "a.nii.gz", sform_code=0, qform_code=0)
    for _ in range(2):
        assert read_scan(path).shape == (1, 2, 3, 4)
    assert [message.count("neither sform nor qform") for message in caplog.messages] == [1]


def test_files_under_other_names(tmp_path):
    plain = nifti(tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii").write_bytes(gzip.compress(plain))
    refused(tmp_path / "b.nii", r"compressed by gzip.*rename it to b\.nii\.gz")
    (tmp_path / "c.nii.gz").write_bytes(plain)
    refused(tmp_path / "c.nii.gz", r"not compressed by gzip.*rename it to c\.nii ")
    with open(tmp_path / "d.npy", "wb") as file:
        np.savez(file, scan=VALUES)
    refused(tmp_path / "d.npy", "numpy.savez .*numpy.save")


@pytest.mark.parametrize("cut", [3, 60])
def test_a_compressed_file_that_is_cut_off(tmp_path, cut):
    path = nifti(tmp_path / "a.nii.gz")
    path.write_bytes(path.read_bytes()[:-cut])
    refused(path, "damaged|cut off|no NIfTI header", shape=False)


def array(path, shape, data=b"\0" * 100):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    path.write_bytes(header.getvalue() + data)
    return path


def test_array_headers_that_claim_too_much(tmp_path):
    refused(
        array(tmp_path / "a.npy", (100000, 100000, 100)),
        "100000 x 100000 x 100 voxels of 4 bytes.* 100 bytes",
    )
    refused(array(tmp_path / "b.npy", (-2, 3, 4)), r"sizes \[-2, 3, 4\]")


def test_more_voxels_than_are_read(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", VALUES)
    monkeypatch.setenv("TRUNKLINE_MAX_VOXELS", "24")
    assert read_scan(tmp_path / "a.npy").size == 24
    monkeypatch.setenv("TRUNKLINE_MAX_VOXELS", "23")
    refused(tmp_path / "a.npy", "more than 23 are not read")


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_pickles_are_not_run(tmp_path):
    objects = np.empty((2, 3, 4), object)
    objects[:] = Runs(str(tmp_path / "ran"))
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    refused(tmp_path / "a.npy", "Python objects")
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Runs(str(tmp_path / "ran"))))
    refused(tmp_path / "b.npy", "damaged scan")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("order", ["C", "F"])
def test_both_orders_of_arrays(tmp_path, order):
    np.save(tmp_path / "a.npy", np.asarray(VALUES, order=order))
    np.testing.assert_array_equal(read_scan(tmp_path / "a.npy"), VALUES[None])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".npy"])
def test_a_pipe_does_not_wait(tmp_path, suffix):
    os.mkfifo(tmp_path / f"a{suffix}")
    for read in (read_scan, scan_shape):
        with pytest.raises(ImageError, match=f"a{suffix}: is a pipe"):
            read(tmp_path / f"a{suffix}")
