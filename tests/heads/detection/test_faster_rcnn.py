import dataclasses
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trunkline.backbones.base import FeatureLevel
from trunkline.heads.detection import (
    AnchorOptions,
    FasterRCNN,
    RoIOptions,
)

NAMES = ["rpn_objectness", "rpn_box", "roi_class", "roi_box"]
OBJECTS = [[(20, 20, 60, 70, 0), (100, 10, 150, 110, 1)], [(5, 40, 80, 69, 2), (30, 5, 60, 30, 0)]]
SIZES = [(128, 192), (70, 90)]


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
        FasterRCNN(levels[:4], 3, AnchorOptions(sizes=(32, 64, 128, 256, 512)))
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


def test_pre_and_post_nms_of_training_and_use(make_head, make_features, make_targets, monkeypatch):
    numbers = {"pre_nms_train": 11, "post_nms_train": 12, "pre_nms_test": 13, "post_nms_test": 14}
    head, features = make_head(rpn=numbers), make_features()
    calls = []
    original = head.rpn.proposals
    monkeypatch.setattr(head.rpn, "proposals", lambda *inputs: calls.append(inputs[2:]) or original(*inputs))
    run_losses(head, features, make_targets(OBJECTS, SIZES))
    detections_of(head, features)
    assert calls == [(11, 12), (13, 14)]


class Recorder(TorchDispatchMode):
    """Lists the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def operators(step):
    with Recorder() as recorder:
        step()
    return recorder.names


def test_work_on_a_device_is_the_same_for_any_number_of_images(
    make_head, make_features, make_targets, on_devices
):
    head = make_head()
    seen = {}
    for count in (1, 4):
        features = make_features(batch=count)
        targets = make_targets(OBJECTS[:1] * count)
        raw = head(features, (128, 192))
        seen[count] = [
            operators(lambda raw=raw, targets=targets: head.losses(raw, targets)),
            operators(lambda raw=raw, targets=targets: head.predict(raw, targets.image_sizes)),
        ]
    assert seen[1] == seen[4]
    for names in seen[4]:
        # What synchronises a device: .item(), .tolist(), a tensor in an if; shapes that depend on values.
        assert not {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"} & set(names)
        assert not {"torchvision::nms", "aten::_unique2"} & set(names)
        assert "aten::equal" not in names
        # Of proposals for the losses, which serve predict too; there of detections.
        assert names.count("trunkline::nms_keep") == 1
        assert names.count("torchvision::roi_align") == 1
