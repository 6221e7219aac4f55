"""From scored candidates to detections."""

import math

import pytest
import torch
from torchvision.ops import batched_nms

from trunkline.heads.detection import select_detections, top_candidates

SIZES = torch.tensor([[100, 100], [80, 60]])


def random_boxes(*shape, size=80.0):
    corner = torch.rand(*shape, 2) * size
    return torch.cat([corner, corner + 1 + torch.rand(*shape, 2) * size / 2], dim=-1)


def test_the_best_of_each_level_by_hand():
    scores = torch.tensor([[0.1, 0.5, 0.3, 0.9, 0.2, 0.4]])
    values, places = top_candidates(scores, 2, [3, 1, 2])
    torch.testing.assert_close(values, torch.tensor([[0.5, 0.3, 0.9, -math.inf, 0.4, 0.2]]))
    assert places[0, [0, 1, 2, 4, 5]].tolist() == [1, 2, 3, 5, 4]
    values, places = top_candidates(scores, 3)
    torch.testing.assert_close(values, torch.tensor([[0.9, 0.5, 0.4]]))
    assert places.tolist() == [[3, 1, 5]]
    assert top_candidates(scores, 100)[0].shape == (1, 6)


def test_scores_that_are_not_finite_come_last():
    scores = torch.tensor([[math.nan, 0.2, math.inf, 0.1, -math.inf]])
    values, places = top_candidates(scores, 4)
    torch.testing.assert_close(values, torch.tensor([[0.2, 0.1, -math.inf, -math.inf]]))
    assert places[0, :2].tolist() == [1, 3]


@pytest.mark.parametrize("rows", [20, 500])
def test_detections_are_those_of_a_loop_over_images(rows, place):
    torch.manual_seed(0)
    boxes, scores, labels = random_boxes(2, 200), torch.rand(2, 200), torch.randint(4, (2, 200))
    ours = select_detections(
        boxes,
        scores,
        labels,
        SIZES,
        score_threshold=0.3,
        nms_threshold=0.4,
        detections_per_image=rows,
        min_box_size=5.0,
    )
    assert ours.boxes.shape == (2, rows, 4)
    for image in range(2):
        height, width = SIZES[image].tolist()
        clipped = torch.minimum(boxes[image], torch.tensor([width, height, width, height]))
        keep = (scores[image] > 0.3) & (clipped[:, 2:] - clipped[:, :2] >= 5).all(-1)
        kept = keep.nonzero().squeeze(1)
        kept = kept[batched_nms(clipped[kept], scores[image, kept], labels[image, kept], 0.4)][:rows]
        number = ours.count[image]
        assert number == len(kept) > 10
        assert torch.equal(ours.boxes[image, :number], clipped[kept])
        assert torch.equal(ours.scores[image, :number], scores[image, kept])
        assert torch.equal(ours.labels[image, :number], labels[image, kept])
        assert not ours.boxes[image, number:].any() and (ours.labels[image, number:] == -1).all()


def test_candidates_that_are_not_finite_are_left_out(place):
    boxes = torch.tensor([[[0.0, 0, 9, 9], [20, 20, math.nan, 29], [40, 40, math.inf, 49], [60, 60, 69, 69]]])
    scores = torch.tensor([[0.5, 0.6, 0.7, math.nan]])
    found = select_detections(boxes, scores, torch.zeros(1, 4).long(), SIZES[:1])
    assert found.count.tolist() == [1] and found.boxes[0, 0].tolist() == [0, 0, 9, 9]


@pytest.mark.parametrize("shape", [(2, 0), (2, 3)])
def test_without_candidates_all_rows_are_empty(shape, place):
    found = select_detections(
        torch.zeros(*shape, 4), torch.full(shape, -math.inf), torch.zeros(shape).long(), SIZES
    )
    assert found.boxes.shape == (2, 100, 4) and found.count.tolist() == [0, 0]
    assert (found.labels == -1).all() and not found.boxes.any() and not found.scores.any()
