"""Data modules of pictures with masks, and edits of their files."""

import numpy as np
from PIL import Image

from trunkline.data.segmentation.module import ImageSegmentation

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
        made.putpalette([n % 251 for n in range(768)])
    made.save(path)


def read(root, stage="fit", **options):
    made = ImageSegmentation(str(root), workers=0, **options)
    made.prepare_data()
    made.setup(stage)
    return made
