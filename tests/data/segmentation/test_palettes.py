"""What palettes say of masks: the colours of entries, and palettes that differ between files."""

import logging

import numpy as np
import pytest
from mask_files import picture, read
from PIL import Image

from trunkline.data.shared.io import ImageError
from trunkline.data.shared.labels.classes import voc_colour
from trunkline.data.shared.labels.table import MaskError

BLACK, RED, GREEN, BLUE = (0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200)
VALUES = (np.arange(24).reshape(4, 6) % 3).astype(np.uint8)
COLOURED = "name,r,g,b\nground,0,0,0\nroof,200,0,0\ntree,0,200,0\n"
NUMBERED = "id,name,r,g,b\n0,ground,0,0,0\n1,roof,200,0,0\n2,tree,0,200,0\n"


def save(path, values, *colours):
    """Write a mask, with a palette if colours are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Image.fromarray(values)
    if colours:
        made = Image.fromarray(values, mode="P")
        made.putpalette([part for colour in colours for part in colour])
    made.save(path)
    picture(path.parents[2] / "images" / path.parent.name / path.name)


def training(root, name="a"):
    return root / "masks" / "train" / f"{name}.png"


def labels(root, **options):
    masks = read(root, "fit", **options).splits["train"].masks
    found = [masks.mask(n) for n in range(len(masks))]
    for n, each in enumerate(found):  # the count of the check agrees with what is trained on
        counts = np.bincount(each[each != 255], minlength=len(masks.classes))
        assert masks.survey(n).counts[:-1].tolist() == counts.tolist()
    return found


def test_entries_go_by_their_colours_in_each_file(tmp_path):
    (tmp_path / "classes.csv").write_text(COLOURED)
    save(training(tmp_path, "a"), VALUES, BLACK, RED, GREEN)
    save(training(tmp_path, "b"), VALUES, GREEN, BLACK, RED)
    rgb = np.array([BLACK, RED, GREEN], dtype=np.uint8)[VALUES]
    save(training(tmp_path, "c"), rgb)
    first, second, third = labels(tmp_path)
    assert (first == VALUES).all() and (third == VALUES).all()
    assert (second == np.array([2, 0, 1])[VALUES]).all()


def test_labelmap_goes_by_colours_and_not_by_its_order(tmp_path):
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\ntree:0,200,0::\nground:0,0,0::\n"
    )
    save(training(tmp_path), VALUES % 2, BLACK, GREEN)
    assert (labels(tmp_path)[0] == 1 - VALUES % 2).all()


def test_colours_that_no_class_has_are_refused_if_used(tmp_path):
    (tmp_path / "classes.csv").write_text(COLOURED)
    save(training(tmp_path, "a"), VALUES, BLACK, RED, GREEN, BLUE)  # blue is not used
    assert (labels(tmp_path)[0] == VALUES).all()
    save(training(tmp_path, "b"), VALUES + 1, BLACK, RED, GREEN, BLUE)
    with pytest.raises(MaskError, match=r"b\.png: colour \(0,0,200\) \(8 pixels\), which no class has"):
        labels(tmp_path)
    unchecked = read(tmp_path, "fit", check_masks=False)
    with pytest.raises(MaskError, match=r"b\.png: colour \(0,0,200\)"):
        unchecked.splits["train"].masks.mask(1)


def test_grey_palettes_and_grey_masks_hold_values(tmp_path):
    (tmp_path / "classes.csv").write_text(COLOURED)
    save(training(tmp_path, "a"), VALUES, *[(n, n, n) for n in range(256)])
    save(training(tmp_path, "b"), VALUES)
    assert all((found == VALUES).all() for found in labels(tmp_path))


def test_numbers_and_colours_that_agree_are_read_and_others_refused(tmp_path):
    (tmp_path / "classes.csv").write_text(NUMBERED)
    save(training(tmp_path, "a"), VALUES, BLACK, RED, GREEN)
    save(training(tmp_path, "b"), np.where(VALUES == 1, 5, 0).astype(np.uint8), *[BLACK] * 5, RED)
    first, second = labels(tmp_path)  # entry 5 has no number of a class, so its colour tells
    assert (first == VALUES).all() and (second == (VALUES == 1)).all()
    save(training(tmp_path, "c"), VALUES, BLACK, GREEN, RED)
    with pytest.raises(ImageError, match=r"c\.png: entry 1 .* colour \(0,200,0\) of tree and .* of roof in"):
        labels(tmp_path)
    with pytest.raises(MaskError, match="entry 1"):
        read(tmp_path, "fit", check_masks=False).splits["train"].masks.mask(2)


@pytest.mark.parametrize("entries", [256, 21])
def test_voc_masks_hold_values_and_a_border(tmp_path, entries):
    values = (np.arange(24).reshape(4, 6) % 21).astype(np.uint8)
    if entries == 256:
        values[0, 0] = 255
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("a\n")
    save(tmp_path / "SegmentationClass/a.png", values, *map(voc_colour, range(entries)))
    picture(tmp_path / "JPEGImages/a.jpg")
    assert (labels(tmp_path)[0] == values).all()


def test_a_border_of_another_colour_is_ignored_by_its_number(tmp_path):
    (tmp_path / "classes.csv").write_text(COLOURED)
    values = VALUES.copy()
    values[0] = 255
    save(training(tmp_path), values, BLACK, RED, GREEN, *[BLACK] * 252, (224, 224, 192))
    assert (labels(tmp_path)[0] == values).all()


def test_without_colours_palettes_must_agree_in_what_is_used(tmp_path):
    save(training(tmp_path, "a"), VALUES, BLACK, RED, GREEN)
    save(training(tmp_path, "b"), VALUES % 2, BLACK, RED)  # truncated
    save(training(tmp_path, "c"), VALUES % 2, BLACK, RED, BLUE)  # differs in what is not used
    save(training(tmp_path, "d"), VALUES)
    first, second, third, fourth = labels(tmp_path)
    assert (first == VALUES).all() and (fourth == VALUES).all()
    assert (second == VALUES % 2).all() and (third == VALUES % 2).all()
    save(tmp_path / "masks/val/e.png", VALUES, BLACK, GREEN, RED)
    with pytest.raises(
        MaskError,
        match=r"a\.png and .*e\.png: entry 1 is \(200,0,0\) in the palette of one and \(0,200,0\) in that",
    ):
        read(tmp_path)


@pytest.mark.parametrize("one_bit", [True, False])
def test_masks_of_1_do_not_mix_with_masks_of_255(tmp_path, one_bit):
    save(training(tmp_path, "a"), VALUES == 1 if one_bit else VALUES % 2)
    save(training(tmp_path, "b"), (VALUES == 1) * np.uint8(255))
    words = (
        r"b\.png: 1 mask of the values 0 and 255 \(.*b\.png\), 1 with classes and no 255 \(.*a\.png\); "
        r"255 is ignored unless it is a class; write one value for one class in all masks, "
        r".* set data.ignore to \[255\]"
    )
    with pytest.raises(MaskError, match=words):
        read(tmp_path)
    masks = read(tmp_path, ignore=[255]).splits["train"].masks  # stated, so it is meant
    assert (masks.mask(1) == (VALUES == 1) * np.uint8(255)).all()


def test_ignored_pixels_beside_objects_are_not_suspicious(tmp_path, caplog):
    values = VALUES % 2
    values[0] = 255
    save(training(tmp_path, "a"), values)
    save(training(tmp_path, "b"), (VALUES == 1) * np.uint8(255))
    save(training(tmp_path, "c"), VALUES % 2)
    with caplog.at_level(logging.WARNING, "trunkline"):
        read(tmp_path)
    assert "of 0 and 255" not in caplog.text
