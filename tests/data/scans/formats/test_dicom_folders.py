"""Which files of a folder are taken as slices, and what is said about the others."""

import os
import shutil

import numpy as np
import pydicom
import pytest
from dicom_series import AXIAL, lps_affine, write_slice
from pydicom.uid import BasicTextSRStorage

from trunkline.data.scans.cases.names import group_folder
from trunkline.data.scans.formats import scan as scan_module
from trunkline.data.scans.formats.dicom_files import series_below
from trunkline.data.scans.formats.files import ScanError, read_grid, read_scan


@pytest.fixture
def series(tmp_path):
    """Four slices, 3 mm apart."""
    scan_module._reported.clear()
    folder = tmp_path / "series"
    folder.mkdir()
    for k in range(4):
        write_slice(folder / f"IM{k}.dcm", np.full((5, 6), k, np.int16), lps_affine(AXIAL), k)
    return folder


def edit(file, **changes):
    one = pydicom.dcmread(file)
    for name, value in changes.items():
        if value is None:
            delattr(one, name)
        else:
            setattr(one, name, value)
    one.save_as(file)


@pytest.mark.parametrize("content", [b"", b"no DICOM at all, " * 20])
def test_a_last_slice_that_is_empty_or_overwritten(series, content):
    """No gap tells of it."""
    (series / "IM3.dcm").write_bytes(content)
    kind = "no DICOM file" if content else "empty"
    for read in (read_grid, read_scan):
        with pytest.raises(
            ScanError, match=rf"IM3\.dcm: is {kind}, but named like the slices .*copy it again"
        ):
            read(series)


@pytest.mark.parametrize("part", [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99])
def test_a_last_slice_that_is_cut_off(series, part):
    content = (series / "IM3.dcm").read_bytes()
    (series / "IM3.dcm").write_bytes(content[: int(part * len(content))])
    with pytest.raises(ScanError, match=r"IM3\.dcm: .*(copy|export)"):
        read_scan(series)


def test_without_suffixes_names_are_compared_without_digits(series):
    for file in list(series.iterdir()):
        file.rename(file.with_suffix(""))
    (series / "notes").write_text("none")
    assert read_grid(series)[0].shape == (6, 5, 4)
    (series / "IM4").write_text("none")
    with pytest.raises(ScanError, match="IM4: is no DICOM file"):
        read_grid(series)


def test_what_is_left_out_is_counted_and_named_once(series, caplog):
    expected = read_scan(series).voxels
    assert not caplog.messages
    for name in ("._IM0.dcm", ".DS_Store", "LICENSE", "notes.txt", "Thumbs.db", "DICOMDIR"):
        (series / name).write_bytes(b"side file")
    read_grid(series)
    assert not caplog.messages
    os.mkfifo(series / "pipe")
    (series / "series.dat").write_text("x")
    write_slice(
        series / "report.dcm", np.zeros((5, 6), np.int16), lps_affine(AXIAL), 0, kind=BasicTextSRStorage
    )
    edit(series / "report.dcm", Rows=None, Columns=None, PixelData=None)
    (series / "deeper" / "more").mkdir(parents=True)
    shutil.copy(series / "IM1.dcm", series / "deeper" / "more")
    for _ in range(2):
        np.testing.assert_array_equal(read_scan(series).voxels, expected)
    (message,) = caplog.messages
    left = "report.dcm (no image), pipe, series.dat, deeper/more (a folder of DICOM files)"
    assert message == f"{series}: left out, as no slices of the series: 4 ({left})"


def test_deeper_trees_are_named(series):
    root = series.parent
    deep = root / "PATIENT" / "STUDY" / "SERIES1"
    deep.parent.mkdir(parents=True)
    shutil.move(series, deep)
    (root / "__MACOSX").mkdir()
    shutil.copy(deep / "IM0.dcm", root / "__MACOSX")
    assert series_below(root) == [deep]
    with pytest.raises(
        ScanError, match=r"are not searched\): 1 \(STUDY/SERIES1\); name the folder of one series"
    ):
        read_scan(root / "PATIENT")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ImageOrientationPatient": [2, 0, 0, 0, 1, 0]}, "not two directions of length 1 at a right angle"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.5, 0.866, 0]}, "at a right angle"),
        ({"ImageOrientationPatient": [float("nan"), 0, 0, 0, 1, 0]}, "finite numbers"),
        ({"PixelSpacing": [-1.25, 0.8]}, "PixelSpacing -1.25 0.8 is below 0"),
        ({"PixelSpacing": None, "ImagerPixelSpacing": [1, 1]}, "no PixelSpacing, .*of the detector"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is in colours"),
        ({"RescaleSlope": "0"}, "RescaleSlope 0 cannot scale"),
        ({"BitsStored": 12, "HighBit": 15}, "BitsStored 12 and HighBit 15 contradict"),
        ({"Rows": None}, "no Rows"),
    ],
)
def test_fields_that_cannot_be(series, changes, said):
    edit(series / "IM2.dcm", **changes)
    with pytest.raises(ScanError, match=rf"IM2\.dcm: .*{said}"):
        read_grid(series)


def test_a_spacing_that_contradicts_the_positions_is_said(series, caplog):
    edit(series / "IM0.dcm", SpacingBetweenSlices=3.0)
    read_grid(series)
    assert not caplog.messages
    edit(series / "IM0.dcm", SpacingBetweenSlices=5.0)
    assert read_grid(series)[0].spacing[2] == pytest.approx(3)
    assert "SpacingBetweenSlices says 5 mm, but slices lie 3 mm apart" in caplog.text


def test_series_too_deep_to_be_cases_are_named(series, caplog):
    root = series.parent
    (root / "images" / "B" / "STUDY").mkdir(parents=True)
    shutil.copytree(series, root / "images" / "A" / "T1")
    shutil.copytree(series, root / "images" / "A" / "T2" / "more")
    shutil.move(series, root / "images" / "B" / "STUDY" / "T1")
    assert group_folder(root / "images").images == {"A": (root / "images" / "A" / "T1",)}
    assert "too deep is 2 folders of DICOM files (A/T2/more, B/STUDY/T1); a case is" in caplog.text
