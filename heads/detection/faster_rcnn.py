"""Faster R-CNN (Ren 2015) as a head: anchors, region proposals and a second stage on any pyramid.

Letters in shapes: B images, A anchors of all levels, M box rows of the ground truth, D rows of detections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...backbones.base import FeatureLevel
from ..base import BoxTargets, NumClasses, class_number, exportable
from .base import DetectionHead, Detections, RoIStage
from .options import AnchorOptions, RoIOptions, RPNOptions
from .roi import RoI
from .rpn import RPN, RawProposals


@exportable
@dataclass
class RawDetections(RawProposals):
    """What the network computes before any choice is made; serves ``losses`` and ``predict`` alike.

    Attributes:
        objectness, deltas, anchors, anchors_per_level: see :class:`RawProposals`.
        features: the maps, finest first, from which the second stage pools.
    """

    features: tuple[Tensor, ...]


class FasterRCNN(DetectionHead):
    """Two-stage detector; formulas and defaults are those of torchvision's ``FasterRCNN``.

    Differences from it: every step works on the whole padded batch. Crowd regions are ignored, not
    background. Anchors are spaced by the declared strides. An object makes its best anchors positive only if
    they touch it. Predictors start smaller (see :class:`RoI`).

    Args:
        levels: the trunk's or neck's levels, finest first, all with the same channels.
        num_classes: K foreground classes; on the command line also ``auto``, for those of the data.
        anchors: shapes of the boxes to start from; one entry of sizes per level.
        rpn: options of the region proposal network.
        roi: options of the second stage :class:`RoI`.
        roi_stage: makes another second stage from levels and ``num_classes``, such as a cascade or a stage
            with a mask branch; None for ``RoI`` with the options ``roi``.

    Raises:
        ValueError: if levels and options do not fit each other, or ``roi`` and ``roi_stage`` are both given.
    """

    def __init__(
        self,
        levels: Sequence[FeatureLevel],
        num_classes: NumClasses,
        anchors: AnchorOptions = AnchorOptions(),
        rpn: RPNOptions = RPNOptions(),
        roi: RoIOptions = RoIOptions(),
        roi_stage: Callable[[Sequence[FeatureLevel], int], RoIStage] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes = class_number(num_classes)
        self.rpn = RPN(levels, anchors, rpn)
        self.has_default_stage = roi_stage is None
        if roi_stage is None:
            self.roi: RoIStage = RoI(levels, num_classes, roi)
        elif roi == RoIOptions():
            self.roi = roi_stage(levels, num_classes)
        else:
            raise ValueError(
                "roi and roi_stage are both given, but roi configures the default second stage only: remove "
                "roi, and give the options to roi_stage instead (in YAML below roi_stage.init_args)"
            )

    def expectations(self, layout: str, **facts: Any) -> dict[str, Any]:
        """Say what detectron2's model zoo takes for granted and this detector has otherwise."""
        if layout != "detectron2":
            return {}
        anchors = self.rpn.anchors.options
        changes: dict[str, Any] = {"anchors.rounded": False} if anchors.rounded else {}
        for name, value in self.roi.expectations(layout, **facts).items():
            option = f"roi{name.removeprefix('options')}" if self.has_default_stage else f"roi_stage.{name}"
            changes[option] = value
        sizes = len(anchors.sizes_per_level([(1, 1)])[0])
        if sizes > 1 < len(anchors.ratios):
            # Its RPN has the sizes of a cell outermost, ours the ratios.
            if anchors.octave_scales > 1:
                changes["anchors.octave_scales"] = 1
            if sizes > anchors.octave_scales:
                changes["anchors.sizes"] = "one size per level"
        return changes

    def forward(self, features: Sequence[Tensor], image_size: tuple[int, ...]) -> RawDetections:
        """Compute what losses and detections are made from.

        Args:
            features: one ``[B, C, H_i, W_i]`` map per level, finest first.
            image_size: part of the contract; anchors depend only on the maps and the strides.
        """
        raw = self.rpn(features)
        return RawDetections(
            raw.objectness, raw.deltas, raw.anchors, raw.anchors_per_level, features=tuple(features)
        )

    def losses(self, raw: RawDetections, targets: BoxTargets) -> dict[str, Tensor]:
        """``rpn_objectness``, ``rpn_box``, and those of the second stage: ``roi_class`` and ``roi_box``.

        Sampling is random (torch's global generator), in validation too. Padding rows of the targets change
        nothing; images without boxes are background throughout.
        """
        options = self.rpn.options
        proposals, valid = self.rpn.proposals(
            raw, targets.image_sizes, options.pre_nms_train, options.post_nms_train
        )
        losses = self.rpn.losses(raw, targets)
        roi_losses, _ = self.roi.losses(raw.features, proposals, valid, targets)
        return losses | roi_losses

    def predict(self, raw: RawDetections, image_sizes: Tensor) -> Detections:
        """Detections ``[B, D]`` clipped to ``image_sizes`` ``[B, 2]`` (height, width), by falling score."""
        options = self.rpn.options
        proposals, valid = self.rpn.proposals(raw, image_sizes, options.pre_nms_test, options.post_nms_test)
        return self.roi.predict(raw.features, proposals, valid, image_sizes)
