"""Gradients of box operations and of detection's losses are those of finite differences in float64.

Covered, with respect to every input that may have a gradient: areas, intersections, IoU, coding in both
directions, clipping; the focal loss; smooth L1, GIoU, DIoU and CIoU of deltas and of boxes; the losses of a
dense head; those of the RPN and of the second stage, down to the feature maps, with and without objects;
pooling by each of its three ways. Boxes lie where the functions have a derivative: no two sides are equal.
CIoU's own weight counts as a constant, as in the paper, so it is compared with a loss whose weight is one.
"""

import math
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from trunkline.backbones.base import FeatureLevel
from trunkline.heads.detection import RoIOptions, RPNOptions
from trunkline.heads.detection.boxes import (
    box_areas,
    clip,
    decode,
    device_paths,
    encode,
    pairwise_intersection,
    pairwise_iou,
)
from trunkline.heads.detection.losses import (
    box_losses,
    dense_box_loss,
    dense_class_loss,
    focal_loss,
    iou_loss,
)
from trunkline.heads.detection.matching import Matcher, Matches
from trunkline.heads.detection.options import AnchorOptions
from trunkline.heads.detection.pooling import pool_boxes
from trunkline.heads.detection.roi import RoI
from trunkline.heads.detection.rpn import RPN

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float64, requires_grad=True)


def pairs():
    """Boxes beside wanted ones: they overlap, one holds the other, they are apart on one axis or on both."""
    ours = boxes([1.1, 2, 7, 9], [2.2, 3, 5, 6], [0, 0, 9, 8], [1.3, 1.1, 3, 4.1], [1.4, 1.2, 2, 2.2])
    wanted = boxes(
        [3.1, 1.5, 8, 7], [1, 1, 8.2, 9.1], [2.1, 2.5, 5.1, 7.2], [5.3, 2.1, 9.2, 3.5], [7.1, 6.1, 9.5, 9.3]
    )
    return ours, wanted


def targets(make_targets, *images):
    made = make_targets(images, sizes=[(32, 32)] * len(images))
    made.boxes = made.boxes.double()
    return made


def test_areas_overlaps_and_iou():
    ours, wanted = pairs()
    assert gradcheck(box_areas, ours)
    assert gradcheck(pairwise_intersection, (ours[None], wanted[None]))
    assert gradcheck(pairwise_iou, (ours[None], wanted[None]))


def test_iou_of_boxes_without_area_has_no_nan_as_gradient():
    flat = boxes([1, 1, 1, 1], [2, 2, 2, 5])
    (gradient,) = torch.autograd.grad(pairwise_iou(flat[None], flat[None]).sum(), flat)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("weights", [(1.0,) * 4, WEIGHTS])
def test_coding(weights):
    ours, wanted = pairs()
    assert gradcheck(partial(encode, weights=weights), (wanted, ours))
    assert gradcheck(partial(decode, weights=weights), (randn(5, 4), ours))


def test_growth_at_its_limit_has_no_gradient():
    deltas = boxes([0.1, 0.2, 5.0, 0.3])  # above log(1000 / 16)
    assert gradcheck(decode, (deltas, pairs()[0][:1].detach()))
    (gradient,) = torch.autograd.grad(decode(deltas, pairs()[0][:1]).square().sum(), deltas)
    assert gradient[0, 2] == 0 and gradient[0, 3] != 0


def test_clipping():
    outside = boxes([[-2, 1, 5, 9.5], [1, 2, 12, 3]], [[-1, -3, -0.5, 4], [3, 2, 7, 8]])
    assert gradcheck(partial(clip, image_sizes=torch.tensor([[8, 10], [6, 7]])), outside)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (-1, 0.0), (0.5, 0.7), (0.9, 5.0)])
def test_focal_loss(alpha, gamma):
    logits = torch.tensor([-40.0, -9, -1, -0.1, 0.1, 2, 8, 35], dtype=torch.float64, requires_grad=True)
    for truth in (torch.ones(8, dtype=torch.bool), torch.arange(8) % 2 == 0):
        assert gradcheck(partial(focal_loss, targets=truth, alpha=alpha, gamma=gamma), logits)


@pytest.mark.parametrize("kind", ["giou", "diou"])
def test_iou_losses(kind):
    ours, wanted = pairs()
    assert gradcheck(partial(iou_loss, kind=kind), (ours, wanted))


