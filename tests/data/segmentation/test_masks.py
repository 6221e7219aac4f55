"""Mask files: every mode of pixels, unknown values, nearest resizing, and what a survey counts."""

import numpy as np
import pytest
import torch
from PIL import Image

from trunkline.data.segmentation.masks import MaskFiles
from trunkline.data.shared.common import PackedNames
from trunkline.data.shared.io import ImageError, read_mask, resize_mask
from trunkline.data.shared.labels.classes import LabelClass
from trunkline.data.shared.labels.table import ClassTable, MaskError

VALUES = np.array([[0, 1, 2], [3, 255, 1]], dtype=np.uint8)


def save(path, pixels, mode=None, **options):
    Image.fromarray(pixels, mode).save(path, **options)
    return path


def files(folder, names, rows, **options):
    return MaskFiles(str(folder), PackedNames.pack(names), ClassTable(rows, **options))


NUMBERED = [LabelClass(n, f"n{n}") for n in range(4)]


def test_values_come_as_stored_in_every_mode(tmp_path):
    assert np.array_equal(read_mask(save(tmp_path / "l.png", VALUES)), VALUES)
    palette = Image.fromarray(VALUES, "P")
    palette.putpalette([9 * (n % 28) for n in range(768)])
    palette.save(tmp_path / "p.png", transparency=0)
    assert np.array_equal(read_mask(tmp_path / "p.png"), VALUES)
    few = Image.fromarray(VALUES % 4, "P")
    few.putpalette([7, 7, 7, 90, 0, 0, 0, 90, 0, 0, 0, 90])
    few.save(tmp_path / "p2.png", bits=2)
    assert np.array_equal(read_mask(tmp_path / "p2.png"), VALUES % 4)
    Image.fromarray(VALUES > 0).convert("1").save(tmp_path / "1.png")
    assert np.array_equal(read_mask(tmp_path / "1.png"), (VALUES > 0).astype(np.uint8))
    Image.merge("LA", [Image.fromarray(VALUES), Image.fromarray(VALUES)]).save(tmp_path / "la.png")
    assert np.array_equal(read_mask(tmp_path / "la.png"), VALUES)
    wide = VALUES.astype(np.uint16) * 257
    assert np.array_equal(read_mask(save(tmp_path / "i16.png", wide)), wide)
    assert read_mask(tmp_path / "i16.png").dtype == np.uint16
    assert np.array_equal(read_mask(save(tmp_path / "i.tif", wide.astype(np.int32))), wide)
    colours = np.stack([VALUES, VALUES + 1, VALUES + 2], axis=2)
    assert np.array_equal(read_mask(save(tmp_path / "rgb.png", colours)), colours)
    alpha = np.concatenate([colours, VALUES[..., None]], axis=2)
    assert np.array_equal(read_mask(save(tmp_path / "rgba.png", alpha)), colours)


def test_a_mask_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    path = save(tmp_path / "t.png", VALUES, exif=exif)
    assert np.array_equal(read_mask(path), np.rot90(VALUES, -1))
    source = files(tmp_path, ["t.png"], NUMBERED)
    assert source.size(0) == (3, 2) == source.mask(0).shape


@pytest.mark.parametrize(
    ("name", "image", "words"),
    [
        ("a.jpg", Image.fromarray(VALUES), "a JPEG changes the values"),
        ("b.tif", Image.fromarray(VALUES.astype(np.float32)), "pixels of mode F"),
        ("c.tif", Image.fromarray(VALUES.astype(np.int32) - 3), "values from -3 to 252"),
        ("d.tif", Image.fromarray(VALUES.astype(np.int32) + 65300), "values from 65300 to 65555"),
        ("e.tif", Image.new("CMYK", (3, 2)), "pixels of mode CMYK"),
        ("f.png", None, "no such file"),
        ("g.png", b"text", "no image"),
    ],
)
def test_what_is_no_mask_is_an_error(tmp_path, name, image, words):
    if isinstance(image, bytes):
        (tmp_path / name).write_bytes(image)
    elif image is not None:
        image.save(tmp_path / name)
    with pytest.raises(ImageError, match=f"{name}: .*{words}"):
        read_mask(tmp_path / name)


