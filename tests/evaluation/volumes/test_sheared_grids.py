"""Distances on grids whose axes are not at right angles, against a slow loop over places in the world."""

import itertools
import math

import numpy as np
import pytest

from trunkline.data.scans.formats.scan import Grid
from trunkline.evaluation.volumes.evaluator import VolumeEvaluator, case_metrics
from trunkline.evaluation.volumes.surfaces import sheared

from .test_case_metrics import ONE, blobs, cube, slow_surface

TILTED = np.diag([0.8, 0.9, 2.5]) + np.array([[0, 0, 0], [0, 0, 1.4], [0, 0, 0]])  # a gantry


def rotation(seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]


def slow_world_metrics(predicted, truth, axes, tolerance):
    places = [[axes @ voxel for voxel in slow_surface(mask)] for mask in (predicted, truth)]
    ways = [[min(math.dist(a, b) for b in theirs) for a in mine] for mine, theirs in (places, places[::-1])]
    near = sum(distance <= tolerance for way in ways for distance in way)
    return max(np.percentile(way, 95) for way in ways), near / sum(map(len, ways))


def measured(predicted, truth, axes, tolerance=1.25):
    return case_metrics(predicted, truth, ONE, np.linalg.norm(axes, axis=0), tolerance=tolerance, axes=axes)[
        "organ"
    ]


@pytest.mark.parametrize(
    "axes",
    [
        TILTED,
        rotation(0) @ TILTED,
        rotation(1) @ np.array([[1, 0.5, 0.3], [0, 1, 0.4], [0, 0, 1]]),
        np.array([[0, 0, 3.0], [1, 0.6, 0], [0, -0.8, 0]]),
    ],
)
def test_distances_are_those_of_the_world(axes):
    predicted, truth = (np.random.default_rng(0).random((2, 7, 8, 6)) < 0.03).astype(np.uint8)
    found = measured(predicted, truth, axes)
    hausdorff, surface = slow_world_metrics(predicted == 1, truth == 1, axes, 1.25)
    assert found["HD95_mm"] == pytest.approx(hausdorff, rel=1e-6)
    assert found["surface_Dice"] == pytest.approx(surface)
    boxes = measured(predicted, truth, np.diag(np.linalg.norm(axes, axis=0)))
    assert (found["HD95_mm"], found["surface_Dice"]) != (boxes["HD95_mm"], boxes["surface_Dice"])


def test_one_voxel_ten_slices_up_by_hand():
    """Each slice lies 2 mm higher and 1 mm to the side; ten of them with a step of -10 voxels of 1 mm along
    the side are straight up: 20 mm, where spacings alone tell hypot(10, 10 * sqrt(5)) = 24.5 mm."""
    axes = np.array([[1.0, 0, 1], [0, 1, 0], [0, 0, 2]])
    predicted, truth = cube((11, 3, 11), (10, 1, 0), (1, 1, 1)), cube((11, 3, 11), (0, 1, 10), (1, 1, 1))
    assert measured(predicted, truth, axes)["HD95_mm"] == pytest.approx(20)
    assert measured(predicted, truth, np.diag([1, 1, math.sqrt(5)]))["HD95_mm"] == pytest.approx(24.4949)


def test_slices_of_a_sheared_plane_and_single_slices():
    predicted, truth = blobs(3, (9, 8), 2)
    axes = np.array([[1.0, 0.6], [0, 0.8], [0, 0]])
    flat = measured(predicted, truth, axes)
    hausdorff, surface = slow_world_metrics(predicted == 1, truth == 1, axes, 1.25)
    assert (flat["HD95_mm"], flat["surface_Dice"]) == pytest.approx((hausdorff, surface))
    for axis in range(3):
        slab = np.insert(axes, axis, [0.1, 0.2, 5], axis=1)
        one = measured(np.expand_dims(predicted, axis), np.expand_dims(truth, axis), slab)
        assert (one["HD95_mm"], one["surface_Dice"]) == (flat["HD95_mm"], flat["surface_Dice"])


@pytest.mark.parametrize("noise", [0, 1e-6])
def test_turned_boxes_are_measured_as_boxes(noise):
    """Bit for bit as without axes: rounded directions of oblique scans are no shear."""
    predicted, truth = blobs(1, (9, 8, 7), 2)
    axes = rotation(2) @ np.diag([0.7, 0.7, 3]) + noise * np.random.default_rng(0).normal(size=(3, 3))
    sizes = np.linalg.norm(axes, axis=0)
    assert case_metrics(predicted, truth, ONE, sizes, axes=axes) == case_metrics(predicted, truth, ONE, sizes)
    assert not sheared(axes)
    assert sheared(TILTED)


def test_a_missed_class_counts_as_the_longest_diagonal():
    corners = [TILTED @ (np.array(corner) * (4, 5, 6)) for corner in itertools.product((0, 1), repeat=3)]
    longest = max(math.dist(a, b) for a in corners for b in corners)
    empty, full = np.zeros((4, 5, 6), np.uint8), cube((4, 5, 6), (0, 0, 0), (1, 1, 1))
    assert measured(empty, full, TILTED)["HD95_mm"] == pytest.approx(longest)


def test_an_evaluator_takes_the_axes_of_the_grid():
    class Place:
        grid = Grid((7, 8, 6), np.block([[TILTED, np.ones((3, 1))], [np.zeros((1, 3)), 1]]))

    class Batch:
        placement = Place
        truth = blobs(0, (7, 8, 6), 2)[1]

        class case:  # noqa: N801, an attribute of batches
            name = "a"

    predicted = blobs(0, (7, 8, 6), 2)[0]
    evaluator = VolumeEvaluator(ONE)
    evaluator.update([{"mask": predicted}], Batch)
    found = evaluator.rows()[0][1]["organ"]
    assert found["HD95_mm"] == measured(predicted, Batch.truth, TILTED)["HD95_mm"]
    assert found["volume_ml"] == pytest.approx((predicted == 1).sum() * 0.8 * 0.9 * 2.5 / 1000)


@pytest.mark.parametrize("axes", [np.eye(2), np.full((3, 3), math.nan), np.diag([1, 1, 0])])
def test_axes_have_to_be_three_steps(axes):
    mask = cube((4, 4, 4), (0, 0, 0), (2, 2, 2))
    with pytest.raises(ValueError, match="axes must be"):
        case_metrics(mask, mask, ONE, (1, 1, 1), axes=axes)
