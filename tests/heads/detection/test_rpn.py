import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trunkline.backbones.base import FeatureLevel
from trunkline.heads.detection import rpn as rpn_module
from trunkline.heads.detection.boxes import pairwise_iou
from trunkline.heads.detection.options import AnchorOptions, RPNOptions
from trunkline.heads.detection.rpn import RPN

OBJECTS = [[(20, 20, 60, 70, 0), (100, 10, 150, 110, 1)], [(5, 40, 90, 100, 2)]]


def widened(rpn, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in rpn.parameters():
            parameter.normal_(std=0.1, generator=generator)
    return rpn


@pytest.fixture
def make_rpn(levels):
    return lambda **options: widened(RPN(levels, AnchorOptions(), RPNOptions(**options)))


def losses_with(rpn, raw, targets):
    torch.manual_seed(3)
    return rpn.losses(raw, targets)


def test_initial_weights(levels):
    wide = [dataclasses.replace(level, channels=64) for level in levels]
    rpn = RPN(wide)
    for layer in (rpn.conv, rpn.objectness, rpn.deltas):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.15)
        assert not layer.bias.any()


def test_one_row_per_anchor_in_the_anchors_order(make_rpn, make_features):
    rpn, features = make_rpn(), make_features()
    raw = rpn(features)
    assert raw.anchors_per_level == (32 * 48 * 3, 16 * 24 * 3, 8 * 12 * 3, 4 * 6 * 3, 2 * 3 * 3)
    assert raw.objectness.shape == raw.deltas.shape[:2] == (2, len(raw.anchors))
    # Level 1, row 5, column 7, anchor 2 of the second image.
    hidden = torch.relu(rpn.conv(features[1]))
    row = raw.anchors_per_level[0] + (5 * 24 + 7) * 3 + 2
    torch.testing.assert_close(raw.objectness[1, row], rpn.objectness(hidden)[1, 2, 5, 7])
    torch.testing.assert_close(raw.deltas[1, row], rpn.deltas(hidden)[1, 8:12, 5, 7])


def test_proposals_are_sorted_clipped_and_apart(make_rpn, make_features):
    torch.manual_seed(0)
    rpn = make_rpn(nms_threshold=0.5)
    raw = rpn(make_features())
    sizes = torch.tensor([[128, 192], [70, 90]])
    boxes, valid = rpn.proposals(raw, sizes, 200, 80)
    assert boxes.shape == (2, 80, 4) and valid.shape == (2, 80)
    assert valid.all()
    limits = sizes.flip(1).repeat(1, 2)[:, None]
    assert (boxes >= 0).all() and (boxes <= limits).all()
    assert (boxes[..., 2:] > boxes[..., :2]).all()


@pytest.mark.parametrize("pre_nms", [3, 50])
def test_pre_nms_limits_every_level(make_rpn, make_features, pre_nms):
    torch.manual_seed(0)
    rpn = make_rpn(nms_threshold=1.0)  # nothing is suppressed
    raw = rpn(make_features())
    boxes, valid = rpn.proposals(raw, torch.tensor([[128, 192]] * 2), pre_nms, 10_000)
    expected = sum(min(pre_nms, count) for count in raw.anchors_per_level)
    assert boxes.shape[1] == expected
    assert valid.sum() > 0.9 * 2 * expected


def test_nms_threshold_and_smallest_size(make_rpn, make_features):
    torch.manual_seed(0)
    raw = make_rpn()(make_features())
    sizes = torch.tensor([[128, 192]] * 2)
    counts = [make_rpn(nms_threshold=t).proposals(raw, sizes, 300, 1000)[1].sum() for t in (0.1, 0.5, 0.9)]
    assert counts[0] < counts[1] < counts[2]
    boxes, valid = make_rpn(min_box_size=30.0).proposals(raw, sizes, 300, 1000)
    sides = (boxes[..., 2:] - boxes[..., :2])[valid]
    assert sides.min() >= 30
    small, valid = make_rpn().proposals(raw, sizes, 300, 1000)
    assert (small[..., 2:] - small[..., :2])[valid].min() < 30


def test_levels_do_not_suppress_each_other(levels):
    # The same anchor on two levels.
    rpn = widened(RPN(levels[:2], AnchorOptions(sizes=(64, 64)), RPNOptions()))
    raw = rpn([torch.zeros(1, 8, 1, 1)] * 2)
    boxes, valid = rpn.proposals(raw, torch.tensor([[64, 64]]), 100, 100)
    assert pairwise_iou(boxes[:, valid[0]], boxes[:, valid[0]]).gt(0.99).sum() == 2 * valid.sum()


