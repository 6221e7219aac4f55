"""Region proposal network (Faster R-CNN, Ren 2015; on a pyramid, FPN, Lin 2017) on whole padded batches.

Letters in shapes: B images, C channels, L levels, R anchors per cell, H W cells of a level, A anchors of all
levels, M box rows of the ground truth, S sampled anchors, T anchors kept per level before NMS, P proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...backbones.base import FeatureLevel
from ..base import BoxTargets, at_least_float32, exportable
from ..totals import divisor
from .anchors import Anchors, flatten_levels, map_sizes
from .boxes import UNIT_WEIGHTS, clip, decode, gather_rows, large_enough
from .losses import box_loss
from .matching import Matcher, sample
from .nms import nms_keep
from .options import AnchorOptions, RPNOptions
from .suppression import all_finite, top_candidates


@exportable
@dataclass
class RawProposals:
    """What the RPN computes for every anchor.

    Attributes:
        objectness: ``[B, A]`` logits.
        deltas: ``[B, A, 4]``, to be applied to the anchors.
        anchors: ``[A, 4]`` float32 x1 y1 x2 y2 in pixels.
        anchors_per_level: how many of the A belong to each level.
    """

    objectness: Tensor
    deltas: Tensor
    anchors: Tensor
    anchors_per_level: tuple[int, ...]
    # The last suppression, for the next call of RPN.proposals; not part of the outputs.
    _known: _Suppressed | None = field(default=None, init=False, repr=False, compare=False)


@dataclass(frozen=True)
class _Suppressed:
    """The best anchors of each level after suppression, and what they were computed from.

    Attributes:
        source: what must be the same for the result to be, see :func:`_source`.
        pre_nms: anchors of each level and image that entered.
        boxes: ``[B, L, T, 4]`` float32, clipped; each level by falling score.
        scores: ``[B, L, T]`` float32.
        keep: ``[B, L, T]`` bool.
    """

    source: tuple[Any, ...]
    pre_nms: int
    boxes: Tensor
    scores: Tensor
    keep: Tensor


def _source(options: RPNOptions, raw: RawProposals, image_sizes: Tensor) -> tuple[Any, ...]:
    """Return what suppression depends on; equal as long as no tensor was replaced or changed in place.

    Tensors that were made in inference mode do not count their changes.
    """
    tensors = raw.objectness, raw.deltas, raw.anchors, image_sizes
    versions = [-1 if tensor.is_inference() else tensor._version for tensor in tensors]
    # By identity: comparing tensors would compare their values. The tuple holds them, so no id is reused.
    same = tuple(_Same(tensor) for tensor in tensors)
    return (same, versions, raw.anchors_per_level, options.nms_threshold, options.min_box_size)


@dataclass(frozen=True, eq=False)
class _Same:
    """Equal only if both hold the same tensor."""

    tensor: Tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.tensor is other.tensor

    def __hash__(self) -> int:
        return id(self.tensor)


class RPN(nn.Module):
    """A 3x3 convolution shared by all levels, then objectness and deltas of every anchor.

    Weights start from a normal distribution of width 0.01, biases from 0, as in the paper.

    Args:
        levels: the maps, finest first, all with the same channels.
        anchors: sizes and ratios.
        options: thresholds, numbers and losses.

    Raises:
        ValueError: if levels differ in channels, or their number from that of the anchor sizes.
    """

    def __init__(
        self,
        levels: Sequence[FeatureLevel],
        anchors: AnchorOptions = AnchorOptions(),
        options: RPNOptions = RPNOptions(),
    ) -> None:
        super().__init__()
        widths = [level.channels for level in levels]
        if len(set(widths)) != 1:
            raise ValueError(
                f"the detector shares its layers between levels, but they have {widths} channels: add a neck "
                f"that makes them equal, such as FPN"
            )
        self.options = options
        self.anchors = Anchors(levels, anchors)
        self.conv = nn.Conv2d(widths[0], widths[0], 3, padding=1)
        self.objectness = nn.Conv2d(widths[0], self.anchors.per_cell, 1)
        self.deltas = nn.Conv2d(widths[0], 4 * self.anchors.per_cell, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(cast(Tensor, layer.bias))
        self.matcher = Matcher(options.fg_iou, options.bg_iou, options.crowd_overlap, low_quality=True)

    def forward(self, features: Sequence[Tensor]) -> RawProposals:
        """Score and refine the anchors of all levels (``[B, C, H_i, W_i]`` each)."""
        objectness, deltas = [], []
        for feature in features:
            hidden = F.relu(self.conv(feature))
            objectness.append(self.objectness(hidden))
            deltas.append(self.deltas(hidden))
        sizes = map_sizes(features)
        return RawProposals(
            objectness=flatten_levels(objectness, 1).squeeze(-1),  # [B, A, 1] -> [B, A]
            deltas=flatten_levels(deltas, 4),
            anchors=self.anchors(sizes, features[0].device),
            anchors_per_level=self.anchors.per_level(sizes),
        )

    def losses(self, raw: RawProposals, targets: BoxTargets) -> dict[str, Tensor]:
        """Losses on a random sample of anchors; needs no proposals.

        Args:
            raw: what ``forward`` returned.
            targets: the ground truth.

        Returns:
            ``rpn_objectness``, binary cross-entropy averaged over the batch's sampled anchors, and
            ``rpn_box``, the box loss summed over positives and divided by the number of sampled anchors (so
            that an image without boxes weighs it down, not up). Both are torchvision's. float32 scalars.
        """
        options = self.options
        anchors = raw.anchors[None]  # [1, A, 4]
        matches = self.matcher(anchors, targets)
        keys = torch.rand(raw.objectness.shape, device=anchors.device)
        chosen = sample(
            matches.positive, matches.negative, keys, options.batch_size, options.positive_fraction
        )
        logits = at_least_float32(raw.objectness.gather(1, chosen.index))
        truth = chosen.positive.to(logits.dtype)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")

        rows = matches.index.gather(1, chosen.index)
        box = box_loss(
            gather_rows(raw.deltas, chosen.index),
            raw.anchors[chosen.index],
            gather_rows(at_least_float32(targets.boxes), rows),
            chosen.positive,
            weights=UNIT_WEIGHTS,
            kind=options.box_loss,
            beta=options.smooth_l1_beta,
        )
        number = divisor(chosen.valid.sum(), 1)
        return {
            "rpn_objectness": torch.where(chosen.valid, cross_entropy, 0).sum() / number,
            "rpn_box": box / number,
        }

    @torch.no_grad()
    def proposals(
        self, raw: RawProposals, image_sizes: Tensor, pre_nms: int, post_nms: int
    ) -> tuple[Tensor, Tensor]:
        """Turn raw outputs into proposals, the boxes that the second stage classifies.

        The best anchors of each level are decoded, clipped to their image, and thinned out by NMS within
        each level. Anchors with a NaN or infinite output give no proposal.

        Whether NMS keeps a row depends on better rows only. So a call with the same inputs and no larger
        ``pre_nms`` than the one before takes its result from that, without another suppression: validation
        computes proposals once, for losses and then for detections. Not so in a compiled graph. In inference
        mode tensors do not count their changes: do not change raw outputs in place there.

        Args:
            raw: what ``forward`` returned.
            image_sizes: ``[B, 2]`` int64 height and width.
            pre_nms: anchors of each level and image that enter NMS.
            post_nms: largest number of proposals per image.

        Returns:
            boxes ``[B, P, 4]`` float32, by falling objectness, and which of them are valid ``[B, P]``; the
            others are zero. P is ``post_nms``, or less if the levels have fewer anchors in total.
        """
        boxes, scores, keep = self._suppressed(raw, image_sizes, pre_nms)
        scores = torch.where(keep, scores, -torch.inf)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        number = min(post_nms, sum(min(pre_nms, count) for count in raw.anchors_per_level))
        valid = scores[:, :number] > -torch.inf
        return torch.where(valid[..., None], gather_rows(boxes, order[:, :number]), 0), valid

    def _suppressed(
        self, raw: RawProposals, image_sizes: Tensor, pre_nms: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best of each level: boxes ``[B, L*T, 4]``, scores ``[B, L*T]``, and which NMS keeps."""
        if torch.compiler.is_compiling():
            known = self._suppress(raw, image_sizes, pre_nms, ())
        else:
            source, found = _source(self.options, raw, image_sizes), raw._known
            if found is None or found.pre_nms < pre_nms or found.source != source:
                found = self._suppress(raw, image_sizes, pre_nms, source)
            known = raw._known = found
        rows = slice(0, min(pre_nms, max(raw.anchors_per_level)))
        boxes, scores, keep = (
            part[:, :, rows].flatten(1, 2) for part in (known.boxes, known.scores, known.keep)
        )
        return boxes, scores, keep

    def _suppress(
        self, raw: RawProposals, image_sizes: Tensor, pre_nms: int, source: tuple[Any, ...]
    ) -> _Suppressed:
        """Do it for the best ``pre_nms`` anchors of each level and image."""
        scores, index = top_candidates(raw.objectness, pre_nms, raw.anchors_per_level)
        scores = scores.float()
        boxes = decode(gather_rows(raw.deltas, index).float(), raw.anchors[index])
        # Before clipping, which would turn an infinite corner into one on the border.
        valid = (scores > -torch.inf) & all_finite(boxes)
        boxes = clip(boxes, image_sizes)
        valid = valid & large_enough(boxes, self.options.min_box_size)
        levels = (len(raw.anchors_per_level), -1)
        boxes, scores, valid = (part.unflatten(1, levels) for part in (boxes, scores, valid))
        # A level of an image is to NMS what an image is; its rows come best first.
        keep = nms_keep(boxes.flatten(0, 1), None, None, valid.flatten(0, 1), self.options.nms_threshold)
        return _Suppressed(source, pre_nms, boxes, scores, keep.view_as(valid))
