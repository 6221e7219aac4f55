"""load_weights into a whole task: torchvision's Faster R-CNN, bare trunks and own checkpoints."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FasterRCNN_ResNet50_FPN_Weights

from trunkline.backbones import FPN, ResNet, load_weights
from trunkline.backbones.weights.load import COCO_CATEGORY_IDS, explain_mismatch

HIDDEN = 16


class RPN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(256, 256, 3, padding=1)
        self.objectness = nn.Conv2d(256, 3, 1)
        self.deltas = nn.Conv2d(256, 12, 1)


class RoI(nn.Module):
    def __init__(self, classes, class_agnostic):
        super().__init__()
        self.fc6 = nn.Linear(256 * 7 * 7, HIDDEN)
        self.fc7 = nn.Linear(HIDDEN, HIDDEN)
        self.classifier = nn.Linear(HIDDEN, classes + 1)
        self.regressor = nn.Linear(HIDDEN, 4 if class_agnostic else 4 * classes)


class Task(nn.Module):
    """The parts of a detection task that have weights, under their names."""

    def __init__(self, classes=80, class_agnostic=False, backbone=None):
        super().__init__()
        self.backbone = backbone or FPN(ResNet(18))
        self.head = nn.ModuleDict({"rpn": RPN(), "roi": RoI(classes, class_agnostic)})
        self.register_buffer("mean", torch.tensor([1.0, 2.0, 3.0]))


def detector(classes):
    """torchvision's Faster R-CNN with a ResNet-18 and a small head; ``classes`` include the background."""
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d)
    net = FasterRCNN(backbone, num_classes=classes)
    net.roi_heads.box_head.fc6 = nn.Linear(256 * 7 * 7, HIDDEN)
    net.roi_heads.box_head.fc7 = nn.Linear(HIDDEN, HIDDEN)
    net.roi_heads.box_predictor.cls_score = nn.Linear(HIDDEN, classes)
    net.roi_heads.box_predictor.bbox_pred = nn.Linear(HIDDEN, 4 * classes)
    return net


def test_the_category_table_is_that_of_the_published_weights():
    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    used = [number for number, name in enumerate(names) if name not in ("__background__", "N/A")]
    assert list(COCO_CATEGORY_IDS) == used and len(used) == 80


def test_every_shared_layer_of_the_detector_arrives():
    theirs, task = detector(91), Task()
    report = load_weights(task, theirs.state_dict())
    assert report.fraction == 1.0 and report.missing == [] and report.skipped == {}
    pairs = [
        (task.backbone.bottom_up.layer4[1].conv2, theirs.backbone.body.layer4[1].conv2),
        (task.backbone.lateral[2], theirs.backbone.fpn.inner_blocks[2][0]),
        (task.backbone.output[3], theirs.backbone.fpn.layer_blocks[3][0]),
        (task.head["rpn"].conv, theirs.rpn.head.conv[0][0]),
        (task.head["rpn"].objectness, theirs.rpn.head.cls_logits),
        (task.head["rpn"].deltas, theirs.rpn.head.bbox_pred),
        (task.head["roi"].fc6, theirs.roi_heads.box_head.fc6),
        (task.head["roi"].fc7, theirs.roi_heads.box_head.fc7),
    ]
    for ours, their in pairs:
        for name, value in their.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value)
    assert task.mean.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(("rows", "classes"), [(91, 80), (4, 3), (2, 1)])
def test_box_predictor_keeps_its_classes_under_our_numbers(rows, classes):
    theirs, task = detector(rows), Task(classes)
    report = load_weights(task, theirs.state_dict())
    assert len(report.adapted) == 4 and all(name.startswith("head.roi.") for name in report.adapted)
    ids = COCO_CATEGORY_IDS if rows == 91 else range(1, rows)
    x = torch.randn(5, HIDDEN)
    scores, boxes = theirs.roi_heads.box_predictor(x)
    our_scores, our_boxes = task.head["roi"].classifier(x), task.head["roi"].regressor(x)
    for label, category in enumerate(ids):
        torch.testing.assert_close(our_scores[:, label], scores[:, category])
        ours, their = slice(4 * label, 4 * label + 4), slice(4 * category, 4 * category + 4)
        torch.testing.assert_close(our_boxes[:, ours], boxes[:, their])
    torch.testing.assert_close(our_scores[:, classes], scores[:, 0])


