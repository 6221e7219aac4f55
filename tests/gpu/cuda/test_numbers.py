"""Losses and box operations give on a GPU what they give on the CPU, with their gradients; odd boxes too."""

import math
from types import SimpleNamespace

import pytest
import torch
from loss_cases import WEIGHTS, K, batch

from trunkline.backbones.base import FeatureLevel
from trunkline.heads import Classifier
from trunkline.heads.base import RawClassification
from trunkline.heads.detection.boxes import clip, decode, encode, pairwise_iou
from trunkline.heads.detection.losses import box_losses, dense_box_loss, dense_class_loss, focal_loss
from trunkline.heads.detection.matching import Matcher, match_boxes
from trunkline.heads.detection.nms import nms_keep
from trunkline.heads.detection.pooling import pool_boxes
from trunkline.heads.segmentation import (
    CrossEntropy,
    Dice,
    Focal,
    Lovasz,
    OnlineHardExampleMining,
    Tversky,
    WeightedSum,
    pixels,
)

pytestmark = pytest.mark.gpu

LOSSES = {
    "cross_entropy": lambda: CrossEntropy(WEIGHTS),
    "smoothed": lambda: CrossEntropy(WEIGHTS, label_smoothing=0.1),
    "focal": lambda: Focal(1.5, WEIGHTS),
    "mined": lambda: OnlineHardExampleMining(0.6, 0.25),
    "dice": lambda: Dice(per_image=True),
    "squared": lambda: Dice(squared_denominator=True, include_background=False),
    "tversky": lambda: Tversky(gamma=0.75),
    "lovasz": lambda: Lovasz(),
    "lovasz_per_image": lambda: Lovasz(per_image=True, classes="all"),
    "sum": lambda: WeightedSum([CrossEntropy(), Dice(), Focal()], [1.0, 0.5, 2.0]),
}
ODD = (math.nan, math.inf, -math.inf, 1e20, 1e8, 1e-30, -5.0)


def same(function, device, *inputs, atol=1e-6):
    """Compare values, and gradients of the inputs that have one."""
    found = []
    for place in ("cpu", device):
        moved = [x.detach().to(place).requires_grad_(x.requires_grad) for x in inputs]
        value = function(*moved)
        gradients = ()
        if any(x.requires_grad for x in moved):
            wanted = [x for x in moved if x.requires_grad]
            gradients = torch.autograd.grad(value.sum(), wanted)
        found.append([x.cpu() for x in (value.detach(), *gradients)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=atol, equal_nan=True)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("shape", [(33, 40), (6, 17, 9)])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_segmentation(name, shape, large, device, monkeypatch):
    if large:
        monkeypatch.setattr(pixels, "LARGE", 1)
    logits, mask = batch(shape)
    loss = LOSSES[name]()
    same(lambda x, m: loss.to(x.device)(x, m), device, logits, mask)


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"multi_label": True}])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_losses_of_classification(options, weights, device):
    head = Classifier([FeatureLevel(2, (8, 8))], K, class_weights=weights, **options)
    generator = torch.Generator().manual_seed(0)
    label = torch.rand(6, K, generator=generator)
    label = label.round() if "multi_label" in options else label / label.sum(1, keepdim=True)
    label[2] = -1

    def loss(x, y):
        return head.to(x.device).losses(RawClassification(x), SimpleNamespace(label=y))["classification"]

    same(loss, device, torch.randn(6, K, generator=generator, requires_grad=True), label)


def boxes_of(number, seed=0, odd=0.0):
    generator = torch.Generator().manual_seed(seed)
    corner = (torch.rand(2, number, 2, generator=generator) * 50).round()
    side = (torch.rand(2, number, 2, generator=generator) * 30).round() + 1
    boxes = torch.cat([corner, corner + side], -1)
    for value in ODD:
        boxes[torch.rand(boxes.shape, generator=generator) < odd / len(ODD)] = value
    return boxes


