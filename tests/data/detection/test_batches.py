"""Rows of boxes in compiled steps: few numbers of them, and the same objects."""

import pytest
import torch

from trunkline.data.detection.batches import DetectionSample, collate_detection


def batch(boxes, keypoints=False):
    sample = DetectionSample(
        image=torch.zeros(3, 8, 8, dtype=torch.uint8),
        boxes=torch.arange(4.0 * boxes).view(boxes, 4),
        labels=torch.arange(boxes) % 3,
        crowd=torch.ones(boxes, dtype=torch.bool),
        image_id=7,
        original_size=(8, 8),
        canvas=(8, 8),
        keypoints=torch.ones(boxes, 5, 3) if keypoints else None,
    )
    return collate_detection([sample])


@pytest.mark.parametrize(
    ("boxes", "rows"), [(0, 128), (1, 128), (17, 128), (128, 128), (129, 256), (300, 512)]
)
def test_rows_are_128_or_twice_four_times_as_many(boxes, rows):
    given = batch(boxes)
    padded = given.with_few_shapes()
    assert padded.boxes.shape == (1, rows, 4) and padded.labels.shape == padded.crowd.shape == (1, rows)
    assert torch.equal(padded.boxes[0, :boxes], torch.arange(4.0 * boxes).view(boxes, 4))
    assert (padded.labels[0] >= 0).sum() == padded.crowd.sum() == boxes
    assert not padded.boxes[0, boxes:].any() and bool((padded.labels[0, boxes:] == -1).all())
    assert padded.image is given.image and padded.image_ids.tolist() == [7] and padded.keypoints is None


def test_keypoints_have_the_rows_of_their_boxes():
    padded = batch(3, keypoints=True).with_few_shapes()
    assert padded.keypoints.shape == (1, 128, 5, 3) and padded.keypoints.sum() == 3 * 5 * 3
