"""Focal and box losses of dense heads."""

import math

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from trunkline.heads.detection import (
    Matcher,
    Matches,
    box_loss,
    dense_box_loss,
    dense_class_loss,
    focal_loss,
    per_positive,
)

OBJECTS = [[(20, 20, 60, 70, 0), (100, 10, 150, 110, 1)], [(5, 40, 90, 100, 2)]]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("alpha", [0.25, 0.9, -1])
def test_focal_loss_and_its_gradient_are_torchvisions(alpha, gamma):
    torch.manual_seed(0)
    ours = (torch.randn(50, 7) * 4).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    targets = torch.rand(50, 7) < 0.3
    loss = focal_loss(ours, targets, alpha, gamma)
    expected = sigmoid_focal_loss(theirs, targets.float(), alpha, gamma)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_focal_loss_by_hand():
    loss = focal_loss(torch.tensor([0.0, 0.0]), torch.tensor([True, False]), alpha=0.25, gamma=2.0)
    # p = 1/2: -alpha * (1/2)^2 * log(1/2)
    assert loss.tolist() == pytest.approx([0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)])


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_of_extreme_logits_is_finite(gamma):
    logits = torch.tensor([-1e4, 1e4, -1e4, 1e4], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([True, True, False, False]), 0.25, gamma)
    assert loss.tolist() == pytest.approx([2500, 0, 0, 7500])
    loss.sum().backward()
    assert logits.grad.tolist() == pytest.approx([-0.25, 0, 0, 0.75])


def test_focal_loss_is_computed_in_float32():
    logits = torch.tensor([8.0], dtype=torch.bfloat16)  # 1-p has no digits left in bfloat16
    loss = focal_loss(logits, torch.tensor([True]))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, sigmoid_focal_loss(logits.double(), torch.ones(1).double()).float())


@pytest.mark.parametrize("per_image", [False, True])
def test_sums_are_divided_by_the_number_of_positives(per_image):
    loss = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0], [7.0, 0.0, 0.0]])
    positive = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    expected = (6 / 2 + 4 / 1 + 7 / 1) / 3 if per_image else 17 / 3
    assert per_positive(loss, positive, per_image).item() == pytest.approx(expected)


def test_dense_losses_by_hand(make_targets):
    # Anchor 0 is positive for object 1 (class 2), anchor 1 negative, anchor 2 ignored.
    targets = make_targets([[(50, 50, 60, 60, 0), (0, 0, 10, 10, 2)]])
    matches = Matches(
        torch.tensor([[1, 0, 0]]),
        torch.tensor([[True, False, False]]),
        torch.tensor([[False, True, False]]),
    )
    logits = torch.zeros(1, 3, 3, requires_grad=True)
    loss = dense_class_loss(logits, matches, targets)
    # One true entry, two false ones of the same anchor, three of the negative anchor.
    assert loss.item() == pytest.approx((0.25 + 5 * 0.75) * 0.25 * math.log(2))
    loss.backward()
    assert (logits.grad[0] < 0).tolist() == [[False, False, True], [False] * 3, [False] * 3]
    assert not logits.grad[0, 2].any()
    anchors = torch.tensor([[0.0, 0, 10, 5], [0, 0, 10, 10], [0, 0, 10, 10]])
    deltas = torch.zeros(1, 3, 4, requires_grad=True)
    loss = dense_box_loss(deltas, anchors, matches, targets)
    assert loss.item() == pytest.approx(0.5 + math.log(2))  # centre half a height lower, twice as high
    loss.backward()
    assert not deltas.grad[0, 1:].any()


@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou", "ciou"])
def test_dense_box_loss_is_the_loss_of_the_positives(make_targets, kind):
    torch.manual_seed(0)
    corner = torch.rand(400, 2) * 100
    anchors = torch.cat([corner, corner + 10 + torch.rand(400, 2) * 60], dim=-1)
    targets, deltas = make_targets(OBJECTS), torch.randn(2, 400, 4) / 5
    matches = Matcher(0.4, 0.3, 0.5)(anchors[None], targets)
    options = {"weights": (1.0, 2.0, 3.0, 4.0), "kind": kind, "beta": 0.1}
    loss = dense_box_loss(deltas, anchors, matches, targets, **options)
    total, number = 0, 0
    for image in range(2):
        rows = matches.positive[image]
        wanted = targets.boxes[image, matches.index[image, rows]]
        total += box_loss(deltas[image, rows], anchors[rows], wanted, rows[rows], **options)
        number += rows.sum()
    assert number > 10
    torch.testing.assert_close(loss, total / number)


def test_images_without_objects_teach_background_alone(make_targets):
    anchors = torch.tensor([[0.0, 0, 10, 10], [5, 5, 30, 30]])
    targets = make_targets([[], []])
    matches = Matcher(0.5, 0.4, 0.5, low_quality=True)(anchors[None], targets)
    logits = torch.zeros(2, 2, 3, requires_grad=True)
    deltas = torch.randn(2, 2, 4, requires_grad=True)
    for per_image in (False, True):
        loss = dense_class_loss(logits, matches, targets, per_image=per_image)
        expected = 6 * 0.75 * 0.25 * math.log(2) * (1 if per_image else 2)
        assert loss.item() == pytest.approx(expected)
        assert dense_box_loss(deltas, anchors, matches, targets, per_image=per_image) == 0
    (loss + dense_box_loss(deltas, anchors, matches, targets)).backward()
    assert (logits.grad > 0).all() and not deltas.grad.any()


def test_anchors_in_crowd_regions_are_ignored(make_targets):
    anchors = torch.tensor([[10.0, 10, 20, 20], [70, 70, 90, 90]])
    targets = make_targets([[(0, 0, 50, 50, 0, True)]])
    matches = Matcher(0.5, 0.4, 0.5, low_quality=True)(anchors[None], targets)
    logits = torch.zeros(1, 2, 3, requires_grad=True)
    dense_class_loss(logits, matches, targets).backward()
    assert not logits.grad[0, 0].any() and logits.grad[0, 1].all()


def test_padding_rows_change_nothing(make_targets):
    torch.manual_seed(0)
    corner = torch.rand(200, 2) * 100
    anchors = torch.cat([corner, corner + 10 + torch.rand(200, 2) * 60], dim=-1)
    logits, deltas = torch.randn(2, 200, 3), torch.randn(2, 200, 4)

    def losses(targets):
        matches = Matcher(0.4, 0.3, 0.5, low_quality=True)(anchors[None], targets)
        return [
            dense_class_loss(logits, matches, targets),
            dense_box_loss(deltas, anchors, matches, targets),
        ]

    expected = losses(make_targets(OBJECTS))
    padded = make_targets(OBJECTS, rows=9)
    padded.boxes[:, 2:] = math.nan
    assert all(torch.equal(a, b) for a, b in zip(losses(padded), expected, strict=True))
