"""Preparation beside nibabel, scipy and MONAI, and places in the world before and after."""

import itertools
import json
import logging
import pickle

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
from scipy import ndimage

from trunkline.data.scans.formats.scan import Grid, Scan
from trunkline.data.scans.prepare.intensity import Intensity
from trunkline.data.scans.prepare.prepare import Placement, Preparation, place, prepare

RAW = Intensity(scale="none")
OBLIQUE = np.array([[0.1, -2.0, 0.3, 5], [1.5, 0.1, 0, -30], [0, 0.2, -4, 12], [0, 0, 0, 1]])
CODES = [
    "".join(pair[side] for pair, side in zip(pairs, sides, strict=True))
    for pairs in itertools.permutations(["LR", "PA", "IS"])
    for sides in itertools.product((0, 1), repeat=3)
]


def make(shape=(7, 6, 5), channels=1, affine=OBLIQUE, seed=0):
    voxels = np.random.default_rng(seed).normal(5, 2, size=(channels, *shape)).astype(np.float32)
    return Scan(voxels, Grid(shape, affine), np.dtype(np.float32))


def centroid(mass, grid):
    """Return the centre of mass in the world."""
    index = np.stack(np.nonzero(mass), axis=1)
    return np.average(grid.world(index), axis=0, weights=mass[tuple(index.T)])


def test_nothing_changes_when_nothing_is_asked():
    scan = make(channels=2)
    labels = np.random.default_rng(1).choice([0, 1, 255], size=scan.grid.shape).astype(np.uint8)
    prepared = prepare(scan, Preparation(orientation=None, intensity=[RAW]), labels)
    assert np.array_equal(prepared.image, scan.voxels)
    assert np.array_equal(prepared.mask, labels)
    prepared.image[:] = 0  # a copy
    prepared.mask[:] = 9
    assert scan.voxels.all()
    assert 9 not in labels
    assert prepared.placement.spacing == scan.grid.spacing
    assert prepare(scan, Preparation()).mask is None


def test_canonical_orientation_is_nibabels():
    scan = make(channels=2)
    prepared = prepare(scan, Preparation(intensity=[RAW]))
    for channel, got in zip(scan.voxels, prepared.image, strict=True):
        expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(channel, scan.grid.affine))
        assert np.array_equal(got, expected.get_fdata(dtype=np.float32))
        np.testing.assert_allclose(prepared.placement.prepared_grid.affine, expected.affine)
        assert prepared.placement.spacing == pytest.approx(expected.header.get_zooms())


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "IPL"])
def test_orientation_is_monais(codes):
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Orientation

    scan = make(channels=2)
    voxels = MetaTensor(torch.from_numpy(scan.voxels), affine=scan.grid.affine.copy())
    expected = Orientation(axcodes=codes, labels=None)(voxels)
    prepared = prepare(scan, Preparation(orientation=codes, intensity=[RAW]))
    assert np.array_equal(prepared.image, expected.numpy())
    np.testing.assert_allclose(prepared.placement.prepared_grid.affine, expected.affine.numpy(), atol=1e-6)


