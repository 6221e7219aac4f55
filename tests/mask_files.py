"""Data modules of pictures with masks, and edits of their files."""

import json

import numpy as np
from PIL import Image

from trunkline.data.segmentation.module import ImageSegmentation
from trunkline.data.shared.labels.classes import voc_colour

SMALL = {"batch_size": 4, "workers": 0}


def fitted(root, stage="fit", **options):
    made = ImageSegmentation(str(root), **SMALL | options)
    made.setup(stage)
    return made


def change(path, edit):
    """Edit the values of a mask."""
    with Image.open(path) as image:
        values = np.array(image)
    edit(values)
    Image.fromarray(values).save(path)


def picture(path, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 90, 200)).save(path)


def mask(path, value=0, size=(6, 4), mode="L"):
    """A mask of a value, with the next one in its first row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full(size[::-1], value, dtype=np.uint8)
    values[0] = value + 1
    made = Image.fromarray(values, mode)
    if mode == "P":
        made.putpalette([part for n in range(256) for part in voc_colour(n)])
    made.save(path)


def read(root, stage="fit", **options):
    made = ImageSegmentation(str(root), workers=0, **options)
    made.prepare_data()
    made.setup(stage)
    return made


def fill_boxes(root):
    """Write masks beside the annotations of a COCO folder: every box is filled with its category id."""
    for split in ("train", "val"):
        (root / "masks" / split).mkdir(parents=True)
        content = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
        for image in content["images"]:
            mask = np.zeros((image["height"], image["width"]), dtype=np.uint8)
            for row in content["annotations"]:
                if row["image_id"] == image["id"]:
                    x, y, width, height = row["bbox"]
                    mask[y : y + height, x : x + width] = row["category_id"]
            path = root / "masks" / split / image["file_name"]
            Image.fromarray(mask).save(path.with_suffix(".png"))
    (root / "classes.csv").write_text("id,name\n0,nothing\n1,circle\n3,rectangle\n7,triangle\n")
