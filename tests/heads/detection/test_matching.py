import math

import pytest
import torch
from torchvision.models.detection import _utils as det_utils
from torchvision.ops import box_iou

from trunkline.heads.detection import matching
from trunkline.heads.detection.matching import Matcher, object_rows, sample


def random_boxes(*shape):
    corner = torch.rand(*shape, 2) * 60
    return torch.cat([corner, corner + 4 + torch.rand(*shape, 2) * 50], dim=-1)


@pytest.mark.parametrize("low_quality", [False, True])
def test_matches_are_torchvisions_in_every_image(make_targets, low_quality):
    torch.manual_seed(0)
    boxes = random_boxes(3, 200)
    boxes[:, 100:150] = boxes[:, 50:100]  # so that the best of an object is a tie
    truth = random_boxes(3, 6)
    truth[0, 0] = boxes[0, 60]
    numbers = [6, 3, 1]
    targets = make_targets([[(*box, 0) for box in truth[i, :n].tolist()] for i, n in enumerate(numbers)])
    ours = Matcher(0.6, 0.3, 0.5, low_quality)(boxes, targets)
    reference = det_utils.Matcher(0.6, 0.3, low_quality)
    for image, number in enumerate(numbers):
        expected = reference(box_iou(truth[image, :number], boxes[image]))
        assert torch.equal(ours.positive[image], expected >= 0)
        assert torch.equal(ours.negative[image], expected == reference.BELOW_LOW_THRESHOLD)
        assert torch.equal(ours.index[image][expected >= 0], expected[expected >= 0])
        assert not (ours.positive[image] | ours.negative[image]).all()  # some are in between


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("pairs", [1, 3 * 80 * 4])
def test_objects_are_compared_in_blocks_of_any_size(make_targets, monkeypatch, low_quality, pairs):
    torch.manual_seed(0)
    boxes, truth = random_boxes(3, 80), random_boxes(3, 11)
    truth[:, 7] = truth[:, 2]  # a tie across blocks
    targets = make_targets(
        [[(*box, 0, row in (3, 9)) for row, box in enumerate(truth[i].tolist())] for i in range(3)], rows=16
    )
    matcher = Matcher(0.5, 0.3, 0.5, low_quality)
    expected = matcher(boxes, targets)
    assert (expected.index == 2).any() and not (expected.index == 7).any()
    assert expected.positive.any() and expected.negative.any()
    monkeypatch.setitem(matching._PAIRS, "cpu", pairs)
    found = matcher(boxes, targets)
    assert torch.equal(found.positive, expected.positive) and torch.equal(found.negative, expected.negative)
    assert torch.equal(found.index[found.positive], expected.index[found.positive])


def test_low_quality_by_hand(make_targets):
    anchors = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 20], [50, 50, 60, 60]]])
    targets = make_targets([[(0, 0, 10, 4, 0)]])  # IoU 0.4, 0.4, 0.2, 0: the first two tie
    matches = Matcher(0.7, 0.3, 0.5, low_quality=True)(anchors, targets)
    assert matches.positive.tolist() == [[True, True, False, False]]
    assert matches.negative.tolist() == [[False, False, True, True]]


def test_an_object_that_touches_no_box_makes_none_positive(make_targets):
    anchors = torch.tensor([[[0.0, 0, 10, 10], [5, 5, 15, 15]]])
    matches = Matcher(0.7, 0.3, 0.5, low_quality=True)(anchors, make_targets([[(50, 50, 60, 60, 0)]]))
    assert not matches.positive.any() and matches.negative.all()


def test_thresholds_move_the_borders(make_targets):
    boxes = torch.tensor([[[0.0, 0, 10, 10]]])
    targets = make_targets([[(0, 0, 10, 5, 0)]])  # IoU 0.5
    assert Matcher(0.5, 0.5, 0.5)(boxes, targets).positive.all()
    assert Matcher(0.51, 0.51, 0.5)(boxes, targets).negative.all()
    between = Matcher(0.6, 0.4, 0.5)(boxes, targets)
    assert not between.positive.any() and not between.negative.any()


