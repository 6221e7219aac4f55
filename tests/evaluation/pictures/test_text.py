"""Texts in pictures: any name can be drawn, and none hides the picture."""

import numpy as np
import pytest
from PIL import Image

from trunkline.evaluation.pictures.attempts import Attempts
from trunkline.evaluation.pictures.boxes import draw_boxes, save_picture
from trunkline.evaluation.pictures.confusion import draw_confusion
from trunkline.evaluation.pictures.masks import draw_legend, with_legend
from trunkline.evaluation.pictures.text import readable

GROUND = np.full((60, 200, 3), 90, np.uint8)
ODD = ["line\nfeed", "tab\tand\r\n", "nul\0", "\ud800", "猫", "🐱 cat", "x" * 500, "", " ", "‮txet", "\u0301"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("café naïve Łódź straße", "cafe naive Lodz strasse"),
        ("e\u0301", "e"),
        ("line\nfeed\tand\0more", "line feed and more"),
        ("猫と犬", "? #3"),
        ("wild 猫", "wild ? #3"),
        ("really?", "really?"),
        ("\n", " #3"),
        ("", ""),
        ("x" * 40, "x" * 31 + "…"),
    ],
)
def test_what_is_drawn_of_a_text(text, expected):
    assert readable(text, 3) == expected


@pytest.mark.parametrize("name", ODD)
def test_any_name_can_be_drawn(name):
    drawn = draw_boxes(GROUND, [[20, 30, 90, 50]], [name], [0.5], [1], [[5, 5, 30, 30]], [name])
    assert drawn.shape == GROUND.shape and (drawn != GROUND).any()
    assert draw_legend([name, "b"], [[1, 2, 3], [4, 5, 6]], 40).shape[1] == 40
    assert draw_confusion([[1, 0], [2, 3]], [name, "b"]).ndim == 3


def test_names_that_look_alike_in_the_font_are_told_apart_by_their_numbers():
    labels = ["猫", "犬"]
    one, other = (draw_boxes(GROUND, [[20, 30, 90, 50]], [name], classes=[0]) for name in labels)
    third = draw_boxes(GROUND, [[20, 30, 90, 50]], ["犬"], classes=[8])
    assert (one == other).all() and (one != third).any()


def test_a_long_name_leaves_the_most_of_a_picture():
    drawn = draw_boxes(np.full((300, 600, 3), 90, np.uint8), [[20, 90, 90, 250]], ["x" * 500], classes=[1])
    assert (drawn == 90).all(axis=2).mean() > 0.8


def test_a_legend_of_very_many_classes_names_the_largest():
    labels = np.repeat(np.arange(250, dtype=np.uint8), np.arange(1, 251))[None]
    names, colours = [f"class {k}" for k in range(250)], np.zeros((250, 3), np.uint8)
    picture = np.zeros((100, 400, 3), np.uint8)
    large = with_legend(picture, labels, names, colours)
    forty = with_legend(picture, labels[labels >= 210][None], names, colours)
    assert forty.shape[0] <= large.shape[0] <= forty.shape[0] + 40


def test_a_jpeg_is_made_smaller_than_its_limit(tmp_path):
    with Image.open(save_picture(tmp_path / "a.jpg", np.zeros((2, 70000, 3), np.uint8))) as opened:
        assert opened.size == (65500, 2)


def test_what_goes_wrong_with_pictures_is_said_once(caplog):
    attempts = Attempts()

    def draw(error):
        raise error

    for number in range(3):
        assert attempts.attempt(f"{number}.png", lambda: draw(TypeError("wrong"))) is None
    assert attempts.attempt("good.png", lambda: 5) == 5
    assert [record.getMessage() for record in caplog.records] == [
        "no picture of 0.png: TypeError: wrong; the results are not affected, and pictures that fail from "
        "now on are only counted"
    ]
    attempts.finish()
    assert caplog.records[-1].getMessage() == "3 pictures could not be drawn or written"


def test_after_a_full_disk_no_more_pictures_are_tried(caplog):
    def full():
        raise OSError(28, "No space left on device")

    attempts = Attempts()
    attempts.attempt("a.png", full)
    assert attempts.attempt("b.png", lambda: pytest.fail("tried")) is None
    assert "No space left on device; the results are not affected, and no more" in caplog.text
