import math

import pytest
import torch
from torchvision import ops

from trunkline.heads.detection import nms
from trunkline.heads.detection.nms import nms_keep, suppress


def random_boxes(*shape, size=100.0):
    corner = torch.rand(*shape, 2) * size
    return torch.cat([corner, corner + 1 + torch.rand(*shape, 2) * size / 2], dim=-1)


def slow_nms(boxes, scores, groups, valid, threshold):
    """Greedy suppression in plain Python, one image at a time."""
    keep = torch.zeros_like(valid)
    for image in range(len(boxes)):
        kept = []
        for row in scores[image].argsort(descending=True).tolist():
            rivals = [other for other in kept if groups[image, other] == groups[image, row]]
            overlaps = [ops.box_iou(boxes[image, [row]], boxes[image, [other]]).item() for other in rivals]
            if valid[image, row] and all(overlap <= threshold for overlap in overlaps):
                kept.append(row)
        keep[image, kept] = True
    return keep


@pytest.mark.parametrize("rows", [60, 400])  # torchvision chooses another way from 1000 boxes on
def test_nms_is_greedy_suppression_in_every_image_and_group(rows, place):
    torch.manual_seed(0)
    boxes, scores = random_boxes(3, rows, size=60.0), torch.rand(3, rows)
    groups, valid = torch.randint(4, (3, rows)), torch.rand(3, rows) > 0.2
    keep = nms_keep(boxes, scores, groups, valid, 0.4)
    assert 10 < keep.sum() < valid.sum()
    assert torch.equal(keep, slow_nms(boxes, scores, groups, valid, 0.4))


def test_nms_keeps_its_precision_with_many_groups(place):
    # IoU is 0.4996 in every group; offsets of 20000 x 1000 pixels in float32 would round boxes to 2 pixels.
    pair = torch.tensor([[900.0, 900, 903, 903], [901.0015, 900, 904.0015, 903]])
    boxes = pair.repeat(1, 200, 1)
    groups = (torch.arange(400) // 2 * 100)[None]
    scores = torch.linspace(1, 0.1, 400)[None]
    valid = torch.ones(1, 400, dtype=torch.bool)
    assert nms_keep(boxes, scores, groups, valid, 0.5).all()
    assert nms_keep(boxes, scores, groups, valid, 0.499).sum() == 200


def test_nms_drops_what_is_not_finite(place):
    boxes = torch.tensor([[[0.0, 0, 9, 9], [20, 20, 29, 29], [40, 40, 49, 49], [60, 60, 69, 69]]])
    boxes[0, 1, 2] = math.nan
    boxes[0, 2, 2] = math.inf
    scores = torch.tensor([[0.5, 0.6, 0.7, math.nan]])
    groups, valid = torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool)
    assert nms_keep(boxes, scores, groups, valid, 0.5).tolist() == [[True, False, False, False]]


@pytest.mark.parametrize("shape", [(2, 5), (2, 0), (1, 1)])
def test_nms_without_valid_rows(shape, place):
    groups = torch.zeros(shape, dtype=torch.long)
    keep = nms_keep(torch.zeros(*shape, 4), torch.zeros(shape), groups, groups.bool(), 0.5)
    assert keep.shape == shape and not keep.any()


def test_equal_scores_keep_the_first(place):
    boxes = torch.tensor([[[0.0, 0, 10, 10]] * 3 + [[50.0, 0, 60, 10]]])
    scores = torch.full((1, 4), 0.5)
    groups, valid = torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool)
    assert nms_keep(boxes, scores, groups, valid, 0.5).tolist() == [[True, False, False, True]]


@pytest.mark.parametrize("pairs", [1, 700, 2**25])
def test_boxes_are_compared_in_blocks_of_any_size(pairs, monkeypatch):
    torch.manual_seed(0)
    boxes, groups = random_boxes(2, 100), torch.zeros(2, 100, dtype=torch.long)
    valid = torch.ones(2, 100, dtype=torch.bool)
    expected = suppress(boxes, groups, valid, 0.3)
    monkeypatch.setattr(nms, "_PAIRS", pairs)
    assert torch.equal(suppress(boxes, groups, valid, 0.3), expected)


@pytest.mark.parametrize("length", [15, 16, 17, 50, 130])
def test_chains_that_take_many_rounds(length, monkeypatch):
    # Each box overlaps the next by half: the first stays, the second goes, the third stays again, ...
    left = 10.0 * torch.arange(length)
    boxes = torch.stack([left, 0 * left, left + 20, 0 * left + 20], dim=-1)[None]
    groups, valid = torch.zeros(1, length, dtype=torch.long), torch.ones(1, length, dtype=torch.bool)
    looks = []
    original = torch.equal
    monkeypatch.setattr(torch, "equal", lambda one, other: looks.append(1) or original(one, other))
    kept = suppress(boxes, groups, valid, 0.3)  # 10 of 30
    assert kept[0].tolist() == [index % 2 == 0 for index in range(length)]
    assert len(looks) == -(-length // 16)  # settled after length - 1 rounds, and seen one later
