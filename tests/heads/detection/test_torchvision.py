"""The whole detector beside torchvision's, on copied random weights."""

import pytest
import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from trunkline.backbones import FPN, ResNet, load_weights
from trunkline.heads import FasterRCNN
from trunkline.heads.detection import RoIOptions, RPNOptions

SIZES = [(128, 192), (96, 160)]
CLASSES = 5


class Detector(nn.Module):
    def __init__(self, rpn, roi):
        super().__init__()
        self.backbone = FPN(ResNet(50, norm="frozen_batch"))
        self.head = FasterRCNN(self.backbone.levels, CLASSES, rpn=rpn, roi=roi)


def randomised(model):
    """Weights and statistics for which features, scores and boxes vary a lot but stay moderate."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith("num_batches_tracked"):
                continue
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("running_mean") or name.endswith("bias"):
                value.normal_(std=0.1, generator=generator)
            elif ".bn3." in name or "downsample.1" in name:
                value.uniform_(0.3, 0.6, generator=generator)
            elif value.ndim == 1:
                value.uniform_(0.8, 1.2, generator=generator)
            else:
                value.normal_(std=(2 / value[0].numel()) ** 0.5, generator=generator)
        model.rpn.head.bbox_pred.weight.mul_(0.05)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(0.2)
        # Inputs are never negative; rows that sum to 0 keep one class from winning everywhere.
        scores = model.roi_heads.box_predictor.cls_score.weight
        scores.sub_(scores.mean(1, keepdim=True)).mul_(0.4)
    return model


@pytest.fixture(scope="module")
def reference():
    everything = {f"{stage}_batch_size_per_image": 1_000_000 for stage in ("rpn", "box")}
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        box_positive_fraction=0.5,
        box_score_thresh=0.1,
        rpn_pre_nms_top_n_train=300,
        rpn_pre_nms_top_n_test=300,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        **everything,
    )
    model.transform.resize = lambda image, target=None: (image, target)
    return randomised(model)


@pytest.fixture(scope="module")
def ours(reference):
    rpn = RPNOptions(batch_size=1_000_000, pre_nms_train=300, pre_nms_test=300)
    roi = RoIOptions(batch_size=1_000_000, positive_fraction=0.5, score_threshold=0.1)
    model = Detector(rpn, roi)
    report = load_weights(model, reference.state_dict())
    assert report.fraction == 1 and not report.missing and not report.skipped
    return model.eval()


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) * 2 - 1 for size in SIZES]


def padded(images):
    batch = torch.zeros(len(images), 3, *SIZES[0])
    for canvas, image in zip(batch, images, strict=True):
        canvas[:, : image.shape[1], : image.shape[2]] = image
    return batch


def test_detections(ours, reference, images, place):
    with torch.no_grad():
        expected = reference.eval()(images)
        raw = ours.head(ours.backbone(padded(images)), SIZES[0])
        found = ours.head.predict(raw, torch.tensor(SIZES))
    for image, wanted in enumerate(expected):
        number = found.count[image]
        assert number == len(wanted["boxes"]) > 30
        assert len(wanted["labels"].unique()) > 1
        assert torch.equal(found.labels[image, :number], wanted["labels"] - 1)
        torch.testing.assert_close(found.scores[image, :number], wanted["scores"], rtol=0, atol=1e-5)
        torch.testing.assert_close(found.boxes[image, :number], wanted["boxes"], rtol=0, atol=0.01)


def test_losses(ours, reference, images, make_targets, place):
    objects = [[(20, 20, 60, 70, 0), (100, 10, 150, 110, 1)], [(5, 40, 80, 69, 2), (30, 5, 60, 90, 4)]]
    targets = make_targets(objects, SIZES)
    wanted = [
        {"boxes": boxes, "labels": labels + 1}
        for boxes, labels in zip(targets.boxes, targets.labels, strict=True)
    ]
    reference.train()
    for module in reference.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        expected = reference(images, wanted)
        losses = ours.head.losses(ours.head(ours.backbone(padded(images)), SIZES[0]), targets)
    pairs = {"rpn_objectness": "loss_objectness", "rpn_box": "loss_rpn_box_reg"}
    pairs |= {"roi_class": "loss_classifier", "roi_box": "loss_box_reg"}
    for name, other in pairs.items():
        assert expected[other] > 0.001
        torch.testing.assert_close(losses[name], expected[other], rtol=1e-4, atol=0, msg=name)
