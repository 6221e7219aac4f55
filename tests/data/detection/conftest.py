"""A small COCO file with masks of every form, and keypoints."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

NAMES = ["nose", "left_eye", "right_eye"]
SIZE = (30, 40)  # height and width


def block(x1, y1, x2, y2):
    """A bitmap of the image with a rectangle."""
    bitmap = np.zeros(SIZE, dtype=np.uint8)
    bitmap[y1:y2, x1:x2] = 1
    return bitmap


def runs(bitmap):
    """COCO's uncompressed run lengths, by hand: column after column, first the zeros."""
    flat, counts, value = bitmap.flatten(order="F").tolist(), [0], 0
    for pixel in flat:
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(bitmap.shape), "counts": counts}


def compressed(bitmap):
    """COCO's compressed run lengths as text."""
    code = coco_mask.encode(np.asfortranarray(bitmap))
    return {"size": code["size"], "counts": code["counts"].decode()}


@pytest.fixture
def content():
    """Image 7 has a person (two polygons), a crowd (compressed) and a cup (uncompressed); image 5 nothing."""
    polygons = [[4, 2, 14, 2, 14.5, 12.25, 4, 12], [20, 3, 24, 3, 22, 9]]
    people = [4, 5, 2, 6, 4, 2, 2, 4, 1]  # the right eye is hidden
    return {
        "images": [
            {"id": 5, "file_name": "empty.png", "height": 30, "width": 40},
            {"id": 7, "file_name": "full.png", "height": 30, "width": 40},
        ],
        "annotations": [
            {"id": 31, "image_id": 7, "category_id": 1, "bbox": [4, 2, 20, 10.25], "segmentation": polygons}
            | {"keypoints": people, "num_keypoints": 3},
            {"id": 32, "image_id": 7, "category_id": 1, "bbox": [0, 20, 40, 10], "iscrowd": 1}
            | {"segmentation": compressed(block(0, 20, 40, 30)), "keypoints": [0] * 9},
            {"id": 33, "image_id": 7, "category_id": 9, "bbox": [30, 10, 5, 6]}
            | {"segmentation": runs(block(30, 10, 35, 16))},
        ],
        "categories": [
            {"id": 1, "name": "person", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]},
            {"id": 9, "name": "cup"},
        ],
    }


@pytest.fixture
def store(tmp_path):
    """Write a COCO file and its images; returns the path of the file."""

    def write(content):
        rng = np.random.default_rng(0)
        for record in content["images"]:
            shape = (record["height"], record["width"], 3)
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / record["file_name"])
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture
def truth(content):
    """``[3, 30, 40]`` uint8: the masks of the file by pycocotools alone, in the order of the annotations."""
    bitmaps = []
    for record in content["annotations"]:
        outline = record["segmentation"]
        if isinstance(outline, list):
            code = coco_mask.merge(coco_mask.frPyObjects(outline, *SIZE))
        elif isinstance(outline["counts"], str):
            code = outline
        else:
            code = coco_mask.frPyObjects(outline, *SIZE)
        bitmaps.append(coco_mask.decode(code))
    return np.stack(bitmaps)