@pytest.mark.parametrize(("classes", "class_agnostic", "skipped"), [(7, False, 4), (80, True, 2)])
def test_predictor_that_does_not_fit_starts_afresh(classes, class_agnostic, skipped):
    theirs, task = detector(91), Task(classes, class_agnostic)
    before = task.head["roi"].regressor.weight.clone()
    report = load_weights(task, theirs.state_dict())
    assert len(report.skipped) == skipped and "roi_heads.box_predictor.bbox_pred.weight" in report.skipped
    assert torch.equal(task.head["roi"].regressor.weight, before)
    assert 0.9 < report.fraction < 1.0
    assert torch.equal(task.head["roi"].fc6.weight, theirs.roi_heads.box_head.fc6.weight)


def test_names_of_before_013_are_read():
    theirs, task = detector(91), Task()
    state = theirs.state_dict()
    for name in ("weight", "bias"):
        state[f"rpn.head.conv.{name}"] = state.pop(f"rpn.head.conv.0.0.{name}")
    assert load_weights(task, state).fraction == 1.0
    assert torch.equal(task.head["rpn"].conv.weight, state["rpn.head.conv.weight"])


def test_heads_for_masks_are_left_out():
    state = detector(91).state_dict() | {"roi_heads.mask_head.0.0.weight": torch.zeros(1)}
    report = load_weights(Task(), state)
    assert report.skipped == {"roi_heads.mask_head.0.0.weight": "belongs to no trunk, neck or head"}
    assert report.fraction == 1.0


def test_another_kind_of_head_is_an_error_and_changes_nothing():
    source = torchvision.models.detection.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    task = Task(backbone=FPN(ResNet(50)))
    before = {name: value.clone() for name, value in task.state_dict().items()}
    with pytest.raises(ValueError, match="fits Task on ResNet of depth 50 by"):
        load_weights(task, source.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())


class Labels(nn.Module):
    """A classification task: the other kind of head."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.ModuleDict({"fc": nn.Linear(512, 3)})


def test_a_task_takes_the_trunk_of_another_kind_of_task():
    detection, labels = Task(), Labels(ResNet(18))
    own = {key: value.clone() for key, value in labels.head.state_dict().items()}
    report = load_weights(labels, detection.state_dict())
    assert report.fraction == 1.0 and len(report.matched) == 100
    assert report.skipped["head.rpn.conv.weight"] == "the model has another kind of head"
    assert report.skipped["backbone.lateral.0.weight"] == "the model has no neck"
    again = Task()
    before = {key: value.clone() for key, value in again.head.state_dict().items()}
    report = load_weights(again, labels.state_dict())
    assert report.fraction == 1.0 and len(report.matched) == 100
    for module, source in ((labels.backbone, detection.backbone.bottom_up), (labels.head, own)):
        source = source if isinstance(source, dict) else source.state_dict()
        assert all(torch.equal(value, source[key]) for key, value in module.state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in again.head.state_dict().items())


def test_what_a_checkpoint_of_another_kind_of_task_lacks_is_named():
    text = explain_mismatch(Task(), Labels(ResNet(18)).state_dict(), "last.ckpt")
    assert text.startswith("last.ckpt fits Task on ResNet of depth 18 only in part; nothing was loaded. 100 ")
    assert "the source has no head of this kind\n  the source has no neck of this kind" in text


@pytest.mark.parametrize("neck", [False, True])
def test_trunk_fills_the_trunk_of_a_task_and_nothing_else(neck):
    task = Task(backbone=FPN(ResNet(18)) if neck else ResNet(18))
    head = {name: value.clone() for name, value in task.head.state_dict().items()}
    source = torchvision.models.resnet18().state_dict()
    report = load_weights(task, source)
    assert report.fraction == 1.0 and len(report.matched) == 100
    trunk = task.backbone.bottom_up if neck else task.backbone
    assert all(torch.equal(value, source[name]) for name, value in trunk.state_dict().items())
    assert all(torch.equal(value, head[name]) for name, value in task.head.state_dict().items())


def test_checkpoint_of_a_task_fills_task_pyramid_and_trunk(tmp_path):
    source = Task()
    source.mean.fill_(9)
    checkpoint = {"state_dict": source.state_dict(), "epoch": 1, "hyper_parameters": {"model": {"depth": 18}}}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    task, net, trunk = Task(), FPN(ResNet(18)), ResNet(18)
    for module in (task, net, trunk):
        assert load_weights(module, tmp_path / "last.ckpt").fraction == 1.0
    for module, expected in (
        (task.head, source.head),
        (task.backbone, source.backbone),
        (net, source.backbone),
        (trunk, source.backbone.bottom_up),
    ):
        assert all(torch.equal(v, expected.state_dict()[k]) for k, v in module.state_dict().items())
    assert task.mean.tolist() == [1.0, 2.0, 3.0]  # normalisation stays as the task was configured
