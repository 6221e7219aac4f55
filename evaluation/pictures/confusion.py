"""Confusion matrices as pictures, for people.

Letters in shapes: K classes, h w height and width of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from .text import font_of, readable_names

MOST_CLASSES = 2000  # one pixel each; beyond that a picture says nothing
WIDEST = 1200  # pixels that the cells take, one each at least
CELL = 48  # the largest cell
SMALLEST_TEXT = 10
LONGEST_NAME = 24
MARGIN = 8
UNITS = ((1, ""), (1000, "k"), (1_000_000, "M"))
PAPER, INK, GRID = (255, 255, 255), (0, 0, 0), (200, 200, 200)
FULL = np.array((8, 48, 107))  # the colour of a cell that holds all images of its class


def draw_confusion(matrix: ArrayLike, names: Sequence[str]) -> np.ndarray:
    """Draw a confusion matrix: truth from top to bottom, prediction from left to right.

    The darker a cell, the larger the share of its row, from white for none to dark blue for all; a row
    without images stays white. Where there is room, cells show the number of images (``12k`` or ``3M`` where
    that is all there is room for), and rows and columns the names of their classes.

    Args:
        matrix: ``[K, K]`` numbers of images of the class (row) that were taken for a class (column).
        names: K names.

    Returns:
        ``[h, w, 3]`` uint8 RGB.

    Raises:
        ValueError: if there is not one row, column and name per class, or there are more than 2000 classes.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    if counts.ndim != 2 or counts.shape != (len(names), len(names)) or not len(names):
        raise ValueError(f"a confusion matrix of {len(names)} classes must be square, got {counts.shape}")
    if len(names) > MOST_CLASSES:
        raise ValueError(f"a picture shows at most {MOST_CLASSES} classes, got {len(names)}")
    cell = max(1, min(CELL, WIDEST // len(names)))
    cells = np.repeat(np.repeat(cell_colours(counts), cell, axis=0), cell, axis=1)
    texts = readable_names(names, LONGEST_NAME) if cell >= SMALLEST_TEXT else []
    font = font_of(max(SMALLEST_TEXT, min(14, cell)))
    title = sum(font.getmetrics())
    band = math.ceil(max((font.getlength(text) for text in texts), default=0)) + 2 * MARGIN  # for names
    left = top = band + title + MARGIN
    side = len(names) * cell
    picture = Image.new("RGB", (left + side + MARGIN, top + side + MARGIN), PAPER)
    picture.paste(Image.fromarray(cells), (left, top))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left - 1, top - 1, left + side, top + side), outline=GRID)
    draw.text((left, MARGIN), "prediction", font=font, fill=INK)
    _write_upright(picture, "truth", (MARGIN, top), font)
    for index, text in enumerate(texts):
        middle = top + index * cell + cell // 2
        draw.text((left - MARGIN, middle), text, font=font, fill=INK, anchor="rm")
        _write_upright(picture, text, (left + index * cell + (cell - title) // 2, top - MARGIN), font, True)
    _write_counts(draw, counts, cell, (left, top))
    return np.array(picture)


def confusion_picture(matrix: ArrayLike, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the picture of :func:`draw_confusion` as ``confusion``; nothing with more than 2000 classes."""
    return {} if len(names) > MOST_CLASSES else {"confusion": draw_confusion(matrix, names)}


def cell_colours(counts: np.ndarray) -> np.ndarray:
    """Colour each cell ``[K, K]`` by its share of its row: ``[K, K, 3]`` uint8."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # The root shows a few errors in a hundred, which in proportion would look like none.
    depth = np.sqrt(share)[..., None]  # [K, K, 1]
    return np.round(np.array(PAPER) * (1 - depth) + FULL * depth).astype(np.uint8)


def _write_counts(draw: ImageDraw.ImageDraw, counts: np.ndarray, cell: int, corner: tuple[int, int]) -> None:
    """Write each number that is not zero into its cell, if it fits there."""
    font = font_of(max(SMALLEST_TEXT, cell // 3))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    if cell < sum(font.getmetrics()):
        return
    for row, column in zip(*np.nonzero(counts), strict=True):
        number = int(counts[row, column])
        texts = [f"{round(number / unit)}{sign}" for unit, sign in UNITS if number >= unit]
        text = next((text for text in texts if font.getlength(text) <= cell - 2), None)
        if text is not None:
            centre = (corner[0] + column * cell + cell // 2, corner[1] + row * cell + cell // 2)
            # White from half the depth on (a quarter of the row, for depth is the root of the share).
            draw.text(centre, text, font=font, fill=PAPER if shares[row, column] > 0.25 else INK, anchor="mm")


def _write_upright(
    picture: Image.Image, text: str, corner: tuple[int, int], font: ImageFont.FreeTypeFont, end: bool = False
) -> None:
    """Write text from bottom to top; ``corner`` is its left top, or left bottom with ``end``."""
    size = (math.ceil(font.getlength(text)) + 1, sum(font.getmetrics()))
    line = Image.new("RGB", size, PAPER)
    ImageDraw.Draw(line).text((0, 0), text, font=font, fill=INK)
    upright = line.rotate(90, expand=True)
    picture.paste(upright, (corner[0], corner[1] - upright.height if end else corner[1]))
