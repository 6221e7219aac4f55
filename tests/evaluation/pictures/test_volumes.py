"""Pictures of slices: which ones, which way up, in which proportions, and where the contours lie."""

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import find_objects, label

from trunkline.evaluation.pictures.volumes import (
    GROUND,
    NARROWEST,
    mid_and_worst,
    slice_axis,
    slice_picture,
    turn_of,
)

NAMES = ["background", "organ", "tumour"]
COLOURS = np.array([(9, 9, 9), (255, 0, 0), (0, 255, 0)], np.uint8)
RED, GREEN = (255, 0, 0), (0, 255, 0)


def labels(shape, *boxes):
    """uint8 labels with boxes of (label, slices)."""
    mask = np.zeros(shape, np.uint8)
    for number, *slices in boxes:
        mask[tuple(slices)] = number
    return mask


def drawn(image, predicted, truth, spacing=None, **options):
    spacing = spacing or (1.0,) * image.ndim
    return slice_picture(image, predicted, truth, NAMES, COLOURS, spacing, **options)


def coloured(picture, colour):
    return (picture == np.array(colour)).all(-1)


def panels(picture):
    """Find the panels of a sheet: {(row, column): [h, w, 3]}. Texts are lower, the legend is at the edge."""
    boxes = find_objects(label(~coloured(picture, GROUND))[0])
    boxes = [box for box in boxes if box[0].stop - box[0].start > 40 and box[1].start > 0]
    tops = sorted({down.start for down, _ in boxes})
    lefts = sorted({across.start for _, across in boxes})
    return {
        (tops.index(down.start), lefts.index(across.start)): picture[down, across] for down, across in boxes
    }


# Which slices


def test_the_middle_is_that_of_the_truth_and_the_worst_has_most_wrong_voxels():
    truth = labels((4, 5, 12), (1, slice(0, 2), slice(0, 2), slice(2, 7)))
    predicted = truth.copy()
    predicted[:, 0, 9] = 2
    predicted[0, 0, 3] = 0
    assert mid_and_worst(predicted, truth, 2) == (4, 9)
    assert mid_and_worst(predicted, truth, 0) == (0, 0)  # three wrong in each; slice 0 has one more
    assert mid_and_worst(predicted.transpose(2, 0, 1), truth.transpose(2, 0, 1), 0) == (4, 9)


def test_ignored_voxels_are_not_wrong_and_no_structure():
    truth = labels((4, 4, 10), (1, 0, 0, slice(2, 5)), (255, slice(None), slice(None), 9))
    predicted = labels((4, 4, 10), (1, 0, 0, 2), (2, slice(None), slice(None), 9))
    assert mid_and_worst(predicted, truth, 2) == (3, 3)


@pytest.mark.parametrize("has_truth", [True, False])
def test_slices_where_something_is_missing(has_truth):
    empty = np.zeros((3, 3, 9), np.uint8)
    truth = empty if has_truth else None
    assert mid_and_worst(empty, truth, 2) == (4, 4)
    predicted = labels((3, 3, 9), (1, 0, 0, slice(5, 8)), (1, 1, 0, 7))
    assert mid_and_worst(predicted, truth, 2) == (6, 7)
    assert mid_and_worst(predicted, predicted, 2) == (6, 6)  # nothing wrong


def test_the_axis_of_the_coarsest_spacing():
    assert slice_axis((1, 3, 1)) == 1
    assert slice_axis((1, 1, 1)) == 2
    assert slice_axis((2, 2, 1)) == 1
    assert slice_axis((1, 1.0000001, 1)) == 2


# Which way up


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA", "ASR"])
@pytest.mark.parametrize(
    ("view", "down", "across"),
    [("S", "A", "R"), ("A", "S", "R"), ("R", "S", "A")],
    ids=["axial", "cor", "sag"],
)
def test_a_marked_corner_ends_at_the_top_left(codes, view, down, across):
    """Superior or anterior, and anterior or to the patient's right, in any order of the axes."""
    shape, order = (7, 8, 9), "RAS"
    scan = np.zeros(shape, np.uint8)
    scan[tuple(-1 if letter in (down, across) else 4 for letter in order)] = 1
    image = nib.Nifti1Image(scan, np.eye(4))
    turned = image.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), nib.orientations.axcodes2ornt(codes))
    )
    axis = next(
        number for number, code in enumerate(codes) if code in (view, {"R": "L", "A": "P", "S": "I"}[view])
    )
    turn = turn_of(axis, turned.affine)
    voxels = np.asarray(turned.dataobj)
    number = int(np.argwhere(voxels)[0][axis])
    plane = turn.cut(voxels, number)
    assert plane.shape == (shape[order.index(down)], shape[order.index(across)])
    assert np.argwhere(plane).tolist() == [[0, 0]]
    assert turn.letters == (down, across)


