"""Reading, standardising and resizing of scans."""

import gzip
import itertools

import nibabel
import numpy as np
import pytest

from trunkline.data.classification.scans import (
    is_scan,
    read_scan,
    resize_scan,
    scan_shape,
    standardise_scan,
)
from trunkline.data.shared.io import ImageError


def upright(channels=1):
    """``[C, 3, 4, 5]``: x to the right, y to the front, z up; every voxel differs."""
    return np.arange(channels * 60, dtype=np.float32).reshape(channels, 3, 4, 5)


def stored(codes, channels):
    """The same scan with its axes in another order and direction, and the affine that says so."""
    image = nibabel.Nifti1Image(np.moveaxis(upright(channels), 0, -1), np.diag([1.0, 2.0, 3.0, 1.0]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(codes)
    )
    return image.as_reoriented(turn)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAL", "ILP", "PIR"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_nifti_comes_out_in_canonical_orientation(tmp_path, codes, channels, suffix):
    path = tmp_path / f"scan.{suffix}"
    nibabel.save(stored(codes, channels), path)
    scan = read_scan(path)
    assert np.array_equal(scan, upright(channels)) and scan.dtype == np.float32
    assert scan_shape(path)[0] == channels and sorted(scan_shape(path)[1:]) == [3, 4, 5]
    content = path.read_bytes()
    path.unlink()
    assert np.array_equal(read_scan(f"in.zip/scan.{suffix}", content), scan)
    assert scan_shape(f"in.zip/scan.{suffix}", content)[0] == channels


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_versions_byte_orders_and_scaling(tmp_path, kind, order):
    stored_numbers = np.arange(60, dtype=f"{order}i2").reshape(3, 4, 5)
    header = kind.header_class(endianness=order)
    image = kind(stored_numbers, np.eye(4), header)
    image.header.set_slope_inter(2.0, -10.0)
    image.to_filename(tmp_path / "scan.nii")
    found = nibabel.load(tmp_path / "scan.nii")
    expected = np.asarray(found.dataobj.get_unscaled()) * 2.0 - 10.0
    assert found.header.endianness == order and type(found) is kind
    assert np.array_equal(read_scan(tmp_path / "scan.nii")[0], expected)
    assert scan_shape(tmp_path / "scan.nii") == (1, 3, 4, 5)


def test_three_axes_and_arrays(tmp_path):
    nibabel.save(nibabel.Nifti1Image(upright()[0], np.eye(4)), tmp_path / "flat.nii.gz")
    assert np.array_equal(read_scan(tmp_path / "flat.nii.gz"), upright())
    for array, expected in (
        (upright()[0], upright()),
        (upright(2), upright(2)),
        (upright() > 7, upright() > 7),
    ):
        np.save(tmp_path / "scan.npy", np.asfortranarray(array))
        scan = read_scan(tmp_path / "scan.npy")
        assert np.array_equal(scan, expected) and scan.dtype == np.float32 and scan.flags.c_contiguous
        assert scan_shape(tmp_path / "scan.npy") == expected.shape


def test_names_of_scans():
    names = ("a.nii", "b.NII.GZ", "c/d.npy", "a.gz", "a.png", "nii")
    assert [is_scan(name) for name in names] == [True, True, True, False, False, False]


def wrong(kind, tmp_path):
    path = tmp_path / "scan.npy"
    if kind == "flat":
        np.save(path, np.zeros((3, 4)))
    elif kind == "five axes":
        path = tmp_path / "scan.nii"
        nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2, 2, 2), dtype=np.float32), np.eye(4)), path)
    elif kind == "empty axis":
        np.save(path, np.zeros((0, 3, 4)))
    elif kind == "text":
        np.save(path, np.full((2, 2, 2), "x"))
    elif kind == "pickle":
        np.save(path, np.full((2, 2, 2), None), allow_pickle=True)
    elif kind == "colours":
        path = tmp_path / "scan.nii"
        rgb = np.zeros((2, 2, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
        nibabel.save(nibabel.Nifti1Image(rgb, np.eye(4)), path)
    elif kind == "nan":
        voxels = upright()
        voxels[0, 0, 0, :2] = np.nan, np.inf
        np.save(path, voxels)
    elif kind == "too large":
        np.save(path, np.full((2, 2, 2), 1e300))
    elif kind == "truncated":
        path = tmp_path / "scan.nii.gz"
        nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(9, 9, 9)), np.eye(4)), path)
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "no nifti":
        path = tmp_path / "scan.nii.gz"
        path.write_bytes(gzip.compress(b"x" * 400))
    elif kind == "no gzip":
        path = tmp_path / "scan.nii.gz"
        path.write_bytes(b"x" * 400)
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "no such file"),
        ("flat", r"shape \[3, 4\]; a scan has three axes"),
        ("five axes", "three axes"),
        ("empty axis", r"shape \[0, 3, 4\]"),
        ("text", "not real numbers"),
        ("pickle", "holds Python objects"),
        ("colours", "not real numbers"),
        ("nan", "2 of 60 voxels are infinite or not a number"),
        ("too large", "8 of 8 voxels"),
        ("truncated", "damaged scan .*replace or remove"),
        ("no nifti", "no NIfTI header"),
        ("no gzip", "not compressed by gzip.*rename it to scan.nii "),
    ],
)
def test_unusable_scans_are_named(tmp_path, kind, words):
    path = wrong(kind, tmp_path)
    with pytest.raises(ImageError, match=words) as caught:
        read_scan(path)
    assert str(path) in str(caught.value)
    if kind in ("missing", "flat", "five axes", "empty axis", "no nifti", "no gzip"):  # the header tells
        with pytest.raises(ImageError, match=words):
            scan_shape(path)


