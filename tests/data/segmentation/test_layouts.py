"""Where pictures and masks are found: folders, lists, Pascal VOC, Cityscapes; and how they pair."""

import numpy as np
import pytest
from mask_files import mask, picture, read
from PIL import Image

from trunkline.data.segmentation.module import ImageSegmentation
from trunkline.data.shared.labels.table import MaskError
from trunkline.data.shared.locate import DataNotFoundError


def pairs(index):
    return [(index.path(n), index.masks.name(n)) for n in range(len(index))]


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{}", "masks/{}"),
        ("images/{}", "labels/{}"),
        ("images/{}", "annotations/{}"),
        ("{}/images", "{}/masks"),
        ("{}/images", "{}/labels"),
        ("{}", "{}annot"),
        ("{}", "{}_labels"),
    ],
)
@pytest.mark.parametrize("names", [("train", "val", "test"), ("training", "validation", "test")])
def test_folders_mirror_each_other(tmp_path, images, masks, names):
    for number, split in enumerate(names):
        for name in ("a.jpg", "city/b.one.png"):
            picture(tmp_path / images.format(split) / name)
            mask((tmp_path / masks.format(split) / name).with_suffix(".png"), number)
        picture(tmp_path / images.format(split) / ".hidden.jpg")
        (tmp_path / images.format(split) / "notes.txt").write_text("x")
    made = read(tmp_path, classes=list("wxyz"))
    assert pairs(made.splits["train"]) == [
        (str(tmp_path / images.format(names[0]) / one), str(tmp_path / masks.format(names[0]) / two))
        for one, two in (("a.jpg", "a.png"), ("city/b.one.png", "city/b.one.png"))
    ]
    assert made.splits["val"].masks.mask(0).tolist() == [[2] * 6] + [[1] * 6] * 3
    made.setup("test")
    assert made.splits["test"].masks.mask(1)[1, 0] == 2


def test_given_paths_take_precedence_and_are_relative_to_root(tmp_path):
    picture(tmp_path / "a/1.png"), mask(tmp_path / "b/1.png"), mask(tmp_path / "c/1.png", 1)
    picture(tmp_path / "images/train/2.png"), mask(tmp_path / "masks/train/2.png")
    made = read(
        tmp_path,
        train_images="a",
        train_masks="b",
        val_images=str(tmp_path / "a"),
        val_masks="c",
        classes=list("xyz"),
    )
    assert pairs(made.splits["train"]) == [(f"{tmp_path}/a/1.png", f"{tmp_path}/b/1.png")]
    assert pairs(made.splits["val"]) == [(f"{tmp_path}/a/1.png", f"{tmp_path}/c/1.png")]
    made = ImageSegmentation(None, f"{tmp_path}/a", f"{tmp_path}/b", classes=list("xyz"))
    made.setup()
    assert len(made.splits["train"]) == 1 and made.val_dataloader() == []


def test_masks_with_a_common_ending_pair(tmp_path):
    for name in "ab":
        picture(tmp_path / f"images/train/{name}.jpg")
        mask(tmp_path / f"masks/train/{name}_mask.png")
    assert len(read(tmp_path).splits["train"]) == 2


def test_unpaired_files_are_listed_or_skipped(tmp_path, caplog):
    for name in "abc":
        picture(tmp_path / f"images/train/{name}.jpg")
    for name in "bcd":
        mask(tmp_path / f"masks/train/{name}.png")
    with pytest.raises(
        MaskError,
        match=r"(?s)1 of 3 images without a mask, 1 mask without an image.*a.jpg: no mask.*d.png: no imag",
    ):
        read(tmp_path)
    made = read(tmp_path, missing="skip")
    assert [made.splits["train"].names[n] for n in range(2)] == ["b.jpg", "c.jpg"]
    assert "left out 1 image without a mask and 1 mask without an image" in caplog.text
    for name in "bc":
        (tmp_path / f"masks/train/{name}.png").unlink()
    with pytest.raises(MaskError, match="no image in .* has a mask"):
        read(tmp_path, missing="skip")


