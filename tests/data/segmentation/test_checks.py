"""Checks before training on pictures with masks: sizes, values, damaged files, classes."""

import csv
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from mask_files import SMALL, change, fitted
from PIL import Image

from trunkline.data.segmentation.module import ImageSegmentation
from trunkline.data.shared.io import ImageError
from trunkline.data.shared.labels.table import MaskError
from trunkline.data.synthetic.pictures import write_segmentation


def test_pixels_are_counted_once(folder, monkeypatch):
    made = ImageSegmentation(str(folder), **SMALL)
    with pytest.raises(RuntimeError, match="setup"):
        made.label_counts("segmentation")
    made.prepare_data()
    made.setup()
    counts = np.zeros(256, dtype=np.int64)
    for path in (folder / "masks/train").iterdir():
        with Image.open(path) as mask:
            counts += np.bincount(np.array(mask).reshape(-1), minlength=256)
    late = fitted(folder, check_masks=False)
    assert late.label_counts("segmentation") == counts[:4].tolist()
    monkeypatch.setattr(type(made.splits["train"].masks), "survey", None)
    assert made.label_counts("segmentation") == counts[:4].tolist() and made.image_layout() == (3, 2)
    made.prepare_data()  # looks at nothing twice
    made.setup("test")
    made.prepare_data()
    assert made.splits["test"] is made.splits["val"]


def test_unknown_values_are_listed_with_files_and_pixels(own):
    change(own / "masks/train/000001.png", lambda v: v.__setitem__((0, slice(0, 3)), 9))
    change(own / "masks/train/000002.png", lambda v: v.__setitem__((1, slice(0, 2)), [9, 77]))
    change(own / "masks/val/000001.png", lambda v: v.__setitem__((0, 0), 77))
    words = (
        r"(?s)3 of 7 masks hold what is no class:.*train/000001.png: value 9 \(3 pixels\).*train/000002.png: "
        r"values 9 \(1 pixels\), 77 \(1 pixels\).*val/000001.png: value 77.*in all: 9 \(4 pixels\), 77 \(2 "
        r"pixels\)\nthe classes are 0 background, 1 circle"
    )
    with pytest.raises(MaskError, match=words):
        ImageSegmentation(str(own), **SMALL).prepare_data()
    ImageSegmentation(str(own), ignore=[9, 77], **SMALL).prepare_data()
    made = fitted(own, check_masks=False)
    made.prepare_data()
    with pytest.raises(MaskError, match=r"00000\d.png: value.* which no class has; data.check_masks finds"):
        list(made.train_dataloader())


def test_only_the_first_twenty_files_are_listed(tmp_path):
    root = write_segmentation(tmp_path / "many", 25, 1, (32, 32), progress=False)
    for path in (root / "masks/train").iterdir():
        change(path, lambda v: v.__setitem__((0, 0), 9))
    with pytest.raises(MaskError, match=r"(?s)25 of 26 masks.*\.\.\. and 5 more\nin all: 9 \(25 pixels\)"):
        ImageSegmentation(str(root), **SMALL).prepare_data()


def test_masks_of_another_size_are_listed(own):
    Image.new("L", (33, 31)).save(own / "masks/train/000003.png")
    name = "000003"
    with Image.open(own / f"images/train/{name}.jpg") as image:
        width, height = image.size
    words = f"(?s)1 of 7 images do not fit their masks.*{name}.jpg has {width}x{height} pixels .*.png 33x31"
    for masks in (True, False):
        with pytest.raises(MaskError, match=words):
            ImageSegmentation(str(own), check_masks=masks, **SMALL).prepare_data()
    made = fitted(own, check_masks=False, check_images="off")
    made.prepare_data()
    with pytest.raises(MaskError, match=f"{name}.jpg has {width}x{height} pixels"):
        list(made.train_dataloader())


def test_a_turned_picture_with_a_mask_of_its_stored_pixels_is_explained(own):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = own / "images/train/000001.jpg"
    Image.new("RGB", (40, 32)).save(path, exif=exif)
    Image.new("L", (40, 32)).save(own / "masks/train/000001.png")
    with pytest.raises(
        MaskError, match="has 32x40 .* 40x32: the image's EXIF orientation turns it by a quarter"
    ):
        ImageSegmentation(str(own), **SMALL).prepare_data()
    Image.new("L", (32, 40)).save(own / "masks/train/000001.png")
    made = fitted(own)
    made.prepare_data()
    assert len(list(made.train_dataloader())) == 1


