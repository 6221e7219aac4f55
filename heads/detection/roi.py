"""Second stage of Faster R-CNN: classify and refine proposals, on whole padded batches.

Letters in shapes: B images, C channels, M box rows of the ground truth, P proposals per image, N boxes per
image, S sampled proposals per image, K foreground classes (index K is the background), Q cells per side of
the pooled features, T detection candidates per image, D rows of detections per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...backbones.base import FeatureLevel
from ..base import BoxTargets
from .boxes import at_least, box_loss, clip, decode, gather_rows, on_host, rows_needed
from .matching import Matcher, Sample, object_rows, sample
from .options import RoIOptions
from .pooling import pool_boxes
from .suppression import nms_keep

_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_NO_CLASS = -100


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


class RoI(nn.Module):
    """RoIAlign, two fully connected layers, then class scores and box deltas.

    As in the paper's code and its successors, the classifier starts from a normal distribution of width
    0.01 and the regressor from one of 0.001, so that training starts from undecided classes and from the
    proposals themselves; the hidden layers start from a uniform distribution that keeps the variance
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
        self.strides = [level.stride for level in levels[: options.levels]]
        self.fc6 = nn.Linear(levels[0].channels * options.pool_size**2, options.hidden)
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
        """Look at boxes.

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
        if on_host(pooled) and torch.backends.mkldnn.is_available():
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
        if first.weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
            return
        self.fc6 = nn.Conv2d(first.in_features // cells**2, first.out_features, cells)
        self.fc6.weight = nn.Parameter(first.weight.unflatten(1, (-1, cells, cells)), requires_grad=False)
        self.fc6.bias = first.bias

    def losses(
        self, features: Sequence[Tensor], proposals: Tensor, valid: Tensor, targets: BoxTargets
    ) -> dict[str, Tensor]:
        """Losses on a random sample of proposals and ground-truth boxes.

        Args:
            features: maps, finest first.
            proposals: ``[B, P, 4]``.
            valid: ``[B, P]`` bool.
            targets: the ground truth; its boxes (no crowd regions) join the proposals.

        Returns:
            ``roi_class``, cross-entropy averaged over the batch's sampled boxes, and ``roi_box``, the box
            loss summed over positives and divided by the number of sampled boxes. Both are torchvision's.
            float32 scalars.
        """
        boxes, chosen, labels, wanted = self._select(proposals, valid, targets)
        logits, deltas = self(features, boxes)
        number = chosen.valid.sum().clamp(min=1)
        cross_entropy = F.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=_NO_CLASS, reduction="sum"
        )
        # Deltas of each box's own class; row 0 where there is none, or only one.
        own = torch.where(chosen.positive, labels, 0).clamp(max=deltas.shape[2] - 1)
        deltas = deltas.gather(2, own[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)  # [B, S, 4]
        box = box_loss(
            deltas,
            boxes,
            wanted,
            chosen.positive,
            weights=_WEIGHTS,
            kind=self.options.box_loss,
            beta=self.options.smooth_l1_beta,
        )
        return {
            "roi_class": cross_entropy / number,
            "roi_box": box / number,
        }

    @torch.no_grad()
    def _select(
        self, proposals: Tensor, valid: Tensor, targets: BoxTargets
    ) -> tuple[Tensor, Sample, Tensor, Tensor]:
        """Sample boxes to learn from: boxes ``[B, S, 4]``, the sample, labels ``[B, S]``, wanted boxes.

        Labels are K for background and -100 in rows without meaning.
        """
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
        options = self.options
        chosen = sample(
            matches.positive & usable,
            matches.negative & usable,
            keys,
            options.batch_size,
            options.positive_fraction,
        )
        chosen = Sample(*(column[:, : rows_needed(chosen.valid)] for column in chosen))
        rows = matches.index.gather(1, chosen.index)
        labels = torch.where(chosen.positive, targets.labels.gather(1, rows), self.num_classes)
        labels = torch.where(chosen.valid, labels, _NO_CLASS)
        boxes = torch.where(chosen.valid[..., None], gather_rows(candidates, chosen.index), 0)
        return boxes, chosen, labels, gather_rows(truth, rows)

    @torch.no_grad()
    def predict(
        self, features: Sequence[Tensor], proposals: Tensor, valid: Tensor, image_sizes: Tensor
    ) -> Detections:
        """Detect objects.

        Every proposal is a candidate for every class. The best ``nms_candidates`` scores of an image are
        decoded, clipped, filtered by score and size, and thinned out by NMS within each class. NaN or
        infinite outputs give no detection.

        Args:
            features: maps, finest first.
            proposals: ``[B, P, 4]``.
            valid: ``[B, P]`` bool; valid rows come first.
            image_sizes: ``[B, 2]`` int64 height and width.
        """
        options = self.options
        number = rows_needed(valid)
        proposals, valid = proposals[:, :number], valid[:, :number]
        logits, deltas = self(features, proposals)
        scores = logits.float().softmax(dim=-1)[..., :-1]  # [B, P, K]
        scores = torch.where(valid[..., None] & torch.isfinite(scores), scores, -torch.inf).flatten(1)
        scores, index = scores.topk(min(options.nms_candidates, scores.shape[1]))  # [B, T] of [B, P*K]
        row, labels = index // self.num_classes, index % self.num_classes
        column = row * deltas.shape[2] + labels.clamp(max=deltas.shape[2] - 1)
        boxes = decode(
            gather_rows(deltas.flatten(1, 2), column),  # [B, P, K, 4] -> [B, P*K, 4] -> [B, T, 4]
            gather_rows(proposals, row),
            _WEIGHTS,
        )
        # Before clipping, which would turn an infinite corner into one on the border.
        usable = (scores > options.score_threshold) & torch.isfinite(boxes).all(-1)
        boxes = clip(boxes, image_sizes)
        usable = usable & at_least(boxes, options.min_box_size)
        keep = nms_keep(boxes, scores, labels, usable, options.nms_threshold)
        return _best(boxes, scores, labels, keep, options.detections_per_image)


def _best(boxes: Tensor, scores: Tensor, labels: Tensor, keep: Tensor, rows: int) -> Detections:
    """The ``rows`` best of the kept candidates, padded to that number."""
    missing = max(0, rows - scores.shape[1])
    scores = F.pad(torch.where(keep, scores, -torch.inf), (0, missing), value=-torch.inf)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :rows], order[:, :rows]
    filled = scores > -torch.inf
    boxes = gather_rows(F.pad(boxes, (0, 0, 0, missing)), order)
    labels = F.pad(labels, (0, missing)).gather(1, order)
    return Detections(
        boxes=torch.where(filled[..., None], boxes, 0),
        scores=torch.where(filled, scores, 0),
        labels=torch.where(filled, labels, -1),
        count=filled.sum(1),
    )
