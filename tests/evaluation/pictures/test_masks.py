"""Overlays, legends and id masks: every pixel that can be worked out by hand is."""

import numpy as np
import pytest
import torch
from PIL import Image

from trunkline.data.shared.io import read_mask
from trunkline.evaluation.pictures.masks import draw_legend, draw_mask, save_id_mask, with_legend

COLOURS = np.array([[200, 0, 0], [0, 100, 250], [10, 20, 30]], np.uint8)
NAMES = ["ant", "bee", "cat"]
GREY = np.full((20, 30, 3), 120, np.uint8)


def blend(label, opacity, ground=120):
    return np.rint(ground * (1 - opacity) + COLOURS[label] * opacity).astype(np.uint8)


def two_halves(height=20, width=30):
    labels = np.zeros((height, width), np.uint8)
    labels[:, width // 2 :] = 1
    return labels


@pytest.mark.parametrize("opacity", [0.0, 0.25, 0.33, 1.0])
def test_colours_are_blended_by_the_opacity(opacity):
    picture = draw_mask(GREY, two_halves(), COLOURS, opacity)
    assert picture.dtype == np.uint8 and picture.shape == GREY.shape
    np.testing.assert_array_equal(picture[:, :14], np.broadcast_to(blend(0, opacity), (20, 14, 3)))
    np.testing.assert_array_equal(picture[:, 16:], np.broadcast_to(blend(1, opacity), (20, 14, 3)))
    # The outlines: a pixel on either side, in the full colours.
    np.testing.assert_array_equal(picture[:, 14], np.broadcast_to(COLOURS[0], (20, 3)))
    np.testing.assert_array_equal(picture[:, 15], np.broadcast_to(COLOURS[1], (20, 3)))


def test_half_is_the_usual_opacity():
    labels = two_halves()
    np.testing.assert_array_equal(draw_mask(GREY, labels, COLOURS), draw_mask(GREY, labels, COLOURS, 0.5))


def test_outline_of_a_square_lies_inside_it():
    labels = np.full((20, 30), 255, np.uint8)
    labels[5:10, 8:14] = 2
    picture = draw_mask(GREY, labels, COLOURS, 0.5)
    expected = GREY.copy()
    expected[5:10, 8:14] = COLOURS[2]
    expected[6:9, 9:13] = blend(2, 0.5)
    np.testing.assert_array_equal(picture, expected)


@pytest.mark.parametrize(("side", "width"), [(100, 1), (800, 2), (1600, 4)])
def test_outlines_grow_with_the_image(side, width):
    image = np.zeros((side, side, 3), np.uint8)
    picture = draw_mask(image, two_halves(side, side), COLOURS, 0.0)
    assert (picture[side // 2] > 0).any(axis=1).sum() == 2 * width


def test_ignored_pixels_stay_as_they_are():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    np.testing.assert_array_equal(draw_mask(image, np.full((20, 30), 255, np.uint8), COLOURS, 1.0), image)
    labels = two_halves()
    labels[3:6, 10:20] = 255
    picture = draw_mask(image, labels, COLOURS, 1.0)
    np.testing.assert_array_equal(picture[3:6, 10:20], image[3:6, 10:20])
    np.testing.assert_array_equal(picture[10], COLOURS[labels[10]])


def test_arguments_are_not_modified_and_tensors_will_do():
    image, labels = GREY.copy(), two_halves()
    picture = draw_mask(torch.from_numpy(image), torch.from_numpy(labels), torch.from_numpy(COLOURS))
    np.testing.assert_array_equal(image, GREY)
    np.testing.assert_array_equal(labels, two_halves())
    np.testing.assert_array_equal(picture, draw_mask(image, labels, COLOURS.tolist()))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 1)])
def test_very_small_images(shape):
    image, labels = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
    assert (draw_mask(image, labels, COLOURS, 1.0) == COLOURS[0]).all()
    assert with_legend(image, labels, NAMES, COLOURS).shape[1] == shape[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": GREY[..., 0]}, r"image must be \[h, w, 3\] uint8, got \[20, 30\]"),
        ({"image": GREY / 255}, "float64"),
        ({"labels": two_halves()[:5]}, r"labels must be \[20, 30\] uint8, got \[5, 30\]"),
        ({"labels": two_halves().astype(int)}, r"labels must be \[20, 30\] uint8"),
        ({"labels": two_halves() + 2}, r"labels \[3\] have no colour; there are 3"),
        ({"opacity": 1.5}, "opacity must lie in 0 to 1, got 1.5"),
        ({"colours": [[0, 0, 300]] * 3}, "colours must lie in 0..255, got 0..300"),
        ({"colours": np.zeros((256, 3), np.uint8)}, "at most 255 classes, got 256"),
    ],
)
def test_what_does_not_fit_together_is_an_error(options, message):
    usual = {"image": GREY, "labels": two_halves(), "colours": COLOURS}
    with pytest.raises(ValueError, match=message):
        draw_mask(**(usual | options))


# -- legends


def swatches(strip, colours):
    """Left top corner of each colour in the strip."""
    corners = []
    for colour in colours:
        rows, columns = np.nonzero((strip == colour).all(axis=2))
        corners.append((rows.min(), columns.min()))
    return corners


def test_legend_runs_from_left_to_right_and_wraps():
    wide, narrow = draw_legend(NAMES, COLOURS, 400), draw_legend(NAMES, COLOURS, 60)
    assert wide.shape[1] == 400 and narrow.shape[1] == 60 and wide.dtype == np.uint8
    places = swatches(wide, COLOURS)
    assert len({row for row, _ in places}) == 1 and places == sorted(places)
    places = swatches(narrow, COLOURS)
    assert len({column for _, column in places}) == 1 and len({row for row, _ in places}) == 3
    assert narrow.shape[0] > 2 * wide.shape[0]
    two = swatches(draw_legend(NAMES, COLOURS, 100), COLOURS)  # two in the first line, one in the second
    assert two[0][0] == two[1][0] < two[2][0] and two[0][1] == two[2][1] < two[1][1]


