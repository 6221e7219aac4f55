"""The data set: one sample from file to tensors."""

import io
import json
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from PIL import Image

from trunkline.data import coco
from trunkline.data.augment import Augmentation, AugmentationError
from trunkline.data.canvas import Request
from trunkline.data.coco_dataset import CocoDetectionDataset
from trunkline.data.coco_index import read_coco
from trunkline.data.io import ImageError


@pytest.fixture
def dataset(tmp_path):
    """One 30 x 40 picture with a red rectangle exactly in its box, and a crowd region."""
    picture = np.zeros((30, 40, 3), dtype=np.uint8)
    picture[6:18, 10:30] = (255, 0, 0)
    Image.fromarray(picture).save(tmp_path / "red.png")
    content = {
        "images": [{"id": 5, "file_name": "red.png", "height": 30, "width": 40}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 9, "bbox": [10, 6, 20, 12]},
            {"id": 2, "image_id": 5, "category_id": 2, "bbox": [0, 0, 40, 30], "iscrowd": 1},
        ],
        "categories": [{"id": 2, "name": "sky"}, {"id": 9, "name": "red"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    index = read_coco(tmp_path / "boxes.json", tmp_path)
    return lambda augment=None: CocoDetectionDataset(index, augment and Augmentation(augment), long_side=200)


def test_sample_is_resized_with_its_boxes(dataset):
    sample = dataset()[Request(0, 60, (64, 96))]
    assert sample.image.shape == (3, 60, 80) and sample.image.dtype == torch.uint8
    assert sample.image.is_contiguous()
    assert sample.boxes.tolist() == [[20, 12, 60, 36], [0, 0, 80, 60]]
    assert sample.labels.tolist() == [1, 0] and sample.crowd.tolist() == [False, True]
    assert (sample.image_id, sample.original_size, sample.canvas) == (5, (30, 40), (64, 96))
    inside = sample.image[:, 13:35, 21:59]
    assert (inside[0] > 250).all() and (inside[1:] < 5).all()
    assert (sample.image[0, 38:] == 0).all()


def test_sample_is_made_to_fit_its_canvas(dataset):
    sample = dataset()[Request(0, 60, (96, 64))]
    assert sample.image.shape == (3, 48, 64)
    assert sample.boxes.tolist() == [[16, pytest.approx(9.6), 48, pytest.approx(28.8)], [0, 0, 64, 48]]


def test_long_side_limits_the_sample(dataset):
    limited = dataset()
    limited.long_side = 40
    assert limited[Request(0, 60, (64, 96))].image.shape == (3, 30, 40)


def test_augmentation_comes_before_resizing(dataset):
    crop = [{"Crop": {"x_min": 0, "y_min": 0, "x_max": 20, "y_max": 30, "p": 1.0}}]
    sample = dataset(crop)[Request(0, 40, (96, 64))]  # 30 x 20 is scaled by two
    assert sample.image.shape == (3, 60, 40)
    assert sample.boxes.tolist() == [[20, 12, 40, 36], [0, 0, 40, 60]]
    assert sample.original_size == (30, 40)


def test_seed_of_the_request_decides_the_flip(dataset):
    crop = {"Crop": {"x_min": 0, "y_min": 0, "x_max": 32, "y_max": 30, "p": 1.0}}
    flipping = dataset([crop, {"HorizontalFlip": {"p": 0.5}}])

    def lefts():
        return [flipping[Request(0, 30, (32, 64), seed)].boxes[0, 0].item() for seed in range(30)]

    assert {round(left) for left in lefts()} == {10, 2}  # 10..30 of 32, or mirrored 2..22
    assert lefts() == lefts()


def test_the_shared_boxes_are_not_written_to(dataset):
    data = dataset([{"HorizontalFlip": {"p": 1.0}}])
    sample = data[Request(0, 60, (64, 96))]
    sample.labels.fill_(7)
    sample.crowd.fill_(True)
    assert data.index.boxes.tolist() == [[10, 6, 30, 18], [0, 0, 40, 30]]
    assert data.index.labels.tolist() == [1, 0] and data.index.crowd.tolist() == [False, True]


def test_another_size_than_annotated_is_an_error(dataset):
    data = dataset()
    Image.new("RGB", (20, 20)).save(data.index.path(0))
    with pytest.raises(ImageError, match=r"red.png: is 20x20 .* say 30x40"):
        data[Request(0, 60, (64, 96))]


def test_failing_augmentation_names_the_file(dataset):
    with pytest.raises(AugmentationError, match="red.png: augmentation failed on 30x40"):
        dataset([{"RandomCrop": {"height": 99, "width": 99, "p": 1.0}}])[Request(0, 60, (64, 96))]


def test_pickled_for_a_worker_it_is_small(root):
    index = read_coco(root / "annotations/instances_train.json", root / "images/train")
    buffer = io.BytesIO()
    ForkingPickler(buffer).dump(CocoDetectionDataset(index, Augmentation(coco.FLIP)))
    assert buffer.tell() < 20_000