def test_a_truncated_mask_is_an_error(tmp_path):
    path = save(tmp_path / "m.png", np.random.default_rng(0).integers(0, 255, (60, 60), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ImageError, match=r"m.png: damaged image"):
        read_mask(path)


def test_resizing_takes_the_pixel_that_the_new_centre_lies_in():
    mask = np.random.default_rng(0).integers(0, 256, (13, 7), dtype=np.uint8)
    for height, width in ((26, 14), (5, 3), (40, 2), (13, 9), (1, 1)):
        rows = np.floor((np.arange(height) + 0.5) * 13 / height).astype(int)
        columns = np.floor((np.arange(width) + 0.5) * 7 / width).astype(int)
        assert np.array_equal(resize_mask(mask, (height, width)), mask[rows][:, columns])
    assert resize_mask(mask, (13, 7)) is mask


def test_labels_and_survey_by_hand(tmp_path):
    save(tmp_path / "a.png", VALUES)
    rows = [LabelClass(3, "x"), LabelClass(1, "background"), LabelClass(0, "y"), LabelClass(2, "no")]
    source = files(tmp_path, ["a.png"], rows, ignore=["no"])
    mask = source.mask(0)
    assert mask.tolist() == [[2, 1, 255], [0, 255, 1]] and mask.dtype == np.uint8
    mask[:] = 9  # a new array each time
    survey = source.survey(0)
    assert survey.size == (2, 3) and survey.counts.tolist() == [1, 2, 1, 2] and survey.unknown == {}
    assert survey.counts.dtype == np.int64
    assert source.labelled_pixels(0) == 2  # without the background and what is ignored
    assert source.size(0) == (2, 3) and len(source) == 1 and source.present() is None
    assert source.name(0) == str(tmp_path / "a.png") and not source.verified


def test_16_bit_values_go_through_the_table(tmp_path):
    values = np.array([[24001, 65535, 7], [7, 255, 24001]], dtype=np.uint16)
    save(tmp_path / "a.png", values)
    source = files(tmp_path, ["a.png"], [LabelClass(7, "a"), LabelClass(24001, "b"), LabelClass(65535, "c")])
    assert source.mask(0).tolist() == [[1, 2, 0], [0, 255, 1]]
    assert source.survey(0).counts.tolist() == [2, 2, 1, 1]


def test_unknown_values_are_told_with_their_pixels(tmp_path):
    save(tmp_path / "a.png", np.array([[0, 9, 9], [1, 8, 255]], dtype=np.uint8))
    source = files(tmp_path, ["a.png"], NUMBERED)
    survey = source.survey(0)
    assert survey.unknown == {"9": 2, "8": 1} and survey.counts.tolist() == [1, 1, 0, 0, 1]
    with pytest.raises(MaskError, match=r"a.png: values 9 \(2 pixels\), 8 \(1 pixels\), which no class has"):
        source.mask(0)


RED = [
    LabelClass(0, "red", (255, 0, 0)),
    LabelClass(5, "blue", (0, 0, 250)),
    LabelClass(6, "void", (0, 0, 0)),
]


def test_colours_go_through_the_table(tmp_path):
    pixels = np.array([[(255, 0, 0), (0, 0, 250)], [(0, 0, 0), (0, 0, 250)]], dtype=np.uint8)
    save(tmp_path / "a.png", pixels)
    source = files(tmp_path, ["a.png"], RED, ignore=["void"])
    assert source.mask(0).tolist() == [[0, 1], [255, 1]]
    assert source.survey(0).counts.tolist() == [1, 2, 1]
    pixels[0, 0] = (254, 0, 0)
    save(tmp_path / "a.png", pixels)
    assert source.survey(0).unknown == {"(254,0,0)": 1}
    with pytest.raises(MaskError, match=r"a.png: colour \(254,0,0\) \(1 pixels\), which no class has"):
        source.mask(0)


def test_a_photograph_is_surveyed_without_remembering_all_its_colours(tmp_path):
    save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8))
    unknown = files(tmp_path, ["a.png"], RED).survey(0).unknown
    assert len(unknown) == 4096


def test_values_saved_in_three_equal_channels_are_values_unless_classes_have_colours(tmp_path):
    save(tmp_path / "a.png", np.repeat(VALUES[..., None], 3, axis=2))
    assert np.array_equal(files(tmp_path, ["a.png"], NUMBERED).mask(0), VALUES)
    assert files(tmp_path, ["a.png"], RED).survey(0).unknown["(1,1,1)"] == 2
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    pixels[0, 0] = 1, 2, 3
    save(tmp_path / "b.png", pixels)
    with pytest.raises(ImageError, match=r"b.png: is in colours, but the classes have none; .* r, g and b"):
        files(tmp_path, ["b.png"], NUMBERED).mask(0)


def test_a_subset_keeps_names_in_the_asked_order(tmp_path):
    for n in range(3):
        save(tmp_path / f"{n}.png", np.full((2, 2), n, dtype=np.uint8))
    some = files(tmp_path, ["0.png", "1.png", "2.png"], NUMBERED).subset([2, 0])
    assert [int(some.mask(n)[0, 0]) for n in range(len(some))] == [2, 0]


def test_a_one_pixel_mask_and_an_all_ignored_one(tmp_path):
    save(tmp_path / "a.png", np.array([[2]], dtype=np.uint8))
    save(tmp_path / "b.png", np.full((3, 4), 255, dtype=np.uint8))
    source = files(tmp_path, ["a.png", "b.png"], NUMBERED)
    assert source.mask(0).tolist() == [[2]] and source.survey(0).counts.tolist() == [0, 0, 1, 0, 0]
    assert source.survey(1).counts.tolist() == [0, 0, 0, 0, 12] and source.labelled_pixels(1) == 0
    assert torch.from_numpy(source.mask(1)).eq(255).all()
