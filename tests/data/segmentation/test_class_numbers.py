"""Masks of one dataset that write classes of the same names as other values."""

import json

import numpy as np
import pytest
from mask_files import mask, picture, read
from PIL import Image

from trunkline.data.segmentation.module import ImageSegmentation
from trunkline.data.shared.labels.classes import LabelClass
from trunkline.data.shared.labels.table import ClassTable

ROWS = [LabelClass(0, "sky", (1, 1, 1)), LabelClass(4, "road", (2, 2, 2)), LabelClass(9, "car", (3, 3, 3))]
WANTED = [LabelClass(7, "car"), LabelClass(1, "sky"), LabelClass(2, "road")]


def test_a_table_keeps_values_and_colours_and_gives_other_numbers():
    table, new = ClassTable(ROWS, ignore=[6]).renumbered(WANTED)
    assert table.labels(np.array([0, 4, 9, 6, 255, 5])).tolist() == [1, 2, 0, 255, 255, -1]
    codes = np.array([0x010101, 0x030303, 0x020202, 5], dtype=np.uint32)
    assert table.labels(codes).tolist() == [1, 0, 2, -1]
    assert list(table.classes) == [
        LabelClass(7, "car", (3, 3, 3)),
        LabelClass(1, "sky", (1, 1, 1)),
        LabelClass(2, "road", (2, 2, 2)),
    ]
    assert new[:3].tolist() == [1, 2, 0] and new[255] == 255
    assert ClassTable(ROWS).renumbered(WANTED[:2]) is None
    assert ClassTable(ROWS).renumbered([*WANTED[:2], LabelClass(2, "Road")]) is None


def test_what_is_no_category_keeps_being_background():
    table = ClassTable(ROWS, categories=["car"])
    assert [c.name for c in table.classes] == ["background", "car"]
    made, _ = table.renumbered([LabelClass(1, "car"), LabelClass(0, "background")])
    assert made.labels(np.array([0, 4, 9])).tolist() == [1, 1, 0] and (made.rest, made.background) == (1, 1)


def test_cityscapes_of_both_kinds_mean_the_same(tmp_path, caplog):
    for split, kind, value in (("train", "labelTrainIds", 0), ("val", "labelIds", 7)):
        picture(tmp_path / f"leftImg8bit/{split}/x/x_leftImg8bit.png")
        mask(tmp_path / f"gtFine/{split}/x/x_gtFine_{kind}.png", value)  # road, with sidewalk above
    made = read(tmp_path)
    train, val = (made.splits[split].masks.mask(0) for split in ("train", "val"))
    assert (train == val).all() and train[0].tolist() == [1] * 6 and train[1].tolist() == [0] * 6
    assert "Cityscapes numbers the classes otherwise than Cityscapes (labelTrainIds)" in caplog.text


def coco(folder, split, categories, panoptic):
    """One image of which an ``a`` and a ``b`` cover a half each."""
    picture(folder / f"images/{split}/x.png")
    ids = {name: number for number, name in categories.items()}
    content = {
        "images": [{"id": 1, "file_name": "x.png", "height": 4, "width": 6}],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }
    if panoptic:
        pixels = np.zeros((4, 6, 3), dtype=np.uint8)
        pixels[:, :3, 0], pixels[:, 3:, 0] = 1, 2
        place = folder / f"annotations/panoptic_{split}"
        place.mkdir(parents=True)
        Image.fromarray(pixels).save(place / "x.png")
        segments = [{"id": n, "category_id": ids[name], "iscrowd": 0} for n, name in ((1, "a"), (2, "b"))]
        content["annotations"] = [{"image_id": 1, "file_name": "x.png", "segments_info": segments}]
    else:
        content["annotations"] = [
            {
                "id": n, "image_id": 1, "category_id": ids[name], "iscrowd": 0, "area": 12,
                "bbox": [x, 0, 3, 4], "segmentation": [[x, 0, x + 3, 0, x + 3, 4, x, 4]],
            }
            for n, name, x in ((1, "a", 0), (2, "b", 3))
        ]  # fmt: skip
    name = f"annotations/{'panoptic' if panoptic else 'instances'}_{split}.json"
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return name


@pytest.mark.parametrize("panoptic", [False, True])
def test_coco_files_may_number_their_categories_otherwise(tmp_path, panoptic):
    train = coco(tmp_path, "train", {1: "a", 2: "b"}, panoptic)
    val = coco(tmp_path, "val", {5: "b", 6: "a"}, panoptic)
    made = ImageSegmentation(str(tmp_path), "images/train", train, "images/val", val, workers=0)
    made.prepare_data()
    made.setup()
    masks = [made.splits[split].masks for split in ("train", "val")]
    assert (masks[0].mask(0) == masks[1].mask(0)).all() and len(np.unique(masks[0].mask(0))) == 2
    assert (masks[0].survey(0).counts == masks[1].survey(0).counts).all()
    assert [c[:2] for c in made.label_classes("segmentation")] == [c[:2] for c in masks[1].classes]
    before = made.label_counts("segmentation")
    assert made.take_classes("segmentation", masks[0].classes[::-1])
    assert made.label_counts("segmentation") == before[::-1]
