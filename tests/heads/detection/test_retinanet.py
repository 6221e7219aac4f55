"""A dense head written with the public parts alone, beside torchvision's RetinaNet on copied weights."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from trunkline.heads.detection import (
    AnchorOptions,
    Anchors,
    DetectionHead,
    Matcher,
    decode,
    dense_box_loss,
    dense_class_loss,
    flatten_levels,
    gather_rows,
    map_sizes,
    select_detections,
    top_candidates,
)

SIZES = [(128, 192), (70, 90)]
OBJECTS = [[(20, 20, 60, 70, 0), (100, 10, 150, 110, 1)], [(5, 40, 80, 69, 2), (30, 5, 60, 30, 0)]]
CLASSES = 3


@dataclass
class Raw:
    logits: Tensor  # [B, A, K]
    deltas: Tensor  # [B, A, 4]
    anchors: Tensor  # [A, 4]
    anchors_per_level: tuple[int, ...]


class RetinaNet(DetectionHead):
    def __init__(self, levels, num_classes, anchors=AnchorOptions(octave_scales=3)):
        super().__init__()
        self.num_classes = num_classes
        self.anchors = Anchors(levels, anchors)
        self.matcher = Matcher(fg_iou=0.5, bg_iou=0.4, crowd_overlap=0.5, low_quality=True)
        channels = levels[0].channels
        self.classes = self.tower(channels, num_classes)
        self.boxes = self.tower(channels, 4)

    def tower(self, channels, columns):
        layers = [
            layer for _ in range(4) for layer in (nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        ]
        return nn.Sequential(*layers, nn.Conv2d(channels, columns * self.anchors.per_cell, 3, padding=1))

    def forward(self, features, image_size):
        sizes = map_sizes(features)
        return Raw(
            flatten_levels([self.classes(feature) for feature in features], self.num_classes),
            flatten_levels([self.boxes(feature) for feature in features], 4),
            self.anchors(sizes, features[0].device),
            self.anchors.per_level(sizes),
        )

    def losses(self, raw, targets):
        matches = self.matcher(raw.anchors[None], targets)
        return {
            "class": dense_class_loss(raw.logits, matches, targets, per_image=True),
            "box": dense_box_loss(raw.deltas, raw.anchors, matches, targets, per_image=True),
        }

    def predict(self, raw, image_sizes):
        scores = raw.logits.float().sigmoid().flatten(1)  # [B, A, K] -> [B, A*K]
        counts = [count * self.num_classes for count in raw.anchors_per_level]
        scores, index = top_candidates(scores, 150, counts)
        anchor, labels = index // self.num_classes, index % self.num_classes
        boxes = decode(gather_rows(raw.deltas, anchor), raw.anchors[anchor])
        return select_detections(boxes, scores, labels, image_sizes, score_threshold=0.3)


class Trunk(nn.Module):
    out_channels = 8


@pytest.fixture
def pair(levels):
    """Our head and torchvision's, with the same weights."""
    sizes = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512))
    theirs = TorchvisionRetinaNet(
        Trunk(),
        CLASSES,
        anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5),
        score_thresh=0.3,
        topk_candidates=150,
        detections_per_img=100,
    )
    ours = RetinaNet(levels, CLASSES)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.13, generator=generator)
    heads = (theirs.head.classification_head, theirs.head.regression_head)
    last = (theirs.head.classification_head.cls_logits, theirs.head.regression_head.bbox_reg)
    for tower, head, layer in zip((ours.classes, ours.boxes), heads, last, strict=True):
        tensors = [*head.conv.state_dict().values(), *layer.state_dict().values()]
        tower.load_state_dict(dict(zip(tower.state_dict(), tensors, strict=True)))
    return ours, theirs


def outputs_of(theirs, features):
    images = ImageList(torch.zeros(len(features[0]), 3, 128, 192), SIZES)
    return theirs.head(features), theirs.anchor_generator(images, features)


def test_losses_and_gradients_are_torchvisions(pair, make_features, make_targets):
    torch.manual_seed(0)
    ours, theirs = pair
    mine = [feature.requires_grad_() for feature in make_features()]
    others = [feature.detach().clone().requires_grad_() for feature in mine]
    targets = make_targets(OBJECTS, SIZES)
    wanted = [
        {"boxes": boxes, "labels": labels}
        for boxes, labels in zip(targets.boxes, targets.labels, strict=True)
    ]
    losses = ours.losses(ours(mine, (128, 192)), targets)
    expected = theirs.compute_loss(wanted, *outputs_of(theirs, others))
    assert expected["bbox_regression"] > 0.1
    torch.testing.assert_close(losses["class"], expected["classification"], rtol=1e-4, atol=0)
    torch.testing.assert_close(losses["box"], expected["bbox_regression"], rtol=1e-4, atol=0)
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    for feature, other in zip(mine, others, strict=True):
        torch.testing.assert_close(feature.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_detections_are_torchvisions(monkeypatch, pair, make_features, place):
    """But for boxes without area, which torchvision's RetinaNet keeps among its best ones."""
    torch.manual_seed(0)
    ours, theirs = pair
    limit = theirs.detections_per_img
    monkeypatch.setattr(theirs, "detections_per_img", 100_000)
    features = make_features()
    with torch.no_grad():
        found = ours.predict(ours(features, (128, 192)), torch.tensor(SIZES))
        outputs, anchors = outputs_of(theirs, features)
        counts = [feature.shape[-2] * feature.shape[-1] * 9 for feature in features]
        outputs = {name: list(values.split(counts, dim=1)) for name, values in outputs.items()}
        anchors = [list(each.split(counts)) for each in anchors]
        expected = theirs.postprocess_detections(outputs, anchors, SIZES)
    for image in range(2):
        number = found.count[image]
        sides = expected[image]["boxes"][:, 2:] - expected[image]["boxes"][:, :2]
        kept = (sides > 0).all(1).nonzero()[:limit, 0]
        wanted = {name: values[kept] for name, values in expected[image].items()}
        assert number == len(wanted["boxes"]) > 20
        assert torch.equal(found.labels[image, :number], wanted["labels"])
        torch.testing.assert_close(found.scores[image, :number], wanted["scores"], rtol=0, atol=1e-5)
        torch.testing.assert_close(found.boxes[image, :number], wanted["boxes"], rtol=0, atol=0.01)


def test_no_graph_break_in_losses(levels, make_features, make_targets):
    head, features, targets = RetinaNet(levels, CLASSES), make_features(), make_targets(OBJECTS)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(lambda maps, truth: head.losses(head(maps, (128, 192)), truth))(
        features, targets
    )
    assert explained.graph_break_count == 0, explained.break_reasons


def test_a_detection_head_names_what_is_missing():
    class Unfinished(DetectionHead):
        pass

    head = Unfinished()
    assert head.branch == "detection"
    for call in (lambda: head([], (1, 1)), lambda: head.losses(0, 0), lambda: head.predict(0, 0)):
        with pytest.raises(NotImplementedError, match="Unfinished must implement"):
            call()
