"""Boxes of another form are told from boxes in pixels, and boxes in pixels are left alone."""

import json
import logging

import numpy as np
import pytest

from trunkline.data.detection.index import read_coco
from trunkline.data.shared.coco.fields import AnnotationError
from trunkline.data.shared.coco.units import other_form, require_pixels, warn_of_areas, warn_of_corner

SIDES = {"width": 640, "height": 480}


def pixels(seed, count=60):
    """``[count, 4]`` boxes in images of 640x480, some of them touching a border."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, (560, 420), (count, 2))
    last = np.minimum(rng.uniform(4, 300, (count, 2)), (640, 480) - low)
    return np.concatenate([low, last], axis=1)


def as_corners(boxes):
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def as_centres(boxes):
    return np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)


def sizes_of(boxes):
    return np.tile([480, 640], (len(boxes), 1))


def read(tmp_path, boxes, **options):
    records = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": box.tolist()} for n, box in enumerate(boxes)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", **SIDES}],
        "annotations": records,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return read_coco(tmp_path / "boxes.json", tmp_path, **options)


@pytest.mark.parametrize("seed", range(5))
def test_boxes_in_pixels_are_read_without_a_word(tmp_path, seed, caplog):
    boxes = pixels(seed)
    with caplog.at_level(logging.INFO, "trunkline"):
        np.testing.assert_array_equal(read(tmp_path, boxes).boxes_xywh.numpy(), boxes)
    assert not caplog.records


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("on_bad_box", ["error", "clip", "drop"])
def test_fractions_are_refused_whatever_the_option(tmp_path, seed, on_bad_box):
    boxes = pixels(seed) / (640, 480, 640, 480)
    with pytest.raises(AnnotationError, match="60 of 60 boxes lie within 0 and 1.*multiply x and width by"):
        read(tmp_path, boxes, on_bad_box=on_bad_box)


@pytest.mark.parametrize("form", [as_corners, as_centres])
def test_fractions_in_another_form_are_fractions(tmp_path, form):
    boxes = form(pixels(0)) / (640, 480, 640, 480)
    with pytest.raises(AnnotationError, match="60 of 60 boxes lie within 0 and 1"):
        read(tmp_path, boxes)


def test_some_fractions_are_a_warning_and_small_images_have_small_boxes(tmp_path, caplog):
    boxes = pixels(0)
    boxes[:29] /= (640, 480, 640, 480)
    assert len(read(tmp_path, boxes).boxes) == 60
    assert "29 of 60 boxes lie within 0 and 1" in caplog.text
    require_pixels("boxes", np.ones(3), np.full((3, 2), 4), "", tmp_path)  # images of 4x4 pixels
    require_pixels("boxes", np.zeros(0), np.zeros((0, 2), int), "", tmp_path)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("form", "words"), [(as_corners, "x1, y1, x2, y2"), (as_centres, "the centre")])
def test_other_forms_are_guessed_by_what_fits(tmp_path, seed, form, words, caplog):
    boxes = form(pixels(seed))
    with pytest.raises(
        AnnotationError, match=f"boxes leave their image, but all fit if the numbers are {words}"
    ):
        read(tmp_path, boxes)
    with caplog.at_level(logging.WARNING, "trunkline"):
        read(tmp_path, boxes, on_bad_box="clip")
    assert f"all fit if the numbers are {words}" in caplog.text


@pytest.mark.parametrize("seed", range(5))
def test_sloppy_boxes_are_of_no_other_form(seed):
    boxes = pixels(seed)
    assert other_form(boxes, sizes_of(boxes)) == ""
    boxes[:20, 2:] += 60  # a third may leave the image, the others are as they were
    assert other_form(boxes, sizes_of(boxes)) == ""
    assert other_form(np.zeros((0, 4)), np.zeros((0, 2))) == ""


def test_boxes_in_one_corner_are_a_warning(tmp_path, caplog):
    percent = pixels(1) / (6.4, 4.8, 6.4, 4.8)
    read(tmp_path, percent)
    assert "all 60 boxes lie in the upper left corner of their images" in caplog.text
    caplog.clear()
    warn_of_corner(np.full((19, 2), 10.0), np.full((19, 2), 480), tmp_path)  # few enough for chance
    warn_of_corner(np.append(np.full((40, 2), 10.0), [[9, 241]], axis=0), np.full((41, 2), 480), tmp_path)
    assert not caplog.records


def test_areas_of_masks_are_not_odd(tmp_path, caplog):
    boxes = pixels(2)
    whole = boxes[:, 2] * boxes[:, 3]
    for areas in (whole, 0.2 * whole, (boxes[:, 2] + 1) * (boxes[:, 3] + 1), np.where(whole > 900, whole, 0)):
        warn_of_areas(areas, boxes, tmp_path)
    assert not caplog.records
    warn_of_areas(1.5 * whole + 700, boxes, tmp_path)
    assert "the area of 60 of 60 annotations is 0, or larger than their box" in caplog.text


def test_copies_are_counted(tmp_path, caplog):
    boxes = pixels(3)
    read(tmp_path, boxes)
    assert not caplog.records
    read(tmp_path, np.concatenate([boxes, boxes[:2], boxes[:1]]))
    assert "3 annotations are each an exact copy of another one" in caplog.text
