"""Resampling of any shape: ranges, constants, round trips, labels that exist, and single voxels."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.data.scans.prepare.resample import resample, resample_labels, resampled_lengths

quick = settings(max_examples=30, derandomize=True, deadline=None, database=None)
shapes = st.lists(st.integers(1, 9), min_size=2, max_size=3)


def pairs():
    """An old shape, a new one of as many axes, and an order of interpolation per axis."""
    return shapes.flatmap(
        lambda shape: st.tuples(
            st.just(tuple(shape)),
            st.tuples(*[st.integers(1, 13)] * len(shape)),
            st.tuples(*[st.sampled_from((0, 1, 3))] * len(shape)),
        )
    )


@quick
@given(pairs(), st.integers(0, 9), st.sampled_from((1.0, 1e-30, 1e30)))
def test_values_stay_in_the_range_of_their_channel(shapes, seed, scale):
    old, new, orders = shapes
    rng = np.random.default_rng(seed)
    voxels = (rng.standard_normal((2, *old)) * scale).astype(np.float32)
    voxels[1] = 3 * scale  # a constant stays one
    found = resample(voxels, new, orders)
    assert found.shape == (2, *new) and found.dtype == np.float32 and np.isfinite(found).all()
    slack = np.float32(1e-5 * scale) * 3
    assert found[0].min() >= voxels[0].min() - slack and found[0].max() <= voxels[0].max() + slack
    np.testing.assert_allclose(found[1], voxels[1].flat[0], rtol=1e-5)


@quick
@given(pairs(), st.integers(1, 3), st.integers(0, 9))
def test_nearest_comes_back_from_a_multiple_and_mirrors(shapes, factor, seed):
    old, _, _ = shapes
    labels = np.random.default_rng(seed).integers(0, 256, old).astype(np.uint8)
    larger = resample_labels(labels, tuple(factor * length for length in old), (0,) * len(old))
    expected = labels
    for axis in range(len(old)):
        expected = expected.repeat(factor, axis)
    assert np.array_equal(larger, expected)
    if factor % 2:  # the centres of the old voxels are centres again
        assert np.array_equal(resample_labels(larger, old, (0,) * len(old)), labels)


@quick
@given(pairs(), st.integers(0, 9))
def test_no_label_appears_that_was_not_there(shapes, seed):
    old, new, orders = shapes
    orders = tuple(min(order, 1) for order in orders)
    labels = np.random.default_rng(seed).choice(np.array([0, 1, 7, 254, 255], np.uint8), old)
    found = resample_labels(labels, new, orders)
    assert found.shape == new and set(np.unique(found)) <= set(np.unique(labels))
    one = np.full(old, 255, np.uint8)
    assert (resample_labels(one, new, orders) == 255).all()


@quick
@given(shapes, st.lists(st.sampled_from((1e-3, 0.3, 1.0, 5.0, 1e4)), min_size=6, max_size=6))
def test_extents_are_kept_within_half_a_voxel(shape, spacings):
    old, wanted = spacings[: len(shape)], spacings[3 : 3 + len(shape)]
    for length, before, after, new in zip(
        shape, old, wanted, resampled_lengths(shape, old, wanted), strict=True
    ):
        assert new == 1 or abs(new * after - length * before) <= 0.5 * after * (1 + 1e-9)
        assert new >= 1
