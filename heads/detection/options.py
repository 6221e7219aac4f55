"""The options of detectors: small frozen dataclasses, nested under the head in a configuration file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

BoxLoss = Literal["smooth_l1", "giou", "diou", "ciou"]
BOX_LOSSES: tuple[str, ...] = ("smooth_l1", "giou", "diou", "ciou")


def _require(condition: bool, options: Any, name: str, rule: str) -> None:
    """Raise a ValueError that names the option, its rule and its value."""
    if not condition:
        raise ValueError(f"{type(options).__name__}.{name} must be {rule}, got {getattr(options, name)!r}")


def _require_fractions(options: Any, *names: str) -> None:
    for name in names:
        _require(0 <= getattr(options, name) <= 1, options, name, "between 0 and 1")


def _require_finite(options: Any, *names: str) -> None:
    for name in names:
        _require(math.isfinite(getattr(options, name)), options, name, "a finite number")


def _require_counts(options: Any, *names: str) -> None:
    for name in names:
        _require(getattr(options, name) >= 1, options, name, "at least 1")


def _require_training(options: Any) -> None:
    """Check what the RPN's and the RoI head's options have in common."""
    _require_fractions(options, "fg_iou", "bg_iou", "positive_fraction", "nms_threshold")
    _require(options.positive_fraction > 0, options, "positive_fraction", "above 0, or nothing is learned")
    _require_finite(options, "min_box_size", "smooth_l1_beta")
    _require(options.bg_iou <= options.fg_iou, options, "bg_iou", f"at most fg_iou ({options.fg_iou})")
    _require(0 < options.crowd_overlap <= 1, options, "crowd_overlap", "above 0 and at most 1")
    _require(options.min_box_size >= 0, options, "min_box_size", "at least 0")
    _require(options.smooth_l1_beta >= 0, options, "smooth_l1_beta", "at least 0")
    _require(options.box_loss in BOX_LOSSES, options, "box_loss", f"one of {', '.join(BOX_LOSSES)}")


CELLS = 8.0


@dataclass(frozen=True)
class AnchorOptions:
    """Shapes of the boxes that the RPN, or a dense head, starts from.

    Attributes:
        sizes: one entry per pyramid level, finest first: the side of a square anchor in pixels, or several.
            None for ``scale`` times each level's stride, which suits any number of levels.
        ratios: height over width; every size occurs with every ratio.
        rounded: half sides rounded to whole pixels, as torchvision's; detectron2's are not.
        scale: side of a square anchor in cells of its level, where ``sizes`` is None. 8, the rule of
            Lin et al. 2017, gives 32, 64, 128, 256 and 512 pixels at the strides 4 to 64; take less for
            smaller objects.
        octave_scales: n anchors for every size s, of the sizes s * 2**(i/n) for i from 0 to n-1. RetinaNet
            (Lin et al. 2017) has 3. With ``rounded`` the added sizes are cut to whole pixels, as
            torchvision's RetinaNet cuts them.

    Raises:
        ValueError: if a size or ratio is missing or not positive, if both ``sizes`` and ``scale`` are given,
            or if ``octave_scales`` is below 1.
    """

    sizes: tuple[float | tuple[float, ...], ...] | None = None
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rounded: bool = True
    scale: float = CELLS
    octave_scales: int = 1

    def __post_init__(self) -> None:
        _require(0 < self.scale < math.inf, self, "scale", "positive and finite")
        _require_counts(self, "octave_scales")
        if self.sizes is not None:
            levels = self.sizes_per_level([])
            _require(len(levels) > 0 and all(levels), self, "sizes", "at least one size per level")
            sound = all(0 < size < math.inf for level in levels for size in level)
            _require(sound, self, "sizes", "positive and finite")
            _require(len({len(level) for level in levels}) == 1, self, "sizes", "equally many on every level")
            _require(self.scale == CELLS, self, "scale", "left out where sizes are given")
        sound = len(self.ratios) > 0 and all(0 < ratio < math.inf for ratio in self.ratios)
        _require(sound, self, "ratios", "positive and finite")

    def sizes_per_level(self, strides: Sequence[tuple[int, ...]]) -> tuple[tuple[float, ...], ...]:
        """Return the sizes of every level, each followed by its ``octave_scales - 1`` larger ones.

        Args:
            strides: of the levels; not used where ``sizes`` are given.
        """
        if self.sizes is None:
            levels: list[tuple[float, ...]] = [(self.scale * max(stride),) for stride in strides]
        else:
            levels = [size if isinstance(size, (tuple, list)) else (size,) for size in self.sizes]
        return tuple(tuple(scaled for size in level for scaled in self._octave(size)) for level in levels)

    def _octave(self, size: float) -> list[float]:
        larger = [size * 2 ** (i / self.octave_scales) for i in range(1, self.octave_scales)]
        return [size, *(int(side) if self.rounded else side for side in larger)]


@dataclass(frozen=True)
class RPNOptions:
    """Training and use of the region proposal network; defaults are torchvision's.

    Attributes:
        fg_iou: an anchor is positive from this IoU with a box on; so is the best anchor of each box.
        bg_iou: an anchor is negative below this IoU with every box; in between it is ignored.
        batch_size: anchors sampled per image for the losses.
        positive_fraction: largest share of positives among them.
        pre_nms_train, pre_nms_test: anchors per level that enter NMS, in ``losses`` and in ``predict``.
        post_nms_train, post_nms_test: proposals per image that leave it.
        nms_threshold: of two proposals of a level with a larger IoU, only the better one stays.
        min_box_size: proposals with a shorter side, in pixels, are dropped; those without area always.
        smooth_l1_beta: error (in box deltas) at which smooth L1 turns from quadratic to linear.
        box_loss: smooth L1 on the deltas, or an IoU loss on the boxes.
        crowd_overlap: a negative with at least this share of its own area in a crowd region is ignored.

    Raises:
        ValueError: if a value is out of range.
    """

    fg_iou: float = 0.7
    bg_iou: float = 0.3
    batch_size: int = 256
    positive_fraction: float = 0.5
    pre_nms_train: int = 2000
    pre_nms_test: int = 1000
    post_nms_train: int = 2000
    post_nms_test: int = 1000
    nms_threshold: float = 0.7
    min_box_size: float = 1e-3
    smooth_l1_beta: float = 1 / 9
    box_loss: BoxLoss = "smooth_l1"
    crowd_overlap: float = 0.5

    def __post_init__(self) -> None:
        _require_training(self)
        _require_counts(self, "batch_size", "pre_nms_train", "pre_nms_test")
        _require_counts(self, "post_nms_train", "post_nms_test")


@dataclass(frozen=True)
class RoIOptions:
    """Training and use of the second stage; defaults are torchvision's.

    Attributes:
        fg_iou: a proposal takes the class of the box with which it has the highest IoU, from this IoU on.
        bg_iou: below this IoU it is background; in between it is ignored.
        batch_size: proposals sampled per image for the losses.
        positive_fraction: largest share of positives among them.
        hidden: width of the two fully connected layers.
        pool_size: cells per side of the pooled features.
        sampling_ratio: bilinear samples per cell and axis; 0 takes as many as the cell has pixels of the map,
            rounded up (detectron2's).
        aligned: move boxes by half a pixel of the map, so that the sample in the middle of its pixel is that
            pixel's value (detectron2's "RoIAlign V2"; torchvision's detectors do not).
        levels: number of finest pyramid levels that are pooled from.
        canonical_size: side in pixels of a proposal that is pooled from ``canonical_level``.
        canonical_level: level of such a proposal, where stride 4 is level 2 and stride 32 is level 5.
        smooth_l1_beta: error (in box deltas) at which smooth L1 turns from quadratic to linear.
        box_loss: smooth L1 on the deltas, or an IoU loss on the boxes.
        class_agnostic: regress one box per proposal instead of one per class.
        score_threshold: detections need a higher score.
        nms_threshold: of two detections of a class with a larger IoU, only the better one stays.
        detections_per_image: rows that ``predict`` returns per image.
        nms_candidates: the best (proposal, class) pairs per image that enter NMS. The result is that of no
            limit whenever NMS leaves at least ``detections_per_image`` of these, or when no more than these
            pass ``score_threshold``.
        min_box_size: detections with a shorter side, in pixels, are dropped; those without area always.
        crowd_overlap: a background proposal with at least this share of its own area in a crowd region is
            ignored.

    Raises:
        ValueError: if a value is out of range.
    """

    fg_iou: float = 0.5
    bg_iou: float = 0.5
    batch_size: int = 512
    positive_fraction: float = 0.25
    hidden: int = 1024
    pool_size: int = 7
    sampling_ratio: int = 2
    aligned: bool = False
    levels: int = 4
    canonical_size: float = 224
    canonical_level: int = 4
    smooth_l1_beta: float = 1 / 9
    box_loss: BoxLoss = "smooth_l1"
    class_agnostic: bool = False
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    detections_per_image: int = 100
    nms_candidates: int = 4096
    min_box_size: float = 1e-2
    crowd_overlap: float = 0.5

    def __post_init__(self) -> None:
        _require_training(self)
        _require(0 <= self.score_threshold < 1, self, "score_threshold", "at least 0 and below 1")
        _require_counts(self, "batch_size", "hidden", "pool_size", "levels")
        _require_counts(self, "detections_per_image", "nms_candidates")
        _require(self.sampling_ratio >= 0, self, "sampling_ratio", "at least 0")
        _require(0 < self.canonical_size < math.inf, self, "canonical_size", "positive and finite")