def test_standardising_by_hand():
    scan = np.zeros((3, 1, 1, 4), dtype=np.float32)
    scan[0] = [1, 1, 3, 3]  # mean 2, deviation 1
    scan[1] = 0.1  # constant: 0, although rounding gives it a tiny deviation
    scan[2] = [1e6, 1e6 + 1, 1e6 + 2, 1e6 + 3]
    expected = np.array([[-1, -1, 1, 1], [0, 0, 0, 0], np.array([-1.5, -0.5, 0.5, 1.5]) / np.sqrt(1.25)])
    np.testing.assert_allclose(standardise_scan(scan)[:, 0, 0], expected, atol=1e-6)
    large = np.full((1, 40, 40, 40), 0.1, dtype=np.float32)
    assert not standardise_scan(large).any() and standardise_scan(scan).dtype == np.float32


def triangle(before, after):
    """``[after, before]`` weights: a triangle around each new centre, wider by the factor of shrinking."""
    scale = before / after
    width = max(scale, 1.0)
    weights = np.zeros((after, before))
    for new, old in itertools.product(range(after), range(before)):
        weights[new, old] = max(0.0, 1 - abs((old + 0.5) - (new + 0.5) * scale) / width)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("size", [(6, 8, 9), (3, 2, 4), (11, 4, 9), (6, 8, 4), (1, 1, 1)])
def test_resizing_is_a_triangle_filter_along_each_axis(size):
    scan = np.random.default_rng(0).normal(size=(2, 6, 8, 9)).astype(np.float32)
    matrices = [triangle(before, after) for before, after in zip(scan.shape[1:], size, strict=True)]
    expected = np.einsum("cdhw,Dd,Hh,Ww->cDHW", scan, *matrices)
    np.testing.assert_allclose(resize_scan(scan, size), expected, atol=1e-5)
    assert resize_scan(scan, size).flags.c_contiguous


def test_resizing_to_the_same_size_is_the_scan_itself():
    scan = upright()
    assert resize_scan(scan, (3, 4, 5)) is scan
