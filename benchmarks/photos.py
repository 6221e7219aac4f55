"""JPEG files that cost what photographs cost, with COCO annotations, for benchmarks of reading data.

White noise would be a poor stand-in: its files are several times as large and decode as much more slowly.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

SIZES = ((480, 640), (427, 640), (480, 640), (640, 480))  # heights and widths; most of COCO looks like these
CLASSES = 80


def write_photos(folder: Path, count: int, sizes=SIZES, seed: int = 0) -> Path:
    """Write ``images/train`` and ``annotations/instances_train.json``, unless they are there; return folder.

    Args:
        folder: created if needed.
        count: number of images.
        sizes: heights and widths in pixels, taken in turn.
        seed: fixes everything.
    """
    annotations = folder / "annotations" / "instances_train.json"
    if annotations.exists():
        return folder
    images = folder / "images" / "train"
    images.mkdir(parents=True, exist_ok=True)
    annotations.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, CLASSES + 1)],
    }
    for number in range(1, count + 1):
        height, width = sizes[number % len(sizes)]
        pixels, boxes = photo(height, width, rng)
        name = f"{number:06d}.jpg"
        Image.fromarray(pixels).save(images / name, quality=90)
        content["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        for box in boxes:
            content["annotations"].append(annotation(len(content["annotations"]) + 1, number, box, rng))
    annotations.write_text(json.dumps(content))
    return folder


def annotation(number: int, image: int, box: list[float], rng: np.random.Generator) -> dict:
    """One record of a COCO file, of a class drawn at random."""
    return {
        "id": number,
        "image_id": image,
        "category_id": int(rng.integers(1, CLASSES + 1)),
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
    }


def photo(height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, list[list[float]]]:
    """Noise that is stronger the longer its waves, as in photographs, and objects with their boxes."""
    pixels = rng.uniform(60, 190, 3) + np.zeros((height, width, 3))
    for cell in (2, 4, 8, 16, 32, 64, 128):
        shape = height // cell + 2, width // cell + 2
        grid = rng.normal(0, 2.5 * cell**0.6, (*shape, 1)) + rng.normal(0, 0.8 * cell**0.5, (*shape, 3))
        pixels += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels += rng.normal(0, 3.0, (height, width, 1))  # the grain of the sensor
    boxes = []
    for _ in range(rng.integers(2, 14)):
        h, w = (int(side * rng.uniform(0.05, 0.5)) for side in (height, width))
        top, left = int(rng.integers(0, height - h)), int(rng.integers(0, width - w))
        centre, axes = (left + w // 2, top + h // 2), (w // 2, h // 2)
        layer = np.zeros((height, width), dtype=np.uint8)
        cv2.ellipse(layer, centre, axes, 0, 0, 360, 1, -1)
        pixels += layer[:, :, None] * rng.normal(0, 40, 3)
        boxes.append([left + 0.25, top + 0.25, w - 0.5, h - 0.5])
    return pixels.clip(0, 255).astype(np.uint8), boxes