def test_losses_by_hand(levels, make_targets):
    # One cell, one square anchor of 64 around the origin; the object is the anchor moved by 16.
    rpn = RPN(levels[:1], AnchorOptions(sizes=(64,), ratios=(1.0,)), RPNOptions(fg_iou=0.5))
    raw = rpn([torch.zeros(1, 8, 1, 1)])
    raw.objectness = torch.tensor([[0.0]])
    raw.deltas = torch.tensor([[[0.0, 0.0, 0.0, 0.0]]])
    targets = make_targets([[(-16, -32, 48, 32, 0)]])
    losses = rpn.losses(raw, targets)
    assert losses["rpn_objectness"].item() == pytest.approx(0.693147)  # ln 2
    assert losses["rpn_box"].item() == pytest.approx(0.25 - 0.5 / 9)  # |16 / 64| beyond beta = 1/9


@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou", "ciou"])
def test_box_loss_kinds(make_rpn, make_features, make_targets, kind):
    torch.manual_seed(0)
    features, targets = make_features(), make_targets(OBJECTS)
    reference, rpn = make_rpn(), make_rpn(box_loss=kind)
    raw = rpn(features)
    losses, plain = losses_with(rpn, raw, targets), losses_with(reference, raw, targets)
    assert torch.equal(losses["rpn_objectness"], plain["rpn_objectness"])
    assert (losses["rpn_box"] == plain["rpn_box"]) == (kind == "smooth_l1")
    losses["rpn_box"].backward()
    assert rpn.deltas.weight.grad.abs().sum() > 0


def test_beta_changes_the_box_loss(make_rpn, make_features, make_targets):
    torch.manual_seed(0)
    targets = make_targets(OBJECTS)
    raw = make_rpn()(make_features())
    wide, narrow = (losses_with(make_rpn(smooth_l1_beta=b), raw, targets)["rpn_box"] for b in (1.0, 0.0))
    assert wide < narrow  # quadratic instead of linear


def test_sampling_options(make_rpn, make_features, make_targets):
    torch.manual_seed(0)
    targets, raw = make_targets(OBJECTS), make_rpn()(make_features())
    raw.objectness = torch.zeros_like(raw.objectness)
    raw.deltas = torch.zeros_like(raw.deltas, requires_grad=True)

    def learning_rows(**options):
        (gradient,) = torch.autograd.grad(
            losses_with(make_rpn(fg_iou=0.3, **options), raw, targets)["rpn_box"], raw.deltas
        )
        return gradient.abs().sum(-1).gt(0).sum(1).tolist()

    assert learning_rows(batch_size=8, positive_fraction=0.5) == [4, 4]
    assert learning_rows(batch_size=16, positive_fraction=0.25) == [4, 4]
    assert learning_rows(batch_size=8, positive_fraction=1.0) == [8, 8]


def test_thresholds_change_what_is_sampled(make_rpn, make_features, make_targets):
    torch.manual_seed(0)
    targets, raw = make_targets(OBJECTS), make_rpn()(make_features())
    raw.objectness.requires_grad_() if raw.objectness.is_leaf else raw.objectness.retain_grad()

    def signs(**options):
        loss = losses_with(make_rpn(batch_size=100_000, **options), raw, targets)["rpn_objectness"]
        (gradient,) = torch.autograd.grad(loss, raw.objectness, retain_graph=True)
        return (gradient < 0).sum().item(), (gradient > 0).sum().item()  # positives, negatives

    strict, loose = signs(fg_iou=0.7), signs(fg_iou=0.4)
    assert loose[0] > strict[0] and loose[1] == strict[1]
    assert signs(bg_iou=0.1)[1] < strict[1]


def test_crowd_overlap_decides_what_is_ignored(make_rpn, make_features, make_targets):
    torch.manual_seed(0)
    rpn = make_rpn()
    raw = rpn(make_features(batch=1))
    targets = make_targets([[(0, 0, 96, 128, 0, True)]])

    def negatives(**options):
        loss = losses_with(make_rpn(batch_size=100_000, **options), raw, targets)["rpn_objectness"]
        (gradient,) = torch.autograd.grad(loss, raw.objectness, retain_graph=True)
        return gradient.ne(0)

    inside = (raw.anchors[:, 2].clamp(max=96) - raw.anchors[:, 0].clamp(min=0)).clamp(min=0)
    inside = inside * (raw.anchors[:, 3].clamp(max=128) - raw.anchors[:, 1].clamp(min=0)).clamp(min=0)
    share = inside / (raw.anchors[:, 2:] - raw.anchors[:, :2]).prod(1)
    assert torch.equal(negatives(), (share < 0.5)[None])
    assert torch.equal(negatives(crowd_overlap=0.9), (share < 0.9)[None])


