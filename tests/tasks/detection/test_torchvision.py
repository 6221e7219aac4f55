"""The whole task with torchvision's 91-way COCO detector loaded: same detections, in our 80 classes.

The published file carries its accuracy over if this holds, because everything between the image and the
boxes takes part: normalisation, padding, trunk, neck, head, the choice of classes, the way back.
"""

import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from trunkline.backbones import FPN, ResNet
from trunkline.backbones.weights.load import COCO_CATEGORY_IDS
from trunkline.data.detection.batches import DetectionSample, collate_detection
from trunkline.heads import FasterRCNN
from trunkline.heads.detection import RoIOptions
from trunkline.tasks.detection.task import Detection

THRESHOLD = 0.03


@pytest.fixture(scope="module")
def peer():
    """torchvision's detector with random weights, spread out so that there is something to detect."""
    torch.manual_seed(3)
    model = fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=91,
        min_size=128,  # the images below have this short side, so torchvision does not resize them
        max_size=256,
        box_score_thresh=THRESHOLD,
    ).eval()
    torch.nn.init.normal_(model.rpn.head.bbox_pred.weight, std=0.05)
    predictor = model.roi_heads.box_predictor
    torch.nn.init.normal_(predictor.cls_score.weight, std=0.08)
    torch.nn.init.normal_(predictor.bbox_pred.weight, std=0.02)
    for name, part in model.backbone.named_modules():
        if name.endswith("bn3"):  # as in a trained network: activations do not grow, nor does rounding
            torch.nn.init.constant_(part.weight, 0.55)
    with torch.no_grad():  # the eleven ids without a category never win, as in the published weights
        unused = sorted(set(range(1, 91)) - set(COCO_CATEGORY_IDS))
        predictor.cls_score.bias[unused] = -1e4
    return model


def test_torchvision_weights_detect_the_same_through_the_task(peer, tmp_path):
    path = tmp_path / "fasterrcnn.pth"
    torch.save(peer.state_dict(), path)
    task = Detection(
        backbone=ResNet(depth=50, norm="frozen_batch"),
        neck=lambda trunk: FPN(trunk, channels=256),
        head=lambda levels: FasterRCNN(levels, 80, roi=RoIOptions(score_threshold=THRESHOLD)),
        weights=str(path),
    ).eval()
    task.branch.adopt([{"id": number, "name": str(number)} for number in COCO_CATEGORY_IDS])
    generator = torch.Generator().manual_seed(1)
    images = [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
        for size in ((128, 192), (192, 128))
    ]
    none = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "crowd": torch.zeros(0, dtype=torch.bool),
    }
    samples = [
        DetectionSample(
            image=image, **none, image_id=n, original_size=tuple(image.shape[1:]), canvas=(192, 192)
        )
        for n, image in enumerate(images)
    ]
    with torch.no_grad():
        expected = peer([image.float() / 255 for image in images])  # pads both to 192x192, too
        batch = collate_detection(samples)
        found = task.branch.to_original(task(batch.image, batch.image_sizes), batch)
    for ours, theirs in zip(found, expected, strict=True):
        assert len(theirs["boxes"]) >= 20
        assert task.branch.category_ids(ours["labels"]).tolist() == theirs["labels"].tolist()
        torch.testing.assert_close(ours["scores"], theirs["scores"], atol=1e-5, rtol=0)
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], atol=0.01, rtol=0)