def test_names_are_written_beside_their_colours():
    named, bare = draw_legend(["ant"], COLOURS[:1], 200), draw_legend([" "], COLOURS[:1], 200)
    rows, columns = np.nonzero((named != bare).any(axis=2))
    swatch = np.nonzero((named == COLOURS[0]).all(axis=2))
    assert columns.min() > swatch[1].max() and rows.min() >= swatch[0].min() - 2
    assert named[rows, columns].min() < 60  # black on white


def test_long_names_are_cut_and_nothing_leaves_the_strip():
    long = draw_legend(["a name without end " * 9, "bee"], COLOURS[:2], 150)
    assert (long[:, -3:] == 255).all() and (long[:, -20:] < 128).any()
    places = swatches(long, COLOURS[:2])
    assert places[0][0] < places[1][0]
    assert draw_legend(["wide"], COLOURS[:1], 1).shape[1] == 1


def test_text_grows_with_the_width():
    heights = [draw_legend(["ant"], COLOURS[:1], width).shape[0] for width in (300, 800, 1100)]
    assert heights == sorted(set(heights))


def test_a_legend_of_nothing_has_no_height():
    assert draw_legend([], np.zeros((0, 3), np.uint8), 40).shape == (0, 40, 3)
    with pytest.raises(ValueError, match="got 1 names, 3 colours and 40 pixels"):
        draw_legend(["ant"], COLOURS, 40)
    with pytest.raises(ValueError, match="3 colours and 0 pixels"):
        draw_legend(NAMES, COLOURS, 0)


def test_legend_below_a_picture_shows_the_classes_in_it():
    labels = np.full((20, 30), 255, np.uint8)
    labels[:5], labels[5:9] = 2, 0
    picture = draw_mask(GREY, labels, COLOURS)
    both = with_legend(picture, labels, NAMES, COLOURS)
    np.testing.assert_array_equal(both[:20], picture)
    np.testing.assert_array_equal(both[20:], draw_legend(["ant", "cat"], COLOURS[[0, 2]], 30))
    empty = with_legend(picture, np.full((20, 30), 255, np.uint8), NAMES, COLOURS)
    np.testing.assert_array_equal(empty, picture)
    with pytest.raises(ValueError, match="2 names and 3 colours"):
        with_legend(picture, labels, NAMES[:2], COLOURS)
    with pytest.raises(ValueError, match=r"labels \[9\] have no colour"):
        with_legend(picture, np.full((4, 4), 9, np.uint8), NAMES, COLOURS)


# -- id masks


@pytest.mark.parametrize("shape", [(16, 16), (3, 7), (1, 1)])
def test_ids_are_read_back_and_shown_in_their_colours(tmp_path, shape):
    """All ids from 0 to 255, whatever is in the palette: Pillow must not pack or sort them."""
    ids = np.resize(np.arange(255, -1, -1), shape).astype(np.uint8)
    path = save_id_mask(tmp_path / "new" / "a.png", ids, {7: (1, 2, 3), 255: (9, 8, 7), 0: (0, 0, 1)})
    with Image.open(path) as opened:
        assert opened.mode == "P" and opened.format == "PNG"
        np.testing.assert_array_equal(np.asarray(opened), ids)
        expected = np.zeros((*shape, 3), np.uint8)
        expected[ids == 7], expected[ids == 255], expected[ids == 0] = (1, 2, 3), (9, 8, 7), (0, 0, 1)
        np.testing.assert_array_equal(np.asarray(opened.convert("RGB")), expected)


def test_ids_beyond_a_palette_are_written_with_16_bits(tmp_path):
    ids = np.arange(65536, dtype=np.uint16).reshape(256, 256)[:, ::-1]
    path = save_id_mask(tmp_path / "a.png", ids, {300: (1, 2, 3)})
    np.testing.assert_array_equal(read_mask(path), ids)


def test_few_ids_and_strided_arrays(tmp_path):
    ids = np.arange(40, dtype=np.uint8).reshape(5, 8)[::2, 1::3]
    path = save_id_mask(tmp_path / "a.png", torch.from_numpy(ids.copy()), {})
    np.testing.assert_array_equal(np.asarray(Image.open(path)), ids)
    np.testing.assert_array_equal(np.asarray(Image.open(save_id_mask(path, ids, {1: (2, 3, 4)}))), ids)
    assert [item.name for item in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("name", "ids", "palette", "message"),
    [
        ("a.jpg", np.zeros((2, 2), np.uint8), {}, r"a\.jpg: .* must end in \.png"),
        ("a.png", np.zeros((2, 2)), {}, r"a\.png: ids must be .* or uint16, got \[2, 2\] float64"),
        ("a.png", np.zeros((2, 2, 3), np.uint8), {}, r"got \[2, 2, 3\]"),
        ("a.png", np.zeros((0, 2), np.uint8), {}, r"got \[0, 2\]"),
        ("a.png", np.zeros((2, 2), np.uint8), {256: (0, 0, 0)}, "palette has id 256"),
        ("a.png", np.zeros((2, 2), np.uint8), {1: (0, 0, 256)}, r"colour \(0, 0, 256\)"),
        ("a.png", np.zeros((2, 2), np.uint8), {1: (0, 0)}, r"colour \(0, 0\)"),
    ],
)
def test_bad_id_masks_leave_no_file(tmp_path, name, ids, palette, message):
    with pytest.raises(ValueError, match=message):
        save_id_mask(tmp_path / name, ids, palette)
    assert not list(tmp_path.iterdir())
