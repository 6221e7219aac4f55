"""Distances between surfaces of any two masks, also of single voxels, slices and rows, beside a slow loop."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trunkline.evaluation.volumes.evaluator import case_metrics
from trunkline.evaluation.volumes.surfaces import surface_distances

quick = settings(max_examples=40, derandomize=True, deadline=None, database=None)
shapes = arrays.array_shapes(min_dims=2, max_dims=3, max_side=4)
pairs = shapes.flatmap(lambda shape: st.tuples(*[arrays.arrays(np.bool_, shape)] * 2))
sizes = st.lists(st.sampled_from((1e-3, 0.7, 1.0, 1e3)), min_size=3, max_size=3)


def surface(mask):
    """Voxels with a neighbour outside, along axes of more than one voxel; all if there is no such axis."""
    thick = [axis for axis, length in enumerate(mask.shape) if length > 1] or [0]
    found = []
    for voxel in itertools.product(*map(range, mask.shape)):
        neighbours = [
            tuple(at + step * (other == axis) for other, at in enumerate(voxel))
            for axis in thick
            for step in (-1, 1)
        ]
        inside = [
            all(0 <= at < length for at, length in zip(n, mask.shape, strict=True)) and mask[n]
            for n in neighbours
        ]
        if mask[voxel] and not all(inside):
            found.append(voxel)
    return found


def distances(ones, others, spacing):
    return sorted(
        min(
            math.hypot(*((a - b) * s for a, b, s in zip(one, other, spacing, strict=True)))
            for other in others
        )
        for one in ones
    )


@quick
@given(pairs, sizes)
def test_distances_are_those_of_a_loop(masks, spacing):
    mine, true = masks
    spacing = spacing[: mine.ndim]
    if not (mine.any() and true.any()):
        with pytest.raises(ValueError, match="without a voxel"):
            surface_distances(mine, true, spacing)
        return
    found = surface_distances(mine, true, spacing)
    one, other = surface(mine), surface(true)
    np.testing.assert_allclose(sorted(found.predicted), distances(one, other, spacing), rtol=1e-5)
    np.testing.assert_allclose(sorted(found.truth), distances(other, one, spacing), rtol=1e-5)
    back = surface_distances(true, mine, spacing)
    assert back.hausdorff() == found.hausdorff() and back.dice(1.0) == found.dice(1.0)
    assert (found.hausdorff(100) == 0) == (set(one) == set(other))


@quick
@given(pairs, sizes)
def test_metrics_are_in_range_or_not_defined(masks, spacing):
    mine, true = (mask.astype(np.uint8) for mask in masks)
    assume(mine.ndim == 3)
    found = case_metrics(mine, true, {"organ": [1]}, spacing)["organ"]
    if not (mine.any() or true.any()):
        assert math.isnan(found["Dice"]) and math.isnan(found["HD95_mm"])
        return
    assert 0 <= found["Dice"] <= 1 and 0 <= found["surface_Dice"] <= 1
    longest = math.hypot(*(size * length for size, length in zip(spacing, mine.shape, strict=True)))
    assert 0 <= found["HD95_mm"] <= longest * (1 + 1e-6)
    assert (found["Dice"] == 1) == np.array_equal(mine, true)