def test_finer_spacing_is_monais_with_scale_extent():
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Spacing

    scan = make(shape=(8, 12, 6), affine=np.diag([1.0, 2.0, 3.0, 1.0]))
    spacing = Spacing([0.5, 1.5, 1.5], mode="bilinear", padding_mode="border", scale_extent=True)
    expected = spacing(MetaTensor(torch.from_numpy(scan.voxels), affine=scan.grid.affine.copy()))
    how = Preparation(spacing=[0.5, 1.5, 1.5], intensity=[RAW])
    placement = place(scan, how)
    assert placement.shape == expected.shape[1:] == (16, 16, 12)
    np.testing.assert_allclose(placement.prepared_grid.affine, expected.affine.numpy(), atol=1e-6)
    factors = [new / old for new, old in zip(placement.shape, (8, 12, 6), strict=True)]
    linear = ndimage.zoom(scan.voxels[0], factors, order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(expected[0].numpy(), linear, atol=1e-5)  # so both mean the same places
    cubic = ndimage.zoom(scan.voxels[0].astype(float), factors, order=3, mode="nearest", grid_mode=True)
    cubic = cubic.clip(scan.voxels.min(), scan.voxels.max())
    np.testing.assert_allclose(prepare(scan, how).image[0], cubic, atol=1e-5)


@pytest.mark.parametrize("stored", CODES)
@pytest.mark.parametrize("wanted", ["RAS", "SPL"])
def test_a_blob_stays_where_it_is_in_the_world(stored, wanted):
    turn = inv_ornt_aff(axcodes2ornt(stored), (20, 18, 16))  # of all 48 orientations
    affine = OBLIQUE @ np.diag([1, 1, 0.5, 1]) @ turn
    places = np.indices((20, 18, 16)).transpose(1, 2, 3, 0)
    blob = np.exp(-(((places - (7, 11, 6)) / (2, 2, 3)) ** 2).sum(axis=-1) / 2)
    blob[blob < 0.01] = 0
    scan = Scan(blob[None].astype(np.float32), Grid(blob.shape, affine), np.dtype(np.float32))
    how = Preparation(orientation=wanted, spacing=[1.1, 1.7, 1.3], crop=True, intensity=[RAW])
    prepared = prepare(scan, how, (blob > 0.5).astype(np.uint8))
    grid = prepared.placement.prepared_grid
    assert grid.spacing == pytest.approx(prepared.placement.spacing)
    if wanted == "SPL":
        assert nibabel.aff2axcodes(grid.affine) == ("S", "P", "L")
    before, after = centroid(blob, scan.grid), centroid(prepared.image[0].clip(0), grid)
    assert np.linalg.norm(before - after) < 0.1
    before, after = centroid(1.0 * (blob > 0.5), scan.grid), centroid(1.0 * prepared.mask, grid)
    assert np.linalg.norm(before - after) < 0.4


def test_order_of_the_steps_by_hand():
    voxels = np.zeros((1, 6, 2, 1), np.float32)
    voxels[0, 2:6, 0, 0] = [2, 4, 6, 8]
    scan = Scan(voxels, Grid((6, 2, 1), np.diag([-2.0, 1, 1, 1])), np.dtype(np.float32))
    labels = np.zeros((6, 2, 1), np.uint8)
    labels[2:6, 0, 0] = [1, 1, 255, 2]
    how = Preparation(spacing=[4, 1, 1], crop=True, intensity=[Intensity(mean=1, std=2)], anisotropy=100)
    prepared = prepare(scan, how, labels)
    assert prepared.placement.orientation == ((0, -1), (1, 1), (2, 1))
    assert prepared.placement.box == ((0, 4), (0, 1), (0, 1))  # flipped: 8 6 4 2
    assert prepared.placement.shape == (2, 1, 1)
    assert prepared.mask.ravel().tolist() == [2, 1]  # of equal shares the lower
    # Splines of order 3 through 3.5 2.5 1.5 0.5, the normalised voxels
    expected = ndimage.zoom([3.5, 2.5, 1.5, 0.5], 0.5, order=3, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(prepared.image.ravel(), expected, rtol=1e-6)


def test_anisotropic_scans_take_the_nearest_plane():
    scan = make(shape=(6, 6, 3), affine=np.diag([1.0, 1, 5, 1]))
    labels = np.random.default_rng(3).integers(0, 3, (6, 6, 3)).astype(np.uint8)
    prepared = prepare(scan, Preparation(spacing=[1, 1, 2.5], intensity=[RAW]), labels)
    assert prepared.placement.coarse == 2
    assert np.array_equal(prepared.image[0], scan.voxels[0].repeat(2, axis=2))
    assert np.array_equal(prepared.mask, labels.repeat(2, axis=2))
    smooth = prepare(scan, Preparation(spacing=[1, 1, 2.5], intensity=[RAW], anisotropy=5), labels)
    assert smooth.placement.coarse is None
    expected = ndimage.zoom(scan.voxels[0].astype(float), (1, 1, 2), order=3, mode="nearest", grid_mode=True)
    expected = expected.clip(scan.voxels.min(), scan.voxels.max())
    np.testing.assert_allclose(smooth.image[0], expected, atol=1e-5)


def test_crop_is_the_box_of_all_channels():
    voxels = np.zeros((2, 8, 7, 6), np.float32)
    voxels[0, 2:4, 3, 1] = 1
    voxels[1, 5, 2, 4] = -1
    scan = Scan(voxels, Grid((8, 7, 6), np.eye(4)), np.dtype(np.float32))
    prepared = prepare(scan, Preparation(crop=True, intensity=[RAW]), np.ones((8, 7, 6), np.uint8))
    assert prepared.placement.box == ((2, 6), (2, 4), (1, 5))
    assert np.array_equal(prepared.image, voxels[:, 2:6, 2:4, 1:5])
    assert prepared.mask.shape == (4, 2, 4)
    assert prepare(scan, Preparation(intensity=[RAW])).image.shape == voxels.shape


def test_a_scan_of_zeros_is_kept_whole_with_a_warning(caplog):
    scan = Scan(np.zeros((1, 4, 3, 2), np.float32), Grid((4, 3, 2), np.eye(4)), np.dtype(np.uint8))
    with caplog.at_level(logging.WARNING):
        prepared = prepare(scan, Preparation(crop=True, spacing=[2, 1, 1]), name="case 7")
    assert "case 7: all voxels are 0" in caplog.text
    assert prepared.image.shape == (1, 2, 3, 2)
    assert not prepared.image.any()


def test_pictures_keep_their_orientation():
    scan = make(shape=(6, 8), affine=np.eye(4))
    labels = np.random.default_rng(4).integers(0, 2, (6, 8)).astype(np.uint8)
    prepared = prepare(scan, Preparation(orientation="PSL", intensity=[RAW]), labels)
    assert np.array_equal(prepared.image, scan.voxels)
    prepared = prepare(scan, Preparation(spacing=[2, 1], intensity=[RAW]), labels)
    assert prepared.image.shape == (1, 3, 8)
    assert prepared.mask.shape == (3, 8)
    assert prepared.placement.prepared_grid.world(np.array([[0, 0]])).tolist() == [[0.5, 0, 0]]


def test_one_plane_and_one_voxel():
    for shape in ((5, 6, 1), (1, 1, 1)):
        prepared = prepare(make(shape), Preparation(spacing=[1, 1, 1], crop=True), np.ones(shape, np.uint8))
        assert np.isfinite(prepared.image).all()
        assert (prepared.mask == 1).all()
        assert prepared.image.shape[1:] == prepared.mask.shape == prepared.placement.shape


def test_extent_is_kept_and_the_true_spacing_told():
    scan = make(shape=(10, 10, 10), affine=np.diag([1.0, 1, 1, 1]))
    placement = place(scan, Preparation(spacing=[0.3, 3, 40]))
    assert placement.shape == (33, 3, 1)
    assert placement.spacing == pytest.approx((10 / 33, 10 / 3, 10))


def test_each_channel_has_its_own_intensity():
    scan = make(channels=2)
    how = Preparation(orientation=None, intensity=[RAW, Intensity(mean=1, std=2)])
    np.testing.assert_allclose(
        prepare(scan, how).image, [scan.voxels[0], (scan.voxels[1] - 1) / 2], rtol=1e-5, atol=1e-6
    )


def test_placement_survives_json_and_pickle():
    placement = place(make(), Preparation(orientation="SPL", spacing=[1, 0.7, 30], crop=True))
    for copy in (
        Placement.from_json(json.loads(json.dumps(placement.to_json()))),
        pickle.loads(pickle.dumps(placement)),
    ):
        assert np.array_equal(copy.grid.affine, placement.grid.affine)
        for name in ("orientation", "box", "shape", "spacing", "coarse", "box_shape"):
            assert getattr(copy, name) == getattr(placement, name)
        assert copy.grid.shape == placement.grid.shape


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"orientation": "RAX"}, r"orientation is 'RAX'"),
        ({"orientation": "RLS"}, r"orientation is 'RLS'"),
        ({"orientation": "RA"}, r"orientation is 'RA'"),
        ({"orientation": "ras"}, r"orientation is 'ras'"),
        ({"spacing": [1, 1, 0]}, r"spacing is \[1, 1, 0\]"),
        ({"spacing": [1]}, r"spacing is \[1\]"),
        ({"spacing": [1, 1, float("nan")]}, "spacing is"),
        ({"intensity": []}, "intensity is empty"),
        ({"anisotropy": 0.5}, r"anisotropy is 0\.5"),
        ({"anisotropy": float("nan")}, "anisotropy is nan"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(ValueError, match=r"data\.preparation\." + words):
        Preparation(**options)


def test_a_preparation_that_does_not_fit_the_scan():
    scan = make(channels=2)
    for how, words in [
        (Preparation(spacing=[1, 1]), r"case 1: has 3 axes, but data\.preparation\.spacing is \[1, 1\]"),
        (Preparation(intensity=[RAW] * 3), r"case 1: has 2 channels, but .*intensity has 3 entries"),
        (Preparation(spacing=[0.001, 0.001, 0.001]), r"case 1: would have the shape .* larger spacing"),
    ]:
        with pytest.raises(ValueError, match=words):
            prepare(scan, how, name="case 1")
    with pytest.raises(ValueError, match=r"case 1: shape \(7, 6, 5\), but that of its labels is \(7, 6, 4\)"):
        prepare(scan, Preparation(), np.zeros((7, 6, 4), np.uint8), name="case 1")
