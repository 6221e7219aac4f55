"""Lengths in other units than millimetres, and voxel sizes that cannot be."""

import nibabel
import numpy as np
import pytest

from trunkline.data.scans.formats import scan as scan_module
from trunkline.data.scans.formats.files import ScanError, read_grid, read_labels, write_labels

SHAPE = (2, 3, 4)
IDS = np.arange(24, dtype=np.int16).reshape(SHAPE)
AFFINE = np.array([[0, -0.6, 0, 10], [0.5, 0, 0, -20], [0, 0, 0.7, 30], [0, 0, 0, 1]])


def write_nifti(path, affine, unit, **fields):
    image = nibabel.Nifti1Image(IDS, affine)
    content = bytearray(image.to_bytes())
    header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    header["xyzt_units"] = unit
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("unit", "scale"), [(0, 1), (1, 1e3), (2, 1), (3, 1e-3), (8 + 3, 1e-3), (16, 1)])
def test_units_of_nifti_become_millimetres(tmp_path, unit, scale):
    """The bits above the first three are the unit of time."""
    place = AFFINE.copy()
    place[:3] /= scale
    path = write_nifti(tmp_path / "a.nii", place, unit)
    grid, _ = read_grid(path)
    np.testing.assert_allclose(grid.affine, AFFINE, rtol=1e-6)
    assert grid.spacing == pytest.approx((0.5, 0.6, 0.7))
    for suffix in (".nii", ".nii.gz", ".nrrd", ".mha"):
        write_labels(tmp_path / f"l{suffix}", IDS, path)
        np.testing.assert_allclose(read_labels(tmp_path / f"l{suffix}")[1].affine, grid.affine, rtol=1e-6)
    assert nibabel.load(tmp_path / "l.nii").header["xyzt_units"] == unit


def test_an_unknown_unit_is_refused(tmp_path):
    with pytest.raises(ScanError, match="unit of length 5, which there is not; set it to 2"):
        read_grid(write_nifti(tmp_path / "a.nii", AFFINE, 5))


def test_voxels_of_half_a_metre_are_said(tmp_path, caplog):
    scan_module._reported.clear()
    read_grid(write_nifti(tmp_path / "a.nii", AFFINE, 1))
    assert "measure 500 x 600 x 700 mm; if they do not, set the units to mm" in caplog.text


@pytest.mark.parametrize("pixdim", [(-1, 1, 1), (1, 0, 1), (1, 1, np.nan), (1, np.inf, 1)])
def test_voxel_sizes_that_cannot_be(tmp_path, pixdim):
    """nibabel would take 1 for 0, and drop the sign."""
    fields = {"pixdim": [1, *pixdim, 0, 0, 0, 0]}
    read_grid(write_nifti(tmp_path / "a.nii", AFFINE, 2, **fields))  # the sform does not need them
    for code in (0, 1):
        path = write_nifti(tmp_path / "a.nii", AFFINE, 2, sform_code=0, qform_code=code, **fields)
        with pytest.raises(ScanError, match=r"a\.nii: pixdim, the sizes of voxels, are .*repair its header"):
            read_grid(path)


NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 2 3 4\nendian: little\nencoding: raw\n"
PLACED = "space: LPS\nspace directions: (5,0,0) (0,6,0) (0,0,7)\nspace origin: (10,20,30)\n"


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        (PLACED, 1),
        (PLACED + 'space units: "mm" "mm" "mm"\n', 1),
        (PLACED + 'space units: "um" "um" "um"\n', 1e-3),
        (PLACED + 'space units: "microns" "microns" "microns"\n', 1e-3),
        (PLACED + 'space units: "cm" "cm" "cm"\n', 10),
        (PLACED + 'space units: "" "" ""\n', 1),
        ('units: "um" "um" "um"\nspacings: 5 6 7\n', 1e-3),
    ],
)
def test_units_of_nrrd(tmp_path, fields, scale):
    (tmp_path / "a.nrrd").write_bytes((NRRD + fields + "\n").encode() + IDS.tobytes())
    grid, _ = read_grid(tmp_path / "a.nrrd")
    np.testing.assert_allclose(grid.spacing, np.array([5, 6, 7]) * scale)
    if fields.startswith("space"):
        np.testing.assert_allclose(grid.affine[:3, 3], np.array([-10, -20, 30]) * scale)
    for suffix in (".nrrd", ".nii"):
        write_labels(tmp_path / f"l{suffix}", IDS, tmp_path / "a.nrrd")
        np.testing.assert_allclose(read_grid(tmp_path / f"l{suffix}")[0].affine, grid.affine, rtol=1e-6)


@pytest.mark.parametrize(
    ("units", "said"), [('"mm" "mm" "um"', "several units"), ('"ell" "ell" "ell"', "unknown unit 'ell'")]
)
def test_units_of_nrrd_that_are_none(tmp_path, units, said):
    text = f"{NRRD}{PLACED}space units: {units}\n\n"
    (tmp_path / "a.nrrd").write_bytes(text.encode() + IDS.tobytes())
    with pytest.raises(ScanError, match=f"a.nrrd: .*{said}"):
        read_grid(tmp_path / "a.nrrd")


@pytest.mark.parametrize(("unit", "scale"), [("mm", 1), ("um", 1e-3), ("cm", 10), ("?", 1)])
def test_units_of_metaimage(tmp_path, unit, scale):
    header = (
        f"ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\nDistanceUnits = {unit}\nElementSpacing = 5 6 7\n"
    )
    header += "Offset = 10 20 30\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(header.encode() + IDS.tobytes())
    grid, _ = read_grid(tmp_path / "a.mha")
    expected = np.diag((-5.0, -6.0, 7.0, 1 / scale))
    expected[:3, 3] = -10, -20, 30
    np.testing.assert_allclose(grid.affine, expected * scale)
    write_labels(tmp_path / "l.mha", IDS, tmp_path / "a.mha")
    np.testing.assert_allclose(read_grid(tmp_path / "l.mha")[0].affine, grid.affine)
