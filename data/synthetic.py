"""Writes small datasets in real formats, with known answers.

Letters in shapes: h w height and width of a picture in pixels.
"""

from __future__ import annotations

import colorsys
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
    with (
        _replacing(folder, {"images", "annotations"}, overwrite) as temporary,
        tqdm(total=train + val, desc="drawing images", unit="image", disable=not progress) as bar,
    ):
        for number, (split, count) in enumerate((("train", train), ("val", val))):
            _write_split(temporary, split, count, size, np.random.default_rng([seed, number]), bar)
    return folder


def write_classification(
    folder: str | PathLike[str],
    train: int = 240,
    val: int = 48,
    size: int = 64,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write class folders of pictures that show one circle, rectangle or triangle on a noisy background.

    The shape decides the class; colour, size, turn and place are random. Classes are equally frequent (to
    within one picture). As in ``write_detection`` the result is complete or absent.

    Args:
        folder: becomes the root with ``{train,val}/{circle,rectangle,triangle}/NNNNNN.jpg`` (every fourth a
            ``.png``). It may exist if it is empty or holds nothing but an earlier dataset of this function.
        train: number of training pictures, at least 3.
        val: number of validation pictures, at least 3.
        size: side of the pictures in pixels, 32 or more.
        seed: the same seed and sizes give the same files.
        overwrite: also replace ``train`` and ``val`` that came from somewhere else.
        progress: show a progress bar.

    Returns:
        ``folder`` as a path.

    Raises:
        FileExistsError: if ``folder`` holds anything else.
        ValueError: if a number is too small.
    """
    folder = Path(folder)
    names = [category["name"] for category in CATEGORIES]
    if min(train, val) < len(names) or size < 32:
        raise ValueError(
            f"need an image per class and split and 32 pixels a side at least, got {train=}, {val=}, {size=}"
        )
    with (
        _replacing(folder, {"train", "val"}, overwrite) as temporary,
        tqdm(total=train + val, desc="drawing images", unit="image", disable=not progress) as bar,
    ):
        for number, (split, count) in enumerate((("train", train), ("val", val))):
            rng = np.random.default_rng([seed, number])
            for position in range(count):
                name = names[position % len(names)]
                place = temporary / split / name
                place.mkdir(parents=True, exist_ok=True)
                _save(_draw_shape(name, size, rng), place, position + 1)
                bar.update()
    return folder


@contextmanager
def _replacing(folder: Path, content: set[str], overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of ``folder`` if all goes well.

    Args:
        folder: what to replace; see ``_check_replaceable``.
        content: names of the entries that will be in it.
        overwrite: whether entries of those names may come from somewhere else.
    """
    _check_replaceable(folder, content, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        (temporary / _MARKER).write_text("written by trunkline, which may replace this folder\n")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_replaceable(folder: Path, content: set[str], overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file; name a folder")
    found = {entry.name for entry in folder.iterdir()}
    strange = found - content - {_MARKER}
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
        name = _save(picture, root / "images" / split, number)
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


def _save(picture: Image.Image, folder: Path, number: int) -> str:
    """Write a picture as JPEG, or every fourth as PNG, and return the name of the file."""
    name = f"{number:06d}." + ("png" if number % _PNG_EVERY == 0 else "jpg")
    picture.save(folder / name, **({} if name.endswith("png") else {"quality": 92}))
    return name


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
    return _with_grain(picture, rng), placed


def _draw_shape(name: str, size: int, rng: np.random.Generator) -> Image.Image:
    """Return a square picture of one shape."""
    lightness = rng.uniform(0.15, 0.85)
    picture = _background(size, size, lightness, rng)
    mask = _shape_mask(name, size, size, rng)
    picture.paste(_paint(size, size, lightness, rng), mask=mask)
    return _with_grain(picture, rng)


def _with_grain(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(picture)
    grain = rng.normal(0, rng.uniform(2, 8), size=pixels.shape)
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))


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
