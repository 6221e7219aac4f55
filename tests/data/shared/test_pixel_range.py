"""The range of images that do not have 8 bits, as data modules find, keep and use it."""

import json
import logging
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from trunkline.data.classification.module import ImageClassification
from trunkline.data.detection.module import CocoDetection
from trunkline.data.multitask.module import CocoDetectionAndMasks
from trunkline.data.segmentation.module import ImageSegmentation
from trunkline.data.shared import pixel_range
from trunkline.data.shared.io import ImageError, read_image

SIZE = (32, 32)


def grey(high, dtype=np.uint16, low=0):
    """Values that reach both ends."""
    values = np.random.default_rng(0).integers(low, high + 1, SIZE)
    values[0, 0], values[0, 1] = low, high
    return values.astype(dtype)


def write(root, train, val=None):
    """Write COCO with masks: two images per split, of the given pixels."""
    for split, values in (("train", train), ("val", train if val is None else val)):
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True)
        for number in (1, 2):
            Image.fromarray(values).save(root / f"images/{split}/{number}.tif")
            Image.fromarray(np.eye(32, dtype=np.uint8)).save(root / f"masks/{split}/{number}.png")
        content = {
            "images": [{"id": n, "file_name": f"{n}.tif", "height": 32, "width": 32} for n in (1, 2)],
            "annotations": [
                {"id": n, "image_id": n, "category_id": 1, "bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 0}
                for n in (1, 2)
            ],
            "categories": [{"id": 1, "name": "cell"}],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root


def write_classes(root, train, val=None):
    """Write class folders, one image each, of the given pixels."""
    for split, values in (("train", train), ("val", train if val is None else val)):
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            Image.fromarray(values).save(root / split / name / "1.tif")
    return root


def detection(root, **options):
    return CocoDetection(str(root), short_side=32, long_side=32, canvases=[], workers=0, **options)


def both(root, **options):
    names = ["ground", "cell"]
    sides = {"short_side": 32, "long_side": 32, "canvases": [], "mask_classes": names}
    return CocoDetectionAndMasks(root=str(root), workers=0, **sides, **options)


def segmentation(root, **options):
    return ImageSegmentation(str(root), classes=["ground", "cell"], workers=0, **options)


def classification(root, **options):
    return ImageClassification(str(root), size=32, workers=0, **options)


def first_image(module, stage="fit"):
    module.setup(stage)
    loader = {"fit": module.train_dataloader, "predict": module.predict_dataloader}[stage]()
    return next(iter(loader)).image[0]


MODULES = [(detection, write), (both, write), (segmentation, write), (classification, write_classes)]


@pytest.mark.parametrize(("make", "write_data"), MODULES)
def test_every_module_finds_keeps_and_uses_the_range(tmp_path, make, write_data, caplog):
    values = grey(3000)
    root = write_data(tmp_path, values)
    made = make(root)
    with caplog.at_level(logging.INFO, "trunkline"):
        image = first_image(made)
    expected = np.rint(values * (255 / 4095)).astype(np.uint8)
    assert (image.numpy() == expected[None]).all()
    assert "have values from 0 to 3000" in caplog.text and "0 becomes black, 4095 white" in caplog.text
    stored = dict(made.hparams)
    torch.save(stored, tmp_path / "settings")
    again = torch.load(tmp_path / "settings", weights_only=True)["pixel_range"]
    assert again == [0, 4095]
    # What a checkpoint stores is used on other files, whatever those hold.
    picture = next(root.rglob("val/**/1.tif"))
    Image.fromarray(grey(900)).save(picture)
    predicted = make(root, predict=str(picture), pixel_range=again)
    assert (
        first_image(predicted, "predict").numpy() == read_image(picture, pixel_range=again)[:, :, 0]
    ).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (grey(255), [0, 255]),  # bytes in files of 16 bits
        (grey(4095), [0, 4095]),
        (grey(4096), [0, 8191]),
        (grey(40000), [0, 65535]),
        (grey(3000, np.int32, -1000), [-1000, 3000]),
        (grey(5_000_000, np.int32), [0, 5_000_000]),
        (grey(200, np.uint8), "auto"),
    ],
)
def test_auto_follows_type_and_values(tmp_path, values, expected):
    made = classification(write_classes(tmp_path, values))
    image = first_image(made)
    assert made.hparams["pixel_range"] == expected
    if expected == "auto":
        assert (image[0].numpy() == values).all()
    if expected == [0, 65535]:
        assert (image[0].numpy() == values >> 8).all()  # to the bit what it is without a range


