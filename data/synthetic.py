"""Writes small datasets in real formats, with known answers.

Letters in shapes: h w height and width of a picture in pixels.
"""

from __future__ import annotations

import colorsys
import json
import math
import shutil
import tempfile
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

# Ids with gaps, as in COCO, so that a reader that mistakes them for 0..K-1 fails.
CATEGORIES = ({"id": 1, "name": "circle"}, {"id": 3, "name": "rectangle"}, {"id": 7, "name": "triangle"})

_MARKER = ".trunkline-synthetic"
_SUPERSAMPLING = 4
_EMPTY_EVERY = 16  # one image in so many shows no object
_PNG_EVERY = 4
_OBJECTS = (1, 4)  # fewest and most objects of an image
_OBJECT_SIZE = (0.16, 0.5)  # of the shorter side of the picture
_MOST_HIDDEN = 0.15  # share of a box that another box may cover


def write_detection(
    folder: str | PathLike[str],
    train: int = 240,
    val: int = 48,
    size: tuple[int, int] = (128, 160),
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write a COCO-format dataset of circles, rectangles and triangles on noisy backgrounds.

    The shape decides the class; colour, size, turn and place are random. Boxes are tight around the drawn
    pixels. Pictures are landscape, portrait and square, JPEG and PNG; some show no object. The result is
    complete or absent: it is written to a temporary folder beside ``folder``, which then takes its name.

    Args:
        folder: becomes the root with ``images/{train,val}`` and ``annotations/instances_{train,val}.json``.
            It may exist if it is empty or holds nothing but an earlier dataset of this function.
        train: number of training images, at least 1.
        val: number of validation images, at least 1.
        size: length of the shorter and the longer side in pixels, 32 or more. Square pictures have the
            shorter.
        seed: the same seed and sizes give the same files.
        overwrite: also replace ``images`` and ``annotations`` that came from somewhere else.
        progress: show a progress bar.

    Returns:
        ``folder`` as a path.

    Raises:
        FileExistsError: if ``folder`` holds anything else.
        ValueError: if a number is too small.
    """
    folder = Path(folder)
    if train < 1 or val < 1 or min(size) < 32:
        raise ValueError(
            f"need an image per split and 32 pixels a side at least, got {train=}, {val=}, {size=}"
        )
    _check_replaceable(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        with tqdm(total=train + val, desc="drawing images", unit="image", disable=not progress) as bar:
            for number, (split, count) in enumerate((("train", train), ("val", val))):
                _write_split(temporary, split, count, size, np.random.default_rng([seed, number]), bar)
        (temporary / _MARKER).write_text("written by trunkline, which may replace this folder\n")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _check_replaceable(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file; name a folder")
    found = {entry.name for entry in folder.iterdir()}
    strange = found - {"images", "annotations", _MARKER}
    if found and (strange or not (_MARKER in found or overwrite)):
        shown = ", ".join(sorted(strange or found)[:5])
        raise FileExistsError(
            f"{folder}: exists and was not written by this command (it holds {shown}); "
            "name a new or empty folder" + ("" if strange else ", or ask to overwrite it")
        )


def _write_split(
    root: Path, split: str, count: int, size: tuple[int, int], rng: np.random.Generator, bar: tqdm
) -> None:
    (root / "images" / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    short, long = min(size), max(size)
    shapes = ((short, long), (long, short), (short, short))
    images, annotations = [], []
    for number in range(1, count + 1):
        height, width = shapes[rng.choice(3, p=(0.5, 0.3, 0.2))]
        # The last of every sixteen is empty, and so is the second if there are fewer.
        empty = number % _EMPTY_EVERY == 0 or (count < _EMPTY_EVERY and number == 2)
        wanted = 0 if empty else rng.integers(*_OBJECTS, endpoint=True)
        picture, objects = _draw_picture(height, width, wanted, rng)
        name = f"{number:06d}." + ("png" if number % _PNG_EVERY == 0 else "jpg")
        picture.save(root / "images" / split / name, **({} if name.endswith("png") else {"quality": 92}))
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for category_id, box, area in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category_id,
                    "bbox": box,
                    "area": area,
                    "iscrowd": 0,
                    "segmentation": [],
                }
            )
        bar.update()
    content = {"images": images, "annotations": annotations, "categories": list(CATEGORIES)}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _draw_picture(
    height: int, width: int, objects: int, rng: np.random.Generator
) -> tuple[Image.Image, list[tuple[int, list[int], int]]]:
    """Return a picture and (category id, xywh box, area) of each object in it."""
    lightness = rng.uniform(0.15, 0.85)
    picture = _background(height, width, lightness, rng)
    placed: list[tuple[int, list[int], int]] = []
    for _ in range(objects):
        category = CATEGORIES[rng.integers(len(CATEGORIES))]
        for _ in range(20):  # attempts to find a free place
            mask = _shape_mask(category["name"], height, width, rng)
            box = _tight_box(mask)
            if all(_hidden_share(box, other) <= _MOST_HIDDEN for _, other, _ in placed):
                solid = int((np.asarray(mask) >= 128).sum())
                picture.paste(_paint(height, width, lightness, rng), mask=mask)
                placed.append((category["id"], box, solid))
                break
    grain = rng.normal(0, rng.uniform(2, 8), size=(height, width, 3))
    noisy = (np.asarray(picture) + grain).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noisy), placed


def _background(height: int, width: int, lightness: float, rng: np.random.Generator) -> Image.Image:
    """Blotches of two scales around one muted colour."""
    base = np.array(colorsys.hls_to_rgb(rng.uniform(), lightness, rng.uniform(0, 0.3))) * 255
    picture = np.full((height, width, 3), base)
    for cells, strength in ((4, 18), (16, 10)):
        coarse = Image.fromarray(rng.integers(0, 256, size=(cells, cells, 3), dtype=np.uint8))
        blotches = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
        picture += (blotches / 127.5 - 1) * strength
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def _paint(height: int, width: int, lightness: float, rng: np.random.Generator) -> Image.Image:
    """A lively colour whose lightness stands off from the background's, with a slight gradient."""
    away = lightness + (0.3 if lightness < 0.5 else -0.3) * rng.uniform(0.9, 1.3)
    colour = np.array(colorsys.hls_to_rgb(rng.uniform(), away, rng.uniform(0.6, 1.0))) * 255
    slope = np.linspace(-12, 12, height)[:, None, None] * rng.choice((-1, 1))
    return Image.fromarray((colour + slope + np.zeros((height, width, 3))).clip(0, 255).astype(np.uint8))


def _shape_mask(name: str, height: int, width: int, rng: np.random.Generator) -> Image.Image:
    """Draw one shape wholly inside the picture: ``[h, w]`` coverage 0..255, antialiased."""
    short = min(height, width)
    diameter = rng.uniform(*_OBJECT_SIZE) * short
    radius = diameter / 2
    turn = math.radians(rng.uniform(-25, 25))
    stretch = rng.uniform(0.7, 1.0)
    if name == "circle":
        angles = np.linspace(0, 2 * math.pi, 60)
        corners = [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]
    elif name == "rectangle":
        half, low = 0.9 * radius, 0.9 * radius * stretch
        corners = [(-half, -low), (half, -low), (half, low), (-half, low)]
    else:
        angles = (0, 2 * math.pi / 3, 4 * math.pi / 3)
        corners = [(radius * math.sin(angle), -radius * math.cos(angle)) for angle in angles]
    corners = [
        (x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)) for x, y in corners
    ]
    xs, ys = zip(*corners, strict=True)
    left = rng.uniform(1 - min(xs), width - 1 - max(xs))
    top = rng.uniform(1 - min(ys), height - 1 - max(ys))
    large = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    points = [((x + left) * _SUPERSAMPLING, (y + top) * _SUPERSAMPLING) for x, y in corners]
    ImageDraw.Draw(large).polygon(points, fill=255)
    return large.resize((width, height), Image.Resampling.BOX)


def _tight_box(mask: Image.Image) -> list[int]:
    """Return the xywh box around the pixels that the shape covers by half or more."""
    solid = np.asarray(mask) >= 128
    xs, ys = np.flatnonzero(solid.any(axis=0)), np.flatnonzero(solid.any(axis=1))
    return [int(xs[0]), int(ys[0]), int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1)]


def _hidden_share(box: list[int], other: list[int]) -> float:
    """Return the intersection of two xywh boxes over the area of the smaller."""
    across = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    down = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    return max(across, 0) * max(down, 0) / min(box[2] * box[3], other[2] * other[3])