def test_oblique_axes_count_as_the_nearest():
    angle = np.deg2rad(30)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert turn_of(2, affine) == turn_of(2) == turn_of(2, np.diag([2, 2, 5, 1]))
    with pytest.raises(ValueError, match="no direction"):
        turn_of(2, np.diag([1, 0, 1, 1]))


def test_the_sheet_follows_the_affine():
    """A mark in the corner at i = j = 0: at the bottom right in RAS, at the top left in LPS."""
    predicted = labels((8, 8, 5), (1, slice(0, 2), slice(0, 2), 2))
    image = np.zeros(predicted.shape, np.float32)
    for affine, place in ((np.eye(4), slice(-64, None)), (np.diag([-1, -1, 1, 1]), slice(0, 64))):
        marks = coloured(panels(drawn(image, predicted, None, affine=affine))[0, 1], RED)
        assert marks[place, place].sum() == marks.sum() > 0
    default = drawn(image, predicted, None)
    assert (default == drawn(image, predicted, None, affine=np.eye(4))).all()


def test_a_picture_of_two_axes_stays_as_it_is():
    predicted = labels((8, 16), (1, slice(0, 2), slice(0, 2)))
    found = panels(drawn(np.zeros((8, 16), np.float32), predicted, predicted, affine=np.eye(4)))
    assert sorted(found) == [(0, 0), (0, 1), (0, 2)]
    marks = coloured(found[0, 1], RED)
    assert marks.shape == (128, 256) and marks[:32, :32].sum() == marks.sum() > 0
    assert not found[0, 0].any()  # no letters of directions


# Proportions


@pytest.mark.parametrize(
    ("shape", "spacing", "axis", "panel"),
    [
        ((20, 20, 6), (1, 1, 4), None, (256, 256)),
        ((20, 20, 6), (1, 1, 4), 0, (256, 213)),  # 24 mm superior to inferior, 20 mm across
        ((20, 40, 6), (0.5, 0.5, 1), 2, (256, 128)),
        ((300, 150, 3), (1, 2, 9), 2, (300, 300)),
        ((1500, 300, 1), (1, 1, 1), 2, (205, 1024)),  # at most four times 256
    ],
)
def test_a_millimetre_is_as_long_down_as_across(shape, spacing, axis, panel):
    predicted = np.zeros(shape, np.uint8)
    found = panels(drawn(np.zeros(shape, np.float32), predicted, predicted, spacing=spacing, axis=axis))
    assert found[0, 1].shape[:2] == panel


def test_size_is_the_least_length_of_a_panel():
    mask = np.zeros((10, 20), np.uint8)
    for size in (200, 400):
        assert panels(drawn(np.zeros((10, 20)), mask, mask, size=size))[0, 0].shape == (size // 2, size, 3)


def test_thin_panels_leave_room_for_text():
    mask = np.zeros((40, 2), np.uint8)
    found = drawn(np.zeros((40, 2)), mask, mask)
    assert found.shape[1] > 3 * NARROWEST
    assert panels(found)[0, 1].shape == (256, 13, 3)


# What is drawn


def test_contours_lie_on_the_boundary_of_the_mask():
    """16 pixels per voxel: a contour lies inside its class, beside another one, all the way round."""
    predicted = labels((16, 16), (1, slice(4, 12), slice(3, 9)), (2, slice(4, 12), slice(9, 12)))
    truth = labels((16, 16), (1, slice(6, 12), slice(3, 9)))
    found = panels(drawn(np.zeros((16, 16), np.float32), predicted, truth))
    for column, mask in ((1, predicted), (2, truth)):
        fine = np.kron(mask, np.ones((16, 16), np.uint8))
        padded = np.pad(fine, 1, mode="edge")
        beside = [padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]]
        edge = np.any([other != fine for other in beside], axis=0)
        for number, colour in ((1, RED), (2, GREEN)):
            assert (coloured(found[0, column], colour) == (edge & (fine == number))).all()
        inner = found[0, column][~edge | (fine == 0)]
        assert not inner.any()  # nothing else is painted; the background has no contour


def test_ignored_voxels_have_no_contour():
    truth = labels((16, 16), (255, slice(4, 12), slice(4, 12)))
    found = panels(drawn(np.zeros((16, 16), np.float32), np.zeros_like(truth), truth))
    assert not found[0, 2].any()


