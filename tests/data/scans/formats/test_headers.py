"""Headers of NIfTI and NRRD files: forms, scaling, byte order, axes."""

import logging

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from scan_cases import AFFINES
from trunkline.data.scans.formats import scan as scan_module
from trunkline.data.scans.formats.files import (
    ScanError,
    read_grid,
    read_labels,
    read_scan,
    write_labels,
)

SHAPE = (5, 6, 7)


def test_the_sform_wins_then_the_qform_as_in_nibabel(tmp_path, voxels):
    s, q = AFFINES["sheared"], AFFINES["oblique"]
    for codes, expected in (((2, 1), s), ((0, 1), q), ((4, 0), s)):
        image = nibabel.Nifti1Image(voxels, None)
        image.set_sform(s, codes[0])
        image.set_qform(q, codes[1])
        image.to_filename(tmp_path / "a.nii")
        grid, _ = read_grid(tmp_path / "a.nii")
        np.testing.assert_allclose(grid.affine, expected, atol=1e-5)
        np.testing.assert_array_equal(grid.affine, nibabel.load(tmp_path / "a.nii").affine)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_labels_copy_both_forms_their_codes_and_units_and_nothing_else(tmp_path, voxels, kind):
    image = kind(voxels, None)
    image.set_sform(AFFINES["sheared"], 4)
    image.set_qform(AFFINES["mirrored"], 2)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"Jane Doe, born 1970"
    image.header["cal_max"], image.header["pixdim"][4] = 900, 3
    image.to_filename(tmp_path / "a.nii.gz")
    write_labels(tmp_path / "l.nii.gz", voxels > 0, tmp_path / "a.nii.gz")
    source, written = nibabel.load(tmp_path / "a.nii.gz"), nibabel.load(tmp_path / "l.nii.gz")
    assert type(written) is kind and written.shape == SHAPE
    for name in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c"):
        np.testing.assert_array_equal(written.header[name], source.header[name])
    np.testing.assert_array_equal(written.get_qform(), source.get_qform())
    np.testing.assert_array_equal(written.get_sform(), source.get_sform())
    assert written.header.get_xyzt_units() == ("mm", "sec")
    assert written.get_data_dtype() == np.int16 and written.header.get_slope_inter() == (None, None)
    assert bytes(written.header["descrip"]).strip(b"\0") == b"" and written.header["cal_max"] == 0


def test_scaling_is_applied_and_the_stored_type_is_told(tmp_path):
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(0.5, -10)
    # nibabel would divide by the slope first: write the header over.
    image.to_filename(tmp_path / "a.nii")
    with open(tmp_path / "a.nii", "r+b") as file:
        file.seek(352)
        file.write(np.arange(24, dtype=np.uint8).tobytes())
    scan = read_scan(tmp_path / "a.nii")
    expected = (
        np.arange(24).reshape(4, 3, 2).transpose(2, 1, 0) * 0.5 - 10
    )  # the file's first axis is fastest
    np.testing.assert_array_equal(scan.voxels[0], expected)
    assert scan.dtype == np.uint8
    with pytest.raises(ScanError, match="12 of 24 labels are no whole numbers"):
        read_labels(tmp_path / "a.nii")


def test_a_header_without_forms_is_placed_as_nibabel_does_and_said_once(tmp_path, voxels, caplog):
    header = nibabel.Nifti1Header()
    header.set_data_shape(SHAPE)
    header.set_data_dtype(np.int16)
    header.set_zooms((1, 2, 3))
    nibabel.Nifti1Image(voxels, None, header).to_filename(tmp_path / "a.nii")
    scan_module._reported.clear()
    with caplog.at_level(logging.WARNING):
        grid, _ = read_grid(tmp_path / "a.nii")
        read_scan(tmp_path / "a.nii")
    # x flipped, the middle voxel at the origin: 2 * 1, -2.5 * 2, -3 * 3
    np.testing.assert_array_equal(grid.affine, [[-1, 0, 0, 2], [0, 2, 0, -5], [0, 0, 3, -9], [0, 0, 0, 1]])
    write_labels(tmp_path / "l.nii", voxels > 0, tmp_path / "a.nii")
    np.testing.assert_array_equal(read_labels(tmp_path / "l.nii")[1].affine, grid.affine)
    message = caplog.messages[0]
    assert [text.count("a.nii") for text in caplog.messages] == [1, 0]
    assert "a.nii" in message and "neither sform nor qform" in message and "LAS" in message


