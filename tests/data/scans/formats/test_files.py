"""Scans in and out of every format: against nibabel and SimpleITK, in world coordinates, and damaged."""

import gzip
import logging
import os

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from trunkline.data.scans.formats import scan as scan_module
from trunkline.data.scans.formats.files import (
    SCAN_SUFFIXES,
    Scan,
    ScanError,
    is_scan,
    prediction_suffix,
    read_grid,
    read_labels,
    read_scan,
    read_scans,
    scan_stem,
    write_labels,
    write_scan,
)
from trunkline.data.scans.formats.scan import Grid
from trunkline.data.shared.io import ImageError

SHAPE = (5, 6, 7)


def rotation(*degrees):
    """Turns about x, y and z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        turn = np.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def placed(matrix, origin=(-31.25, 40.5, 7.125)):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, origin
    return affine


AFFINES = {
    "plain": placed(np.eye(3)),
    "anisotropic": placed(np.diag((0.75, 0.75, 5.0))),
    "flipped": placed(np.diag((-1.0, -1.5, 2.0))),
    "mirrored": placed(np.diag((-1.0, 1.5, 2.0))),
    "permuted": placed(np.array([[0, 0, 2], [-1, 0, 0], [0, 1.5, 0]])),
    "oblique": placed(rotation(20, -35, 50) * (0.9, 1.1, 3.0)),
    "sheared": placed(rotation(10, 5, -15) @ np.array([[1, 0, 0], [0, 1, 0.4], [0, 0, 1]]) * (0.9, 1.1, 3.0)),
}
each_affine = pytest.mark.parametrize("affine", AFFINES.values(), ids=list(AFFINES))
each_suffix = pytest.mark.parametrize("suffix", SCAN_SUFFIXES)


@pytest.fixture
def voxels():
    return np.random.default_rng(0).integers(-1000, 2000, SHAPE).astype(np.int16)


def itk_world(path, index):
    """RAS millimetres of a voxel, by SimpleITK."""
    x, y, z = sitk.ReadImage(str(path)).TransformIndexToPhysicalPoint([int(number) for number in index])
    return -x, -y, z


def place_of_mark(path):
    """Where the only voxel of 7 lies, and its index, without any code of ours."""
    if str(path).endswith((".nii", ".nii.gz")):
        image = nibabel.load(path)
        index = np.argwhere(np.asarray(image.dataobj) == 7)[0]
        return nibabel.affines.apply_affine(image.affine, index), index
    index = np.argwhere(sitk.GetArrayFromImage(sitk.ReadImage(str(path))) == 7)[0][::-1]
    return itk_world(path, index), index


@each_affine
@each_suffix
def test_a_marked_voxel_stays_where_it_is_in_the_world(tmp_path, suffix, affine):
    """Write a scan; write labels on its grid: independent readers find the mark in the same place."""
    values = np.zeros(SHAPE, dtype=np.int16)
    values[1, 4, 2] = 7
    expected = affine[:3] @ (1, 4, 2, 1)
    scan, labels = tmp_path / f"scan{suffix}", tmp_path / f"labels{suffix}"
    write_scan(scan, values, Grid(SHAPE, affine))
    read = read_scan(scan)
    write_labels(labels, read.voxels[0].astype(int), like=scan)
    for path in (scan, labels):
        place, index = place_of_mark(path)
        np.testing.assert_allclose(place, expected, atol=1e-4)
        assert index.tolist() == [1, 4, 2]
        ids, grid = read_labels(path)
        assert np.argwhere(ids == 7).tolist() == [[1, 4, 2]]
        np.testing.assert_allclose(grid.world([[1, 4, 2]])[0], expected, atol=1e-4)
    if suffix == ".nrrd":  # stores the product of direction and spacing, and reads its length
        np.testing.assert_allclose(read_labels(labels)[1].affine, read.grid.affine, atol=1e-12)
    else:
        assert read_labels(labels)[1].affine.tolist() == read.grid.affine.tolist()  # bit for bit


@each_affine
def test_all_formats_give_the_same_array_and_affine(tmp_path, voxels, affine):
    for suffix in SCAN_SUFFIXES:
        write_scan(tmp_path / f"a{suffix}", voxels, Grid(SHAPE, affine))
        scan = read_scan(tmp_path / f"a{suffix}")
        assert isinstance(scan, Scan) and scan.voxels.dtype == np.float32 and scan.dtype == np.int16
        np.testing.assert_array_equal(scan.voxels, voxels[None])
        np.testing.assert_allclose(scan.grid.affine, affine, atol=1e-5)
        grid, channels = read_grid(tmp_path / f"a{suffix}")
        assert channels == 1 and grid.shape == SHAPE
        np.testing.assert_array_equal(grid.affine, scan.grid.affine)


def test_files_of_other_writers_are_read_as_these_mean_them(tmp_path, voxels):
    affine = AFFINES["oblique"]
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "a.nii.gz")
    image = sitk.GetImageFromArray(voxels.transpose(2, 1, 0))
    image.SetSpacing((2, 3, 4))
    image.SetDirection(rotation(5, 10, 15).ravel().tolist())
    image.SetOrigin((1, 2, 3))
    for path in (tmp_path / "a.nrrd", tmp_path / "a.mha", tmp_path / "a.mhd"):
        sitk.WriteImage(image, str(path))
        scan = read_scan(path)
        np.testing.assert_array_equal(scan.voxels[0], voxels)
        for index in ((0, 0, 0), (4, 1, 6), (2, 5, 3)):
            x, y, z = image.TransformIndexToPhysicalPoint(index)
            np.testing.assert_allclose(scan.grid.world([index])[0], (-x, -y, z), atol=1e-9)
    scan = read_scan(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(scan.voxels[0], voxels)
    np.testing.assert_array_equal(scan.grid.affine, nibabel.load(tmp_path / "a.nii.gz").affine)


@each_suffix
def test_channels(tmp_path, voxels, suffix):
    both = np.stack([voxels, voxels + 1, voxels * 2])
    write_scan(tmp_path / f"a{suffix}", both, Grid(SHAPE, AFFINES["oblique"]), dtype="float32")
    scan = read_scan(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(scan.voxels, both)
    assert scan.voxels.flags.c_contiguous and scan.dtype == np.float32
    assert read_grid(tmp_path / f"a{suffix}")[1] == 3
    write_labels(tmp_path / f"l{suffix}", voxels > 0, tmp_path / f"a{suffix}")
    ids, grid = read_labels(tmp_path / f"l{suffix}")
    assert ids.shape == grid.shape == SHAPE
    np.testing.assert_array_equal(grid.affine, scan.grid.affine)
    with pytest.raises(ScanError, match="3 channels where labels have one"):
        read_labels(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("last", [False, True])
def test_an_nrrd_with_a_list_axis(tmp_path, voxels, last):
    kinds, steps = ["domain"] * 3, ["(1,0,0)", "(0,2,0)", "(0,0,3)"]
    both = np.stack([voxels, voxels + 1])  # [C, i, j, k]
    sizes, content = [*SHAPE], both.transpose(0, 3, 2, 1)  # the fastest axis of the file comes last
    for values, extra in ((kinds, "list"), (steps, "none"), (sizes, 2)):
        values.insert(3 if last else 0, extra)
    content = content if last else np.moveaxis(content, 0, -1)
    header = (
        "NRRD0004\ntype: short\ndimension: 4\nspace: right-anterior-superior\n"
        f"sizes: {' '.join(map(str, sizes))}\nkinds: {' '.join(kinds)}\n"
        f"space directions: {' '.join(steps)}\nspace origin: (5,6,7)\nencoding: raw\nendian: little\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + content.tobytes())
    scan = read_scan(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(scan.voxels, both)
    np.testing.assert_array_equal(scan.grid.affine, [[1, 0, 0, 5], [0, 2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])


def test_a_metaimage_of_four_axes_has_channels(tmp_path, voxels):
    stack = sitk.JoinSeries(
        [sitk.GetImageFromArray(part.transpose(2, 1, 0)) for part in (voxels, voxels + 1)]
    )
    sitk.WriteImage(stack, str(tmp_path / "a.mha"))
    np.testing.assert_array_equal(read_scan(tmp_path / "a.mha").voxels, [voxels, voxels + 1])


# -- NIfTI headers


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


# -- labels: types


@pytest.mark.parametrize(
    ("stored", "highest", "asked", "expected"),
    [
        ("int16", 3, None, "int16"),
        ("float32", 3, None, "float32"),
        ("uint8", 255, None, "uint8"),
        ("uint8", 256, None, "uint16"),
        ("int16", 40000, None, "uint16"),
        ("int16", 70000, None, "int32"),
        ("float32", 2**24 + 1, None, "int32"),
        ("float64", 2**24 + 1, None, "float64"),
        ("int16", 3, "uint8", "uint8"),
        ("uint8", 3, np.float32, "float32"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_labels_have_the_type_of_the_scan_if_it_holds_them(
    tmp_path, suffix, stored, highest, asked, expected
):
    write_scan(tmp_path / f"a{suffix}", np.zeros(SHAPE), Grid(SHAPE, np.eye(4)), dtype=stored)
    ids = np.zeros(SHAPE, dtype=np.int64)
    ids[1, 2, 3] = highest
    write_labels(tmp_path / f"l{suffix}", ids, tmp_path / f"a{suffix}", dtype=asked)
    assert read_scan(tmp_path / f"l{suffix}").dtype == expected
    np.testing.assert_array_equal(read_labels(tmp_path / f"l{suffix}")[0], ids)


def test_labels_that_a_type_cannot_hold_or_that_do_not_fit_are_refused(tmp_path):
    write_scan(tmp_path / "a.nii", np.zeros(SHAPE), Grid(SHAPE, np.eye(4)))
    with pytest.raises(ScanError, match="l.nii: uint8 cannot hold ids from 300 to 300"):
        write_labels(tmp_path / "l.nii", np.full(SHAPE, 300), tmp_path / "a.nii", dtype="uint8")
    with pytest.raises(ScanError, match=r"shape \[5, 6\] do not fit"):
        write_labels(tmp_path / "l.nii", np.zeros((5, 6), int), tmp_path / "a.nii")
    with pytest.raises(ScanError, match="210 of 210 labels are no whole numbers"):
        write_labels(tmp_path / "l.nii", np.full(SHAPE, 0.5), tmp_path / "a.nii")
    with pytest.raises(ScanError, match="do not fit 32 bits"):
        write_labels(tmp_path / "l.nii", np.full(SHAPE, 2**31), tmp_path / "a.nii")
    assert not (tmp_path / "l.nii").exists()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 255, "uint8"), (0, 256, "uint16"), (-1, 3, "int32"), (0, 65536, "int32")],
)
def test_ids_come_in_the_smallest_type_from_floats_too(tmp_path, low, high, expected):
    values = np.zeros(SHAPE, dtype=np.float64)
    values[0, 0, 0], values[4, 5, 6] = low, high
    write_scan(tmp_path / "a.nii.gz", values, Grid(SHAPE, np.eye(4)))
    ids, _ = read_labels(tmp_path / "a.nii.gz")
    assert ids.dtype == expected
    np.testing.assert_array_equal(ids, values)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_labels_between_ids_are_refused(tmp_path, value):
    values = np.zeros(SHAPE, dtype=np.float32)
    values[1, 1, 1] = value
    write_scan(tmp_path / "a.nrrd", values, Grid(SHAPE, np.eye(4)))
    with pytest.raises(ScanError, match="a.nrrd: 1 of 210 labels are no whole numbers"):
        read_labels(tmp_path / "a.nrrd")


# -- several files, names


def test_channels_of_several_files_in_the_order_given(tmp_path, voxels):
    grid = Grid(SHAPE, AFFINES["oblique"])
    write_scan(tmp_path / "a.nii.gz", voxels, grid)
    write_scan(tmp_path / "b.nrrd", voxels / 2, grid, dtype="float32")
    scan = read_scans([tmp_path / "b.nrrd", tmp_path / "a.nii.gz"])
    np.testing.assert_array_equal(scan.voxels, [voxels / 2, voxels])
    assert scan.dtype == np.float32
    np.testing.assert_array_equal(scan.grid.affine, read_grid(tmp_path / "b.nrrd")[0].affine)
    np.testing.assert_array_equal(read_scans([tmp_path / "a.nii.gz"]).voxels, [voxels])
    moved = AFFINES["oblique"].copy()
    moved[0, 3] += 0.5
    write_scan(tmp_path / "c.mha", voxels, Grid(SHAPE, moved))
    with pytest.raises(
        ScanError, match=r"c\.mha: .* grid of .*a\.nii\.gz \(corners lie up to 0\.5 mm apart\)"
    ):
        read_scans([tmp_path / "a.nii.gz", tmp_path / "c.mha"])
    with pytest.raises(ScanError, match="at least one image"):
        read_scans([])


def test_names(tmp_path):
    for name, stem, suffix in (
        ("a.b.nii.gz", "a.b", ".nii.gz"),
        ("x/A.NII", "A", ".nii"),
        ("a.nrrd", "a", ".nrrd"),
        ("a.mha", "a", ".mha"),
        ("a.mhd", "a", ".mha"),
        ("a.TIF", "a", ".png"),
        ("a.jpg", "a", ".png"),
    ):
        assert is_scan(name) and scan_stem(name) == stem and prediction_suffix(name) == suffix
    assert not is_scan("a.txt") and not is_scan("a.gz") and not is_scan(tmp_path)
    assert scan_stem("series.7") == "series.7" and prediction_suffix("series.7") == ".nii.gz"


# -- pictures


def test_pictures_have_two_axes_and_their_own_depth(tmp_path):
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (4, 5), dtype=np.uint8)
    deep = rng.integers(0, 65536, (4, 5), dtype=np.uint16)
    colours = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    fractions = rng.normal(size=(4, 5)).astype(np.float32)
    for name, array, expected in (
        ("grey.png", grey, grey[None]),
        ("deep.png", deep, deep[None]),
        ("deep.tif", deep, deep[None]),
        ("colours.png", colours, colours.transpose(2, 0, 1)),
        ("alike.png", np.repeat(grey[..., None], 3, axis=2), grey[None]),
        ("fractions.tif", fractions, fractions[None]),
    ):
        Image.fromarray(array).save(tmp_path / name)
        scan = read_scan(tmp_path / name)
        np.testing.assert_array_equal(scan.voxels, expected)
        assert scan.dtype == array.dtype and scan.grid.shape == (4, 5) and scan.grid.spacing == (1, 1)
        np.testing.assert_array_equal(scan.grid.affine, np.eye(4))
        grid, channels = read_grid(tmp_path / name)
        assert (grid.shape, channels) == ((4, 5), len(expected))


@pytest.mark.parametrize(("name", "highest", "expected"), [("l.png", 9, "uint8"), ("l.tif", 300, "uint16")])
def test_labels_of_pictures(tmp_path, name, highest, expected):
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    ids = np.arange(20).reshape(4, 5) % 3
    ids[0, 0] = highest
    write_labels(tmp_path / name, ids, tmp_path / "a.png")
    assert np.asarray(Image.open(tmp_path / name)).dtype == expected
    read, grid = read_labels(tmp_path / name)
    np.testing.assert_array_equal(read, ids)
    assert grid.shape == (4, 5)
    Image.fromarray(np.zeros((4, 5), np.uint16)).save(tmp_path / "deep.png")
    write_labels(tmp_path / name, ids, tmp_path / "deep.png")
    assert read_scan(tmp_path / name).dtype == np.uint16
    with pytest.raises(ScanError, match="cannot hold 1 channels of int32"):
        write_labels(tmp_path / name, ids - 1, tmp_path / "a.png")


def test_label_pictures_hold_grey_values_or_indices(tmp_path):
    ids = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    palette = Image.fromarray(ids).convert("P")
    palette.putpalette([channel for colour in range(256) for channel in (255 - colour, colour, 7)])
    palette.save(tmp_path / "p.png")
    Image.fromarray(np.repeat(ids[..., None], 3, axis=2)).save(tmp_path / "alike.png")
    for name in ("p.png", "alike.png"):
        np.testing.assert_array_equal(read_labels(tmp_path / name)[0], ids)
    Image.fromarray(np.stack([ids, ids, ids * 0], axis=2)).save(tmp_path / "c.png")
    with pytest.raises(ScanError, match=r"c\.png: holds colours, not ids"):
        read_labels(tmp_path / "c.png")
    Image.fromarray(ids).save(tmp_path / "j.jpg")
    with pytest.raises(ScanError, match="JPEG changes the values"):
        read_labels(tmp_path / "j.jpg")


def test_axes_and_names_have_to_fit(tmp_path, voxels):
    flat, solid = Grid((4, 5), np.eye(4)), Grid(SHAPE, np.eye(4))
    with pytest.raises(ScanError, match="2 axes cannot be written"):
        write_scan(tmp_path / "a.nii", np.zeros((4, 5)), flat)
    with pytest.raises(ScanError, match="3 axes cannot be written"):
        write_scan(tmp_path / "a.png", voxels, solid)
    with pytest.raises(ScanError, match="3 axes cannot be written"):
        write_scan(tmp_path / "a.foo", voxels, solid)
    with pytest.raises(ScanError, match="without loss"):
        write_scan(tmp_path / "a.jpg", np.zeros((4, 5), np.uint8), flat)
    with pytest.raises(ScanError, match="cannot hold 1 channels of float64"):
        write_scan(tmp_path / "a.png", np.zeros((4, 5)), flat)
    with pytest.raises(ScanError, match=r"shape \[1, 5, 6, 8\] do not fit"):
        write_scan(tmp_path / "a.nii", np.zeros((1, 5, 6, 8)), solid)
    with pytest.raises(ScanError, match="uint8 cannot hold values from"):
        write_scan(tmp_path / "a.nii", voxels, solid, dtype=np.uint8)
    with pytest.raises(ScanError, match="int16 cannot hold values from nan"):
        write_scan(tmp_path / "a.nii", np.full(SHAPE, np.nan), solid, dtype=np.int16)
    assert not list(tmp_path.iterdir())


def test_types_of_written_scans(tmp_path):
    values = np.full(SHAPE, 2.6)
    for given, dtype, expected in (
        (values, "int16", 3),
        (values, "float32", np.float32(2.6)),
        (values > 1, None, 1),
        (values.astype(np.float16), None, np.float16(2.6)),
    ):
        write_scan(tmp_path / "a.nii", given, Grid(SHAPE, np.eye(4)), dtype=dtype)
        assert (read_scan(tmp_path / "a.nii").voxels == expected).all()
    write_scan(tmp_path / "a.nii", values, Grid(SHAPE, np.eye(4)), dtype="int16")
    assert read_scan(tmp_path / "a.nii").dtype == np.int16


# -- damage


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
