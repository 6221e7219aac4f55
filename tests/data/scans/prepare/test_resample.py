"""Resampling beside scipy's zoom of whole volumes, and labels beside one-hot volumes of all classes."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from trunkline.data.scans.prepare import resample as module
from trunkline.data.scans.prepare.resample import (
    coarse_axis,
    label_boxes,
    resample,
    resample_labels,
    resampled_lengths,
    spline_matrix,
    taps,
)

SHAPES = [(5, 20, 9), (9, 14, 7), (1, 3, 30), (18, 14, 1), (9, 28, 7), (9, 14, 11)]
LABELS = [0, 1, 2, 5, 255]


def zoom(volume, shape, order):
    """Resize with one order along all axes."""
    factors = [new / old for new, old in zip(shape, volume.shape, strict=True)]
    return ndimage.zoom(volume.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)


@pytest.fixture(autouse=True, params=[2**22, 50], ids=["whole", "slabs"])
def slabs(request, monkeypatch):
    monkeypatch.setattr(module, "_MOST_VALUES", request.param)


@pytest.fixture
def voxels():
    return np.random.default_rng(0).normal(size=(2, 9, 14, 7)).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", [0, 1, 3])
def test_equals_zoom_of_the_whole_volume(voxels, shape, order):
    got = resample(voxels, shape, (order,) * 3)
    for channel, result in zip(voxels, got, strict=True):
        expected = zoom(channel, shape, order).clip(channel.min(), channel.max())
        np.testing.assert_allclose(result, expected, atol=2e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_coarse_axis_takes_the_nearest_plane_of_planes_resampled_by_themselves(voxels, shape):
    got = resample(voxels, shape, (3, 3, 0))
    for channel, result in zip(voxels, got, strict=True):
        planes = np.stack([zoom(plane, shape[:2], 3) for plane in np.moveaxis(channel, 2, 0)], axis=2)
        expected = zoom(planes, shape, 0).clip(channel.min(), channel.max())
        np.testing.assert_allclose(result, expected, atol=2e-6)


def test_pictures_have_two_axes():
    picture = np.random.default_rng(1).normal(size=(1, 6, 9)).astype(np.float32)
    np.testing.assert_allclose(resample(picture, (8, 5), (1, 1))[0], zoom(picture[0], (8, 5), 1), atol=1e-6)


def test_axes_of_the_same_length_are_exact(voxels):
    assert resample(voxels, (9, 14, 7), (3, 3, 3)) is voxels
    ramp = np.broadcast_to(np.arange(7, dtype=np.float32), (1, 4, 5, 7)).copy()
    doubled = resample(ramp, (8, 5, 7), (3, 3, 3))
    np.testing.assert_allclose(doubled, np.broadcast_to(ramp[:, :1], doubled.shape), atol=1e-5)
    labels = np.array([[3, 255], [1, 0]], dtype=np.uint8)
    assert resample_labels(labels, (2, 2), (1, 1)) is labels


def test_cubic_overshoot_is_clamped_to_the_channel():
    step = np.zeros((1, 12, 4, 4), dtype=np.float32)
    step[:, 6:] = 1
    assert zoom(step[0], (24, 4, 4), 3).max() > 1.05
    got = resample(step, (24, 4, 4), (3, 3, 3))
    assert got.min() == 0
    assert got.max() == 1


def test_linear_numbers_by_hand():
    # Edges stay: of 2 voxels the centres lie at 1/4 and 3/4, of 4 at 1/8, 3/8, 5/8, 7/8.
    for row, order, expected in [
        ([0, 4], 1, [0, 1, 3, 4]),
        ([0, 4], 0, [0, 0, 4, 4]),
        ([2, 4, 6, 8], 1, [3, 7]),
        ([2, 4], 1, [3]),
        ([5], 3, [5, 5, 5]),
    ]:
        across = np.array([[row]], np.float32)  # [1, 1, w]
        assert resample(across, (1, len(expected)), (3, order)).tolist() == [[expected]]
        down = across.transpose(0, 2, 1)
        assert resample(down, (len(expected), 1), (order, 3))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(("length", "wanted"), [(5, 9), (9, 5), (1, 4), (7, 1), (6, 12)])
def test_taps_are_the_linear_spline_matrix(length, wanted):
    step = taps(length, wanted, 1)
    dense = np.zeros((wanted, length))
    np.add.at(dense, (np.arange(wanted), step.low.numpy()), 1 - step.weight.numpy())
    np.add.at(dense, (np.arange(wanted), step.high.numpy()), step.weight.numpy())
    np.testing.assert_allclose(dense, spline_matrix(length, wanted, 1).numpy(), atol=1e-6)
    np.testing.assert_allclose(spline_matrix(length, wanted, 3).sum(dim=1).numpy(), 1, atol=1e-6)


def test_lengths_keep_the_extent():
    assert resampled_lengths((100, 30, 1), (0.8, 5, 2), (1, 1, 50)) == (80, 150, 1)
    assert resampled_lengths((3,), (1.0,), (2.0,)) == (2,)


@pytest.mark.parametrize(
    ("spacing", "wanted", "anisotropy", "axis"),
    [
        ((1, 1, 5), (1, 1, 1), 3, 2),
        ((1, 1, 3), (1, 1, 1), 3, None),  # must be more than 3 times
        ((1, 1, 3), (1, 1, 1), 2.9, 2),
        ((5, 1, 1), (1, 1, 9), 3, 0),  # the old spacing first
        ((1, 1, 1), (1, 9, 1), 3, 1),
        ((1, 5, 5), (1, 1, 1), 3, None),  # two coarse axes
        ((1, 1, 5), (1, 1, 1), float("inf"), None),
        ((1, 4), (1, 1), 3, 1),
    ],
)
def test_coarse_axis(spacing, wanted, anisotropy, axis):
    assert coarse_axis(spacing, wanted, anisotropy) == axis


@pytest.mark.parametrize("shape", [(5, 20, 9), (1, 3, 30), (12, 9, 4), (2, 2, 2), (6, 9, 11), (11, 9, 5)])
@pytest.mark.parametrize("orders", [(1, 1, 1), (0, 1, 1), (0, 0, 0)])
def test_labels_equal_the_argmax_of_all_one_hot_volumes(shape, orders):
    labels = np.random.default_rng(2).choice(LABELS, size=(6, 9, 5)).astype(np.uint8)
    labels[:2, :5] = 5  # labels whose boxes differ
    shares = resample(np.stack([labels == label for label in LABELS]).astype(np.float32), shape, orders)
    expected = np.array(LABELS)[shares.argmax(axis=0)]
    assert np.array_equal(resample_labels(labels, shape, orders), expected)


def test_labels_by_hand():
    # Shares in the two new voxels: two old ones each, and of equal shares the lower label wins.
    assert resample_labels(np.array([2, 1, 255, 255], np.uint8), (2,), (1,)).tolist() == [1, 255]
    assert resample_labels(np.array([0, 255], np.uint8), (4,), (1,)).tolist() == [0, 0, 255, 255]
    # A voxel between the new centres is lost, one on a new centre stays.
    assert resample_labels(np.array([0, 7, 0, 0, 0, 0], np.uint8), (2,), (1,)).tolist() == [7, 0]
    assert resample_labels(np.array([7, 0, 0, 0, 0, 0], np.uint8), (2,), (1,)).tolist() == [0, 0]
    assert resample_labels(np.full((1, 3), 4, np.uint8), (3, 1), (1, 1)).tolist() == [[4]] * 3


def test_label_boxes():
    labels = np.zeros((4, 5), np.uint8)
    labels[1:3, 2] = 9
    labels[3, 4] = 255
    whole = (slice(0, 4), slice(0, 5))
    expected = {0: whole, 9: (slice(1, 3), slice(2, 3)), 255: (slice(3, 4), slice(4, 5))}
    assert label_boxes(labels) == expected
    assert label_boxes(np.full((2,), 3, np.uint8)) == {3: (slice(0, 2),)}


def test_reach_of_old_voxels_covers_all_that_they_contribute_to():
    for length, wanted, order in itertools.product(range(1, 8), range(1, 12), (0, 1)):
        if length == wanted:
            continue
        step = taps(length, wanted, order)
        dense = spline_matrix(length, wanted, order).numpy()
        for start, stop in itertools.combinations(range(length + 1), 2):
            first, last = step.touched(start, stop)
            used = np.flatnonzero(dense[:, start:stop].any(axis=1))
            assert all(first <= number < last for number in used)
