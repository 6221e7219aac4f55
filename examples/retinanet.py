"""A detection head of your own: RetinaNet (Lin et al. 2017, "Focal loss for dense object detection").

Letters in shapes: B images, A anchors of all levels, K classes, H_i W_i the map of level i.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from trunkline.backbones import FeatureLevel
from trunkline.heads import NumClasses, class_number
from trunkline.heads.detection import (
    AnchorOptions,
    Anchors,
    BoxTargets,
    DetectionHead,
    Detections,
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


@dataclass
class RawRetinaNet:
    """What the head computes: class logits ``[B, A, K]``, box deltas ``[B, A, 4]``, anchors ``[A, 4]``."""

    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    anchors_per_level: tuple[int, ...]


class RetinaNet(DetectionHead):
    """Classifies and refines every anchor; the focal loss gives the many easy ones little weight.

    Args:
        levels: of the neck, all with the same number of channels.
        num_classes: K; ``auto`` is replaced by the command line.
        depth: hidden convolutions of each branch.
        anchors: shapes of the boxes to start from.
        prior: probability that each class starts with; small, because objects are rare among anchors.
        alpha: weight of objects in the focal loss; background has ``1 - alpha``.
        gamma: how much less easy anchors count.
        candidates: best scores of each level that are looked at in prediction.
        score_threshold: detections need a higher score.
        nms_threshold: of two boxes of a class with a larger IoU, only the better one stays.
    """

    def __init__(
        self,
        levels: Sequence[FeatureLevel],
        num_classes: NumClasses,
        depth: int = 4,
        anchors: AnchorOptions = AnchorOptions(scale=4, octave_scales=3),
        prior: float = 0.01,
        alpha: float = 0.25,
        gamma: float = 2.0,
        candidates: int = 1000,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes = class_number(num_classes)
        self.alpha, self.gamma, self.candidates = alpha, gamma, candidates
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        self.anchors = Anchors(levels, anchors)
        self.matcher = Matcher(fg_iou=0.5, bg_iou=0.4, crowd_overlap=0.5, low_quality=True)
        channels, per_cell = levels[0].channels, self.anchors.per_cell
        self.classes = tower(channels, depth, per_cell * num_classes)
        self.boxes = tower(channels, depth, per_cell * 4)
        nn.init.constant_(self.classes[-1].bias, -math.log((1 - prior) / prior))

    def forward(self, features: list[Tensor], image_size: tuple[int, ...]) -> RawRetinaNet:
        """Compute logits and deltas of all anchors from one ``[B, C, H_i, W_i]`` map per level."""
        sizes = map_sizes(features)
        return RawRetinaNet(
            flatten_levels([self.classes(x) for x in features], self.num_classes),
            flatten_levels([self.boxes(x) for x in features], 4),
            self.anchors(sizes, features[0].device),
            self.anchors.per_level(sizes),
        )

    def losses(self, raw: RawRetinaNet, targets: BoxTargets) -> dict[str, Tensor]:
        """Return the focal loss of the classes and the L1 loss of the boxes, per object's anchor."""
        matches = self.matcher(raw.anchors[None], targets)
        return {
            "class": dense_class_loss(raw.logits, matches, targets, alpha=self.alpha, gamma=self.gamma),
            "box": dense_box_loss(raw.deltas, raw.anchors, matches, targets),
        }

    def predict(self, raw: RawRetinaNet, image_sizes: Tensor) -> Detections:
        """Take the best scores of each level, decode their boxes, and suppress those that overlap."""
        scores = raw.logits.float().sigmoid().flatten(1)  # [B, A, K] -> [B, A * K]
        per_level = [count * self.num_classes for count in raw.anchors_per_level]
        scores, places = top_candidates(scores, self.candidates, per_level)
        rows, labels = places // self.num_classes, places % self.num_classes
        boxes = decode(gather_rows(raw.deltas, rows), raw.anchors[rows])
        return select_detections(
            boxes,
            scores,
            labels,
            image_sizes,
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
        )


def tower(channels: int, depth: int, outputs: int) -> nn.Sequential:
    """Build 3x3 convolutions with ReLU and a last one without; the weights start as in the paper."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
    layers.append(nn.Conv2d(channels, outputs, 3, padding=1))
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