def test_no_graph_break_in_losses(make_features, make_targets, make_rpn):
    rpn, features, targets = make_rpn(), make_features(), make_targets(OBJECTS)

    def step(features, targets):
        losses = rpn.losses(rpn(features), targets)
        return losses["rpn_objectness"] + losses["rpn_box"]

    torch._dynamo.reset()
    explained = torch._dynamo.explain(step)(features, targets)
    assert explained.graph_break_count == 0, explained.break_reasons
    assert explained.graph_count == 1


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_no_graph_break_with_iou_losses(make_features, make_targets, make_rpn, kind):
    rpn, features, targets = make_rpn(box_loss=kind), make_features(), make_targets(OBJECTS)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(lambda maps, truth: rpn.losses(rpn(maps), truth))(features, targets)
    assert explained.graph_break_count == 0, explained.break_reasons


def test_maps_of_different_width_ask_for_a_neck():
    levels = [FeatureLevel(64, (4, 4)), FeatureLevel(128, (8, 8))]
    with pytest.raises(ValueError, match=r"\[64, 128\] channels: add a neck .* FPN"):
        RPN(levels)


# ---- one suppression for losses and predictions ----------------------------------------------------------


def counted(monkeypatch):
    calls = []
    original = rpn_module.nms_keep
    monkeypatch.setattr(rpn_module, "nms_keep", lambda *inputs: calls.append(1) or original(*inputs))
    return calls


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("pre_nms", [(300, 100), (100, 300), (20_000, 7)])
def test_the_larger_suppression_serves_the_smaller(
    make_rpn, make_features, monkeypatch, place, pre_nms, inference
):
    torch.manual_seed(0)
    rpn, features, sizes = make_rpn(), make_features(), torch.tensor([[128, 192], [70, 90]])
    with torch.inference_mode(inference):
        separate = [rpn.proposals(rpn(features), sizes, number, 150) for number in pre_nms]
        calls = counted(monkeypatch)
        raw = rpn(features)
        together = [rpn.proposals(raw, sizes, number, 150) for number in pre_nms]
    for (boxes, valid), (expected, expected_valid) in zip(together, separate, strict=True):
        assert torch.equal(boxes, expected) and torch.equal(valid, expected_valid)
    assert len(calls) == (1 if pre_nms[0] > pre_nms[1] else 2)


def test_what_has_changed_is_computed_anew(make_rpn, make_features, monkeypatch):
    torch.manual_seed(0)
    rpn, sizes = make_rpn(), torch.tensor([[128, 192], [70, 90]])
    with torch.no_grad():
        raw = rpn(make_features())
    calls = counted(monkeypatch)

    def works_anew(rpn=rpn, sizes=sizes):
        before = len(calls)
        found = rpn.proposals(raw, sizes, 50, 40)
        fresh = rpn.proposals(dataclasses.replace(raw), sizes, 50, 40)
        assert all(torch.equal(one, other) for one, other in zip(found, fresh, strict=True))
        return len(calls) - before == 2

    assert works_anew() and not works_anew()
    assert works_anew(sizes=sizes.clone()) and works_anew()
    sizes -= 30
    assert works_anew()
    raw.deltas.mul_(2)
    assert works_anew()
    raw.objectness = -raw.objectness
    assert works_anew()
    assert works_anew(rpn=make_rpn(nms_threshold=0.2)) and works_anew(rpn=make_rpn(min_box_size=20.0))
    assert works_anew() and not works_anew()


def test_half_precision_is_compared_without_a_copy_in_float32(make_rpn, make_features):
    torch.manual_seed(0)
    rpn = make_rpn().bfloat16()
    raw = rpn([feature.bfloat16() for feature in make_features()])
    with Sizes() as sizes:
        rpn.proposals(raw, torch.tensor([[128, 192]] * 2), 30, 40)
    assert max(sizes.seen) < raw.objectness.numel()


class Sizes(TorchDispatchMode):
    """Notes how many numbers each result in float32 has."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if torch.is_tensor(result) and result.dtype == torch.float32:
            self.seen.append(result.numel())
        return result