def test_rows_and_columns_of_the_sheet():
    image = np.zeros((8, 8, 9), np.float32)
    truth = labels(image.shape, (1, slice(2, 6), slice(2, 6), slice(3, 6)))
    predicted = truth.copy()
    predicted[..., 8] = 2
    found = panels(drawn(image, predicted, truth))
    assert sorted(found) == [(row, column) for row in (0, 1) for column in (0, 1, 2)]
    assert coloured(found[0, 1], RED).any() and not coloured(found[0, 1], GREEN).any()
    assert not coloured(found[1, 2], RED).any()  # slice 8 of the truth
    assert sorted(panels(drawn(image, truth, truth))) == [(0, 0), (0, 1), (0, 2)]  # nothing wrong: one slice
    assert sorted(panels(drawn(image, truth, None))) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_the_legend_shows_classes_that_are_drawn():
    mask = labels((16, 16), (1, slice(4, 12), slice(4, 12)))
    image = np.zeros(mask.shape, np.float32)
    below = drawn(image, mask, mask)[-30:]
    assert coloured(below, RED).any() and not coloured(below, GREEN).any()
    assert len(drawn(image, mask, mask)) > len(drawn(image, mask * 0, mask * 0))


def test_the_window_is_that_of_the_first_and_last_percent_of_the_scan():
    image = np.random.default_rng(0).permutation(10000).reshape(100, 100).astype(np.float32) - 5000
    mask = np.zeros(image.shape, np.uint8)
    for window, options in (((-4900.01, 4899.01), {}), ((-5000, -4000), {"window": (-5000, -4000)})):
        grey = panels(drawn(image, mask, None, size=100, **options))[0, 1][..., 0].astype(float)
        expected = np.interp(image, window, (0, 255))
        assert np.abs(grey - expected).max() <= 0.51


def test_flat_and_broken_values_do_not_stop_a_picture():
    mask = labels((16, 16), (1, slice(4, 12), slice(4, 12)))
    for value in (0, 7, np.nan):
        found = panels(drawn(np.full((16, 16), value, np.float32), mask, mask))
        assert coloured(found[0, 1], RED).any() and not found[0, 0].any()
    image = np.full((16, 16), 100, np.float32)
    image[0, 0], image[15, 15] = np.nan, np.inf
    grey = panels(drawn(image, mask, mask, window=(0, 200)))[0, 0][..., 0]
    assert (grey[0, 0], grey[128, 128], grey[-1, -1]) == (0, 128, 255)


def test_a_rare_structure_shows_in_a_flat_scan():
    image = np.zeros((40, 40), np.float32)
    image[20, 20] = 5
    mask = np.zeros(image.shape, np.uint8)
    assert panels(drawn(image, mask, None))[0, 0].max() > 200


def test_reading_only_memory_is_not_written_to():
    image, mask = np.zeros((6, 6, 6), np.float32), labels((6, 6, 6), (1, 2, 2, 2))
    image.flags.writeable = mask.flags.writeable = False
    assert (drawn(image, mask, mask) == drawn(image.copy(), mask.copy(), mask.copy())).all()


@pytest.mark.parametrize(
    ("image", "predicted", "truth", "spacing", "axis", "words"),
    [
        (np.zeros((2, 2, 2, 2)), np.zeros((2, 2, 2, 2), np.uint8), None, (1, 1, 1, 1), None, "image must be"),
        (np.zeros((2, 2)), np.zeros((2, 3), np.uint8), None, (1, 1), None, "predicted must be"),
        (np.zeros((2, 2)), np.zeros((2, 2), np.uint8), np.zeros((2, 2)), (1, 1), None, "truth must be"),
        (np.zeros((2, 2)), np.zeros((2, 2), np.uint8), None, (1, 1, 1), None, "2 voxel sizes"),
        (np.zeros((2, 2)), np.zeros((2, 2), np.uint8), None, (1, 1), 0, "axis 0"),
        (np.zeros((2, 2, 2)), np.zeros((2, 2, 2), np.uint8), None, (1, 1, 1), 3, "axis 3"),
        (np.zeros((2, 2)), np.full((2, 2), 7, np.uint8), None, (1, 1), None, "7"),
    ],
)
def test_what_does_not_fit_is_an_error(image, predicted, truth, spacing, axis, words):
    with pytest.raises(ValueError, match=words):
        drawn(image, predicted, truth, spacing=spacing, axis=axis)