def test_ciou_with_its_weight_held():
    ours, wanted = pairs()

    def shape_term(boxes, targets):
        angles = [torch.atan2(x[:, 2] - x[:, 0], x[:, 3] - x[:, 1]) for x in (targets, boxes)]
        return 4 / math.pi**2 * (angles[0] - angles[1]).square()

    with torch.no_grad():
        shape = shape_term(ours, wanted)
        iou = pairwise_iou(ours[:, None], wanted[:, None]).flatten()
        weight = shape / (1 - iou + shape)

    def held(boxes, targets):
        return iou_loss(boxes, targets, "diou") + weight * shape_term(boxes, targets)

    assert gradcheck(held, (ours, wanted))
    upstream = torch.rand(5, dtype=torch.float64)
    found = torch.autograd.grad(iou_loss(ours, wanted, "ciou"), (ours, wanted), upstream)
    torch.testing.assert_close(
        found, torch.autograd.grad(held(ours, wanted), (ours, wanted), upstream), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize(
    ("kind", "beta"), [("smooth_l1", 0.0), ("smooth_l1", 1 / 9), ("smooth_l1", 1.0), ("giou", 0), ("diou", 0)]
)
def test_box_losses_of_deltas_and_rows_that_do_not_learn(kind, beta):
    references, wanted = pairs()
    learns = torch.tensor([True, False, True, True, False])
    # Rows that do not learn may hold anything as boxes.
    wanted = torch.where(learns[:, None], wanted, torch.nan)
    loss = partial(box_losses, positive=learns, weights=WEIGHTS, kind=kind, beta=beta)
    deltas = (0.3 * randn(5, 4)).detach().requires_grad_()
    assert gradcheck(lambda x: loss(x, references.detach(), wanted.detach()), deltas)
    assert box_losses(deltas, references, wanted, learns, weights=WEIGHTS, kind=kind, beta=beta)[1] == 0


@pytest.mark.parametrize("per_image", [False, True])
def test_dense_losses_with_ignored_anchors_and_an_image_without_objects(make_targets, per_image):
    truth = targets(make_targets, [(2, 2, 14, 13, 1), (16, 16, 30, 29, 0)], [])
    anchors = boxes([1, 1, 13, 14], [15, 15, 31, 30], [3, 2, 30, 30], [0, 20, 9, 30], [20, 0, 31, 9]).detach()
    matches = Matcher(0.6, 0.2, 0.5)(anchors[None], truth)
    learns = Matches(*(x.clone() for x in matches))
    ignored = ~learns.positive & ~learns.negative
    assert learns.positive[0].sum() == 2 and ignored[0].any() and learns.negative[1].all()
    logits = randn(2, 5, 3)
    assert gradcheck(
        lambda x: dense_class_loss(x, matches, truth, alpha=0.25, gamma=2.0, per_image=per_image), logits
    )
    (gradient,) = torch.autograd.grad(dense_class_loss(logits, matches, truth), logits)
    assert gradient[ignored].eq(0).all() and gradient[~ignored].ne(0).all()
    for kind in ("smooth_l1", "giou", "diou"):
        loss = partial(dense_box_loss, kind=kind, beta=0.1, per_image=per_image)
        assert gradcheck(lambda x, loss=loss: loss(x, anchors, matches, truth), randn(2, 5, 4))


IMAGES = {"objects": ([(2, 3, 21, 19, 1), (10, 12, 30, 29, 0)], []), "none": ([], [])}
LEVELS = tuple(FeatureLevel(2, (stride, stride)) for stride in (8, 16))


def maps():
    return randn(2, 2, 4, 4), randn(2, 2, 2, 2)


@pytest.mark.parametrize("kind", ["smooth_l1", "giou"])
@pytest.mark.parametrize("images", IMAGES)
def test_losses_of_the_rpn_down_to_the_maps(make_targets, images, kind):
    options = RPNOptions(fg_iou=0.5, batch_size=16, box_loss=kind)
    rpn = RPN(LEVELS, AnchorOptions(sizes=(12, 20)), options).double()
    for parameter in rpn.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    truth = targets(make_targets, *IMAGES[images])

    def losses(*features):
        torch.manual_seed(1)  # the same sample each time
        found = rpn.losses(rpn(features), truth)
        assert all(value.dtype == torch.float64 for value in found.values())
        return tuple(found.values())

    features = maps()
    assert (losses(*features)[1] > 0) == (images == "objects")
    assert gradcheck(losses, features, fast_mode=True)


@pytest.mark.parametrize("kind", ["smooth_l1", "diou"])
@pytest.mark.parametrize("images", IMAGES)
def test_losses_of_the_second_stage_down_to_the_maps(make_targets, images, kind):
    options = RoIOptions(batch_size=8, hidden=8, pool_size=2, levels=2, box_loss=kind)
    roi = RoI(LEVELS, 2, options).double()
    for parameter in roi.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    proposals = boxes([1, 2, 20, 17], [3, 5, 11, 12], [9, 11, 31, 28]).detach().expand(2, -1, -1)
    valid = torch.tensor([[True, True, True], [True, False, False]])
    truth = targets(make_targets, *IMAGES[images])

    def losses(*features):
        torch.manual_seed(1)
        found, _ = roi.losses(features, proposals, valid, truth)
        assert all(value.dtype == torch.float64 for value in found.values())
        return tuple(found.values())

    features = maps()
    assert (losses(*features)[1] > 0) == (images == "objects")
    assert gradcheck(losses, features, fast_mode=True)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("way", ["rows", "kernel", "deterministic"])
def test_pooling_by_each_way(way, aligned, monkeypatch):
    rois = torch.tensor(
        [[[1.0, 2, 20, 17], [3, 5, 11, 12], [24, 25, 32, 32]], [[0, 0, 0, 0], [0, 0, 32, 32], [5, 5, 6, 30]]]
    )
    pool = partial(pool_boxes, strides=[(8, 8), (16, 16)], boxes=rois, pool_size=2, aligned=aligned)
    features = maps()
    expected = pool(features)
    assert expected.dtype == torch.float64
    if way == "rows":
        assert gradcheck(lambda *x: pool(x), features)
        return
    if way == "deterministic":
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    with device_paths():
        torch.testing.assert_close(pool(features), expected, rtol=1e-6, atol=1e-6)
        assert gradcheck(lambda *x: pool(x), features)


@pytest.mark.parametrize("way", ["rows", "kernel"])
def test_boxes_get_no_gradient_from_pooling_and_odd_ones_read_nothing(way):
    rois = torch.tensor([[[1.0, 2, 20, 17], [0, 0, math.nan, 5], [0, 0, math.inf, 3]]], requires_grad=True)
    feature = torch.randn(1, 2, 4, 4, requires_grad=True)
    ratio = 2 if way == "rows" else 0
    pooled = pool_boxes([feature], [(8, 8)], rois, pool_size=2, sampling_ratio=ratio)
    assert pooled[0].ne(0).all() and pooled[1:].eq(0).all()
    gradients = torch.autograd.grad(pooled.sum(), (feature, rois), allow_unused=True)
    assert gradients[0].isfinite().all() and gradients[1] is None