def test_two_files_of_one_name_are_ambiguous(tmp_path):
    picture(tmp_path / "images/train/a.jpg"), picture(tmp_path / "images/train/a.png")
    mask(tmp_path / "masks/train/a.png")
    with pytest.raises(MaskError, match="a.jpg and a.png differ only in the suffix"):
        read(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataNotFoundError, match="give data.root, or data.train_images"):
        ImageSegmentation().setup()
    with pytest.raises(DataNotFoundError, match="data.root: .*nowhere is no folder"):
        ImageSegmentation(str(tmp_path / "nowhere")).setup()
    with pytest.raises(
        DataNotFoundError, match=r"(?s)images/train with masks/train .*gtFine/train.*instances_train"
    ):
        ImageSegmentation(str(tmp_path)).setup()
    picture(tmp_path / "images/train/a.png")
    with pytest.raises(DataNotFoundError, match="images/train is there, but not .*masks/train"):
        ImageSegmentation(str(tmp_path)).setup()
    (tmp_path / "masks/train").mkdir(parents=True)
    with pytest.raises(DataNotFoundError, match=r"no masks in .*masks/train \(looked for .jpg"):
        ImageSegmentation(str(tmp_path)).setup()
    mask(tmp_path / "masks/train/a.png")
    with pytest.raises(DataNotFoundError, match="data.val_images: .*x does not exist"):
        ImageSegmentation(str(tmp_path), val_images="x").setup()
    with pytest.raises(DataNotFoundError, match="data.classes: .*x.txt does not exist"):
        ImageSegmentation(str(tmp_path), classes="x.txt").setup()


# -- classes


def test_classes_come_from_the_argument_a_file_or_the_values(tmp_path, caplog):
    picture(tmp_path / "images/train/a.png"), mask(tmp_path / "masks/train/a.png", 2)
    picture(tmp_path / "images/val/a.png"), mask(tmp_path / "masks/val/a.png", 0)
    made = read(tmp_path)
    assert [(c.id, c.name) for c in made.label_classes("segmentation")] == [
        (n, f"class {n}") for n in range(4)
    ]
    assert "the values 0 to 3 become class 0 to 3" in caplog.text
    assert "have no pixel of 2 of 4 classes: class 0, class 1" in caplog.text
    made = read(tmp_path, "validate")  # the classes are those of the training masks
    assert len(made.label_classes("segmentation")) == 4
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    assert [c.name for c in read(tmp_path).label_classes("segmentation")] == list("abcde")
    (tmp_path / "own.csv").write_text("id,name\n3,q\n2,p\n1,o\n0,n\n")
    made = read(tmp_path, classes="own.csv")
    assert [c.id for c in made.label_classes("segmentation")] == [3, 2, 1, 0] and made.splits[
        "train"
    ].masks.mask(0)[:2, 0].tolist() == [0, 1]
    made = read(tmp_path, classes=["x", "y", "z", "w", "v"], mask_values=[3, 2, 0, 1, 900], ignore=["v", 77])
    assert (
        made.splits["train"].masks.mask(0)[:2, 0].tolist() == [0, 1]
        and len(made.label_classes("segmentation")) == 4
    )
    made = read(tmp_path, categories=["c"])
    assert [c.name for c in made.label_classes("segmentation")] == ["background", "c"]
    with pytest.raises(MaskError, match="mask_values goes with a list of names"):
        read(tmp_path, mask_values=[1, 2])


def test_masks_of_many_values_need_a_list(tmp_path):
    picture(tmp_path / "images/train/a.png")
    (tmp_path / "masks/train").mkdir(parents=True)
    Image.fromarray(np.full((4, 6), 300, dtype=np.uint16)).save(tmp_path / "masks/train/a.png")
    with pytest.raises(MaskError, match="masks hold the values 300; name their classes"):
        read(tmp_path)


# -- lists of names


def test_lists_choose_among_the_pictures_of_a_folder(tmp_path):
    for name in "abcd":
        picture(tmp_path / f"images/x/{name}.jpg"), mask(tmp_path / f"semantic/x/{name}.png")
    (tmp_path / "train.txt").write_text("x/c\n/images/x/a.jpg /semantic/x/a.png\n\n")
    (tmp_path / "val.txt").write_text("x/d.jpg\n")
    given = {"train_images": "train.txt", "train_masks": "semantic"}
    given |= {"val_images": "val.txt", "val_masks": "semantic"}
    made = read(tmp_path, **given)
    assert [made.splits["train"].names[n] for n in range(2)] == ["x/c.jpg", "x/a.jpg"]
    assert made.splits["val"].masks.name(0).endswith("semantic/x/d.png") and len(made.splits["val"]) == 1
    made = ImageSegmentation(str(tmp_path), predict=str(tmp_path / "train.txt"))
    made.setup("predict")
    assert [path.name for path in made.prediction_paths().values()] == ["c.jpg", "a.jpg"]
    (tmp_path / "train.txt").write_text("x/c\nx/e\n")
    with pytest.raises(MaskError, match=r"(?s)train.txt: no such image in .*images.*line 2: x/e"):
        read(tmp_path, **given)
    (tmp_path / "train.txt").write_text("x/c\nx/c.jpg\n")
    with pytest.raises(MaskError, match="x/c is listed twice"):
        read(tmp_path, **given)
    (tmp_path / "train.txt").write_text("x/c\nx/b\n")
    (tmp_path / "semantic/x/b.png").unlink()
    with pytest.raises(MaskError, match="(?s)1 of 2 images without a mask.*b.jpg: no mask in"):
        read(tmp_path, **given)
    assert len(read(tmp_path, missing="skip", **given).splits["train"]) == 1


