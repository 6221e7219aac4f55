import dataclasses
import math

import pytest
import torch

from trunkline.backbones.base import FeatureLevel
from trunkline.heads.detection import AnchorOptions, FasterRCNN, RoIOptions, RPNOptions
from trunkline.heads.detection.roi import RoI

NAMES = ["rpn_objectness", "rpn_box", "roi_class", "roi_box"]
OBJECTS = [[(20, 20, 60, 70, 0), (100, 10, 150, 110, 1)], [(5, 40, 80, 69, 2), (30, 5, 60, 30, 0)]]
SIZES = [(128, 192), (70, 90)]


@pytest.fixture
def make_head(levels, spread_out):
    def make(num_classes=3, rpn=None, **roi):
        rpn = RPNOptions(**{"pre_nms_train": 200, "pre_nms_test": 200, **(rpn or {})})
        roi = RoIOptions(**{"hidden": 32, "score_threshold": 0.1, **roi})
        return spread_out(FasterRCNN(levels, num_classes, rpn=rpn, roi=roi))

    return make


def run_losses(head, features, targets, seed=0):
    torch.manual_seed(seed)
    return head.losses(head(features, (128, 192)), targets)


def detections_of(head, features, sizes=SIZES):
    with torch.no_grad():
        return head.predict(head(features, (128, 192)), torch.tensor(sizes))


def rows_of(found, image):
    number = found.count[image]
    return found.boxes[image, :number], found.scores[image, :number], found.labels[image, :number]


# ---- against torchvision ------------------------------------------------------------------------------


