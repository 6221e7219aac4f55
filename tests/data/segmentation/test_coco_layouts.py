"""COCO files as masks through the data module: where they are found, and what they have to agree on."""

import json
import logging

import numpy as np
import pytest
from mask_files import picture, read
from PIL import Image

from trunkline.data.shared.labels.table import MaskError


@pytest.fixture
def coco(tmp_path):
    categories = [{"id": 5, "name": "cat"}, {"id": 2, "name": "dog"}]
    (tmp_path / "annotations").mkdir()
    for split, count in (("train", 3), ("val", 2)):
        images, annotations = [], []
        for n in range(count):
            picture(tmp_path / f"{split}2017/{n}.jpg")
            images.append({"id": n, "file_name": f"{n}.jpg", "height": 4, "width": 6})
            box = [0, 0, n + 1, 0, n + 1, 4, 0, 4]
            record = {"id": n + 1, "image_id": n, "category_id": (5, 2)[n % 2], "segmentation": [box]}
            annotations.append(record | {"area": 4.0 * (n + 1), "iscrowd": 0})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
    return tmp_path


def test_coco_instances_are_found_and_drawn(coco):
    made = read(coco)
    assert [(c.id, c.name) for c in made.label_classes("segmentation")] == [
        (0, "background"),
        (2, "dog"),
        (5, "cat"),
    ]
    assert (len(made.splits["train"]), len(made.splits["val"])) == (3, 2)
    assert made.splits["train"].masks.mask(1)[0].tolist() == [1, 1, 0, 0, 0, 0]
    assert made.label_counts("segmentation") == [3 * 24 - 4 - 8 - 12, 8, 16]
    assert read(coco, overlaps="ignore", background="ignore").label_counts("segmentation") == [8, 16]


def test_pictures_with_few_labelled_pixels_are_left_out_of_training_alone(coco, caplog):
    caplog.set_level(logging.INFO)
    made = read(coco, min_pixels=8, categories=["dog", "cat"])
    assert [made.splits["train"].names[n] for n in range(2)] == ["1.jpg", "2.jpg"] and len(
        made.splits["val"]
    ) == 2
    assert "left out 1 of 3 images" in caplog.text
    assert made.label_counts("segmentation") == [28, 8, 12]
    with pytest.raises(MaskError, match="no training image has 1000 pixels"):
        read(coco, min_pixels=1000)


def test_splits_of_coco_have_to_agree_on_categories(coco):
    path = coco / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 9, "name": "cow"})
    path.write_text(json.dumps(content))
    with pytest.raises(
        MaskError,
        match="val2017.json: the classes .*cow.* differ from those of .*train2017.json .*same",
    ):
        read(coco)
    with pytest.raises(MaskError, match="data.classes cannot be used"):
        read(coco, classes=["a", "b"])


def test_panoptic_files_are_given(coco):
    path = coco / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    (coco / "annotations/panoptic").mkdir()
    for record in content["annotations"]:
        image_id = record["image_id"]
        pixels = np.zeros((4, 6, 3), dtype=np.uint8)
        pixels[:, :3] = (1, 2, 0)
        Image.fromarray(pixels).save(coco / f"annotations/panoptic/{image_id}.png")
        record |= {
            "file_name": f"{image_id}.png",
            "segments_info": [{"id": 513, "category_id": record["category_id"]}],
        }
        del record["segmentation"]
    (coco / "annotations/panoptic.json").write_text(json.dumps(content))
    made = read(coco, train_masks="annotations/panoptic.json")
    assert [c.name for c in made.label_classes("segmentation")] == ["dog", "cat"]
    assert made.label_counts("segmentation") == [12, 24] and "val" not in made.splits
