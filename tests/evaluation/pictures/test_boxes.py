"""Pictures pixel by pixel."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from trunkline.evaluation.pictures.boxes import class_colour, contact_sheet, draw_boxes, save_picture

GREY = np.full((60, 80, 3), 100, dtype=np.uint8)


def changed(picture, before=GREY):
    return (picture != before).any(axis=2)


def test_frame_is_exactly_the_border_of_the_box():
    picture = draw_boxes(GREY, [(10, 20, 14, 23)], [""], classes=[3])
    rows = [
        "####",
        "#..#",
        "####",
    ]
    expected = np.zeros((60, 80), dtype=bool)
    expected[20:23, 10:14] = [[cell == "#" for cell in row] for row in rows]
    np.testing.assert_array_equal(changed(picture), expected)
    assert (picture[expected] == class_colour(3)).all()


def test_fractions_go_outwards_and_flat_boxes_still_show():
    wide = changed(draw_boxes(GREY, [(10.4, 20.9, 13.1, 22.2)], [""]))
    np.testing.assert_array_equal(wide, changed(draw_boxes(GREY, [(10, 20, 14, 23)], [""])))
    for box in ((10, 20, 11, 21), (10, 20, 10, 20)):
        assert np.argwhere(changed(draw_boxes(GREY, [box], [""]))).tolist() == [[20, 10]]


def test_box_partly_outside_is_cut_at_the_edge():
    np.testing.assert_array_equal(
        draw_boxes(GREY, [(-30, 40, 20, 1e9)], ["cat"]), draw_boxes(GREY, [(0, 40, 20, 60)], ["cat"])
    )


@pytest.mark.parametrize(
    "box", [(-9, -9, -1, -1), (80, 0, 90, 10), (0, 60, 5, 70), (1, np.nan, 9, 9), (np.inf,) * 4]
)
def test_box_outside_is_left_out_with_its_label(box):
    assert not changed(draw_boxes(GREY, [box], ["cat"], [0.5], truth_boxes=[box], truth_labels=["cat"])).any()


@pytest.mark.parametrize("boxes", [[], np.zeros((0, 4)), torch.zeros(0, 4)])
def test_no_boxes_no_change(boxes):
    picture = draw_boxes(GREY, boxes, [], scores=[], classes=[], truth_boxes=boxes, truth_labels=[])
    np.testing.assert_array_equal(picture, GREY)
    assert picture is not GREY and not np.shares_memory(picture, GREY)


def test_input_is_not_modified():
    image, boxes = GREY.copy(), np.array([[3.5, 3, 30, 30]])
    draw_boxes(image, boxes, ["cat"], [0.9], [1], boxes, ["cat"])
    np.testing.assert_array_equal(image, GREY)
    np.testing.assert_array_equal(boxes, [[3.5, 3, 30, 30]])


def test_tensors_draw_as_arrays_do():
    boxes = torch.tensor([[3.0, 20, 30, 50]])
    one = draw_boxes(torch.from_numpy(GREY), boxes, ["cat"], torch.tensor([0.25]), torch.tensor([2]))
    np.testing.assert_array_equal(one, draw_boxes(GREY, [(3, 20, 30, 50)], ["cat"], [0.25], [2]))


@pytest.mark.parametrize(("side", "width"), [(100, 1), (600, 2), (1500, 5)])
def test_line_width_grows_with_the_image(side, width):
    image = np.zeros((side, side, 3), dtype=np.uint8)
    picture = draw_boxes(image, [(10, 10, 90, 90)], [""])
    assert changed(picture, image)[50, 10:50].sum() == width


def label_of(**options):
    """Pixels that change because of the label, with a box in the middle of an image of 200 x 300."""
    image = np.full((200, 300, 3), 100, dtype=np.uint8)
    box = [(100, 100, 180, 160)]
    with_label = draw_boxes(image, box, options.pop("labels"), classes=[1], **options)
    return with_label, changed(with_label, draw_boxes(image, box, [""], classes=[1]))


def test_label_lies_above_its_box_on_the_colour_of_the_class():
    picture, where = label_of(labels=["cat"])
    rows, columns = np.nonzero(where)
    assert rows.max() == 99 and columns.min() == 100 and rows.min() > 80
    inside = picture[rows.min() : 100, 100 : columns.max() + 1].reshape(-1, 3)
    ground = (inside == class_colour(1)).all(axis=1).mean()
    assert 0.4 < ground < 0.95  # the rest is the text


def test_score_and_longer_text_make_the_label_longer():
    widths = []
    for options in (
        {"labels": ["cat"]},
        {"labels": ["cat"], "scores": [0.5]},
        {"labels": ["catalogue of cats"]},
    ):
        widths.append(np.nonzero(label_of(**options)[1])[1].max())
    assert widths == sorted(set(widths))
    half, other = (label_of(labels=["cat"], scores=[score])[0] for score in (0.5, 0.51))
    assert (half != other).any()


@pytest.mark.parametrize("box", [(0, 0, 20, 20), (290, 0, 300, 200), (280, 190, 300, 200), (0, 195, 9, 200)])
def test_label_stays_whole_inside_the_image(box):
    image = np.full((200, 300, 3), 100, dtype=np.uint8)
    plain = draw_boxes(image, [box], [""], classes=[1])
    area = changed(draw_boxes(image, [box], ["a long label"], classes=[1]), image).sum()
    free = changed(draw_boxes(image, [(100, 100, 110, 110)], ["a long label"], classes=[1]), image)
    label = free[:100].sum()
    # The label covers as much as one with room on all sides, but for where it lies on the frame itself.
    assert label - changed(plain, image).sum() <= area - changed(plain, image).sum() <= label


def test_labels_of_neighbours_do_not_hide_each_other():
    image = np.full((200, 300, 3), 100, dtype=np.uint8)
    boxes = [(100, 100, 180, 160), (102, 101, 181, 160)]

    def ground(picture, index):
        return (picture == class_colour(index)).all(axis=2).sum()

    labelled, plain = (draw_boxes(image, boxes, [text] * 2, classes=[0, 1]) for text in ("the cat", ""))
    for index, box in enumerate(boxes):
        alone, frame = (draw_boxes(image, [box], [text], classes=[index]) for text in ("the cat", ""))
        label = ground(alone, index) - ground(frame, index)
        # But for what lies on frames, each label shows as much of its ground as it does alone.
        assert ground(labelled, index) - ground(plain, index) > 0.8 * label


def test_first_box_lies_on_top():
    picture = draw_boxes(GREY, [(10, 20, 14, 23)] * 2, ["", ""], classes=[5, 6])
    assert tuple(picture[20, 10]) == class_colour(5)


def test_very_small_image_takes_a_label():
    picture = draw_boxes(np.zeros((3, 2, 3), dtype=np.uint8), [(0, 0, 2, 3)], ["far too long"], [0.5])
    assert picture.shape == (3, 2, 3)


def test_truth_is_dashed_white_and_black_inside_its_border():
    picture = draw_boxes(GREY, [], [], truth_boxes=[(10, 20, 31, 26)])
    border = changed(draw_boxes(GREY, [(10, 20, 31, 26)], [""]))
    np.testing.assert_array_equal(changed(picture), border)
    top = picture[20, 10:31, 0].tolist()
    assert top == [255] * 5 + [0] * 5 + [255] * 5 + [0] * 5 + [255]


def test_truth_labels_are_written():
    without = draw_boxes(GREY, [], [], truth_boxes=[(10, 30, 31, 50)])
    written = draw_boxes(GREY, [], [], truth_boxes=[(10, 30, 31, 50)], truth_labels=["cat"])
    where = changed(written, without)
    assert where[:30].any() and not where[30:].any()
    values = written[:30][where[:30]]
    assert values.min() == 0 and values.max() > 200  # white, smoothed at its edges, on black


def test_colours_of_neighbouring_classes_are_far_apart():
    colours = np.array([class_colour(index) for index in range(80)], dtype=float)
    assert len(np.unique(colours, axis=0)) == 80
    for index in range(77):
        gaps = np.linalg.norm(colours[index] - colours[index + 1 : index + 4], axis=1)
        assert gaps.min() > 80


def test_colour_of_a_name_is_the_same_in_another_process():
    code = "from trunkline.evaluation.pictures import class_colour; print(class_colour('cat'))"
    # Python's own hash of a text changes with this seed.
    for seed in ("1", "2"):
        shown = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        )
        assert shown.stdout.strip() == str(class_colour("cat"))
    by_name = draw_boxes(GREY, [(10, 30, 30, 50)], ["cat"])
    assert tuple(by_name[49, 10]) == class_colour("cat") != class_colour("dog")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": []}, "1 boxes, but 0 labels"),
        ({"scores": [0.1, 0.2]}, "1 boxes, but 2 scores"),
        ({"classes": []}, "1 boxes, but 0 classes"),
        ({"truth_boxes": [(1, 1, 2, 2)], "truth_labels": []}, "1 truth_boxes, but 0 truth_labels"),
        ({"image": GREY[:, :, 0]}, r"image must be \[h, w, 3\] uint8"),
        ({"image": GREY / 255}, "float64"),
    ],
)
def test_what_does_not_fit_together_is_an_error(options, message):
    usual = {"image": GREY, "boxes": [(1, 1, 9, 9)], "labels": ["cat"]}
    with pytest.raises(ValueError, match=message):
        draw_boxes(**(usual | options))


def test_contact_sheet_by_hand():
    """Pictures of 2 x 4 and 4 x 2 pixels and a third one, in two columns: cells of 4 x 4, gaps of 1."""
    flat, tall = np.full((2, 4, 3), 200, np.uint8), np.full((4, 2, 3), 250, np.uint8)
    sheet = contact_sheet([flat, tall, flat], columns=2, gap=1)
    expected = np.full((11, 11), 32)
    expected[2:4, 1:5] = 200
    expected[1:5, 7:9] = 250
    expected[7:9, 1:5] = 200
    assert sheet.dtype == np.uint8
    np.testing.assert_array_equal(sheet, np.repeat(expected[..., None], 3, axis=2))
    assert contact_sheet([flat], columns=5, gap=0).shape == (2, 4, 3)
    for images, columns in (([], 2), ([flat], 0)):
        with pytest.raises(ValueError, match="a contact sheet needs"):
            contact_sheet(images, columns)


def test_save_picture(tmp_path):
    picture = draw_boxes(GREY, [(10, 20, 30, 40)], ["cat"])
    path = save_picture(tmp_path / "new" / "a.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)
    with Image.open(save_picture(tmp_path / "b.JPG", picture)) as opened:
        assert opened.format == "JPEG"
        assert np.abs(np.asarray(opened).astype(int) - picture).mean() < 5
    with pytest.raises(ValueError, match="suffix '.txt'"):
        save_picture(tmp_path / "c.txt", picture)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["b.JPG", "new"]