def test_losses_are_torchvisions_when_everything_is_sampled(
    make_head, make_features, make_targets, torchvision_twin
):
    torch.manual_seed(0)
    everything = {"batch_size": 1_000_000, "positive_fraction": 0.5}
    head = make_head(rpn=everything, **everything)
    features, targets = make_features(), make_targets(OBJECTS, SIZES)
    losses = run_losses(head, features, targets)
    expected = torchvision_twin(head).losses(features, targets)
    assert list(losses) == NAMES
    for name in NAMES:
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_gradients_are_torchvisions(make_head, make_features, make_targets, torchvision_twin):
    torch.manual_seed(0)
    everything = {"batch_size": 1_000_000, "positive_fraction": 0.5}
    head = make_head(rpn=everything, **everything)
    ours = [feature.requires_grad_() for feature in make_features()]
    theirs = [feature.detach().clone().requires_grad_() for feature in ours]
    targets = make_targets(OBJECTS, SIZES)
    sum(run_losses(head, ours, targets).values()).backward()
    sum(torchvision_twin(head).losses(theirs, targets).values()).backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_proposals_are_torchvisions(make_head, make_features, torchvision_twin):
    torch.manual_seed(0)
    head, features, sizes = make_head(), make_features(), torch.tensor(SIZES)
    boxes, valid = head.rpn.proposals(head(features, (128, 192)), sizes, 200, 1000)
    for image, expected in enumerate(torchvision_twin(head).proposals(features, sizes)):
        assert len(expected) > 100
        torch.testing.assert_close(boxes[image, valid[image]], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("candidates", [4096, 700])
def test_detections_are_torchvisions(make_head, make_features, torchvision_twin, candidates):
    torch.manual_seed(0)
    head, features = make_head(nms_candidates=candidates), make_features()
    found = detections_of(head, features)
    with torch.no_grad():
        expected = torchvision_twin(head).predict(features, torch.tensor(SIZES))
    for image in range(2):
        boxes, scores, labels = rows_of(found, image)
        assert len(boxes) == 100
        assert set(labels.tolist()) == {0, 1, 2}
        assert torch.equal(labels, expected[image]["labels"] - 1)
        torch.testing.assert_close(scores, expected[image]["scores"], rtol=0, atol=1e-5)
        torch.testing.assert_close(boxes, expected[image]["boxes"], rtol=0, atol=0.01)


# ---- padding, crowds, degenerate input ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["smooth_l1", "ciou"])
def test_padding_rows_change_nothing(make_head, make_features, make_targets, kind):
    torch.manual_seed(0)
    head = make_head(rpn={"box_loss": kind, "batch_size": 32}, box_loss=kind, batch_size=32)
    features = make_features()
    expected = run_losses(head, features, make_targets(OBJECTS, SIZES))
    for rows in (3, 16, 50):
        targets = make_targets(OBJECTS, SIZES, rows=rows)
        targets.boxes[:, 2:] = torch.tensor([1.0, 2, 50, 60])  # what padding holds does not matter either
        padded = run_losses(head, features, targets)
        for name in NAMES:
            assert torch.equal(padded[name], expected[name]), (name, rows)


def test_crowd_boxes_are_learnt_by_neither_stage(make_head, make_features, make_targets):
    torch.manual_seed(0)
    head, features = make_head(), make_features(batch=1)
    crowd = make_targets([[(20, 20, 60, 70, 0, True)]])
    losses = run_losses(head, features, crowd)
    assert losses["rpn_box"] == 0 and losses["roi_box"] == 0
    crowd.crowd[:] = False
    losses = run_losses(head, features, crowd)
    assert losses["rpn_box"] > 0 and losses["roi_box"] > 0


def test_an_image_that_is_all_crowd_teaches_nothing(make_head, make_features, make_targets):
    torch.manual_seed(0)
    # Without anchors that reach far outside, all lies in the crowd region.
    head, features = make_head(rpn={"crowd_overlap": 0.01}, crowd_overlap=0.01), make_features(batch=1)
    losses = run_losses(head, features, make_targets([[(-999, -999, 999, 999, 1, True)]]))
    assert all(value == 0 for value in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())


@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou", "ciou"])
@pytest.mark.parametrize(
    "objects",
    [[[], []], [OBJECTS[0], []], [[(7, 9, 8, 10, 0)], [(89, 69, 90, 70, 2)]], [[(0, 0, 192, 128, 1)], []]],
    ids=["none", "one image only", "one pixel", "whole image"],
)
def test_losses_and_gradients_are_finite(make_head, make_features, make_targets, objects, kind):
    torch.manual_seed(0)
    head = make_head(rpn={"box_loss": kind}, box_loss=kind)
    losses = run_losses(head, make_features(), make_targets(objects, SIZES))
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
    has_objects = any(objects)
    assert (losses["rpn_box"] > 0) == has_objects and (losses["roi_box"] > 0) == has_objects
    assert losses["rpn_objectness"] > 0 and losses["roi_class"] > 0


def test_an_image_without_boxes_is_background(make_head, make_features, make_targets):
    torch.manual_seed(0)
    head, features = make_head(), make_features(batch=1)
    with torch.no_grad():
        head.roi.classifier.weight.zero_()
        head.roi.classifier.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 20.0]))  # all but certain of background
        head.rpn.objectness.weight.zero_()
        head.rpn.objectness.bias.fill_(-20.0)
    losses = run_losses(head, features, make_targets([[]]))
    assert losses["roi_class"] < 1e-6 and losses["rpn_objectness"] < 1e-6


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_features_that_are_not_finite_give_no_detections(make_head, make_features, make_targets, value):
    torch.manual_seed(0)
    head, features = make_head(), make_features()
    sound = detections_of(head, features)
    for feature in features:
        feature[0] = value
    found = detections_of(head, features)
    assert found.count.tolist() == [0, sound.count[1]]
    assert torch.equal(found.boxes[1], sound.boxes[1])  # the other image is as before
    assert (found.labels[0] == -1).all() and not found.boxes[0].any() and not found.scores[0].any()
    losses = run_losses(head, features, make_targets(OBJECTS, SIZES))
    assert not torch.isfinite(sum(losses.values()))  # for the task to see


def test_a_cell_that_is_not_finite_leaves_the_rest_alone(make_head, make_features):
    torch.manual_seed(0)
    head, features = make_head(), make_features()
    features[0][0, :, 3, 3] = math.nan
    found = detections_of(head, features)
    assert torch.isfinite(found.boxes).all() and (found.count > 0).all()


# ---- the second stage's options -------------------------------------------------------------------------


def test_every_parameter_learns(make_head, make_features, make_targets):
    torch.manual_seed(0)
    head = make_head()
    sum(run_losses(head, make_features(), make_targets(OBJECTS, SIZES)).values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_parameter_names_and_shapes(levels):
    head = FasterRCNN(levels, 3, roi=RoIOptions(hidden=16, pool_size=5))
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "rpn.conv.weight": (8, 8, 3, 3),
        "rpn.objectness.weight": (3, 8, 1, 1),
        "rpn.deltas.weight": (12, 8, 1, 1),
        "roi.fc6.weight": (16, 8 * 25),
        "roi.fc7.weight": (16, 16),
        "roi.classifier.weight": (4, 16),
        "roi.regressor.weight": (12, 16),
    }
    assert set(head.state_dict()) == {name for name, _ in head.named_parameters()}


