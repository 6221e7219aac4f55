"""Shared by all tests: few threads, quiet libraries, a tiny dataset."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*The number of training batches.*")


@pytest.fixture(autouse=True, scope="session")
def few_threads():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """A synthetic COCO-format folder with 8 training and 6 validation images."""
    from trunkline.data.synthetic.pictures import write_detection

    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_detection(folder, train=8, val=6, seed=1)
    return folder


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory):
    """Synthetic class folders with 6 training and 3 validation pictures."""
    from trunkline.data.synthetic.pictures import write_classification

    folder = tmp_path_factory.mktemp("data") / "class_folders"
    write_classification(folder, train=6, val=3, size=32, seed=1, progress=False)
    return folder


@pytest.fixture(scope="session")
def masked_shapes(tmp_path_factory):
    """Synthetic pictures with masks: 6 for training, 4 for validation."""
    from trunkline.data.synthetic.pictures import write_segmentation

    folder = tmp_path_factory.mktemp("data") / "masked_shapes"
    return write_segmentation(folder, train=6, val=4, seed=1, progress=False)


@pytest.fixture
def shapes_with_masks(shapes, tmp_path):
    """The dataset ``shapes`` with masks beside it, in which every box is filled with its category id."""
    root = tmp_path / "shapes_with_masks"
    shutil.copytree(shapes, root)
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
    return root
