"""Time and memory of the COCO metrics: CocoEvaluator beside pycocotools and faster-coco-eval by themselves.

All start from the same arrays of detections, one set per image, and end with the 12 metrics; reading the
ground truth is left out on both sides.

    python benchmarks/speed_evaluation.py
    python benchmarks/speed_evaluation.py --images 500
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
from faster_coco_eval import COCO as FasterCOCO
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pairs import Pair, bench_parser, run_pairs
from trunkline.evaluation.detection.evaluator import CocoEvaluator

Detections = dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]
PEERS = {
    "pycocotools": (COCO, COCOeval, f"pycocotools {version('pycocotools')}"),
    "faster": (FasterCOCO, COCOeval_faster, f"faster-coco-eval {version('faster-coco-eval')}"),
}


def synthetic(
    images: int, detections: int, classes: int, objects: int | None = None, seed: int = 0
) -> tuple[dict[str, Any], Detections]:
    """Build ground truth, and detections of which half lie near objects and half anywhere.

    Args:
        images: number of images.
        detections: of each image.
        classes: of which every object is one, by chance.
        objects: of each image; None for 0 to 14, seven on average as in COCO.
        seed: of all that is random.
    """
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "images": [{"id": index} for index in range(1, images + 1)],
        "categories": [{"id": index, "name": f"class {index}"} for index in range(1, classes + 1)],
        "annotations": [],
    }
    predicted: Detections = {}
    for image_id in range(1, images + 1):
        number = int(rng.integers(0, 15)) if objects is None else objects
        sizes = np.exp(rng.uniform(2, 5.5 if objects is None else 3.5, (number, 2)))
        corners = rng.uniform(0, 400 if objects is None else 1000, (number, 2))
        categories = rng.integers(1, classes + 1, number)
        for corner, size, category in zip(corners.tolist(), sizes.tolist(), categories.tolist(), strict=True):
            row = {"id": len(truth["annotations"]) + 1, "image_id": image_id, "category_id": category}
            row |= {"bbox": corner + size, "area": size[0] * size[1], "iscrowd": int(rng.random() < 0.02)}
            truth["annotations"].append(row)
        predicted[image_id] = _detections(rng, corners, sizes, categories, detections, classes)
    return truth, predicted


def _detections(
    rng: np.random.Generator,
    corners: np.ndarray,
    sizes: np.ndarray,
    categories: np.ndarray,
    number: int,
    classes: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes ``[n, 4]`` x1 y1 x2 y2, scores ``[n]`` and category ids ``[n]`` of one image."""
    near = rng.integers(0, len(sizes), number // 2) if len(sizes) else np.zeros(0, dtype=int)
    rest = number - len(near)
    all_sizes = np.concatenate([sizes[near], np.exp(rng.uniform(2, 5.5, (rest, 2)))])
    starts = np.concatenate([corners[near], rng.uniform(0, 400, (rest, 2))])
    starts = starts + rng.normal(0, 0.08, starts.shape) * all_sizes
    boxes = np.concatenate([starts, starts + all_sizes], axis=1).astype(np.float32)
    labels = np.concatenate([categories[near], rng.integers(1, classes + 1, rest)])
    return boxes, rng.uniform(0, 1, number).astype(np.float32), labels


def ours(evaluator: CocoEvaluator, predicted: Detections) -> np.ndarray:
    """The 12 metrics by CocoEvaluator with its default backend."""
    evaluator.reset()
    for image_id, rows in predicted.items():
        evaluator.add(image_id, *rows)
    return np.array(list(evaluator.compute().metrics.values()))


def plain(kind: type, truth: Any, predicted: Detections) -> np.ndarray:
    """The 12 metrics by pycocotools or faster-coco-eval as their own examples use them."""
    results = []
    for image_id, (boxes, scores, labels) in predicted.items():
        boxes = boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
            results.append({"image_id": image_id, "category_id": label, "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        run = kind(truth, truth.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    stats = np.asarray(run.stats[:12], dtype=np.float64)
    return np.where(stats == -1, np.nan, stats)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference of two sets of metrics; infinite if other ones are undefined."""
    if (np.isnan(one) != np.isnan(other)).any():
        return np.inf
    return float(np.nanmax(np.abs(one - other)))


def pair(name: str, peer: str, settings: dict[str, Any], **more: Any) -> Pair:
    """Compare on one synthetic dataset.

    Args:
        name: of the row.
        peer: a key of ``PEERS``.
        settings: arguments of :func:`synthetic`.
        more: of :class:`Pair`.
    """
    dataset, predicted = synthetic(**settings)
    evaluator = CocoEvaluator(dataset)
    truth_kind, kind, title = PEERS[peer]
    truth = truth_kind()
    truth.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return Pair(
        name=name,
        peer=title,
        ours=lambda: ours(evaluator, predicted),
        theirs=lambda: plain(kind, truth, predicted),
        difference=difference,
        tolerance=1e-6,
        agrees_on="the 12 metrics",
        settings=settings,
        **more,
    )


def pairs(images: int) -> Iterator[Pair]:
    """A validation set like COCO's, one with many classes and one with many objects per image."""
    usual = {"images": images, "detections": 100, "classes": 80}
    classes = {"images": images // 10, "detections": 100, "classes": 1200}
    objects = {"images": images // 10, "detections": 1000, "classes": 10, "objects": 1000}
    crowded = {"images": max(1, images // 500), "detections": 1000, "classes": 10, "objects": 1000}
    yield pair("COCO metrics, 80 classes", "pycocotools", usual, target=5.0)
    yield pair("COCO metrics, 80 classes", "faster", usual)
    yield pair("COCO metrics, 1,200 classes", "pycocotools", classes, target=5.0)
    yield pair("COCO metrics, 1,200 classes", "faster", classes)
    yield pair("COCO metrics, 1,000 objects an image", "pycocotools", crowded, target=5.0)
    yield pair("COCO metrics, 1,000 objects an image", "faster", objects)


def main() -> None:
    parser: argparse.ArgumentParser = bench_parser(__doc__, repeats=3)
    parser.add_argument("--images", type=int, default=5000, help="of the first rows (default 5000)")
    options = parser.parse_args()
    logging.getLogger("faster_coco_eval").setLevel(logging.ERROR)
    what = "Seconds from arrays of detections to the 12 COCO metrics; ratio = peer / ours."
    run_pairs("evaluation", what, pairs(options.images), options)


if __name__ == "__main__":
    main()
