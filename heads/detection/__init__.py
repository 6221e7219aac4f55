"""Detection: heads that find objects, and the parts to write your own from.

A head of your own is a subclass of :class:`DetectionHead`, made of these parts:

- Contracts: :class:`DetectionHead`, :class:`Detections`, :class:`BoxTargets` (what ``losses`` gets);
  :class:`RoIStage` and :class:`SampledBoxes` for second stages.
- Layers: :class:`RPN`; :class:`RoI`, which pools by :func:`pool_boxes`; and for the outputs of dense heads
  :class:`Anchors`, :func:`map_sizes` and :func:`flatten_levels`.
- Boxes: :func:`encode`, :func:`decode`, :func:`clip`, :func:`large_enough`, :func:`box_areas`,
  :func:`pairwise_iou`, :func:`pairwise_intersection`, :func:`gather_rows`, :func:`level_of_box`.
- What to learn: :class:`Matcher` gives :class:`Matches`, :func:`sample` gives a :class:`Sample`,
  :func:`object_rows` leaves out padding and crowd regions.
- Losses: :func:`dense_class_loss` and :func:`dense_box_loss` on all anchors; :func:`focal_loss`,
  :func:`box_losses`, :func:`box_loss`, :func:`iou_loss` and :func:`per_positive` to make others.
- Detections: :func:`top_candidates` (of each level), then :func:`select_detections`; below it
  :func:`nms_keep` and :func:`suppress`.
- Options: :class:`AnchorOptions`, :class:`RPNOptions`, :class:`RoIOptions`.

All of them work on whole padded batches, with shapes that do not depend on values.
"""

from ..base import BoxTargets
from .anchors import Anchors, flatten_levels, map_sizes
from .base import DetectionHead, Detections, RoIStage, SampledBoxes
from .boxes import (
    box_areas,
    clip,
    decode,
    encode,
    gather_rows,
    large_enough,
    pairwise_intersection,
    pairwise_iou,
)
from .faster_rcnn import FasterRCNN, RawDetections
from .losses import (
    box_loss,
    box_losses,
    dense_box_loss,
    dense_class_loss,
    focal_loss,
    iou_loss,
    per_positive,
)
from .matching import Matcher, Matches, Sample, object_rows, sample
from .nms import nms_keep, suppress
from .options import AnchorOptions, BoxLoss, RoIOptions, RPNOptions
from .pooling import level_of_box, pool_boxes
from .roi import RoI
from .rpn import RPN, RawProposals
from .suppression import select_detections, top_candidates

__all__ = [
    "RPN",
    "AnchorOptions",
    "Anchors",
    "BoxLoss",
    "BoxTargets",
    "DetectionHead",
    "Detections",
    "FasterRCNN",
    "Matcher",
    "Matches",
    "RPNOptions",
    "RawDetections",
    "RawProposals",
    "RoI",
    "RoIOptions",
    "RoIStage",
    "Sample",
    "SampledBoxes",
    "box_areas",
    "box_loss",
    "box_losses",
    "clip",
    "decode",
    "dense_box_loss",
    "dense_class_loss",
    "encode",
    "flatten_levels",
    "focal_loss",
    "gather_rows",
    "iou_loss",
    "large_enough",
    "level_of_box",
    "map_sizes",
    "nms_keep",
    "object_rows",
    "pairwise_intersection",
    "pairwise_iou",
    "per_positive",
    "pool_boxes",
    "sample",
    "select_detections",
    "suppress",
    "top_candidates",
]
