"""The contracts of detection: what heads return, what a branch needs from a head, and second stages.

Letters in shapes: B images, C channels, M box rows of the ground truth, P proposals per image, S boxes per
image that are learnt from, K foreground classes (index K is the background), D rows of detections per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..base import BoxTargets, Head, exportable


@exportable
@dataclass
class Detections:
    """Detected objects, a fixed number of rows per image, by falling score.

    Attributes:
        boxes: ``[B, D, 4]`` float32 x1 y1 x2 y2 in canvas pixels, inside the image; zero in empty rows.
        scores: ``[B, D]`` float32 in 0..1; zero in empty rows.
        labels: ``[B, D]`` int64 in 0..K-1; -1 in empty rows.
        count: ``[B]`` int64, the number of rows that are not empty; they come first.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    count: Tensor


class DetectionHead(Head):
    """Detects objects of K classes; the base of your own detection heads.

    A subclass sets ``num_classes`` and writes ``forward``, ``losses`` and ``predict``. A branch needs nothing
    else. The parts to write them with are in :mod:`trunkline.heads.detection`.

    Attributes:
        num_classes: K, foreground classes only.
    """

    branch = "detection"

    def forward(self, features: list[Tensor], image_size: tuple[int, ...]) -> Any:
        """Compute the raw outputs, from which ``losses`` and ``predict`` are made.

        Args:
            features: one ``[B, C_i, H_i, W_i]`` map per level, finest first.
            image_size: height and width of the padded batch, in pixels.

        Returns:
            A dataclass of tensors of your own.
        """
        return super().forward(features, image_size)

    def losses(self, raw: Any, targets: BoxTargets) -> dict[str, Tensor]:
        """Return named scalar losses in float32; the task sums and logs them.

        Args:
            raw: what ``forward`` returned.
            targets: boxes, labels and crowd regions; images without boxes and padding rows occur.
        """
        return super().losses(raw, targets)

    def predict(self, raw: Any, image_sizes: Tensor) -> Detections:
        """Return the detected objects, in pixels of the padded batch.

        Args:
            raw: what ``forward`` returned.
            image_sizes: ``[B, 2]`` int64, height and width of each image inside the padded batch.
        """
        return super().predict(raw, image_sizes)


@exportable
@dataclass
class SampledBoxes:
    """The boxes on which a second stage computed its losses, and what they are to learn.

    A mask or keypoint branch pools its features from ``boxes`` and learns from the rows that are
    ``positive``. The next stage of a cascade takes the boxes that :meth:`.roi.RoI.refine` makes of
    ``boxes``, ``logits`` and ``deltas``.

    Attributes:
        boxes: ``[B, S, 4]`` float32 x1 y1 x2 y2 in canvas pixels; zero in rows that are not ``valid``.
        labels: ``[B, S]`` int64: 0..K-1 for an object, K for background, -100 in rows that are not valid.
        index: ``[B, S]`` int64, the object's row in the targets; without meaning for other rows.
        positive: ``[B, S]`` bool, the rows that learn an object; they come first.
        valid: ``[B, S]`` bool, the rows that learn an object or background; they come first.
        logits: ``[B, S, K+1]``, predicted class scores.
        deltas: ``[B, S, K, 4]``, or ``[B, S, 1, 4]`` if class-agnostic: predicted changes of the boxes.
    """

    boxes: Tensor
    labels: Tensor
    index: Tensor
    positive: Tensor
    valid: Tensor
    logits: Tensor
    deltas: Tensor


class RoIStage(nn.Module):
    """Second stage of a two-stage detector: classifies and refines proposals.

    The constructor takes ``levels`` (a sequence of ``FeatureLevel``) and ``num_classes`` first, so that
    :class:`.faster_rcnn.FasterRCNN` can build it; further arguments need a default. A cascade, or a stage
    with a mask branch, is made of other stages.

    Attributes:
        num_classes: K, foreground classes only.
    """

    num_classes: int

    def losses(
        self, features: Sequence[Tensor], proposals: Tensor, valid: Tensor, targets: BoxTargets
    ) -> tuple[dict[str, Tensor], SampledBoxes]:
        """Compute losses on a choice of the proposals.

        Args:
            features: ``[B, C, H_i, W_i]`` per level, finest first.
            proposals: ``[B, P, 4]`` float32 x1 y1 x2 y2 in canvas pixels.
            valid: ``[B, P]`` bool; other rows are no proposals.
            targets: the ground truth.

        Returns:
            Named float32 scalars, whose names no other part of the head uses, and the boxes chosen.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement losses")

    def predict(
        self, features: Sequence[Tensor], proposals: Tensor, valid: Tensor, image_sizes: Tensor
    ) -> Detections:
        """Detect objects; the result may be a subclass with more fields, such as masks.

        Args:
            features, proposals, valid: as for ``losses``.
            image_sizes: ``[B, 2]`` int64 height and width of each image.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement predict")

    def expectations(self, layout: str, **facts: Any) -> dict[str, Any]:
        """Return the settings that weights of a layout take for granted, see :meth:`Head.expectations`."""
        return {}
