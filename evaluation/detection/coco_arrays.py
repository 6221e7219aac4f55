"""COCO's precision and recall in NumPy: all images and classes at once, and only what can matter.

pycocotools visits every image, class, range of area and threshold in Python. The rules here are its own, but

- of the pairs of a detection and an object of one image and class, only those whose IoU reaches the lowest
  threshold are kept;
- detections are matched rank by rank, for all images and classes at once: first the best of each, then the
  second ones;
- precision is looked at only where an object is found, for in between it cannot rise.

So time and memory grow with the detections and objects that there are, not with images times classes.

Letters in shapes: N detections, G objects, P pairs, C candidates (detections in a pair), T IoU thresholds,
R recall thresholds, K classes, A ranges of area, L limits on the number of detections per image and class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
# Square pixels, both ends included: all, small, medium, large.
RANGES = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
LIMITS = (1, 10, 100)
_PAIRS_AT_ONCE = 2**16  # what stays in the cache: a third faster than 2**20


class Objects(NamedTuple):
    """The ground truth; objects of one image and class are in the order of the file."""

    images: np.ndarray  # [G] int64, 0, 1 ... by rising image id
    classes: np.ndarray  # [G] int64, 0..K-1
    boxes: np.ndarray  # [G, 4] float64, x y width height in pixels
    areas: np.ndarray  # [G] float64
    crowd: np.ndarray  # [G] bool


class DetectionRows(NamedTuple):
    """The predictions; those of one image, class and score are in the order in which they count."""

    images: np.ndarray  # [N] int64
    classes: np.ndarray  # [N] int64
    boxes: np.ndarray  # [N, 4] float64, x y width height in pixels
    scores: np.ndarray  # [N] float64


class _Pairs(NamedTuple):
    """Overlaps by round (rank among the candidates of an image and class), candidate and rising IoU."""

    detections: np.ndarray  # [C] int64, the candidates
    starts: np.ndarray  # [C] int64, where the pairs of each begin
    rounds: np.ndarray  # [rounds + 1] int64, where the candidates of each round begin
    slots: np.ndarray  # [P] int64, index of the candidate
    objects: np.ndarray  # [P] int64
    ious: np.ndarray  # [P] float64


def precision_and_recall(
    truth: Objects, predicted: DetectionRows, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute what ``COCOeval.accumulate`` of pycocotools does, precision only at the highest limit.

    Args:
        truth: objects of the images to evaluate.
        predicted: detections of these images, with finite numbers.
        classes: K.

    Returns:
        precision ``[T, R, K, A]`` and recall ``[T, K, A, L]``, -1 where there is no object.
    """
    truth = Objects(*(column[np.lexsort((truth.images, truth.classes))] for column in truth))
    predicted, rank = _ranked(predicted)
    pairs = _overlaps(predicted, truth)
    curves = _Curves(predicted, rank, pairs, classes)
    precision = np.full((len(THRESHOLDS), len(RECALLS), classes, len(RANGES)), -1.0)
    recall = np.full((len(THRESHOLDS), classes, len(RANGES), len(LIMITS)), -1.0)
    for area, (low, high) in enumerate(RANGES):
        ignored = truth.crowd | (truth.areas < low) | (truth.areas > high)
        wanted = np.bincount(truth.classes[~ignored], minlength=classes)  # [K]
        matches = _match(pairs, ignored, truth.crowd)
        curves.write(matches, ignored, wanted, (low, high), precision[..., area], recall[:, :, area])
    return precision, recall


def _ranked(predicted: DetectionRows) -> tuple[DetectionRows, np.ndarray]:
    """Sort by class, image and falling score; return what the highest limit leaves, and ranks ``[N]``."""
    order = np.lexsort((-predicted.scores, predicted.images, predicted.classes))
    images, classes = predicted.images[order], predicted.classes[order]
    rank = np.arange(len(order))
    first = _first(images, classes)
    rank -= np.repeat(first, np.diff(np.append(first, len(order))))
    kept = rank < LIMITS[-1]
    return DetectionRows(*(column[order[kept]] for column in predicted)), rank[kept]


