"""Scans in and out of every format: against nibabel and SimpleITK, in world coordinates."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from scan_cases import AFFINES, rotation
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

SHAPE = (5, 6, 7)


each_affine = pytest.mark.parametrize("affine", AFFINES.values(), ids=list(AFFINES))
each_suffix = pytest.mark.parametrize("suffix", SCAN_SUFFIXES)


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
    if suffix in (".nrrd", ".nhdr"):  # stores the product of direction and spacing, and reads its length
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
