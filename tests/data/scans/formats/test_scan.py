"""Voxels in the world: against nibabel and numbers by hand."""

import nibabel
import numpy as np
import pytest

from trunkline.data.scans.formats.scan import Grid, difference

# Axis 0 points to the back with 3 mm, axis 1 to the right with 1 mm, axis 2 to the feet with 2 mm.
TURNED = np.array([[0, 1, 0, 10], [-3, 0, 0, 20], [0, 0, -2, 30], [0, 0, 0, 1.0]])


def test_the_place_of_a_voxel_by_hand():
    grid = Grid((4, 5, 6), TURNED)
    assert grid.spacing == (3, 1, 2)
    # (2, 3, 4): right 10 + 3, front 20 - 2 * 3, up 30 - 4 * 2
    np.testing.assert_array_equal(grid.world(np.array([[0, 0, 0], [2, 3, 4]])), [[10, 20, 30], [13, 14, 22]])


def test_places_are_those_of_nibabel_for_any_affine():
    rng = np.random.default_rng(0)
    affine = np.eye(4)
    affine[:3] = rng.normal(size=(3, 4)) * 3
    index = rng.uniform(0, 9, size=(20, 3))
    np.testing.assert_allclose(
        Grid((9, 9, 9), affine).world(index), nibabel.affines.apply_affine(affine, index)
    )
    np.testing.assert_allclose(Grid((9, 9, 9), affine).spacing, nibabel.affines.voxel_sizes(affine))


def test_a_picture_lies_in_a_plane():
    grid = Grid((4, 5), np.diag((2.0, 3.0, 1.0, 1.0)))
    assert grid.spacing == (2, 3)
    np.testing.assert_array_equal(grid.world(np.array([[1, 1]])), [[2, 3, 0]])


def test_a_grid_does_not_change_with_the_array_it_was_made_of():
    affine = np.eye(4)
    grid = Grid((1, 2, 3), affine)
    affine[0, 0] = 7
    assert grid.affine[0, 0] == 1 and grid.affine.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 7


@pytest.mark.parametrize(
    ("shape", "affine", "said"),
    [
        ((3,), np.eye(4), "2 or 3 sizes"),
        ((3, 0, 3), np.eye(4), "2 or 3 sizes"),
        ((3, 3, 3), np.eye(3), "4 x 4"),
        ((3, 3, 3), np.diag((1, 1, np.nan, 1)), "not finite"),
        ((3, 3, 3), np.diag((1, 0, 1, 1.0)), "voxels measure 1 x 0 x 1 mm"),
        ((3, 3, 3), np.diag((1, 1, 1, 2.0)), "last row"),
        ((3, 3, 3), np.array([[1, 2, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "in one plane"),
    ],
)
def test_what_is_no_grid_is_refused(shape, affine, said):
    with pytest.raises(ValueError, match=said):
        Grid(shape, affine)


def test_small_voxels_are_not_singular():
    assert Grid((3, 3, 3), np.diag((1e-4, 1e-4, 1e-4, 1))).spacing == (1e-4,) * 3


def test_differences_are_told_in_millimetres_at_the_corners():
    grid = Grid((11, 5, 6), TURNED)
    assert difference(grid, Grid((11, 5, 6), TURNED.copy())) is None
    assert difference(grid, Grid((11, 5, 7), TURNED)) == "shape 11x5x6 and 11x5x7"
    moved = TURNED.copy()
    moved[2, 3] += 1.2
    assert difference(grid, Grid((11, 5, 6), moved)) == "corners lie up to 1.2 mm apart"
    longer = TURNED.copy()
    longer[1, 0] = -3.001  # 10 steps: 0.01 mm at the far corner
    assert difference(grid, Grid((11, 5, 6), longer), tolerance=0.011) is None
    assert difference(grid, Grid((11, 5, 6), longer), tolerance=0.009) == "corners lie up to 0.01 mm apart"


def test_the_thickness_of_a_single_slice_counts():
    thick = TURNED.copy()
    thick[2, 2] = -5
    assert "3 mm" in difference(Grid((11, 5, 1), TURNED), Grid((11, 5, 1), thick))


def test_flipped_axes_differ_though_the_box_is_the_same():
    flipped = TURNED.copy()
    flipped[:3, 0] *= -1
    flipped[:3, 3] += 10 * TURNED[:3, 0]
    assert difference(Grid((11, 5, 6), TURNED), Grid((11, 5, 6), flipped)) == "corners lie up to 30 mm apart"


def test_voxels_of_oblique_axes_are_smaller_than_the_product_of_the_spacings():
    affine = np.diag((2.0, 3.0, 5.0, 1.0))
    affine[0, 2] = 5 * np.tan(0.3)  # slices pushed along x: the distance between them stays 5 mm
    assert Grid((4, 4, 4), affine).voxel == pytest.approx(30)
    assert np.prod(Grid((4, 4, 4), affine).spacing) == pytest.approx(30 / np.cos(0.3))
    assert Grid((4, 4), np.diag((2.0, 3.0, 9.0, 1.0))).voxel == pytest.approx(6)
