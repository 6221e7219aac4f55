"""Written files with oblique, tilted and rounded directions are opened by nibabel and by ITK."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_series import TILTED, lps_affine, write_series
from scipy.spatial.transform import Rotation

from trunkline.data.scans.formats.files import read_grid, write_labels, write_scan
from trunkline.data.scans.formats.scan import Grid

SHAPE = (4, 5, 6)
LPS = np.diag((-1.0, -1.0, 1.0))
IDS = np.random.default_rng(0).integers(0, 5, SHAPE).astype(np.uint8)


def rounded(seed, decimals):
    """A random oblique affine with rounded directions; every third one is tilted as well."""
    random = np.random.default_rng(seed)
    directions = np.round(Rotation.random(random_state=seed).as_matrix(), decimals)
    affine = np.eye(4)
    affine[:3, :3] = directions * random.uniform(0.4, 5, 3)
    affine[:3, 3] = random.uniform(-200, 200, 3).round(decimals)
    if seed % 3 == 0:
        affine[:3, 2] += 0.3 * affine[:3, 1]
    return affine


def polar(matrix):
    """The nearest orthonormal matrix, by Newton's iteration instead of an SVD (Higham 1986)."""
    for _ in range(60):
        matrix = (matrix + np.linalg.inv(matrix).T) / 2
    return matrix


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("decimals", [2, 3])
def test_random_obliques(tmp_path, suffix, decimals):
    for seed in range(12):
        affine = rounded(seed, decimals)
        path = tmp_path / f"a{suffix}"
        write_scan(path, IDS, Grid(SHAPE, affine))
        np.testing.assert_allclose(read_grid(path)[0].affine, affine, atol=2e-5)
        image = sitk.ReadImage(str(path))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), IDS)
        directions = LPS @ np.array(image.GetDirection()).reshape(3, 3)
        if not suffix.startswith(".nii"):
            np.testing.assert_allclose(directions * image.GetSpacing(), affine[:3, :3], atol=1e-9)
            continue
        header = nibabel.load(path).header
        assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
        np.testing.assert_array_equal(header.get_sform().astype(np.float32), affine.astype(np.float32))
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        nearest = polar(affine[:3, :3] / spacing)
        np.testing.assert_allclose(header.get_qform()[:3, :3], nearest * spacing, atol=1e-4)
        np.testing.assert_allclose(
            directions, nearest, atol=3e-2
        )  # ITK takes the qform, or the sform if square


@pytest.mark.parametrize("decimals", [2, 3])
def test_labels_of_a_tilted_series_with_rounded_positions(tmp_path, decimals):
    affine = lps_affine(TILTED)
    stored = np.zeros((6, 5, 4), np.int16)
    turned = affine.copy()
    turned[:3, :3] = Rotation.from_euler("xyz", (5, 7, 11), degrees=True).as_matrix() @ affine[:3, :3]
    places = [np.round(turned[:3, 3] + k * turned[:3, 2], decimals).tolist() for k in range(4)]
    folder = write_series(tmp_path / "series", stored, turned, ImagePositionPatient=places)
    grid, _ = read_grid(folder)
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        path = tmp_path / f"labels{suffix}"
        write_labels(path, stored + 1, folder)
        assert (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) == 1).all()
        np.testing.assert_allclose(read_grid(path)[0].affine, grid.affine, atol=2e-5)


def test_labels_of_a_sheared_nifti_without_qform_get_one(tmp_path):
    affine = rounded(3, 2)
    image = nibabel.Nifti1Image(IDS, None)
    image.set_sform(affine, 2)
    image.set_qform(None, 0)
    image.to_filename(tmp_path / "a.nii")
    with pytest.raises(RuntimeError):
        sitk.ReadImage(str(tmp_path / "a.nii"))
    write_labels(tmp_path / "l.nii", IDS, tmp_path / "a.nii")
    sitk.ReadImage(str(tmp_path / "l.nii"))
    source, written = (nibabel.load(tmp_path / name) for name in ("a.nii", "l.nii"))
    np.testing.assert_array_equal(written.affine, source.affine)
    assert int(written.header["sform_code"]) == 2 and int(written.header["qform_code"]) == 1
