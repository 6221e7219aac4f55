"""Masks of anything hypothesis draws come back pixel by pixel from each form in which COCO writes them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from trunkline.data.shared.coco.outlines import Outlines, pack_outline

quick = settings(max_examples=25, derandomize=True, deadline=None, database=None)
masks = arrays.arrays(
    np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.integers(0, 1)
)


def runs_of(mask):
    """COCO's run lengths by a loop: down the columns, zeros first."""
    runs, value = [0], 0
    for pixel in mask.T.flatten().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


@quick
@given(masks)
def test_run_lengths_of_any_mask_come_back(mask):
    size = list(mask.shape)
    packed = coco_mask.encode(np.asfortranarray(mask))
    forms = [
        {"size": size, "counts": packed["counts"].decode()},
        {"size": size, "counts": runs_of(mask)},
        {"size": size, "counts": [*runs_of(mask), 0, 0]},  # runs of nothing at the end
    ]
    outlines = Outlines.pack(pack_outline(form) for form in forms)
    for row, form in enumerate(forms):
        assert not pack_outline(form).problem
        assert np.array_equal(coco_mask.decode(outlines.run_lengths(row, size)), mask)
        again = pack_outline(outlines.as_coco(row, size))
        assert np.array_equal(coco_mask.decode({"size": size, "counts": again.pieces[0]}), mask)


@quick
@given(masks, st.sampled_from((-1, 1, 2**32, 2**62)))
def test_run_lengths_that_fill_another_number_of_pixels_are_a_problem(mask, more):
    runs = runs_of(mask)
    runs[-1] += more
    if runs[-1] >= 0:
        assert pack_outline({"size": list(mask.shape), "counts": runs}).problem


coordinate = st.one_of(st.integers(-3, 9).map(float), st.floats(-20, 20, allow_nan=False))


@quick
@given(
    st.lists(
        st.lists(coordinate, min_size=6, max_size=12).filter(lambda x: len(x) % 2 == 0),
        min_size=1,
        max_size=3,
    ),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_polygons_are_those_that_pycocotools_draws(polygons, size):
    outlines = Outlines.pack([pack_outline(polygons)])
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size)))
    assert np.array_equal(coco_mask.decode(outlines.run_lengths(0, size)), expected)
    assert outlines.as_coco(0, size) == polygons
