"""Labels that are whole but for rounding are rounded; others name the cause."""

import nibabel
import numpy as np
import pytest
from dicom_series import AXIAL, lps_affine, write_series

from trunkline.data.scans.formats.files import ScanError, read_labels, read_scan, write_scan
from trunkline.data.scans.formats.ids import whole_ids
from trunkline.data.scans.formats.scan import Grid

SHAPE = (5, 6, 7)


def ids(most):
    return np.random.default_rng(0).integers(0, most + 1, SHAPE).astype(np.float64)


@pytest.mark.parametrize("most", [1, 4, 24, 117])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.uint8])
def test_labels_that_nibabel_scaled_by_itself(tmp_path, most, dtype):
    """Floats saved as integers: the header gets a slope, and values are off by up to half of it."""
    expected = ids(most)
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    # Values between ids force the slope: nibabel writes whole numbers as they are.
    nibabel.Nifti1Image(np.where(expected, expected, 0.4e-3), np.eye(4), header).to_filename(
        tmp_path / "a.nii"
    )
    step = float(nibabel.load(tmp_path / "a.nii").dataobj.slope)
    assert step not in (0, 1) and (read_scan(tmp_path / "a.nii").voxels[0] != expected).any()
    if step / 2 <= 0.05:
        read, _ = read_labels(tmp_path / "a.nii")
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, expected)
    else:  # uint8 of 0 to 117: ids and what lies between them cannot be told apart
        with pytest.raises(ScanError, match="scl_slope 0.45"):
            read_labels(tmp_path / "a.nii")


@pytest.mark.parametrize("value", [1.000015, 0.9999, 0.9991, -1e-6])
def test_floats_off_by_rounding(tmp_path, value):
    values = np.zeros(SHAPE, np.float32)
    values[1, 2, 3] = value
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        write_scan(tmp_path / f"a{suffix}", values, Grid(SHAPE, np.eye(4)))
        read, _ = read_labels(tmp_path / f"a{suffix}")
        assert read.dtype == np.uint8 and read[1, 2, 3] == round(value) and read.sum() == round(value)


@pytest.mark.parametrize("value", [0.99, 0.5, 1.002])
def test_interpolated_floats_are_refused(tmp_path, value):
    values = np.zeros(SHAPE, np.float32)
    values[1, 2, 3] = value
    write_scan(tmp_path / "a.nii", values, Grid(SHAPE, np.eye(4)))
    with pytest.raises(ScanError, match=rf"1 of 210 labels .* such as {value:g}; .*not be interpolated"):
        read_labels(tmp_path / "a.nii")


def test_a_slope_between_ids_is_named(tmp_path):
    stored = np.arange(210, dtype=np.int16).reshape(SHAPE)
    content = bytearray(nibabel.Nifti1Image(stored, np.eye(4)).to_bytes())
    header = nibabel.Nifti1Header(bytes(content[:348]))
    header["scl_slope"], header["scl_inter"] = 0.37, 2
    content[:348] = header.binaryblock
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(
        ScanError, match=r"such as 2\.37; the header scales .* scl_slope 0\.37 and scl_inter 2;"
    ):
        read_labels(tmp_path / "a.nii")
    series = write_series(tmp_path / "series", stored, lps_affine(AXIAL), slope=0.37, intercept=2)
    with pytest.raises(ScanError, match=r"RescaleSlope 0\.37 and RescaleIntercept 2; store the ids"):
        read_labels(series)


def test_large_ids_of_float32_slopes():
    """At 3 million neighbouring float32 numbers are 0.25 apart."""
    values = np.array([3_000_000.0, 3_000_000.25])
    with pytest.raises(ScanError, match="no whole numbers"):
        whole_ids("a", values)
    assert whole_ids("a", values, 1e-7, "scl_slope 1e-7").tolist() == [3_000_000, 3_000_000]


@pytest.mark.parametrize("slope", [1e-6, 4e-4])
def test_ids_that_a_slope_makes_one_are_refused(tmp_path, slope):
    image = nibabel.Nifti1Image(ids(2).astype(np.int16), np.eye(4))
    image.header.set_slope_inter(slope, 0)
    content = bytearray(image.to_bytes())
    content[112:116] = np.float32(slope).tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(ScanError, match=f"all labels are 0 when rounded, .* scl_slope {slope:g}"):
        read_labels(tmp_path / "a.nii")