def _first(*keys: np.ndarray) -> np.ndarray:
    """Indices at which any of the sorted keys begins a new value."""
    new = np.ones(len(keys[0]), dtype=bool)
    new[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return np.flatnonzero(new)


def _overlaps(predicted: DetectionRows, truth: Objects) -> _Pairs:
    """Find the pairs that reach the lowest threshold; both sides are sorted by class and image."""
    parts = [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))]
    parts += [_reaching(predicted, truth, *part) for part in _same_image_and_class(predicted, truth)]
    detections, objects, ious = (np.concatenate(column) for column in zip(*parts, strict=True))
    candidates, counts = np.unique(detections, return_counts=True)
    first = _first(predicted.images[candidates], predicted.classes[candidates])
    turn = np.arange(len(candidates)) - np.repeat(first, np.diff(np.append(first, len(candidates))))
    by_turn = np.argsort(turn, kind="stable")
    slots = np.empty_like(by_turn)
    slots[by_turn] = np.arange(len(by_turn))
    slots = np.repeat(slots, counts)
    order = np.lexsort((ious, slots))  # stable: of equal IoUs, the last in the file counts
    starts = np.cumsum(counts[by_turn]) - counts[by_turn]
    rounds = np.append(_first(turn[by_turn]), len(by_turn))
    return _Pairs(candidates[by_turn], starts, rounds, slots[order], objects[order], ious[order])