def test_images_of_8_bits_are_not_decoded(tmp_path, monkeypatch):
    root = write_classes(tmp_path, grey(255, np.uint8))
    monkeypatch.setattr(pixel_range, "deep_values", None)
    classification(root).setup("fit")


def test_training_images_count_in_every_stage(tmp_path, caplog):
    root = write_classes(tmp_path, grey(3000), grey(2000))
    made = classification(root)
    made.setup("validate")
    assert made.hparams["pixel_range"] == [0, 4095]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    made.setup("fit")
    assert made.hparams["pixel_range"] == [0, 4095]
    made = classification(root, predict=str(root / "val/a"))
    made.setup("predict")
    assert made.hparams["pixel_range"] == [0, 4095]


def test_without_training_images_the_files_are_asked_and_it_is_said(tmp_path, caplog):
    root = write_classes(tmp_path, grey(255, np.uint8), grey(500))
    made = ImageClassification(predict=str(root / "val/a"), size=32, workers=0)
    made.setup("predict")
    assert made.hparams["pixel_range"] == [0, 511]
    assert "no training data with such values are known" in caplog.text
    caplog.clear()
    made = classification(root, predict=str(root / "val/a"))  # trained on 8 bits
    made.setup("predict")
    assert "no training data with such values are known" in caplog.text


def test_a_small_part_of_the_range_is_said(tmp_path, caplog):
    root = write_classes(tmp_path, grey(1300, low=1100))
    classification(root).setup("fit")
    assert "use 10 % of the range from 0 to 2047" in caplog.text
    assert "data.pixel_range [1100, 1300]" in caplog.text
    caplog.clear()
    classification(root, pixel_range=[0, 65535]).setup("fit")
    assert "use 0 % of the range" in caplog.text
    caplog.clear()
    made = classification(root, pixel_range=[1100, 1300])
    assert first_image(made).max() == 255 and not caplog.records


def test_validation_images_alone_can_be_deep(tmp_path, caplog):
    module = segmentation(write(tmp_path, grey(255, np.uint8), grey(4095)))
    module.setup("fit")
    batch = next(iter(module.val_dataloader()))
    assert module.hparams.pixel_range == [0, 4095] and batch.image.max() == 255
    assert "no training data with such values are known: 2 of 2 val images" in caplog.text


def test_images_that_become_white_are_said(tmp_path, caplog):
    module = segmentation(write(tmp_path, grey(4095), grey(65535)))
    module.setup("fit")
    assert module.hparams.pixel_range == [0, 4095]
    assert "val/1.tif) have half of their pixels or more above the range from 0 to 4095" in caplog.text


def test_a_hot_pixel_does_not_hide_that_the_rest_is_dark(tmp_path, caplog):
    values = np.random.default_rng(0).integers(0, 2000, (64, 64)).astype(np.uint16)
    values[5, 5] = 65535
    classification(write_classes(tmp_path, values)).setup("fit")
    assert "use 3 % of the range from 0 to 65535" in caplog.text


def test_deep_images_among_others_are_found(tmp_path):
    root = write_classes(tmp_path, grey(255, np.uint8))
    for number in range(600):
        (root / f"train/a/{number:03}.jpg").symlink_to(root / "train/a/1.tif")
    Image.fromarray(grey(3000)).save(root / "train/b/1.tif")
    made = classification(root)
    made.setup("fit")
    assert made.hparams["pixel_range"] == [0, 4095]


def test_images_in_a_zip(tmp_path):
    root = write_classes(tmp_path / "data", grey(3000))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted(root.rglob("*.tif")):
            archive.write(path, path.relative_to(root))
    made = classification(tmp_path / "all.zip")
    image = first_image(made)
    assert made.hparams["pixel_range"] == [0, 4095]
    assert (image[0].numpy() == np.rint(grey(3000) * (255 / 4095))).all()


def test_floating_point_images_need_a_range_before_training(tmp_path):
    values = (grey(1000) / 1000).astype(np.float32)
    root = write_classes(tmp_path, values)
    with pytest.raises(
        ImageError, match=r"1\.tif: .*give the values of black and white in data\.pixel_range"
    ):
        classification(root).setup("fit")
    made = classification(root, pixel_range=[0, 1], check_images="decode")
    made.prepare_data()
    assert (first_image(made)[0].numpy() == np.rint(values.astype(np.float64) * 255)).all()


@pytest.mark.parametrize("wrong", [[5, 5], [9, 1], [0, float("nan")], [1], [0, float("inf")]])
def test_a_wrong_range_is_refused(wrong):
    with pytest.raises(
        ValueError, match="pixel_range is .*give auto, or the value of black and then that of"
    ):
        CocoDetection(pixel_range=wrong)