def test_initial_predictors(levels):
    roi = RoI(levels, 50, RoIOptions(hidden=64))
    assert roi.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert roi.regressor.weight.std().item() == pytest.approx(0.001, rel=0.1)
    for layer in (roi.fc6, roi.fc7):  # a uniform distribution of variance 1 / inputs
        assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.05)
        assert layer.weight.abs().max() <= (3 / layer.in_features) ** 0.5
    assert not any(p.any() for name, p in roi.named_parameters() if name.endswith("bias"))


def test_class_agnostic_boxes_are_the_same_for_every_class(make_head, make_features, make_targets):
    torch.manual_seed(0)
    head, features = make_head(class_agnostic=True), make_features()
    assert head.roi.regressor.weight.shape == (4, 32)
    _, deltas = head.roi(features, torch.tensor([[[10.0, 10, 50, 50]]] * 2))
    assert deltas.shape == (2, 1, 1, 4)
    # The same as a head per class whose classes all have these weights.
    full = make_head()
    state = head.state_dict()
    state["roi.regressor.weight"] = state["roi.regressor.weight"].repeat(3, 1)
    state["roi.regressor.bias"] = state["roi.regressor.bias"].repeat(3)
    full.load_state_dict(state)
    ours, theirs = detections_of(head, features), detections_of(full, features)
    torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=0, atol=1e-3)
    assert torch.equal(ours.labels, theirs.labels)
    targets = make_targets(OBJECTS, SIZES)
    torch.testing.assert_close(run_losses(head, features, targets), run_losses(full, features, targets))


def test_boxes_are_those_of_their_own_class(levels):
    head = RoI(levels, 2, RoIOptions(hidden=4, levels=1, pool_size=1, score_threshold=0.0))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        head.regressor.bias[4] = 10.0  # class 1 moves right by one width
        head.classifier.bias.copy_(torch.tensor([2.0, 1.0, 0.0]))
    proposals = torch.tensor([[[10.0, 10, 30, 20]]])
    found = head.predict([torch.zeros(1, 8, 32, 32)], proposals, torch.ones(1, 1).bool(), torch.tensor([[99, 99]]))
    assert found.labels[0, :3].tolist() == [0, 1, -1] and found.count.tolist() == [2]
    torch.testing.assert_close(found.boxes[0, :2], torch.tensor([[10.0, 10, 30, 20], [30, 10, 50, 20]]))
    torch.testing.assert_close(found.scores[0, :2], torch.tensor([2.0, 1.0, 0.0]).softmax(0)[:2])


def test_score_and_nms_thresholds(make_head, make_features):
    torch.manual_seed(0)
    features, many = make_features(), {"detections_per_image": 5000}
    loose = detections_of(make_head(**many), features)
    strict = detections_of(make_head(score_threshold=0.5, **many), features)
    assert 0 < strict.count[0] < loose.count[0]
    assert rows_of(loose, 0)[1].min() > 0.1 and rows_of(strict, 0)[1].min() > 0.5
    counts = [detections_of(make_head(nms_threshold=t, **many), features).count[0] for t in (0.1, 0.5, 0.9)]
    assert counts[0] < counts[1] < counts[2]


def test_rows_candidates_and_smallest_size(make_head, make_features):
    torch.manual_seed(0)
    features = make_features()
    few = detections_of(make_head(detections_per_image=7), features)
    default = detections_of(make_head(), features)
    assert few.boxes.shape == (2, 7, 4) and few.count.tolist() == [7, 7]
    assert torch.equal(few.boxes, default.boxes[:, :7])
    assert (detections_of(make_head(nms_candidates=5), features).count <= 5).all()
    large = detections_of(make_head(min_box_size=25.0), features)
    assert (rows_of(large, 0)[0][:, 2:] - rows_of(large, 0)[0][:, :2]).min() >= 25
    assert (rows_of(default, 0)[0][:, 2:] - rows_of(default, 0)[0][:, :2]).min() < 25


