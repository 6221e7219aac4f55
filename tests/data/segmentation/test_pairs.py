"""Images that would be their own masks, and names that are the same only to people."""

import os
import unicodedata

import pytest
from mask_files import mask, picture, read

from trunkline.data.segmentation.module import ImageSegmentation
from trunkline.data.segmentation.pairs import pair_folders, pair_list
from trunkline.data.shared.labels.table import MaskError


def linked(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "images")
    return "link"


@pytest.mark.parametrize("masks", [lambda _: "images", lambda _: "images/../images/", linked])
def test_one_folder_of_images_and_masks_is_refused(tmp_path, masks):
    mask(tmp_path / "images/a.png")
    made = ImageSegmentation(str(tmp_path), "images", masks(tmp_path))
    with pytest.raises(MaskError, match="images: is the folder of both .* its own mask; put the masks into"):
        made.setup()


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("listed", [False, True])
def test_one_file_by_two_names_is_refused(tmp_path, link, listed):
    mask(tmp_path / "images/a.png"), mask(tmp_path / "images/b.png"), mask(tmp_path / "masks/b.png")
    link(tmp_path / "images/a.png", tmp_path / "masks/a.png")
    (tmp_path / "names.txt").write_text("a\nb\n")
    words = r"(?s)1 of 2 images are their own masks.*images/a.png and .*masks/a.png\nreplace"
    with pytest.raises(MaskError, match=words):
        if listed:
            pair_list(tmp_path / "names.txt", tmp_path / "images", tmp_path / "masks")
        else:
            pair_folders(tmp_path / "images", tmp_path / "masks")


@pytest.mark.parametrize(("images", "masks"), [("data", "data/masks"), ("data/images", "data")])
def test_a_folder_inside_the_other_is_not_taken_twice(tmp_path, images, masks):
    picture(tmp_path / images / "a.jpg"), picture(tmp_path / images / "in/b.jpg")
    mask(tmp_path / masks / "a.png"), mask(tmp_path / masks / "in/b.png")
    pairs = pair_folders(tmp_path / images, tmp_path / masks)
    assert pairs.names == ["a.jpg", "in/b.jpg"] and pairs.mask_names == ["a.png", "in/b.png"]


def test_image_and_mask_side_by_side_are_refused(tmp_path):
    picture(tmp_path / "train/a.jpg"), mask(tmp_path / "train/a_mask.png")
    with pytest.raises(MaskError, match="is the folder of both"):
        pair_folders(tmp_path / "train", tmp_path / "train")


def test_accents_pair_however_they_are_written(tmp_path):
    whole, parts = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    assert whole != parts
    picture(tmp_path / f"images/train/{whole}.png"), mask(tmp_path / f"masks/train/{parts}.png")
    assert len(read(tmp_path).splits["train"]) == 1


def test_lists_may_name_files_with_blanks(tmp_path):
    picture(tmp_path / "images/my image.png"), mask(tmp_path / "masks/my image.png")
    picture(tmp_path / "images/b.png"), mask(tmp_path / "masks/b.png")
    (tmp_path / "names.txt").write_text("my image.png\nb.png masks/b.png\n")
    pairs = pair_list(tmp_path / "names.txt", tmp_path / "images", tmp_path / "masks")
    assert pairs.names == ["my image.png", "b.png"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a\nb\xe9\n", "names.txt, line 2: the list of images is no UTF-8 text .byte 0xe9.; save it"),
        ("a\n".encode("utf-16"), "names.txt, line 1: the list of images is no UTF-8 text"),
        (b"a\n\0\0\n", "names.txt, line 2: .* zero byte"),
        (b"\n \n", "names.txt: lists no images"),
    ],
)
def test_odd_lists_name_the_line(tmp_path, content, words):
    picture(tmp_path / "images/a.png"), mask(tmp_path / "masks/a.png")
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(MaskError, match=words):
        pair_list(tmp_path / "names.txt", tmp_path / "images", tmp_path / "masks")


def test_left_out_files_are_named(tmp_path, caplog):
    for name in "abc":
        picture(tmp_path / f"images/{name}.jpg")
    mask(tmp_path / "masks/a.png"), mask(tmp_path / "masks/z.png")
    pair_folders(tmp_path / "images", tmp_path / "masks", "skip")
    assert "left out 2 images without a mask and 1 mask without an image: " in caplog.text
    assert "b.jpg: no mask, " in caplog.text and "z.png: no image" in caplog.text