def _same_image_and_class(
    predicted: DetectionRows, truth: Objects
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield detections ``[p]`` and objects ``[p]`` of all pairs that could overlap, some at a time."""
    images = 1 + max(int(column.max(initial=0)) for column in (predicted.images, truth.images))
    groups = truth.classes * images + truth.images
    first, last = (
        np.searchsorted(groups, predicted.classes * images + predicted.images, side)
        for side in ("left", "right")
    )
    some = np.flatnonzero(last > first)
    counts = (last - first)[some]
    cuts = np.flatnonzero(np.diff(np.cumsum(counts) // _PAIRS_AT_ONCE)) + 1
    for detections, n in zip(np.split(some, cuts), np.split(counts, cuts), strict=True):
        before = np.cumsum(n) - n
        yield np.repeat(detections, n), np.arange(n.sum()) + np.repeat(first[detections] - before, n)


def _reaching(
    predicted: DetectionRows, truth: Objects, detections: np.ndarray, objects: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep the pairs whose IoU reaches the lowest threshold; in a crowd, the share of the detection."""
    inside = np.ones(len(detections))  # width, then area of the overlap; most pairs end with the first axis
    for axis in (0, 1):
        start, other = predicted.boxes[detections, axis], truth.boxes[objects, axis]
        end, other_end = start + predicted.boxes[detections, axis + 2], other + truth.boxes[objects, axis + 2]
        length = np.minimum(end, other_end) - np.maximum(start, other)
        touching = np.flatnonzero(length > 0)
        detections, objects = detections[touching], objects[touching]
        inside = inside[touching] * length[touching]
    area, other_area = _box_areas(predicted.boxes[detections]), _box_areas(truth.boxes[objects])
    ious = inside / np.where(truth.crowd[objects], area, area + other_area - inside)
    kept = ious >= THRESHOLDS[0]
    return detections[kept], objects[kept], ious[kept]


def _box_areas(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 2] * boxes[:, 3]


def _match(pairs: _Pairs, ignored: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Give each candidate its object at each threshold: ``[T, C]`` int64, -1 for none.

    A candidate takes the free object of highest IoU that is not ignored; if none reaches the threshold, the
    free ignored one of highest IoU. A crowd is always free.
    """
    # Preferred last: the last pair of a candidate that is free and reaches the threshold is its match.
    order = np.lexsort((~ignored[pairs.objects], pairs.slots))
    objects, ious = pairs.objects[order], pairs.ious[order]
    ends = np.append(pairs.starts, len(objects))
    thresholds = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    taken = np.zeros((len(THRESHOLDS), len(ignored)), dtype=bool)
    matches = np.full((len(THRESHOLDS), len(pairs.detections)), -1)
    for begin, end in zip(pairs.rounds[:-1], pairs.rounds[1:], strict=True):
        part = slice(ends[begin], ends[end])
        fits = (ious[part] >= thresholds) & ~taken[:, objects[part]]  # [T, pairs of this round]
        last = np.where(fits, np.arange(part.start, part.stop), -1)
        last = np.maximum.reduceat(last, pairs.starts[begin:end] - part.start, axis=1)
        threshold, candidate = np.nonzero(last >= 0)
        chosen = objects[last[threshold, candidate]]
        matches[threshold, begin + candidate] = chosen
        taken[threshold, chosen] = ~crowd[chosen]
    return matches


class _Curves:
    """Turns matches into precision at each recall; candidates come by class and falling score."""

    def __init__(self, predicted: DetectionRows, rank: np.ndarray, pairs: _Pairs, classes: int) -> None:
        order = np.lexsort(
            (-predicted.scores, predicted.classes)
        )  # stable: of equal scores, the lower image id
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        self.by_place = np.argsort(place[pairs.detections])
        self.detections = pairs.detections[self.by_place]
        self.places = place[self.detections]
        self.ranks = rank[self.detections]
        self.areas = _box_areas(predicted.boxes)[order]  # [N]
        self.begin = np.searchsorted(predicted.classes[order], np.arange(classes))  # [K], into all detections
        self.bounds = np.searchsorted(predicted.classes[self.detections], np.arange(classes + 1))

    def write(
        self,
        matches: np.ndarray,
        ignored: np.ndarray,
        wanted: np.ndarray,
        limits: tuple[float, float],
        precision: np.ndarray,
        recall: np.ndarray,
    ) -> None:
        """Fill precision ``[T, R, K]`` and recall ``[T, K, L]`` of one range of area where objects are.

        Args:
            matches: ``[T, C]`` of :func:`_match`.
            ignored: ``[G]`` bool, objects that do not count.
            wanted: ``[K]``, numbers of those that do.
            limits: the range; a detection outside it counts only if it finds an object.
        """
        matches = matches[:, self.by_place]
        outside = (self.areas < limits[0]) | (self.areas > limits[1])
        counted = np.concatenate([[0], np.cumsum(~outside)])  # [N + 1], if nothing were found
        hit = (matches >= 0) & ~ignored[matches]
        extra = np.where(matches >= 0, hit.astype(np.int8) - ~outside[self.places], 0)  # [T, C]
        for k in np.flatnonzero(wanted):
            part = slice(self.bounds[k], self.bounds[k + 1])
            without = counted[self.places[part] + 1] - counted[self.begin[k]]
            hits = hit[:, part]
            precision[:, :, k] = _sampled(hits, without + np.cumsum(extra[:, part], axis=1), wanted[k])
            for index, limit in enumerate(LIMITS):
                recall[:, k, index] = hits[:, self.ranks[part] < limit].sum(axis=1) / wanted[k]


def _sampled(hits: np.ndarray, counted: np.ndarray, wanted: int) -> np.ndarray:
    """Precision of one class at the recall thresholds.

    Args:
        hits: ``[T, c]`` bool, candidates by falling score that find an object.
        counted: ``[T, c]``, detections that count down to each of them.
        wanted: number of objects.

    Returns:
        ``[T, R]``: the highest precision at or beyond each recall, 0 where it is not reached.
    """
    matched = np.cumsum(hits, axis=1)
    precision = np.where(hits, matched / (counted + np.spacing(1)), 0)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # One search for all thresholds: rows follow each other with rising values. The last column is "never".
    row = (wanted + 1) * np.arange(len(hits))[:, None]
    never = np.full((len(hits), 1), wanted)
    needed = 1 + np.searchsorted(np.arange(1, wanted + 1) / wanted, RECALLS)  # objects for each recall
    at = np.searchsorted((np.hstack([matched, never]) + row).ravel(), (needed + row).ravel())
    return np.hstack([best, np.zeros((len(hits), 1))]).ravel()[at].reshape(len(hits), -1)
