"""Time of a COCO evaluation: CocoEvaluator beside pycocotools used by itself.

Both start from the same arrays of detections, one set per image, and end with the 12 figures; reading the
ground truth is left out on both sides. The figures must agree to 1e-6 before anything is timed. The two take
turns in one process, and so does the one that goes first.

    python benchmarks/evaluation_coco.py --images 5000
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from common import write_result
from trunkline.evaluation.coco import CocoEvaluator

Detections = dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]


def synthetic(images: int, detections: int, classes: int, seed: int = 0) -> tuple[dict[str, Any], Detections]:
    """Build ground truth with 0 to 14 objects an image, and detections near objects or anywhere."""
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "images": [{"id": index} for index in range(1, images + 1)],
        "categories": [{"id": index, "name": f"class {index}"} for index in range(1, classes + 1)],
        "annotations": [],
    }
    found: Detections = {}
    for image_id in range(1, images + 1):
        number = int(rng.integers(0, 15))
        sizes = np.exp(rng.uniform(2, 5.5, (number, 2)))
        corners = rng.uniform(0, 400, (number, 2))
        categories = rng.integers(1, classes + 1, number)
        for corner, size, category in zip(corners.tolist(), sizes.tolist(), categories.tolist(), strict=True):
            row = {"id": len(truth["annotations"]) + 1, "image_id": image_id, "category_id": category}
            row |= {"bbox": corner + size, "area": size[0] * size[1], "iscrowd": int(rng.random() < 0.02)}
            truth["annotations"].append(row)
        near = rng.integers(0, number, detections // 2) if number else np.zeros(0, dtype=int)
        rest = detections - len(near)
        all_sizes = np.concatenate([sizes[near], np.exp(rng.uniform(2, 5.5, (rest, 2)))])
        starts = np.concatenate([corners[near], rng.uniform(0, 400, (rest, 2))])
        starts = starts + rng.normal(0, 0.08, starts.shape) * all_sizes
        boxes = np.concatenate([starts, starts + all_sizes], axis=1).astype(np.float32)
        labels = np.concatenate([categories[near], rng.integers(1, classes + 1, rest)])
        found[image_id] = (boxes, rng.uniform(0, 1, detections).astype(np.float32), labels)
    return truth, found


def ours(evaluator: CocoEvaluator, found: Detections) -> np.ndarray:
    """The 12 figures by CocoEvaluator with its default backend."""
    evaluator.reset()
    for image_id, rows in found.items():
        evaluator.add(image_id, *rows)
    return np.array(list(evaluator.compute().figures.values()))


def plain(truth: COCO, found: Detections) -> np.ndarray:
    """The 12 figures by pycocotools alone."""
    results = []
    for image_id, (boxes, scores, labels) in found.items():
        boxes = boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
            results.append({"image_id": image_id, "category_id": label, "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(truth, truth.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return np.where(run.stats == -1, np.nan, run.stats)


def check(runs: dict[str, Callable[[], np.ndarray]]) -> float:
    """Run both once, not timed, and return the largest difference of their figures; stop above 1e-6."""
    one, other = (run() for run in runs.values())
    difference = float(np.nanmax(np.abs(one - other)))
    if difference > 1e-6 or (np.isnan(one) != np.isnan(other)).any():
        raise SystemExit(f"the figures differ by {difference}: {one} and {other}")
    print(f"figures agree, largest difference {difference:.1e}; AP {one[0]:.4f}")
    return difference


def alternate(runs: dict[str, Callable[[], np.ndarray]], repeats: int) -> dict[str, list[float]]:
    """Time both in turns and return their seconds."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats):
        for name in sorted(runs, reverse=repeat % 2 == 1):
            start = time.perf_counter()
            runs[name]()
            times[name].append(round(time.perf_counter() - start, 4))
        shown = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in times.items())
        print(f"run {repeat + 1} of {repeats}: {shown}")
    return times


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    output = Path(__file__).parent / "results" / "evaluation_coco.json"
    parser.add_argument("--images", type=int, default=1000, help="number of images (default 1000)")
    parser.add_argument("--detections", type=int, default=100, help="detections per image (default 100)")
    parser.add_argument("--classes", type=int, default=80, help="number of classes (default 80)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each (default 5)")
    parser.add_argument("--output", type=Path, default=output, help=f"result file (default {output.name})")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    truth, found = synthetic(options.images, options.detections, options.classes)
    evaluator = CocoEvaluator(truth)
    reference = COCO()
    reference.dataset = truth
    with contextlib.redirect_stdout(io.StringIO()):
        reference.createIndex()
    runs = {"ours": lambda: ours(evaluator, found), "pycocotools": lambda: plain(reference, found)}
    difference = check(runs)
    times = alternate(runs, options.repeats)
    ratios = [slow / fast for slow, fast in zip(times["pycocotools"], times["ours"], strict=True)]
    ratio = {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    print("pycocotools takes {median:.1f} times as long ({lowest:.1f} to {highest:.1f})".format(**ratio))
    write_result(
        options.output,
        {
            "what": "seconds from arrays of detections to the 12 COCO figures; ratio = pycocotools / ours",
            "images": options.images,
            "detections_per_image": options.detections,
            "classes": options.classes,
            "repeats": options.repeats,
            "backend": evaluator.backend,
            "largest_difference_of_figures": difference,
            "median_seconds": {name: statistics.median(values) for name, values in times.items()},
            "ratio": {name: round(value, 2) for name, value in ratio.items()},
            "seconds": times,
        },
    )


if __name__ == "__main__":
    main()