def test_crowd_regions_by_hand(make_targets):
    boxes = torch.tensor([[
        [0.0, 0, 10, 10],  # an object's own box, inside the crowd region
        [20, 0, 30, 10],  # wholly inside the region: IoU with it only 100 / 10000
        [95, 0, 105, 10],  # half of it inside
        [96, 0, 106, 10],  # 40 % of it inside
        [10, 10, 10, 10],  # without area
    ]])  # fmt: skip
    targets = make_targets([[(0, 0, 100, 100, 1, True), (0, 0, 10, 10, 2)]])
    matches = Matcher(0.5, 0.5, 0.5)(boxes, targets)
    assert matches.positive.tolist() == [[True, False, False, False, False]]
    assert matches.index[0, 0] == 1
    assert matches.negative.tolist() == [[False, False, False, True, True]]
    assert Matcher(0.5, 0.5, 0.4)(boxes, targets).negative.tolist() == [[False] * 4 + [True]]
    assert Matcher(0.5, 0.5, 0.9)(boxes, targets).negative.tolist() == [[False, False, True, True, True]]


def test_rows_to_learn_from(make_targets):
    rows = [(0, 0, 5, 5, 0), (0, 0, 5, 5, 0, True), (3, 3, 3, 9, 0), (0, 0, math.nan, 5, 0), (1, 1, 2, 2, 7)]
    assert object_rows(make_targets([rows], rows=6)).tolist() == [[True, False, False, False, True, False]]


def test_an_image_without_boxes_is_all_background(make_targets):
    matches = Matcher(0.7, 0.3, 0.5, low_quality=True)(
        random_boxes(1, 20), make_targets([[], [(0, 0, 60, 60, 0)]])
    )
    assert matches.negative[0].all() and not matches.positive[0].any()
    assert matches.positive[1].any()


@pytest.mark.parametrize(
    ("positives", "negatives"), [(3, 500), (100, 500), (100, 10), (0, 5), (0, 0), (200, 300)]
)
def test_quota_is_torchvisions(positives, negatives):
    torch.manual_seed(0)
    state = torch.full((2, 600), -1.0)
    order = torch.randperm(600)
    state[:, order[:positives]] = 1
    state[:, order[positives : positives + negatives]] = 0
    chosen = sample(state == 1, state == 0, torch.rand(2, 600), 64, 0.3)
    reference = det_utils.BalancedPositiveNegativeSampler(64, 0.3)
    expected_positive, expected_negative = (torch.stack(masks).sum(1) for masks in reference(list(state)))
    assert torch.equal(chosen.positive.sum(1), expected_positive)
    assert torch.equal((chosen.valid & ~chosen.positive).sum(1), expected_negative)
    for image in range(2):
        index, valid = chosen.index[image], chosen.valid[image]
        assert len(set(index[valid].tolist())) == valid.sum()
        assert (state[image][index[chosen.positive[image]]] == 1).all()
        assert (state[image][index[valid & ~chosen.positive[image]]] == 0).all()


def test_every_row_is_as_likely():
    torch.manual_seed(0)
    positive = torch.zeros(4000, 20, dtype=torch.bool)
    positive[:, :8] = True
    chosen = sample(positive, ~positive, torch.rand(4000, 20), 10, 0.4)
    counts = torch.zeros(20).scatter_add_(0, chosen.index.flatten(), torch.ones(40000))
    # 4 of 8 positives, 6 of 12 negatives: 2000 each, with a standard deviation of sqrt(4000 / 4) = 32.
    assert (counts - 2000).abs().max() < 5 * 32


def test_sampling_more_than_there_are_takes_everything():
    positive = torch.tensor([[True, False, False]])
    negative = torch.tensor([[False, True, False]])
    chosen = sample(positive, negative, torch.rand(1, 3), 100, 0.5)
    assert chosen.index.shape == (1, 3)
    assert chosen.index[chosen.valid].tolist() == [0, 1]
    assert chosen.positive.tolist() == [[True, False, False]]