def test_bytes_in_the_other_order(tmp_path, voxels):
    image = nibabel.Nifti1Image(
        voxels.astype(">i2"), AFFINES["oblique"], nibabel.Nifti1Header(endianness=">")
    )
    image.to_filename(tmp_path / "a.nii")
    assert nibabel.load(tmp_path / "a.nii").header.endianness == ">"
    scan = read_scan(tmp_path / "a.nii")
    np.testing.assert_array_equal(scan.voxels[0], voxels)
    write_labels(tmp_path / "l.nii", voxels > 0, tmp_path / "a.nii")
    ids, grid = read_labels(tmp_path / "l.nii")
    np.testing.assert_array_equal(ids, voxels > 0)
    assert grid.affine.tolist() == scan.grid.affine.tolist()
    assert nibabel.load(tmp_path / "l.nii").get_data_dtype() == image.get_data_dtype().newbyteorder("=")


def test_an_nrrd_without_directions_is_said(tmp_path, voxels, caplog):
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 5 6 7\nspacings: 1 2 3\n"
    header += "encoding: raw\nendian: little\n\n"
    (tmp_path / "a.nrrd").write_bytes(header.encode() + voxels.transpose(2, 1, 0).tobytes())
    scan_module._reported.clear()
    with caplog.at_level(logging.WARNING):
        assert read_grid(tmp_path / "a.nrrd")[0].spacing == (1, 2, 3)
    assert "no space directions" in caplog.text


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 5), (1, 4, 5, 1)),
        ((4, 5, 6, 1), (1, 4, 5, 6)),
        ((4, 5, 6, 1, 2), (2, 4, 5, 6)),
        ((4, 5, 1), (1, 4, 5, 1)),
    ],
)
def test_axes_of_one_and_of_channels(tmp_path, shape, expected):
    values = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    nibabel.Nifti1Image(values, AFFINES["anisotropic"]).to_filename(tmp_path / "a.nii")
    scan = read_scan(tmp_path / "a.nii")
    assert scan.voxels.shape == expected
    np.testing.assert_array_equal(np.moveaxis(scan.voxels, 0, -1).ravel(), values.ravel())
    np.testing.assert_allclose(scan.grid.affine, AFFINES["anisotropic"])
    ids = np.ones(expected[1:], dtype=np.uint8)
    write_labels(tmp_path / "l.nii", ids, tmp_path / "a.nii")
    assert nibabel.load(tmp_path / "l.nii").shape == shape[:3]
    assert read_labels(tmp_path / "l.nii")[0].shape == expected[1:]


@pytest.mark.parametrize("shape", [(6,), (2, 3, 4, 2, 2)])
def test_other_numbers_of_axes_are_refused(tmp_path, shape):
    nibabel.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)).to_filename(tmp_path / "a.nii")
    with pytest.raises(ScanError, match="two or three axes"):
        read_scan(tmp_path / "a.nii")


def test_colours_and_complex_numbers_are_refused(tmp_path):
    rgb = np.zeros((2, 3, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.Nifti1Image(rgb, np.eye(4)).to_filename(tmp_path / "rgb.nii")
    nibabel.Nifti1Image(np.zeros((2, 3, 4), np.complex64), np.eye(4)).to_filename(tmp_path / "complex.nii")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.complex64)), str(tmp_path / "complex.nrrd"))
    for name, said in (("rgb.nii", "colours"), ("complex.nii", "complex64"), ("complex.nrrd", "complex64")):
        with pytest.raises(ScanError, match=f"{name}: voxels are {said}, not real numbers"):
            read_scan(tmp_path / name)
