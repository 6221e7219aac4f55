"""Draws images of circles, rectangles and triangles on noisy backgrounds.

Letters in shapes: h w height and width of an image in pixels.
"""

from __future__ import annotations

import colorsys
import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

# Ids with gaps, as in COCO, so that a reader that mistakes them for 0..K-1 fails.
CATEGORIES: tuple[dict[str, Any], ...] = (
    {"id": 1, "name": "circle"},
    {"id": 3, "name": "rectangle"},
    {"id": 7, "name": "triangle"},
)

_SUPERSAMPLING = 4
_OBJECT_SIZE = (0.16, 0.5)  # of the shorter side of the image
_MOST_HIDDEN = 0.15  # share of a box that another box may cover


def draw_picture(
    height: int, width: int, objects: int, rng: np.random.Generator
) -> tuple[Image.Image, list[tuple[int, list[int], np.ndarray]]]:
    """Return an image and (category id, xywh box, ``[h, w]`` bool mask) of each object in it."""
    lightness = rng.uniform(0.15, 0.85)
    picture = _background(height, width, lightness, rng)
    placed: list[tuple[int, list[int], np.ndarray]] = []
    for _ in range(objects):
        category = CATEGORIES[rng.integers(len(CATEGORIES))]
        for _ in range(20):  # attempts to find a free place
            mask = _shape_mask(category["name"], height, width, rng)
            box = _tight_box(mask)
            if all(_hidden_share(box, other) <= _MOST_HIDDEN for _, other, _ in placed):
                picture.paste(_paint(height, width, lightness, rng), mask=mask)
                placed.append((category["id"], box, np.asarray(mask) >= 128))
                break
    return _with_grain(picture, rng), placed


def draw_shape(name: str, size: int, rng: np.random.Generator) -> Image.Image:
    """Return a square image of one shape."""
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
    """Draw one shape wholly inside the image: ``[h, w]`` coverage 0..255, antialiased."""
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
        thirds = (0, 2 * math.pi / 3, 4 * math.pi / 3)
        corners = [(radius * math.sin(angle), -radius * math.cos(angle)) for angle in thirds]
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
