"""Outlines of COCO files in a few tensors, against pycocotools on the values as they stand in the file."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from trunkline.data.shared.coco.outlines import Outlines, pack_outline, size_problem

SIZE = (24, 30)
BITMAP = (np.add.outer(np.arange(24), np.arange(30)) % 7 < 3).astype(np.uint8)
CODE = coco_mask.encode(np.asfortranarray(BITMAP))
POLYGONS = [[2.0, 3.0, 20.5, 3.0, 11.0, 19.0], [22.0, 2.0, 29.0, 2.0, 29.0, 22.0, 22.0, 22.0]]
COMPRESSED = {"size": list(SIZE), "counts": CODE["counts"].decode()}


def uncompressed():
    flat = BITMAP.ravel("F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.r_[0, ends, len(flat)]).tolist()
    return {"size": list(SIZE), "counts": runs if flat[0] == 0 else [0, *runs]}


def expected(segmentation):
    if isinstance(segmentation, list):
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, *SIZE)))
    return BITMAP


VALUES = [POLYGONS, COMPRESSED, uncompressed(), POLYGONS[:1]]


def test_every_form_gives_the_pixels_that_pycocotools_draws():
    outlines = Outlines.pack(pack_outline(value) for value in VALUES)
    assert len(outlines) == 4 and outlines.polygons.tolist() == [True, False, False, True]
    for number, value in enumerate(VALUES):
        found = coco_mask.decode(outlines.run_lengths(number, SIZE))
        np.testing.assert_array_equal(found, expected(value))


def test_what_goes_back_into_a_file_is_what_was_read():
    outlines = Outlines.pack(pack_outline(value) for value in VALUES)
    assert outlines.as_coco(0, SIZE) == POLYGONS
    assert outlines.as_coco(1, SIZE) == outlines.as_coco(2, SIZE) == COMPRESSED  # run lengths are compressed


def test_some_rows_in_another_order():
    outlines = Outlines.pack(pack_outline(value) for value in VALUES)
    taken = outlines.take(torch.tensor([3, 1, 1]))
    assert [taken.as_coco(number, SIZE) for number in range(3)] == [POLYGONS[:1], COMPRESSED, COMPRESSED]
    assert len(outlines.take(torch.zeros(0, dtype=torch.int64))) == 0


def test_polygons_of_fewer_than_three_corners_are_left_out_and_counted():
    outline = pack_outline([POLYGONS[0], [1.0, 2.0, 3.0, 4.0]])
    assert outline.dropped == 1 and len(outline.pieces) == 1 and outline.problem == ""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "no segmentation"),
        ([], "no segmentation"),
        ([[1.0, 2.0, 3.0, 4.0, 5.0]], "no list of x and y"),
        ([[1.0, 2.0, 3.0, 4.0, 5.0, "six"]], "no list of x and y"),
        ([[1.0, 2.0, 3.0, 4.0, 5.0, float("nan")]], "no list of x and y"),
        ({"size": [24, 30], "counts": [24 * 30 - 1]}, "without a size that they fill"),
        ({"size": [24, 31], "counts": COMPRESSED["counts"]}, "without a size that they fill"),
        ({"size": [24, 30], "counts": COMPRESSED["counts"][:-1]}, "without a size that they fill"),
        ({"size": [24], "counts": [24]}, "without a size that they fill"),
        ({"size": [24, 30], "counts": [-1, 721]}, "without a size that they fill"),
    ],
)
def test_what_cannot_be_drawn_says_why(value, words):
    assert words in pack_outline(value).problem


def test_run_lengths_of_another_size_than_the_image_are_a_problem():
    assert size_problem(pack_outline(COMPRESSED), SIZE) == ""
    assert "[24, 30], but the image has [30, 24]" in size_problem(pack_outline(COMPRESSED), (30, 24))
    assert size_problem(pack_outline(POLYGONS), (30, 24)) == ""
