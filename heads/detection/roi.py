"""Second stage of Faster R-CNN: classify and refine proposals, on whole padded batches.

Letters in shapes: B images, C channels, M box rows of the ground truth, P proposals per image, N boxes per
image, S sampled proposals per image, K foreground classes (index K is the background), Q cells per side of
the pooled features, T detection candidates per image, D rows of detections per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...backbones.base import FeatureLevel
from ..base import BoxTargets, at_least_float32
from ..totals import divisor
from .base import Detections, RoIStage, SampledBoxes
from .boxes import clip, decode, gather_rows, large_enough, rows_needed, runs_on_cpu
from .losses import box_loss
from .matching import Matcher, object_rows, sample
from .options import RoIOptions
from .pooling import pool_boxes
from .suppression import select_detections, top_candidates

_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_NO_CLASS = -100


class RoI(RoIStage):
    """RoIAlign, two fully connected layers, then class scores and box deltas.

    As in the paper's code and its successors, the classifier starts from a normal distribution of width 0.01
    and the regressor from one of 0.001. So training starts from nearly equal class probabilities and from the
    proposals themselves. The hidden layers start from a uniform distribution that keeps the variance
    (``kaiming_uniform_`` with ``a=1``). Biases start from 0.

    Args:
        levels: the maps, finest first, of one width.
        num_classes: K, at least 1.
        options: thresholds, numbers and losses.

    Raises:
        ValueError: if ``options.levels`` is more than there are.
    """

    def __init__(
        self,
        levels: Sequence[FeatureLevel],
        num_classes: int,
        options: RoIOptions = RoIOptions(),
    ) -> None:
        super().__init__()
        if options.levels > len(levels):
            raise ValueError(
                f"roi.levels is {options.levels}, but the trunk (or neck) gives {len(levels)} levels: "
                f"set roi.levels to {len(levels)} or less"
            )
        self.num_classes = num_classes
        self.options = options
        self.strides = [cast(tuple[int, int], level.stride) for level in levels[: options.levels]]
        self.fc6: nn.Linear | nn.Conv2d = nn.Linear(levels[0].channels * options.pool_size**2, options.hidden)
        self.fc7 = nn.Linear(options.hidden, options.hidden)
        self.classifier = nn.Linear(options.hidden, num_classes + 1)
        self.regressor = nn.Linear(options.hidden, 4 * (1 if options.class_agnostic else num_classes))
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.normal_(self.regressor.weight, std=0.001)
        for layer in (self.fc6, self.fc7, self.classifier, self.regressor):
            nn.init.zeros_(layer.bias)
        self.matcher = Matcher(options.fg_iou, options.bg_iou, options.crowd_overlap)

    def forward(self, features: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Compute class scores and changes of boxes.

        Args:
            features: ``[B, C, H_i, W_i]`` per level; the first ``options.levels`` are pooled from.
            boxes: ``[B, N, 4]`` in pixels.

        Returns:
            logits ``[B, N, K+1]`` and deltas ``[B, N, K, 4]`` (``[B, N, 1, 4]`` if class-agnostic).
        """
        options = self.options
        pooled = pool_boxes(
            features[: options.levels],
            self.strides,
            boxes,
            pool_size=options.pool_size,
            sampling_ratio=options.sampling_ratio,
            aligned=options.aligned,
            canonical_size=options.canonical_size,
            canonical_level=options.canonical_level,
        )
        hidden = F.relu(self.fc7(F.relu(self._first_layer(pooled))))
        logits = self.classifier(hidden).unflatten(0, boxes.shape[:2])  # [B*N, K+1] -> [B, N, K+1]
        deltas = self.regressor(hidden).reshape(*boxes.shape[:2], -1, 4)  # [B*N, K*4] -> [B, N, K, 4]
        return logits, deltas

    def _first_layer(self, pooled: Tensor) -> Tensor:
        """Apply ``fc6`` to ``[B*N, C, Q, Q]``: ``[B*N, hidden]``."""
        if isinstance(self.fc6, nn.Conv2d):  # see prepare_for_inference
            return self.fc6(pooled).flatten(1)
        if runs_on_cpu(pooled) and torch.backends.mkldnn.is_available():
            # As a convolution over the whole map, which needs no copy of maps whose channels lie last, and
            # for which torch's builds for the CPU have the faster library.
            # [hidden, C*Q*Q] -> [hidden, C, Q, Q]
            weight = self.fc6.weight.unflatten(1, pooled.shape[1:])
            return F.conv2d(pooled, weight, self.fc6.bias).flatten(1)
        return self.fc6(pooled.flatten(1))

    def prepare_for_inference(self) -> None:
        """Make ``fc6`` a convolution on the CPU, so that its weight can lie in memory channels last.

        Its state dict is another one afterwards. Part of :func:`.optimised.optimised`.
        """
        first, cells = self.fc6, self.options.pool_size
        if (
            not isinstance(first, nn.Linear)
            or first.weight.device.type != "cpu"
            or not torch.backends.mkldnn.is_available()
        ):
            return
        self.fc6 = nn.Conv2d(first.in_features // cells**2, first.out_features, cells)
        self.fc6.weight = nn.Parameter(first.weight.unflatten(1, (-1, cells, cells)), requires_grad=False)
        self.fc6.bias = first.bias

    def expectations(self, layout: str, **facts: Any) -> dict[str, Any]:
        """Say what detectron2's model zoo takes for granted and this stage has otherwise."""
        if layout != "detectron2":
            return {}
        wanted = {"aligned": True, "sampling_ratio": 0}
        own = {"aligned": self.options.aligned, "sampling_ratio": self.options.sampling_ratio}
        return {f"options.{name}": value for name, value in wanted.items() if own[name] != value}

    def losses(
        self, features: Sequence[Tensor], proposals: Tensor, valid: Tensor, targets: BoxTargets
    ) -> tuple[dict[str, Tensor], SampledBoxes]:
        """Losses on a random sample of proposals and ground-truth boxes.

        Args:
            features: maps, finest first.
            proposals: ``[B, P, 4]``.
            valid: ``[B, P]`` bool.
            targets: the ground truth; its boxes (no crowd regions) join the proposals.

        Returns:
            ``roi_class``, cross-entropy averaged over the batch's sampled boxes, and ``roi_box``, the box
            loss summed over positives and divided by the number of sampled boxes (both are torchvision's,
            float32 scalars); and the sample.
        """
        boxes, labels, index, positive, sampled = self._sample(proposals, valid, targets)
        logits, deltas = self(features, boxes)
        number = divisor(sampled.sum(), 1)
        cross_entropy = F.cross_entropy(
            at_least_float32(logits.flatten(0, 1)), labels.flatten(), ignore_index=_NO_CLASS, reduction="sum"
        )
        box = box_loss(
            _of_class(deltas, torch.where(positive, labels, 0)),
            boxes,
            gather_rows(at_least_float32(targets.boxes), index),
            positive,
            weights=_WEIGHTS,
            kind=self.options.box_loss,
            beta=self.options.smooth_l1_beta,
        )
        losses = {"roi_class": cross_entropy / number, "roi_box": box / number}
        return losses, SampledBoxes(boxes, labels, index, positive, sampled, logits, deltas)

    @torch.no_grad()
    def _sample(self, proposals: Tensor, valid: Tensor, targets: BoxTargets) -> tuple[Tensor, ...]:
        """Sample boxes to learn from: the first five entries of :class:`SampledBoxes`."""
        truth = targets.boxes.float()
        candidates = torch.cat([proposals, truth], dim=1)  # [B, P+M, 4]
        usable = torch.cat([valid, object_rows(targets)], dim=1)
        matches = self.matcher(candidates, targets)
        # Drawn so that rows of padding, which come last, change no other row's number.
        keys = torch.cat(
            [
                torch.rand(proposals.shape[:2], device=truth.device),
                torch.rand(truth.shape[1], truth.shape[0], device=truth.device).t(),
            ],
            dim=1,
        )
        chosen = sample(
            matches.positive & usable,
            matches.negative & usable,
            keys,
            self.options.batch_size,
            self.options.positive_fraction,
        )
        rows, sampled, positive = (column[:, : rows_needed(chosen.valid)] for column in chosen)
        index = matches.index.gather(1, rows)
        labels = gather_rows(targets.labels[..., None], index).squeeze(-1)
        labels = torch.where(positive, labels, self.num_classes)
        labels = torch.where(sampled, labels, _NO_CLASS)
        boxes = torch.where(sampled[..., None], gather_rows(candidates, rows), 0)
        return boxes, labels, index, positive, sampled

    @torch.no_grad()
    def predict(
        self, features: Sequence[Tensor], proposals: Tensor, valid: Tensor, image_sizes: Tensor
    ) -> Detections:
        """Detect objects, see :meth:`detections`.

        Args:
            features: maps, finest first.
            proposals: ``[B, P, 4]``.
            valid: ``[B, P]`` bool.
            image_sizes: ``[B, 2]`` int64 height and width.
        """
        number = rows_needed(valid)
        proposals, valid = proposals[:, :number], valid[:, :number]
        logits, deltas = self(features, proposals)
        return self.detections(logits.float().softmax(dim=-1), deltas, proposals, valid, image_sizes)

    @torch.no_grad()
    def detections(
        self, scores: Tensor, deltas: Tensor, proposals: Tensor, valid: Tensor, image_sizes: Tensor
    ) -> Detections:
        """Turn predictions into detections.

        Every proposal is a candidate for every class. The best ``nms_candidates`` scores of an image are
        decoded, clipped, filtered by score and size, and thinned out by NMS within each class. NaN or
        infinite outputs give no detection.

        Args:
            scores: ``[B, P, K+1]`` float32 in 0..1, of the background too.
            deltas: ``[B, P, K, 4]`` or ``[B, P, 1, 4]``.
            proposals: ``[B, P, 4]``.
            valid: ``[B, P]`` bool.
            image_sizes: ``[B, 2]`` int64 height and width.
        """
        options = self.options
        scores = torch.where(valid[..., None], scores[..., :-1], -torch.inf).flatten(1)  # [B, P*K]
        scores, index = top_candidates(scores, options.nms_candidates)  # [B, T]
        row, labels = index // self.num_classes, index % self.num_classes
        column = row * deltas.shape[2] + labels.clamp(max=deltas.shape[2] - 1)
        deltas = gather_rows(deltas.flatten(1, 2), column)  # [B, P, K, 4] -> [B, P*K, 4] -> [B, T, 4]
        return select_detections(
            decode(deltas.float(), gather_rows(proposals, row), _WEIGHTS),
            scores,
            labels,
            image_sizes,
            score_threshold=options.score_threshold,
            nms_threshold=options.nms_threshold,
            detections_per_image=options.detections_per_image,
            min_box_size=options.min_box_size,
        )

    @torch.no_grad()
    def refine(
        self, boxes: Tensor, valid: Tensor, logits: Tensor, deltas: Tensor, image_sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Apply predicted changes to boxes: the proposals of the next stage of a cascade.

        Args:
            boxes: ``[B, N, 4]``.
            valid: ``[B, N]`` bool.
            logits: ``[B, N, K+1]``; deltas are those of the object class with the highest.
            deltas: ``[B, N, K, 4]`` or ``[B, N, 1, 4]``.
            image_sizes: ``[B, 2]`` int64 height and width, to which boxes are clipped.

        Returns:
            boxes ``[B, N, 4]`` float32 in the same rows, and which of them are valid ``[B, N]``: no longer
            those that are not finite or smaller than ``min_box_size``. Other rows are zero. No gradient.
        """
        refined = decode(_of_class(deltas, logits[..., :-1].argmax(-1)).float(), boxes, _WEIGHTS)
        valid = valid & torch.isfinite(refined).all(-1)
        refined = clip(refined, image_sizes)
        valid = valid & large_enough(refined, self.options.min_box_size)
        return torch.where(valid[..., None], refined, 0), valid


def _of_class(deltas: Tensor, labels: Tensor) -> Tensor:
    """Deltas ``[B, N, 4]`` of each box's class ``[B, N]``, of ``[B, N, K, 4]`` or ``[B, N, 1, 4]``."""
    column = labels.clamp(max=deltas.shape[2] - 1)
    return deltas.gather(2, column[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
