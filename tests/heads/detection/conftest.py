"""Tiny detectors, their inputs, and torchvision's detector on the same weights."""

import contextlib
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from trunkline.backbones.base import FeatureLevel
from trunkline.heads.detection import FasterRCNN, RoIOptions, RPNOptions
from trunkline.heads.detection.boxes import device_paths

STRIDES = (4, 8, 16, 32, 64)
CHANNELS = 8


@dataclass
class Targets:
    image_sizes: Tensor
    boxes: Tensor
    labels: Tensor
    crowd: Tensor


@pytest.fixture(params=["cpu", "device"])
def place(request):
    """Runs a test the way the CPU goes, and the way devices go, where no shape depends on values."""
    with device_paths() if request.param == "device" else contextlib.nullcontext():
        yield request.param


@pytest.fixture
def on_devices():
    """Runs a test the way devices go only."""
    with device_paths():
        yield


@pytest.fixture
def levels():
    return tuple(FeatureLevel(CHANNELS, (stride, stride)) for stride in STRIDES)


@pytest.fixture
def make_features():
    """Random maps of a canvas divisible by 64."""

    def make(batch=2, height=128, width=192, channels=CHANNELS):
        return [torch.randn(batch, channels, height // stride, width // stride) for stride in STRIDES]

    return make


@pytest.fixture
def make_targets():
    """Targets from one list per image of (x1, y1, x2, y2, label) or (..., label, crowd) rows."""

    def make(images, sizes=None, rows=None):
        rows = rows or max(1, max(len(image) for image in images))
        targets = Targets(
            image_sizes=torch.tensor(sizes or [(128, 192)] * len(images)),
            boxes=torch.zeros(len(images), rows, 4),
            labels=torch.full((len(images), rows), -1),
            crowd=torch.zeros(len(images), rows, dtype=torch.bool),
        )
        for index, image in enumerate(images):
            for row, (*box, label, crowd) in enumerate(
                entry if len(entry) == 6 else (*entry, False) for entry in image
            ):
                targets.boxes[index, row] = torch.tensor(box, dtype=torch.float32)
                targets.labels[index, row] = label
                targets.crowd[index, row] = crowd
        return targets

    return make


@pytest.fixture
def spread_out():
    """Gives a head weights that make its outputs vary much more than those it starts from."""

    def spread(head, seed=0):
        generator = torch.Generator().manual_seed(seed)
        wide = {"rpn.conv": 0.1, "rpn.objectness": 0.5, "rpn.deltas": 0.1, "roi.fc6": 0.06, "roi.fc7": 0.2}
        wide |= {"roi.classifier": 0.8, "roi.regressor": 0.5}
        with torch.no_grad():
            for name, parameter in head.named_parameters():
                parameter.normal_(std=wide[name.rpartition(".")[0]], generator=generator)
        return head

    return spread


@pytest.fixture
def make_head(levels, spread_out):
    """A small detector with such weights; keywords are options of the second stage."""

    def make(num_classes=3, rpn=None, **roi):
        rpn = RPNOptions(**{"pre_nms_train": 200, "pre_nms_test": 200, **(rpn or {})})
        roi = RoIOptions(**{"hidden": 32, "score_threshold": 0.1, **roi})
        return spread_out(FasterRCNN(levels, num_classes, rpn=rpn, roi=roi))

    return make


class TorchvisionTwin:
    """torchvision's RPN and RoI heads with the weights and options of one of ours."""

    def __init__(self, head):
        rpn, roi = head.rpn.options, head.roi.options
        sizes = ((32,), (64,), (128,), (256,), (512,))
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
        self.rpn = RegionProposalNetwork(
            anchors,
            RPNHead(CHANNELS, 3),
            rpn.fg_iou,
            rpn.bg_iou,
            rpn.batch_size,
            rpn.positive_fraction,
            {"training": rpn.pre_nms_train, "testing": rpn.pre_nms_test},
            {"training": rpn.post_nms_train, "testing": rpn.post_nms_test},
            rpn.nms_threshold,
        )
        self.roi = RoIHeads(
            MultiScaleRoIAlign(["0", "1", "2", "3"], roi.pool_size, roi.sampling_ratio),
            TwoMLPHead(CHANNELS * roi.pool_size**2, roi.hidden),
            FastRCNNPredictor(roi.hidden, head.num_classes + 1),
            roi.fg_iou,
            roi.bg_iou,
            roi.batch_size,
            roi.positive_fraction,
            None,
            roi.score_threshold,
            roi.nms_threshold,
            roi.detections_per_image,
        )
        self._copy(head)

    def _copy(self, head):
        pairs = [(self.rpn.head.conv[0][0], head.rpn.conv), (self.rpn.head.cls_logits, head.rpn.objectness)]
        pairs += [(self.rpn.head.bbox_pred, head.rpn.deltas), (self.roi.box_head.fc6, head.roi.fc6)]
        pairs += [(self.roi.box_head.fc7, head.roi.fc7)]
        for theirs, ours in pairs:
            theirs.load_state_dict(ours.state_dict())
        predictor = self.roi.box_predictor
        with torch.no_grad():
            for name in ("weight", "bias"):
                # Their class 0 is the background, which is our last.
                getattr(predictor.cls_score, name).copy_(getattr(head.roi.classifier, name).roll(1, 0))
                getattr(predictor.bbox_pred, name)[4:] = getattr(head.roi.regressor, name)

    def _inputs(self, features, image_sizes):
        height, width = (4 * size for size in features[0].shape[-2:])
        sizes = [tuple(size) for size in image_sizes.tolist()]
        images = ImageList(torch.zeros(len(sizes), 3, height, width), sizes)
        return images, OrderedDict((str(index), feature) for index, feature in enumerate(features))

    def losses(self, features, targets):
        self.rpn.train(), self.roi.train()
        images, maps = self._inputs(features, targets.image_sizes)
        real = (targets.labels >= 0) & ~targets.crowd
        wanted = [
            {"boxes": boxes[rows], "labels": labels[rows] + 1}
            for boxes, labels, rows in zip(targets.boxes, targets.labels, real, strict=True)
        ]
        proposals, rpn = self.rpn(images, maps, wanted)
        _, roi = self.roi(maps, proposals, images.image_sizes, wanted)
        return {
            "rpn_objectness": rpn["loss_objectness"],
            "rpn_box": rpn["loss_rpn_box_reg"],
            "roi_class": roi["loss_classifier"],
            "roi_box": roi["loss_box_reg"],
        }

    def proposals(self, features, image_sizes):
        self.rpn.eval()
        return self.rpn(*self._inputs(features, image_sizes))[0]

    def predict(self, features, image_sizes):
        self.rpn.eval(), self.roi.eval()
        images, maps = self._inputs(features, image_sizes)
        proposals, _ = self.rpn(images, maps)
        return self.roi(maps, proposals, images.image_sizes)[0]


@pytest.fixture
def torchvision_twin():
    return TorchvisionTwin
