"""Metrics of one case against MONAI, slow loops and numbers worked out by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from trunkline.evaluation.volumes.evaluator import VolumeEvaluator, case_metrics
from trunkline.evaluation.volumes.surfaces import surface_distances

ONE = {"organ": (1,)}
METRICS = ["Dice", "HD95_mm", "surface_Dice", "volume_ml", "true_volume_ml"]


def blobs(seed, shape=(22, 17, 12), classes=3):
    """A truth of smooth blobs and a prediction that resembles it, uint8 0..classes-1; some reach the edge."""
    rng = np.random.default_rng(seed)
    fields = gaussian_filter(rng.normal(size=(classes, *shape)), (0, *(2 for _ in shape)))
    other = fields + 0.5 * gaussian_filter(rng.normal(size=fields.shape), (0, *(2 for _ in shape)))
    return other.argmax(0).astype(np.uint8), fields.argmax(0).astype(np.uint8)


def cube(shape, corner, sizes, label=1):
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(start, start + size) for start, size in zip(corner, sizes, strict=True))] = label
    return mask


def slow_surface(mask):
    """Indices of voxels with a neighbour outside, or beyond the edge of the scan."""
    found = []
    for index in np.argwhere(mask):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            beside = index.copy()
            beside[axis] += step
            if not 0 <= beside[axis] < mask.shape[axis] or not mask[tuple(beside)]:
                found.append(index)
                break
    return np.array(found)


def slow_metrics(predicted, truth, spacing, tolerance):
    one, other = (slow_surface(mask) * np.array(spacing) for mask in (predicted, truth))
    apart = np.sqrt(((one[:, None] - other[None]) ** 2).sum(-1))
    ways = apart.min(1), apart.min(0)
    near = sum((way <= tolerance).sum() for way in ways)
    return max(np.percentile(way, 95) for way in ways), near / sum(map(len, ways))


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")  # MONAI of itself
@pytest.mark.parametrize("shape", [(22, 17, 12), (31, 26)], ids=["3-D", "2-D"])
def test_metrics_are_monais(shape):
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    predicted, truth = blobs(0, shape)
    spacing = (0.7, 1.3, 3.0)[: len(shape)]
    found = case_metrics(predicted, truth, {"b": (1,), "c": (2,)}, spacing, tolerance=1.5)
    pair = [
        torch.nn.functional.one_hot(torch.tensor(mask).long(), 3).movedim(-1, 0)[None].float()
        for mask in (predicted, truth)
    ]
    monai = {
        "Dice": compute_dice(*pair, include_background=False),
        "HD95_mm": compute_hausdorff_distance(*pair, percentile=95, spacing=spacing),
        "surface_Dice": compute_surface_dice(*pair, class_thresholds=[1.5, 1.5], spacing=spacing),
    }
    for metric, values in monai.items():
        assert [found[name][metric] for name in "bc"] == pytest.approx(values[0].tolist(), rel=1e-5)
        assert 0 < found["b"][metric] != found["c"][metric]


@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_those_of_a_slow_loop(seed):
    predicted, truth = blobs(seed, (9, 10, 7), 2)
    spacing = (1.1, 0.6, 2.3)
    found = case_metrics(predicted, truth, ONE, spacing, tolerance=1.25)["organ"]
    hausdorff, surface = slow_metrics(predicted == 1, truth == 1, spacing, 1.25)
    assert found["HD95_mm"] == pytest.approx(hausdorff, rel=1e-6)
    assert found["surface_Dice"] == pytest.approx(surface)


def test_a_shifted_cube_by_hand():
    """Cubes of 4 x 4 x 4 voxels, one voxel of 3 mm apart along the last axis.

    48 of 64 voxels are common: Dice 0.75. The surface of the prediction has 16 + 12 + 12 + 16 = 56 voxels in
    its layers. In the first, 12 are surface of the truth as well, and 4 lie beside those, 1 mm away; the 12
    of the second and of the third are surface of the truth; the 16 of the last lie 3 mm from the truth's last
    layer. The truth is the same from the other end.
    """
    shape, spacing = (8, 8, 9), (1.0, 1.0, 3.0)
    predicted, truth = cube(shape, (2, 2, 3), (4, 4, 4)), cube(shape, (2, 2, 2), (4, 4, 4))
    for tolerance, near in ((0.5, 36), (1.0, 40), (2.9, 40), (3.0, 56)):
        found = case_metrics(predicted, truth, ONE, spacing, tolerance)["organ"]
        assert found["surface_Dice"] == pytest.approx(near / 56), tolerance
    assert found["Dice"] == 0.75
    assert found["HD95_mm"] == 3.0
    assert found["volume_ml"] == found["true_volume_ml"] == pytest.approx(64 * 3 / 1000)


def test_volumes_and_areas_by_hand():
    predicted, truth = cube((6, 6, 6), (0, 0, 0), (3, 3, 3)), cube((6, 6, 6), (0, 0, 0), (2, 3, 4))
    found = case_metrics(predicted, truth, ONE, (0.5, 2.0, 5.0))["organ"]
    assert list(found) == METRICS
    assert (found["volume_ml"], found["true_volume_ml"]) == pytest.approx((27 * 5 / 1000, 24 * 5 / 1000))
    flat = case_metrics(predicted[0], truth[0], ONE, (0.5, 2.0))["organ"]
    assert list(flat) == [*METRICS[:3], "area_mm2", "true_area_mm2"]
    assert (flat["area_mm2"], flat["true_area_mm2"]) == pytest.approx((9, 12))


def test_the_metrics_of_a_perfect_prediction():
    _, truth = blobs(1)
    for metrics in case_metrics(truth, truth, {"b": (1,), "c": (2,)}, (1, 1, 2), tolerance=0.0).values():
        assert (metrics["Dice"], metrics["HD95_mm"], metrics["surface_Dice"]) == (1, 0, 1)


def test_absent_classes_follow_the_stated_rule():
    """A 3 x 4 x 12 voxel scan of 1 mm has a diagonal of 13 mm."""
    empty, full = np.zeros((3, 4, 12), np.uint8), cube((3, 4, 12), (0, 0, 0), (1, 1, 1))
    both = case_metrics(empty, empty, ONE, (1, 1, 1))["organ"]
    assert all(math.isnan(both[name]) for name in METRICS[:3])
    assert (both["volume_ml"], both["true_volume_ml"]) == (0, 0)
    for predicted, truth in ((empty, full), (full, empty)):
        found = case_metrics(predicted, truth, ONE, (1, 1, 1))["organ"]
        assert (found["Dice"], found["HD95_mm"], found["surface_Dice"]) == (0, 13, 0)
    turned = case_metrics(empty, full, ONE, (5 / 3, 3, 1))["organ"]
    assert turned["HD95_mm"] == pytest.approx(math.sqrt(5**2 + 12**2 + 12**2))


def test_ignored_voxels_are_taken_out_of_both():
    predicted, truth = blobs(2)
    hidden = np.random.default_rng(0).random(truth.shape) < 0.1
    marked = np.where(hidden, np.uint8(255), truth)
    by_hand = case_metrics(
        np.where(hidden, 0, predicted).astype(np.uint8),
        np.where(hidden, 0, truth).astype(np.uint8),
        ONE,
        (1, 1, 2),
    )
    assert case_metrics(predicted, marked, ONE, (1, 1, 2)) == by_hand
    noise = np.where(hidden, 1, predicted).astype(np.uint8)
    assert case_metrics(noise, marked, ONE, (1, 1, 2)) == by_hand
    nothing = case_metrics(predicted, np.full_like(truth, 255), ONE, (1, 1, 2))["organ"]
    assert math.isnan(nothing["Dice"]) and nothing["volume_ml"] == 0


def test_regions_may_overlap():
    predicted, truth = blobs(3, classes=4)
    regions = {"whole": (1, 2, 3), "core": (2, 3), "rim": (1,)}
    found = case_metrics(predicted, truth, regions, (1, 1, 2))
    for name, labels in regions.items():
        pair = (np.isin(mask, labels).astype(np.uint8) for mask in (predicted, truth))
        assert found[name] == case_metrics(*pair, ONE, (1, 1, 2))["organ"]
    assert found["whole"]["volume_ml"] == pytest.approx(
        found["core"]["volume_ml"] + found["rim"]["volume_ml"]
    )


def test_where_a_structure_lies_in_a_large_scan_changes_nothing():
    """The same masks in the middle of much more background, where cutting to their box has work to do."""
    predicted, truth = (np.pad(mask, 1) for mask in blobs(4, (9, 8, 7), 2))
    wide = ((40, 3), (0, 25), (11, 30))
    small = case_metrics(predicted, truth, ONE, (1, 2, 3))["organ"]
    large = case_metrics(np.pad(predicted, wide), np.pad(truth, wide), ONE, (1, 2, 3))["organ"]
    assert large == small


def test_the_edge_of_the_scan_is_surface():
    """A class that fills the scan has its outermost voxels as surface, 98 of 125."""
    full = np.ones((5, 5, 5), bool)
    assert len(surface_distances(full, full, (1, 1, 1)).truth) == 98


def test_a_scan_of_one_slice_has_the_metrics_of_a_picture():
    predicted, truth = blobs(5, (20, 24), 2)
    flat = case_metrics(predicted, truth, ONE, (0.8, 0.9))["organ"]
    for axis in range(3):
        spacing = np.insert([0.8, 0.9], axis, 7.0)
        pair = (np.expand_dims(mask, axis) for mask in (predicted, truth))
        slab = case_metrics(*pair, ONE, spacing)["organ"]
        assert {name: slab[name] for name in METRICS[:3]} == {name: flat[name] for name in METRICS[:3]}
    assert flat["HD95_mm"] > 0 and flat["surface_Dice"] < 1
    dot = case_metrics(np.ones((1, 1, 1), np.uint8), np.ones((1, 1, 1), np.uint8), ONE, (1, 1, 1))["organ"]
    assert (dot["HD95_mm"], dot["surface_Dice"]) == (0, 1)


def test_voxel_sizes_rounded_to_float32_do_not_tip_the_tolerance():
    predicted, truth = cube((6, 6, 6), (1, 1, 1), (3, 3, 3)), cube((6, 6, 6), (1, 1, 2), (3, 3, 3))
    sizes = [np.nextafter(np.float32(1), np.float32(side)) for side in (0, 2)]
    assert sizes[0] < 1 < sizes[1]
    assert [case_metrics(predicted, truth, ONE, (1, 1, size))["organ"]["surface_Dice"] for size in sizes] == [
        1,
        1,
    ]
    assert case_metrics(predicted, truth, ONE, (1, 1, 1.001))["organ"]["surface_Dice"] < 1


def test_without_surfaces_there_are_counts_alone():
    predicted, truth = blobs(6)
    found = case_metrics(predicted, truth, ONE, (1, 1, 1), surfaces=False)["organ"]
    full = case_metrics(predicted, truth, ONE, (1, 1, 1))["organ"]
    assert found == {name: full[name] for name in ("Dice", "volume_ml", "true_volume_ml")}


def test_tensors_are_welcome():
    predicted, truth = blobs(7)
    tensors = (torch.tensor(predicted), torch.tensor(truth))
    assert case_metrics(*tensors, ONE, (1, 1, 1)) == case_metrics(predicted, truth, ONE, (1, 1, 1))


ZEROS = np.zeros((3, 3, 3), np.uint8)


@pytest.mark.parametrize(
    ("predicted", "truth", "regions", "spacing", "words"),
    [
        (ZEROS, ZEROS[:2], ONE, (1, 1, 1), "differ in shape"),
        (ZEROS.astype(np.int64), ZEROS, ONE, (1, 1, 1), "prediction must hold uint8"),
        (ZEROS, ZEROS[0, 0], ONE, (1, 1, 1), "truth must hold uint8 labels along 2 or 3 axes"),
        (ZEROS, ZEROS, ONE, (1, 1), "3 voxel sizes"),
        (ZEROS, ZEROS, ONE, (1, 1, 0), "above 0 mm"),
        (ZEROS, ZEROS, ONE, (1, 1, math.nan), "above 0 mm"),
        (ZEROS, ZEROS, {}, (1, 1, 1), "at least one class"),
        (ZEROS, ZEROS, {"a": ()}, (1, 1, 1), "region 'a'"),
        (ZEROS, ZEROS, {"a": (255,)}, (1, 1, 1), "0..254"),
    ],
)
def test_what_does_not_fit_is_an_error(predicted, truth, regions, spacing, words):
    with pytest.raises(ValueError, match=words):
        case_metrics(predicted, truth, regions, spacing)


def test_a_tolerance_is_a_length():
    for tolerance in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="tolerance"):
            VolumeEvaluator(ONE, tolerance)


def test_no_surface_no_distance():
    with pytest.raises(ValueError, match="without a voxel"):
        surface_distances(ZEROS == 1, ZEROS == 0, (1, 1, 1))


def test_volumes_of_oblique_voxels():
    mask = cube((4, 4, 4), (0, 0, 0), (2, 2, 2))
    given = case_metrics(mask, mask, ONE, (2, 3, 5), voxel=28.0)["organ"]
    assert given["volume_ml"] == given["true_volume_ml"] == pytest.approx(8 * 0.028)
    assert given["Dice"] == 1 and given["HD95_mm"] == 0
    evaluator = VolumeEvaluator(ONE)
    evaluator.add("a", mask, mask, (2, 3, 5), 28.0)
    assert evaluator.rows()[0][1]["organ"] == given
