"""DICOM series: equal to the same scan in other formats and to SimpleITK."""

import io
import shutil

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_series import (
    AXIAL,
    OBLIQUE,
    SAGITTAL,
    SHAPE,
    TILTED,
    lps_affine,
    ras,
    write_series,
)
from PIL import Image
from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    JPEG2000Lossless,
    MRImageStorage,
    RLELossless,
)

from trunkline.data.scans.formats.files import (
    ScanError,
    is_scan,
    prediction_suffix,
    read_grid,
    read_labels,
    read_scan,
    scan_stem,
    write_labels,
    write_scan,
)
from trunkline.data.scans.formats.scan import Grid, difference


@pytest.fixture
def stored():
    return np.random.default_rng(0).integers(-500, 500, SHAPE).astype(np.int16)


@pytest.mark.parametrize(
    "directions", [AXIAL, SAGITTAL, OBLIQUE, TILTED], ids=["axial", "sagittal", "oblique", "tilted"]
)
def test_the_same_scan_as_dicom_nifti_nrrd_and_mha(tmp_path, stored, directions):
    """Slices scaled each by its own slope and intercept; all formats give one array on one grid."""
    affine = lps_affine(directions)
    slopes, intercepts = [1.0, 0.5, 2.0, 0.25], [-1024.0, 0.5, 10.0, -3.25]
    folder = write_series(tmp_path / "series", stored, affine, slope=slopes, intercept=intercepts)
    expected = (stored * slopes + intercepts).astype(np.float32)
    scan = read_scan(folder)
    np.testing.assert_array_equal(scan.voxels[0], expected)
    np.testing.assert_allclose(scan.grid.affine, ras(affine), atol=1e-6)
    assert scan.dtype == np.int16 and scan.voxels.flags.c_contiguous
    for suffix in (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"):
        write_scan(tmp_path / f"a{suffix}", expected, Grid(SHAPE, ras(affine)))
        other = read_scan(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(other.voxels, scan.voxels)
        np.testing.assert_allclose(other.grid.affine, scan.grid.affine, atol=1e-5)


@pytest.mark.parametrize("directions", [AXIAL, SAGITTAL, OBLIQUE], ids=["axial", "sagittal", "oblique"])
def test_pixels_and_places_are_those_of_simpleitk(tmp_path, stored, directions):
    folder = write_series(tmp_path / "series", stored, lps_affine(directions), slope=0.5, intercept=-100)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = sitk.ReadImage(names, sitk.sitkFloat32)
    scan = read_scan(folder)
    np.testing.assert_array_equal(scan.voxels[0], sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    for index in np.random.default_rng(1).integers(0, SHAPE, (10, 3)):
        x, y, z = image.TransformIndexToPhysicalPoint(index.tolist())
        np.testing.assert_allclose(scan.grid.world([index])[0], (-x, -y, z), atol=1e-6)


def test_each_pixel_lies_where_the_standard_says(tmp_path, stored):
    """Equation C.7.6.2.1-1 of DICOM PS3.3, of each file alone, with a tilted gantry."""
    folder = write_series(tmp_path / "series", stored, lps_affine(TILTED))
    scan = read_scan(folder)
    assert abs(scan.grid.affine[:3, 1] @ scan.grid.affine[:3, 2]) > 0.5  # sheared
    seen = 0
    for file in folder.iterdir():
        one = pydicom.dcmread(file)
        row, column = np.array(one.ImageOrientationPatient).reshape(2, 3)
        for j, i in ((0, 0), (4, 2), (1, 5)):
            place = (
                np.array(one.ImagePositionPatient)
                + row * one.PixelSpacing[1] * i
                + column * one.PixelSpacing[0] * j
            )
            index = np.linalg.solve(scan.grid.affine, [-place[0], -place[1], place[2], 1])[:3]
            np.testing.assert_allclose(index, np.rint(index), atol=1e-5)
            assert scan.voxels[0][tuple(np.rint(index).astype(int))] == one.pixel_array[j, i]
            seen += 1
    assert seen == 12


def test_slices_in_falling_order_are_the_same_scan(tmp_path, stored):
    """The order goes along the normal of the slices, whichever end was scanned first."""
    affine = lps_affine(AXIAL)
    falling = affine.copy()
    falling[:3, 3] += 3 * affine[:3, 2]
    falling[:3, 2] *= -1
    one = read_scan(write_series(tmp_path / "up", stored, affine))
    other = read_scan(write_series(tmp_path / "down", stored[:, :, ::-1], falling))
    np.testing.assert_array_equal(one.voxels, other.voxels)
    assert difference(one.grid, other.grid, 1e-6) is None


@pytest.mark.parametrize("kind", [CTImageStorage, MRImageStorage])
@pytest.mark.parametrize("codec", ["rle", "jpeg"])
def test_compressed_slices_are_scaled_alike(tmp_path, stored, kind, codec):
    """GDCM scales CT but not MR by itself; here both are."""
    plain = write_series(tmp_path / "plain", stored, lps_affine(AXIAL), slope=2.0, intercept=-3.0, kind=kind)
    packed = tmp_path / "packed"
    packed.mkdir()
    for file in plain.iterdir():
        if codec == "rle":
            one = pydicom.dcmread(file)
            one.compress(RLELossless)
            one.save_as(packed / file.name)
        else:
            _to_lossless_jpeg(file, packed / file.name)
    assert pydicom.dcmread(packed / "IM0000").file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(read_scan(packed).voxels[0], stored * 2.0 - 3)
    np.testing.assert_array_equal(read_scan(plain).voxels[0], stored * 2.0 - 3)


@pytest.mark.parametrize("dtype", ["uint16", "uint8"])
def test_jpeg_2000(tmp_path, dtype):
    """Coded by Pillow (OpenJPEG), decoded by GDCM."""
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (40, 32, 3)).astype(dtype)
    folder = write_series(tmp_path / "series", values, lps_affine(AXIAL), slope=0.5, intercept=-20)
    for file in folder.iterdir():
        one, stream = pydicom.dcmread(file), io.BytesIO()
        Image.fromarray(one.pixel_array).save(stream, "JPEG2000", no_jp2=True, irreversible=False)
        one.PixelData = pydicom.encaps.encapsulate([stream.getvalue()])
        one["PixelData"].VR, one["PixelData"].is_undefined_length = "OB", True
        one.file_meta.TransferSyntaxUID = JPEG2000Lossless
        one.save_as(file)
    np.testing.assert_array_equal(read_scan(folder).voxels[0], values * 0.5 - 20)
    one.PixelData = pydicom.encaps.encapsulate([stream.getvalue()[:40]])
    one["PixelData"].VR, one["PixelData"].is_undefined_length = "OB", True
    one.save_as(file)
    with pytest.raises(ScanError, match=r"IM\d+: the pixels \(JPEG 2000 .* are damaged"):
        read_scan(folder)


def _to_lossless_jpeg(source, target):
    """Compress by GDCM, then put back what its writer does not keep."""
    image = sitk.GetImageFromArray(pydicom.dcmread(source).pixel_array[None])
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(target.with_suffix(".dcm")))
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    writer.Execute(image)
    packed, one = pydicom.dcmread(target.with_suffix(".dcm")), pydicom.dcmread(source)
    target.with_suffix(".dcm").unlink()
    one.PixelData = packed.PixelData
    one["PixelData"].VR = "OB"
    one.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
    one.save_as(target)


def test_a_slice_without_rescaling_has_its_stored_values(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, SHAPE).astype(np.uint16)
    folder = write_series(tmp_path / "series", values, lps_affine(AXIAL), slope=None)
    scan = read_scan(folder)
    np.testing.assert_array_equal(scan.voxels[0], values)
    assert scan.dtype == np.uint16
    ids, _ = read_labels(folder)
    assert ids.dtype == np.uint16
    np.testing.assert_array_equal(ids, values)


def test_labels_for_a_series(tmp_path, stored):
    folder = write_series(tmp_path / "series.1", stored, lps_affine(TILTED))
    assert is_scan(folder) and scan_stem(folder) == "series.1" and prediction_suffix(folder) == ".nii.gz"
    grid, channels = read_grid(folder)
    assert grid.shape == SHAPE and channels == 1
    for suffix in (".nii.gz", ".nrrd"):
        write_labels(tmp_path / f"l{suffix}", stored > 0, folder)
        ids, written = read_labels(tmp_path / f"l{suffix}")
        np.testing.assert_array_equal(ids, stored > 0)
        assert difference(written, grid, 1e-4) is None
        assert read_scan(tmp_path / f"l{suffix}").dtype == np.int16


def test_what_is_no_slice_is_skipped(tmp_path, stored):
    folder = write_series(tmp_path / "series", stored, lps_affine(AXIAL))
    expected = read_scan(folder).voxels
    (folder / "notes.txt").write_text("nothing")
    (folder / "empty.dat").write_text("")
    (folder / "deeper").mkdir()
    shutil.copy(folder / "IM0000", folder / "DICOMDIR")
    report = pydicom.dcmread(folder / "IM0000")
    for name in ("Rows", "Columns", "PixelData"):
        delattr(report, name)
    report.SeriesInstanceUID = "9.9"
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID = BasicTextSRStorage
    report.save_as(folder / "report.dcm")
    np.testing.assert_array_equal(read_scan(folder).voxels, expected)


@pytest.mark.parametrize("name", ["SliceThickness", "SpacingBetweenSlices"])
def test_a_single_slice_is_as_thick_as_it_says(tmp_path, stored, name):
    folder = write_series(tmp_path / "series", stored[:, :, :1], lps_affine(SAGITTAL), **{name: 4.5})
    scan = read_scan(folder)
    assert scan.voxels.shape == (1, 6, 5, 1) and scan.grid.spacing == pytest.approx((0.8, 1.25, 4.5))
    np.testing.assert_allclose(scan.grid.affine, ras(lps_affine(SAGITTAL, (0.8, 1.25, 4.5))), atol=1e-9)


def test_a_single_slice_of_unknown_thickness(tmp_path, stored):
    folder = write_series(tmp_path / "series", stored[:, :, :1], lps_affine(AXIAL))
    with pytest.raises(ScanError, match="only slice .*SliceThickness"):
        read_scan(folder)
