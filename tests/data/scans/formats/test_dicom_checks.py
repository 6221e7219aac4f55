"""DICOM series that are not one whole stack of slices are refused, naming the slices."""

import numpy as np
import pydicom
import pytest
from dicom_series import AXIAL, lps_affine, write_slice

from trunkline.data.scans.formats.files import (
    ScanError,
    is_scan,
    read_grid,
    read_labels,
    read_scan,
)


def edit(folder, number, **changes):
    file = folder / f"IM{number:04d}"
    one = pydicom.dcmread(file)
    for name, value in changes.items():
        if value is None:
            delattr(one, name)
        else:
            setattr(one, name, value)
    one.save_as(file)
    return one


@pytest.fixture
def eight(tmp_path):
    """Eight slices, 3 mm apart, whose names do follow their order."""
    folder = tmp_path / "series"
    folder.mkdir()
    for k in range(8):
        write_slice(folder / f"IM{k:04d}", np.full((5, 6), k, np.int16), lps_affine(AXIAL), k)
    return folder


def test_a_missing_slice_is_named_by_its_neighbours(eight):
    (eight / "IM0003").unlink()
    for read in (read_scan, read_grid, read_labels):
        with pytest.raises(ScanError, match=r"3 mm apart but IM0002 .*IM0004 .*are 6 mm \(1 missing\)"):
            read(eight)
    (eight / "IM0004").unlink()
    with pytest.raises(ScanError, match=r"IM0002 .*IM0005 .*9 mm \(2 missing\)"):
        read_scan(eight)


def test_a_missing_slice_of_four(eight):
    for k in (2, 4, 5, 6, 7):
        (eight / f"IM{k:04d}").unlink()
    with pytest.raises(ScanError, match=r"IM0001 .*IM0003 .*\(1 missing\)"):
        read_scan(eight)


def test_slices_at_uneven_places(eight):
    edit(eight, 3, ImagePositionPatient=[-12.5, 30.25, -200 + 9.4])
    with pytest.raises(ScanError, match=r"IM0002 .*IM0003 .*3\.4 mm \(uneven\)"):
        read_scan(eight)


def test_rounded_positions_are_even(eight):
    for k in range(8):
        edit(eight, k, ImagePositionPatient=[-12.5, 30.25, round(-200 + 2.996 * k, 2)])
    assert read_grid(eight)[0].spacing[2] == pytest.approx(2.996, abs=2e-3)


def test_slices_beside_the_line(eight):
    edit(eight, 3, ImagePositionPatient=[-10.5, 30.25, -200 + 9])
    with pytest.raises(ScanError, match="IM0003 lies 2 mm off the line"):
        read_scan(eight)


def test_two_slices_in_one_place(eight):
    edit(eight, 3, ImagePositionPatient=[-12.5, 30.25, -200 + 6.0])
    with pytest.raises(ScanError, match=r"IM0002 and IM0003 lie in the same place .*copies.*echo"):
        read_scan(eight)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "orientation"),
        ({"ImageOrientationPatient": [-1, 0, 0, 0, 1, 0]}, "orientation"),
        ({"PixelSpacing": [1.25, 0.9]}, r"pixel spacing \(1.25 0.8 and 1.25 0.9 mm\)"),
        ({"Rows": 6, "Columns": 5}, "size"),
    ],
)
def test_mixed_slices(eight, changes, said):
    edit(eight, 5, **changes)
    with pytest.raises(ScanError, match=f"IM0000 and IM0005 differ in {said}.*remove localisers"):
        read_scan(eight)


def test_several_series_are_counted(eight):
    for k in (1, 2, 3):
        edit(eight, k, SeriesInstanceUID="7.8.9")
    with pytest.raises(
        ScanError, match=r"holds 2 series: 1\.2\.3 \(5 files\), 7\.8\.9 \(3 files\); move each"
    ):
        read_scan(eight)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ImagePositionPatient": None}, "has no ImagePositionPatient"),
        ({"PixelSpacing": None, "ImageOrientationPatient": None}, "PixelSpacing, ImageOrientationPatient"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 1]}, "2, 6 and 3 finite numbers"),
        ({"NumberOfFrames": 3}, "several frames .*dcm2niix"),
        ({"SamplesPerPixel": 3}, "is in colours"),
        ({"ModalityLUTSequence": [pydicom.Dataset()]}, "Modality LUT"),
        ({"PixelData": None}, "has no pixels"),
        ({"PixelData": b"\0" * 10}, "damaged"),
        ({"BitsAllocated": 1}, "1 bits"),
    ],
)
def test_slices_that_cannot_be_used_are_named(eight, changes, said):
    edit(eight, 2, **changes)
    with pytest.raises(ScanError, match=f"IM0002: .*{said}"):
        read_scan(eight)


def test_singular_directions(eight):
    for k in range(8):
        edit(eight, k, PixelSpacing=[1.25, 0.0])
    with pytest.raises(ScanError, match="series: the affine, .*voxels measure 0 x 1.25 x 3 mm"):
        read_scan(eight)


def test_a_cut_file(eight):
    content = (eight / "IM0004").read_bytes()
    (eight / "IM0004").write_bytes(content[:-20])
    with pytest.raises(ScanError, match="IM0004: damaged"):
        read_scan(eight)
    (eight / "IM0004").write_bytes(content[:140])
    with pytest.raises(ScanError):
        read_scan(eight)


def test_a_folder_of_folders(eight):
    assert not is_scan(eight.parent)
    with pytest.raises(
        ScanError,
        match=r"without DICOM slices, .*sub-folders are not searched\): 1 \(series\); name the folder",
    ):
        read_scan(eight.parent)
