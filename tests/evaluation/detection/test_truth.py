"""The fields of a ground truth that is handed over in Python."""

import numpy as np
import pytest
import torch

from trunkline.evaluation.detection.truth import Truth

GOOD = {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("more", "crowd", "area"),
    [
        ({}, 0, 12),
        ({"iscrowd": None, "area": None}, 0, 12),
        ({"iscrowd": True, "area": 0}, 1, 0),
        ({"iscrowd": 1.0, "area": np.float32(2.5)}, 1, 2.5),
        ({"iscrowd": np.int64(0), "bbox": torch.tensor([1.0, 2, 3, 4])}, 0, 12),
        ({"image_id": np.int64(1), "bbox": np.array([1, 2, 3, 4])}, 0, 12),
    ],
)
def test_what_is_unambiguous_is_taken(more, crowd, area):
    truth = Truth.read([{**GOOD, **more}])
    assert truth.crowd.tolist() == [crowd] and truth.areas.tolist() == [area]
    assert truth.boxes.tolist() == [[1, 2, 3, 4]] and truth.image_ids.tolist() == [1]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"iscrowd": "0"}, "iscrowd is '0'; it is 0 or 1"),
        ({"iscrowd": "false"}, "iscrowd is 'false'"),
        ({"iscrowd": float("nan")}, "iscrowd is nan"),
        ({"iscrowd": -1}, "iscrowd is -1"),
        ({"bbox": ["1", 2, 3, 4]}, "four finite numbers"),
        ({"bbox": [1, 2, 3]}, "four finite numbers"),
        ({"bbox": [1, 2, 3, float("inf")]}, "four finite numbers"),
        ({"bbox": None}, "bbox is None"),
        ({"area": "12"}, "area is '12'"),
        ({"area": -1}, "area is -1"),
        ({"area": 10**400}, "area is 1000"),
        ({"image_id": "1"}, "image_id is '1'"),
        ({"category_id": 2.0}, "category_id is 2.0"),
    ],
)
def test_the_rest_is_refused_with_its_annotation(more, words):
    with pytest.raises(ValueError, match=f"annotation number 1: .*{words}"):
        Truth.read([GOOD, {**GOOD, **more}])
