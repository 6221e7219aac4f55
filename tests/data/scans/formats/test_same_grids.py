"""Which grids are one: headers hold rounded numbers, and real differences are refused with numbers."""

import numpy as np
import pytest

from trunkline.data.scans.formats.scan import Grid, difference

SHAPE = (512, 512, 100)
AFFINE = np.array([[-0.703125, 0, 0, 180], [0, 0.703125, 0.1, -170], [0, 0, 2.5, -900], [0, 0, 0, 1.0]])


def changed(**entries):
    affine = AFFINE.copy()
    for place, value in entries.items():
        affine[int(place[1]), int(place[2])] += value
    return Grid(SHAPE, affine)


def worst(a, b):
    """Voxels of ``a`` between one corner and another, by a slow loop."""
    apart = 0.0
    for corner in np.ndindex(2, 2, 2):
        index = np.array([side * (size - 1) for side, size in zip(corner, SHAPE, strict=True)])
        there = b.affine @ [*index, 1]
        apart = max(apart, np.abs(np.linalg.solve(a.affine, there)[:3] - index).max())
    return apart


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (changed(), True),
        (changed(a00=1e-4), True),  # 0.703225 for 0.703125 from voxel to voxel: 0.05 mm at the far corner
        (changed(a00=7e-5, a11=-7e-5, a22=2.5e-4), True),  # 1e-4 of a voxel along each axis
        (changed(a03=0.06), True),
        (changed(a03=0.08), False),
        (changed(a22=0.0026), False),
        (changed(a00=1e-3), False),
        (changed(a23=1.25), False),
    ],
)
def test_a_tenth_of_a_voxel_at_the_corners(other, same):
    grid = Grid(SHAPE, AFFINE)
    assert (worst(grid, other) <= 0.1) == same
    text = difference(grid, other)
    assert (text is None) == same
    if not same:
        assert text.startswith("corners lie up to ") and " mm apart" in text


def test_one_step_in_ten_thousand_however_large_the_grid():
    large, step = Grid((4000, 10, 10), np.eye(4)), np.diag([1.0001, 1, 1, 1])
    assert difference(large, Grid((4000, 10, 10), step)) is None  # 0.4 voxels at the far corner
    assert (
        difference(large, Grid((4000, 10, 10), np.diag([1.0002, 1, 1, 1])))
        == "corners lie up to 0.8 mm apart"
    )


def test_tolerances_follow_the_voxels_not_millimetres():
    fine, coarse = np.diag([0.01, 0.01, 0.01, 1]), np.diag([10.0, 10, 10, 1])
    for affine, moved, same in ((fine, 0.005, False), (coarse, 0.9, True), (coarse, 1.1, False)):
        other = affine.copy()
        other[0, 3] += moved
        assert (difference(Grid((9, 9, 9), affine), Grid((9, 9, 9), other)) is None) == same
        assert (difference(Grid((9, 9), affine), Grid((9, 9), other)) is None) == same


def test_the_thickness_of_a_single_slice():
    one, rounded, other = (np.diag([1.0, 1, mm, 1]) for mm in (5, 5.001, 6))
    assert difference(Grid((9, 9, 1), one), Grid((9, 9, 1), rounded)) is None
    assert difference(Grid((9, 9, 1), one), Grid((9, 9, 1), other)) == "voxels differ by up to 1 mm"
    assert difference(Grid((9, 9), one), Grid((9, 9), other)) is None  # images have no thickness