def test_empty_rows_come_last_and_are_zero(make_head, make_features):
    torch.manual_seed(0)
    found = detections_of(make_head(score_threshold=0.9, detections_per_image=5000), make_features())
    rows = torch.arange(5000)
    for image in range(2):
        empty = rows >= found.count[image]
        assert 0 < found.count[image] < 5000
        assert (found.labels[image, empty] == -1).all()
        assert not found.boxes[image, empty].any() and not found.scores[image, empty].any()
        assert (found.labels[image, ~empty] >= 0).all()
        assert (found.scores[image].diff() <= 0).all()


def test_second_stage_sampling_options(make_head, make_features, make_targets):
    torch.manual_seed(0)
    features, targets = make_features(), make_targets(OBJECTS, SIZES)

    def selected(**options):
        head = make_head(**options)
        proposals = head.rpn.proposals(head(features, (128, 192)), targets.image_sizes, 200, 1000)
        _, chosen, labels, _ = head.roi._select(*proposals, targets)
        return chosen.valid.sum(1).tolist(), chosen.positive.sum(1), (labels == 3).sum(1)

    valid, positive, background = selected(batch_size=64)
    assert valid == [64, 64]
    assert torch.equal(positive + background, torch.tensor(valid))
    assert (selected(batch_size=4, positive_fraction=0.5)[1] == 2).all()
    loose = selected(batch_size=2000, positive_fraction=0.5, fg_iou=0.3, bg_iou=0.3)
    strict = selected(batch_size=2000, positive_fraction=0.5, fg_iou=0.6, bg_iou=0.3)
    assert (loose[1] > strict[1]).any() and torch.equal(loose[2], strict[2])
    assert (selected(batch_size=2000, bg_iou=0.1)[2] < strict[2]).any()


def test_objects_join_the_proposals(make_head, make_features, make_targets):
    targets = make_targets(OBJECTS, SIZES, rows=4)
    head = make_head(batch_size=20, positive_fraction=0.5)
    proposals = torch.zeros(2, 5, 4)
    boxes, chosen, labels, wanted = head.roi._select(proposals, torch.zeros(2, 5).bool(), targets)
    assert chosen.valid.sum(1).tolist() == [2, 2]
    for image in range(2):
        order = boxes[image, :2, 0].argsort()
        expected = targets.boxes[image, :2][targets.boxes[image, :2, 0].argsort()]
        assert torch.equal(boxes[image, :2][order], expected)
        assert torch.equal(wanted[image, :2], boxes[image, :2])
    assert not boxes[:, 2:].any() and (labels[:, 2:] == -100).all()


def test_second_stage_loss_options(make_head, make_features, make_targets):
    torch.manual_seed(0)
    features, targets = make_features(), make_targets(OBJECTS, SIZES)
    values = {kind: run_losses(make_head(box_loss=kind), features, targets)["roi_box"].item() for kind in
              ("smooth_l1", "giou", "diou", "ciou")}  # fmt: skip
    assert len(set(values.values())) == 4
    assert run_losses(make_head(smooth_l1_beta=5.0), features, targets)["roi_box"] < values["smooth_l1"]


def test_crowd_overlap_of_the_second_stage(make_head, make_targets):
    proposals = torch.tensor([[[10.0, 10, 20, 20], [15, 10, 35, 20]]])  # inside the region, and half of it
    targets = make_targets([[(0, 0, 25, 100, 0, True)]])
    for overlap, expected in ((0.4, 0), (0.6, 1), (0.5, 0)):
        head = make_head(crowd_overlap=overlap)
        _, chosen, _, _ = head.roi._select(proposals, torch.ones(1, 2).bool(), targets)
        assert chosen.valid.sum() == expected


@pytest.mark.parametrize("option", [{"levels": 2}, {"canonical_size": 20.0}, {"canonical_level": 2}, {"sampling_ratio": 1}])
def test_pooling_options_reach_the_pooling(make_head, make_features, option):
    torch.manual_seed(0)
    features, default = make_features(), {"canonical_size": 40.0}
    boxes = torch.tensor([[[3.0, 5, 120, 100], [8, 8, 30, 40]]] * 2)  # from level index 3 and 1
    changed, plain = (make_head(**chosen).roi(features, boxes)[0] for chosen in (default | option, default))
    assert (changed - plain).abs().max() > 1e-3