def test_damaged_files_are_listed_before_training(own):
    path = own / "masks/train/000002.png"
    path.write_bytes(path.read_bytes()[:200])
    (own / "images/val/000001.jpg").write_bytes(b"x")
    with pytest.raises(
        ImageError, match="(?s)2 of 7 images cannot be used.*000002.png: damaged.*000001.jpg: is no"
    ):
        ImageSegmentation(str(own), **SMALL).prepare_data()
    photo = own / "images/train/000001.jpg"
    photo.write_bytes(photo.read_bytes()[:-300])
    with pytest.raises(ImageError, match="3 of 7 images"):
        ImageSegmentation(str(own), check_images="decode", **SMALL).prepare_data()
    made = fitted(own, check_masks=False, check_images="off")
    made.prepare_data()
    with pytest.raises(ImageError, match="damaged"):
        list(made.train_dataloader())
    with pytest.raises(ImageError, match="(?s)1 of 3 images cannot be used.*val/000001.jpg"):
        made.val_dataloader()


def binary(root, values, classes=None):
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        Image.new("RGB", (6, 4)).save(root / f"images/{split}/a.png")
        Image.fromarray(np.resize(np.array(values, dtype=np.uint8), (4, 6))).save(
            root / f"masks/{split}/a.png"
        )
    if classes:
        (root / "classes.csv").write_text(classes)
    return root


def test_masks_of_0_and_255_are_explained_and_work_with_either_remedy(tmp_path):
    root = binary(tmp_path, [0, 255, 255])
    words = r"a.png: no mask has a class other .* 2 have the value 255; .*mask_values \[0, 255\], or a CSV"
    for options in ({}, {"classes": ["background", "cell"]}):
        with pytest.raises(MaskError, match=words):
            ImageSegmentation(str(root), **options).prepare_data()
        with pytest.raises(MaskError, match="all labelled training pixels are of one class"):
            ImageSegmentation(str(root), ignore=[255], **options).prepare_data()
    made = fitted(root, classes=["background", "cell"], mask_values=[0, 255])
    made.prepare_data()
    assert made.label_counts("segmentation") == [8, 16] and [
        c.id for c in made.label_classes("segmentation")
    ] == [0, 255]
    (root / "classes.csv").write_text("id,name\n0,background\n255,cell\n")
    made = fitted(root)
    made.prepare_data()
    assert made.splits["train"].masks.mask(0)[0].tolist() == [0, 1, 1, 0, 1, 1]


def test_masks_of_0_and_255_are_not_evaluated_as_background_alone(tmp_path):
    """Beside training on 0 and 1, or alone."""
    root = binary(tmp_path, [0, 255, 255], "id,name\n0,background\n1,cell\n")
    change(root / "masks/train/a.png", lambda values: np.minimum(values, 1, out=values))
    with pytest.raises(MaskError, match="val/a.png: 1 mask of the values 0 and 255 .*, 1 with classes"):
        ImageSegmentation(str(root), **SMALL).prepare_data()
    made = fitted(root, "validate")
    made.trainer = SimpleNamespace(state=SimpleNamespace(fn="validate"))
    with pytest.raises(MaskError, match="val/a.png: no mask has a class other .* 1 have the value 255"):
        made.prepare_data()


def test_masks_that_are_wholly_ignored_are_an_error_in_training_alone(tmp_path):
    root = binary(tmp_path, [255], "id,name\n0,a\n1,b\n")
    with pytest.raises(MaskError, match="all training pixels are ignored .*two classes or more"):
        ImageSegmentation(str(root), **SMALL).prepare_data()
    Image.fromarray(np.resize(np.array([0, 1], dtype=np.uint8), (4, 6))).save(root / "masks/train/a.png")
    made = fitted(root)
    made.prepare_data()
    assert (next(iter(made.val_dataloader())).mask == 255).all()


def test_classes_without_a_pixel_are_logged(own, caplog):
    with open(own / "classes.csv", "a") as file:
        csv.writer(file).writerow([9, "hexagon", 1, 2, 3])
    caplog.set_level(logging.WARNING)
    ImageSegmentation(str(own), **SMALL).prepare_data()
    assert "the train masks have no pixel of 1 of 5 classes: hexagon" in caplog.text
    assert "the val masks have no pixel" in caplog.text


def test_training_goes_without_validation_and_says_so(own, caplog):
    for kind in ("images", "masks"):
        (own / kind / "val").rename(own / kind / "later")
    made = fitted(own)
    made.prepare_data()
    assert made.val_dataloader() == [] and "training without validation" in caplog.text
    with pytest.raises(FileNotFoundError, match="no val images with masks found"):
        made.setup("validate")
    with pytest.raises(RuntimeError, match="call setup"):
        made.test_dataloader()
