"""Pictures as scans of two axes, and the types of what is written."""

import numpy as np
import pytest
from PIL import Image

from trunkline.data.scans.formats.files import (
    ScanError,
    read_grid,
    read_labels,
    read_scan,
    write_labels,
    write_scan,
)
from trunkline.data.scans.formats.scan import Grid

SHAPE = (5, 6, 7)


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