def test_pooling_reads_only_the_levels_it_may(make_head, make_features):
    torch.manual_seed(0)
    features = [feature.requires_grad_() for feature in make_features()]
    boxes = torch.tensor([[[3.0, 5, 120, 100], [8, 8, 30, 40]]] * 2)
    make_head(levels=2, canonical_size=30.0).roi(features, boxes)[0].sum().backward()
    assert [feature.grad is not None for feature in features] == [True, True, False, False, False]


def test_pre_and_post_nms_of_training_and_use(make_head, make_features, make_targets, monkeypatch):
    numbers = {"pre_nms_train": 11, "post_nms_train": 12, "pre_nms_test": 13, "post_nms_test": 14}
    head, features = make_head(rpn=numbers), make_features()
    calls = []
    original = head.rpn.proposals
    monkeypatch.setattr(head.rpn, "proposals", lambda *inputs: calls.append(inputs[2:]) or original(*inputs))
    run_losses(head, features, make_targets(OBJECTS, SIZES))
    detections_of(head, features)
    assert calls == [(11, 12), (13, 14)]


# ---- the contract ---------------------------------------------------------------------------------------


def test_one_forward_serves_losses_and_predictions_in_either_mode(make_head, make_features, make_targets):
    torch.manual_seed(0)
    head, features, targets = make_head(), make_features(), make_targets(OBJECTS, SIZES)
    raw = head.train()(features, (128, 192))
    copies = {name: value.clone() for name, value in vars(raw).items() if torch.is_tensor(value)}
    first = head.predict(raw, targets.image_sizes)
    losses = []
    for module in (head.train(), head.eval()):
        torch.manual_seed(0)
        losses.append(module.losses(raw, targets))
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in NAMES)
    second = head.predict(raw, targets.image_sizes)
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(second).values(), strict=True))
    assert all(torch.equal(getattr(raw, name), value) for name, value in copies.items())
    assert not first.boxes.requires_grad and not first.scores.requires_grad


def test_bfloat16_autocast_keeps_losses_and_boxes_in_float32(make_head, make_features, make_targets):
    torch.manual_seed(0)
    head, features, targets = make_head(), make_features(), make_targets(OBJECTS, SIZES)
    exact = run_losses(head, features, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        raw = head(features, (128, 192))
        assert raw.objectness.dtype == torch.bfloat16 and raw.anchors.dtype == torch.float32
        torch.manual_seed(0)
        losses = head.losses(raw, targets)
        found = head.predict(raw, targets.image_sizes)
    for name in NAMES:
        assert losses[name].dtype == torch.float32
        assert losses[name].item() == pytest.approx(exact[name].item(), rel=0.2)
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    sum(losses.values()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())


def test_a_network_in_bfloat16_runs(make_head, make_features, make_targets):
    torch.manual_seed(0)
    head, targets = make_head().to(torch.bfloat16), make_targets(OBJECTS, SIZES)
    raw = head([feature.bfloat16() for feature in make_features()], (128, 192))
    losses = head.losses(raw, targets)
    assert all(value.dtype == torch.float32 and torch.isfinite(value) for value in losses.values())
    assert head.predict(raw, targets.image_sizes).boxes.dtype == torch.float32


def test_levels_and_classes_must_fit(levels):
    with pytest.raises(ValueError, match=r"roi.levels is 6.* gives 5 levels"):
        FasterRCNN(levels, 3, roi=RoIOptions(levels=6))
    with pytest.raises(ValueError, match="num_classes"):
        FasterRCNN(levels, 0)
    with pytest.raises(ValueError, match="anchors.sizes has 5 entries.* gives 4 levels"):
        FasterRCNN(levels[:4], 3)
    trunk = [dataclasses.replace(level, channels=64 * 2**i) for i, level in enumerate(levels)]
    with pytest.raises(ValueError, match="add a neck .*FPN"):
        FasterRCNN(trunk, 3)


def test_one_level_is_enough(make_targets, spread_out):
    levels = [FeatureLevel(8, (16, 16))]
    roi = RoIOptions(hidden=16, levels=1)
    head = spread_out(FasterRCNN(levels, 3, AnchorOptions(sizes=((32, 64, 128),)), roi=roi))
    torch.manual_seed(0)
    raw = head([torch.randn(2, 8, 8, 12)], (128, 192))
    assert torch.isfinite(sum(head.losses(raw, make_targets(OBJECTS, SIZES)).values()))
    assert (head.predict(raw, torch.tensor(SIZES)).count > 0).all()