@pytest.mark.parametrize("below", ["", "VOCdevkit/VOC2012"])
def test_pascal_voc(tmp_path, below):
    root = tmp_path / below
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name in ("2007_1", "2007_2", "2007_3", "2007_4"):
        picture(root / f"JPEGImages/{name}.jpg")
        if name != "2007_4":
            mask(root / f"SegmentationClass/{name}.png", 14, mode="P")
    (lists / "train.txt").write_text("2007_1\n2007_2\n"), (lists / "val.txt").write_text("2007_3\n")
    (
        (lists / "trainval.txt").write_text("2007_1\n2007_2\n2007_3\n"),
        (lists / "test.txt").write_text("2007_4\n"),
    )
    made = read(tmp_path)
    assert (
        len(made.label_classes("segmentation")) == 21
        and made.label_classes("segmentation")[15].name == "person"
        and made.label_classes("segmentation")[15].colour == (192, 128, 128)
    )
    assert made.splits["train"].masks.mask(0)[:, 0].tolist() == [15, 14, 14, 14]  # indices, not colours
    assert (len(made.splits["train"]), len(made.splits["val"])) == (2, 1)
    made.setup("test")
    assert made.splits["test"] is made.splits["val"]  # the masks of the test split are not public
    listed = str(lists / "trainval.txt") if below else "ImageSets/Segmentation/trainval.txt"
    assert len(read(tmp_path, train_images=listed).splits["train"]) == 3


def test_voc_masks_in_its_colours(tmp_path):
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("a\n")
    picture(tmp_path / "JPEGImages/a.jpg", (3, 1))
    (tmp_path / "SegmentationClass").mkdir()
    pixels = np.array([[(0, 0, 0), (192, 128, 128), (224, 224, 192)]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "SegmentationClass/a.png")
    made = read(tmp_path)
    assert (
        made.splits["train"].masks.mask(0).tolist() == [[0, 15, 255]]
        and len(made.label_classes("segmentation")) == 21
    )


@pytest.mark.parametrize(("ending", "ids"), [("labelIds", (7, 11, 33)), ("labelTrainIds", (0, 2, 18))])
def test_cityscapes(tmp_path, ending, ids):
    for split, city in (("train", "ulm"), ("val", "bonn"), ("test", "berlin")):
        for name in ("1_2", "1_3"):
            picture(tmp_path / f"leftImg8bit/{split}/{city}/{city}_{name}_leftImg8bit.png")
            start = f"gtFine/{split}/{city}/{city}_{name}_gtFine_"
            mask(tmp_path / f"{start}color.png", 99), mask(tmp_path / f"{start}instanceIds.png", 99)
            values = np.array(
                [[*ids, 255, 0 if ids[0] else 255, 29 if ids[0] == 7 else 255]] * 4, dtype=np.uint8
            )
            if ids[0] == 0:
                values[:, 4] = 255
            Image.fromarray(values).save(tmp_path / f"{start}{ending}.png")
    made = read(tmp_path)
    assert (len(made.splits["train"]), len(made.splits["val"]), len(made.label_classes("segmentation"))) == (
        2,
        2,
        19,
    )
    assert [made.label_classes("segmentation")[n].name for n in (0, 2, 18)] == ["road", "building", "bicycle"]
    assert tuple(made.label_classes("segmentation")[n].id for n in (0, 2, 18)) == ids
    assert made.splits["train"].masks.mask(0)[0].tolist() == [0, 2, 18, 255, 255, 255]
    made.setup("test")
    assert made.splits["test"] is made.splits["val"]


def test_min_pixels_counts_in_mask_files_too(tmp_path):
    for name, value in (("a", 0), ("b", 1), ("c", 254)):
        picture(tmp_path / f"images/train/{name}.png"), mask(tmp_path / f"masks/train/{name}.png", value)
    made = read(tmp_path, classes=["background", "x", "y"], min_pixels=6, ignore=[254])
    assert [made.splits["train"].names[n] for n in range(2)] == [
        "a.png",
        "b.png",
    ]  # 6 and 24 pixels; then none
    assert read(tmp_path, classes=["background", "x", "y"], min_pixels=7, ignore=[254]).label_counts("segmentation") == [0, 18, 6]  # fmt: skip  # noqa: E501
