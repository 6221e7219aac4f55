"""Confusion pictures: which cell is where and how dark."""

import numpy as np
import pytest

from trunkline.evaluation.pictures.confusion import CELL, FULL, MOST_CLASSES, cell_colours, draw_confusion

NAMES = ["ant", "bee", "cat"]


def cells_of(picture, classes, cell):
    """The [K, K, cell, cell, 3] cells: they end MARGIN pixels before the right and lower border."""
    side = classes * cell
    part = picture[-side - 8 : -8, -side - 8 : -8]
    return part.reshape(classes, cell, classes, cell, 3).swapaxes(1, 2)


def test_colours_by_hand():
    """White for no image, the full colour for all of a row; a quarter lies half-way (the root)."""
    colours = cell_colours(np.array([[4, 0, 0], [3, 0, 1], [0, 0, 0]]))
    assert colours[0].tolist() == [FULL.tolist(), [255] * 3, [255] * 3]
    assert colours[1, 2].tolist() == pytest.approx(((255 + FULL) / 2).tolist(), abs=0.5)
    assert (colours[2] == 255).all()


def test_truth_runs_down_and_prediction_to_the_right():
    matrix = np.zeros((3, 3), int)
    matrix[0, 2] = 7
    cells = cells_of(draw_confusion(matrix, NAMES), 3, CELL)
    dark = (cells[:, :, 1, 1] == FULL).all(-1)
    assert dark.tolist() == [[False, False, True], [False] * 3, [False] * 3]


def test_numbers_stand_in_their_cells_and_zeros_do_not():
    cells = cells_of(draw_confusion([[5, 0, 0], [0, 0, 12], [0, 0, 0]], NAMES), 3, CELL)
    several = [[len(np.unique(cells[r, c].reshape(-1, 3), axis=0)) > 1 for c in range(3)] for r in range(3)]
    assert several == [[True, False, False], [False, False, True], [False] * 3]
    assert (cells[0, 0] == 255).all(-1).any()  # white on dark
    light = cells_of(draw_confusion([[9, 1, 0], [0, 1, 0], [0, 0, 1]], NAMES), 3, CELL)[0, 1]
    assert light.min() < 60  # black on light


def test_numbers_that_do_not_fit_are_given_in_thousands_and_millions_or_left_out():
    def first_cell(number):
        return cells_of(draw_confusion(np.diag([number, 1, 1]), NAMES), 3, CELL)[0, 0]

    assert (first_cell(123_456_789_012) == FULL).all()
    thousands = first_cell(123_456)
    assert not (thousands == FULL).all() and np.array_equal(thousands, first_cell(123_321))  # 123k
    assert not np.array_equal(thousands, first_cell(124_400))
    assert np.array_equal(first_cell(12_345_678), first_cell(12_222_222))  # 12M
    assert not np.array_equal(first_cell(1234), first_cell(1235))  # fit as they are


def test_names_make_room_for_themselves():
    """Longer names widen the border on both sides, and are cut at 24 letters."""
    matrix = np.eye(3, dtype=int)
    short, longer, cut = (draw_confusion(matrix, [name, "b", "c"]) for name in ("a", "a" * 20, "a" * 300))
    assert short.shape[0] < longer.shape[0] < cut.shape[0] < short.shape[0] + 300
    assert short.shape[0] == short.shape[1] and longer.shape[0] == longer.shape[1]
    left, other = draw_confusion(matrix, ["ant", "b", "c"]), draw_confusion(matrix, ["ent", "b", "c"])
    where = (left != other).any(-1)
    side = 3 * CELL + 8
    assert (
        where[-side:, :-side].any() and where[:-side, -side:].any()
    )  # beside the rows and above the columns
    assert not where[-side:, -side:].any() and not where[:-side, :-side].any()


def test_many_classes_get_small_cells_without_names():
    classes = 1000
    matrix = np.eye(classes, dtype=int)
    matrix[3, 3], matrix[3, 990] = 0, 5
    picture = draw_confusion(matrix, [f"class {k}" for k in range(classes)])
    cells = cells_of(picture, classes, 1)[:, :, 0, 0]
    assert max(picture.shape) < 1100
    dark = (cells == FULL).all(-1)
    assert dark.sum() == classes and dark[3, 990] and not dark[3, 3]


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="3 classes must be square, got .2, 2."):
        draw_confusion(np.eye(2), NAMES)
    with pytest.raises(ValueError, match="0 classes"):
        draw_confusion(np.zeros((0, 0)), [])
    many = MOST_CLASSES + 1
    with pytest.raises(ValueError, match=f"at most {MOST_CLASSES}"):
        draw_confusion(np.zeros((many, many)), ["x"] * many)