@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou", "ciou"])
def test_losses_of_boxes(kind, device):
    references, wanted = boxes_of(64), boxes_of(64, seed=1)
    deltas = (torch.randn(2, 64, 4, generator=torch.Generator().manual_seed(2)) / 5).requires_grad_()
    positive = torch.arange(128).view(2, 64) % 3 > 0

    def loss(x, *others):
        return box_losses(x, *others, weights=(10.0, 10.0, 5.0, 5.0), kind=kind, beta=0.1)

    same(loss, device, deltas, references, wanted, positive, atol=1e-5)


def test_losses_of_dense_heads(device):
    anchors, truth = boxes_of(200)[0], boxes_of(8, seed=1)
    labels = torch.arange(16).view(2, 8) % 4 - 1
    logits = torch.randn(2, 200, 3, generator=torch.Generator().manual_seed(2), requires_grad=True)
    deltas = torch.randn(2, 200, 4, generator=torch.Generator().manual_seed(3), requires_grad=True)

    def loss(x, y, a, boxes, classes):
        targets = SimpleNamespace(
            boxes=boxes, labels=classes, crowd=torch.zeros_like(classes, dtype=torch.bool)
        )
        matches = Matcher(0.5, 0.4, 0.5, low_quality=True)(a[None], targets)
        return dense_class_loss(x, matches, targets) + dense_box_loss(y, a, matches, targets)

    same(loss, device, logits, deltas, anchors, truth, labels)
    same(lambda x: focal_loss(x, x > 0), device, logits)


def test_arithmetic_of_odd_boxes(device):
    boxes, others = boxes_of(50, odd=0.1), boxes_of(40, seed=1, odd=0.1)
    same(pairwise_iou, device, boxes, others)
    same(lambda x: clip(x, torch.tensor([[40, 60], [70, 30]], device=x.device)), device, boxes)
    plain, wanted = boxes_of(50).requires_grad_(), boxes_of(50, seed=1)
    same(encode, device, plain, wanted)
    same(
        decode,
        device,
        torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0)).requires_grad_(),
        plain,
    )
    odd = torch.tensor([[[value, 0.5, -value, value] for value in (*ODD, 1e4)]])
    same(decode, device, odd, wanted[:1, : odd.shape[1]])


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_suppression_of_odd_boxes_is_the_same(threshold, device):
    boxes = boxes_of(300, odd=0.1)
    scores = torch.arange(600).view(2, 300) % 7 / 7
    scores[:, ::50] = math.nan
    groups, valid = torch.arange(600).view(2, 300) % 3, torch.ones(2, 300, dtype=torch.bool)
    inputs = boxes, scores, groups, valid
    kept = nms_keep(*(x.to(device) for x in inputs), threshold)
    assert torch.equal(kept.cpu(), nms_keep(*inputs, threshold))


@pytest.mark.parametrize("low_quality", [False, True])
def test_matching_of_odd_boxes_is_the_same(low_quality, device):
    boxes, truth = boxes_of(700, odd=0.1), boxes_of(9, seed=1, odd=0.1)
    labels = torch.arange(18).view(2, 9) % 4 - 1
    crowd = torch.arange(18).view(2, 9) % 5 == 0
    inputs = boxes, truth, labels, crowd
    options = 0.5, 0.25, 0.5, low_quality
    found = match_boxes(*(x.to(device) for x in inputs), *options)
    for ours, expected in zip(found, match_boxes(*inputs, *options), strict=True):
        assert torch.equal(ours.cpu(), expected)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_pooling_of_odd_boxes(aligned, ratio, device):
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 3, side, side, generator=generator, requires_grad=True) for side in (24, 12)]
    boxes = boxes_of(30)
    for row, value in enumerate((math.nan, math.inf, -math.inf)):
        boxes[:, row, row] = value

    def pool(fine, coarse, rois):
        return pool_boxes(
            [fine, coarse], [(4, 4), (8, 8)], rois, pool_size=3, sampling_ratio=ratio, aligned=aligned
        )

    same(pool, device, *features, boxes, atol=1e-5)
