import pytest
import torch

from trunkline.heads.detection import RoI, RoIOptions, gather_rows

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
    found = head.predict(
        [torch.zeros(1, 8, 32, 32)], proposals, torch.ones(1, 1).bool(), torch.tensor([[99, 99]])
    )
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
        _, sampled = head.roi.losses(features, *proposals, targets)
        return sampled.valid.sum(1).tolist(), sampled.positive.sum(1), (sampled.labels == 3).sum(1)

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
    _, sampled = head.roi.losses(make_features(), proposals, torch.zeros(2, 5).bool(), targets)
    boxes, labels, wanted = sampled.boxes, sampled.labels, gather_rows(targets.boxes, sampled.index)
    assert sampled.valid.sum(1).tolist() == [2, 2]
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


def test_crowd_overlap_of_the_second_stage(make_head, make_features, make_targets):
    proposals = torch.tensor([[[10.0, 10, 20, 20], [15, 10, 35, 20]]])  # inside the region, and half of it
    targets = make_targets([[(0, 0, 25, 100, 0, True)]])
    for overlap, expected in ((0.4, 0), (0.6, 1), (0.5, 0)):
        head = make_head(crowd_overlap=overlap)
        features = make_features(batch=1)
        _, sampled = head.roi.losses(features, proposals, torch.ones(1, 2).bool(), targets)
        assert sampled.valid.sum() == expected


@pytest.mark.parametrize(
    "option", [{"levels": 2}, {"canonical_size": 20.0}, {"canonical_level": 2}, {"sampling_ratio": 1}]
)
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
