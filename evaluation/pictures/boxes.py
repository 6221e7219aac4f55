"""Pictures of predictions, for people.

Letters in shapes: h w height and width of an image, n boxes, m truth boxes.
"""

from __future__ import annotations

import colorsys
import io
import math
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from ..files import write_atomically
from .text import fitted, font_of, readable

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # x1 y1 x2 y2 in whole pixels, x2 and y2 outside

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
LARGEST = {"JPEG": 65500, "WEBP": 16383}  # pixels a side
GOLDEN = (math.sqrt(5) - 1) / 2


def class_colour(label: int | str) -> Colour:
    """Return the colour of a class: always the same, and far from those of the classes around it.

    Args:
        label: a contiguous class index (neighbours get well separated hues) or a class name.

    Returns:
        Red, green and blue in 0..255.
    """
    if isinstance(label, str):
        label = zlib.crc32(label.encode())  # not hash(), which differs from run to run
    # Steps of the golden ratio never come back to a hue and leave no large gap.
    hue = (0.98 + label * GOLDEN) % 1.0
    saturation, value = ((0.85, 0.95), (0.65, 1.0), (1.0, 0.75))[label // 8 % 3]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def draw_boxes(
    image: ArrayLike,
    boxes: ArrayLike,
    labels: Sequence[str],
    scores: ArrayLike | None = None,
    classes: Sequence[int] | None = None,
    truth_boxes: ArrayLike | None = None,
    truth_labels: Sequence[str] | None = None,
) -> np.ndarray:
    """Draw boxes with labels onto a copy of an image.

    Frames lie inside their boxes; their thickness and the size of the text grow with the image. Boxes are cut
    at the image's edge, and those without a pixel inside it are left out. Earlier boxes lie on top, for
    predictions come best first; labels lie on top of all frames, next to each other where there is room, and
    never leave the image. Texts are cut, and letters that the font lacks replaced, as in
    :func:`.text.readable`.

    Args:
        image: ``[h, w, 3]`` uint8 RGB, an array or CPU tensor.
        boxes: ``[n, 4]`` x1 y1 x2 y2 in pixels.
        labels: n texts; an empty text draws only the frame.
        scores: ``[n]``, written after the text as a percentage.
        classes: n contiguous class indices that choose the colours; by default the labels do.
        truth_boxes: ``[m, 4]``, drawn as thin frames of white and black dashes.
        truth_labels: m texts, written in white on black.

    Returns:
        ``[h, w, 3]`` uint8.

    Raises:
        ValueError: if the image is not ``[h, w, 3]`` uint8, or some box lacks its label, score or class.
    """
    pixels = np.asarray(image).copy()
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"image must be [h, w, 3] uint8, got {list(pixels.shape)} {pixels.dtype}")
    frames = _rectangles("boxes", boxes, pixels, labels=labels, scores=scores, classes=classes)
    numbers = [None] * len(labels) if classes is None else list(map(int, classes))
    texts = [readable(label, number) for label, number in zip(labels, numbers, strict=True)]
    if scores is not None:
        percent = [f"{100 * float(score):.0f}%" for score in cast(Iterable, scores)]
        texts = [f"{text} {number}".strip() for text, number in zip(texts, percent, strict=True)]
    colours = [class_colour(label) for label in (labels if classes is None else map(int, classes))]
    notes = list(zip(frames, texts, colours, strict=True))
    width = _line_width(pixels)
    for frame, _, colour in reversed(notes):
        _draw_frame(pixels, frame, colour, width)
    if truth_boxes is not None:
        truth = _rectangles("truth_boxes", truth_boxes, pixels, truth_labels=truth_labels)
        for frame, text in zip(truth, truth_labels or [""] * len(truth), strict=True):
            _draw_dashes(pixels, frame, max(1, width // 2))
            notes.append((frame, readable(text), BLACK))
    return _draw_labels(pixels, [note for note in notes if _visible(note[0]) and note[1]])


def contact_sheet(images: Sequence[ArrayLike], columns: int, gap: int = 8) -> np.ndarray:
    """Tile pictures row by row on a dark ground.

    Every picture keeps its size and lies in the middle of a cell as large as the largest of them.

    Args:
        images: at least one ``[h, w, 3]`` uint8.
        columns: pictures per row, at least one.
        gap: pixels between cells and around them.

    Raises:
        ValueError: without a picture or a column.
    """
    pictures = [np.asarray(image) for image in images]
    if not pictures or columns < 1:
        raise ValueError(f"a contact sheet needs a picture and a column, got {len(pictures)} and {columns}")
    height = max(picture.shape[0] for picture in pictures)
    width = max(picture.shape[1] for picture in pictures)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 32, dtype=np.uint8)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        top = gap + row * (height + gap) + (height - picture.shape[0]) // 2
        left = gap + column * (width + gap) + (width - picture.shape[1]) // 2
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


def save_picture(path: str | os.PathLike[str], image: ArrayLike) -> Path:
    """Write a picture atomically, in the format that the file's suffix names.

    One that is larger than the format takes (65,500 pixels a side for JPEG) is made smaller.

    Args:
        path: a name that ends in ``.png``, ``.jpg`` or another suffix known to Pillow; missing parent folders
            are created.
        image: ``[h, w, 3]`` uint8 RGB.

    Raises:
        ValueError: if Pillow cannot write files with that suffix.
    """
    suffix = Path(path).suffix.lower()
    form = Image.registered_extensions().get(suffix)
    if form not in Image.SAVE:
        raise ValueError(f"{path}: cannot write a picture with the suffix {suffix!r}; use .png or .jpg")
    buffer = io.BytesIO()
    options = {"quality": 92} if form == "JPEG" else {}
    picture, limit = Image.fromarray(np.asarray(image)), LARGEST.get(str(form))
    if limit is not None:
        picture.thumbnail((limit, limit))
    picture.save(buffer, format=form, **options)
    return write_atomically(path, buffer.getvalue())


def _rectangles(name: str, boxes: ArrayLike, pixels: np.ndarray, **columns: Any) -> list[Rectangle]:
    """Round boxes outwards to whole pixels and cut them at the image; x1 = x2 where nothing is left."""
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    for column, values in columns.items():
        if values is not None and len(values) != len(corners):
            raise ValueError(f"{len(corners)} {name}, but {len(values)} {column}; give one for each box")
    corners = np.where(np.isnan(corners).any(axis=1, keepdims=True), -1.0, corners)  # outside the image
    height, width = pixels.shape[:2]
    low, high = np.floor(corners[:, :2]), np.ceil(corners[:, 2:])
    whole = np.concatenate([low, np.maximum(high, low + 1)], axis=1)  # a flat box still shows as a line
    whole = np.clip(whole, 0, [width, height, width, height]).astype(int)
    return [tuple(row) for row in whole.tolist()]


def _visible(frame: Rectangle) -> bool:
    return frame[0] < frame[2] and frame[1] < frame[3]


def _line_width(pixels: np.ndarray) -> int:
    """One pixel up to about 300 pixels of image size, two at 600, and so on."""
    return max(1, round(math.sqrt(pixels.shape[0] * pixels.shape[1]) / 300))


def _draw_frame(pixels: np.ndarray, frame: Rectangle, colour: Colour, width: int) -> None:
    """Paint a frame ``width`` pixels thick along the inside of a rectangle, in place."""
    x1, y1, x2, y2 = frame
    across, down = min(width, x2 - x1), min(width, y2 - y1)
    pixels[y1 : y1 + down, x1:x2] = colour
    pixels[y2 - down : y2, x1:x2] = colour
    pixels[y1:y2, x1 : x1 + across] = colour
    pixels[y1:y2, x2 - across : x2] = colour


def _draw_dashes(pixels: np.ndarray, frame: Rectangle, width: int) -> None:
    """Paint a frame of white and black dashes, which shows on any ground, in place."""
    if not _visible(frame):
        return
    x1, y1, x2, y2 = frame
    edge = np.zeros((y2 - y1, x2 - x1, 1), dtype=bool)
    edge[:width] = edge[-width:] = edge[:, :width] = edge[:, -width:] = True
    # Numbered from the corner along both axes, so that a dash goes on around it.
    steps = np.add.outer(np.arange(y2 - y1), np.arange(x2 - x1))[..., None] // (5 * width)
    part = pixels[y1:y2, x1:x2]
    part[...] = np.where(edge, np.where(steps % 2 == 0, 255, 0), part)


def _draw_labels(pixels: np.ndarray, notes: list[tuple[Rectangle, str, Colour]]) -> np.ndarray:
    """Write each text on a filled ground next to its frame; the first ones choose their place first."""
    height, width = pixels.shape[:2]
    size = max(10, round(math.sqrt(height * width) / 36))
    font = font_of(size)
    ascent, descent = font.getmetrics()
    margin = max(1, size // 6)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    places: list[Rectangle] = []
    notes = [(frame, fitted(text, font, width - 2 * margin), colour) for frame, text, colour in notes]
    for frame, text, _ in notes:
        wide = math.ceil(draw.textlength(text, font=font)) + 2 * margin
        places.append(_place(frame, (wide, ascent + descent + margin), (width, height), places))
    for place, (_, text, colour) in reversed(list(zip(places, notes, strict=True))):
        draw.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=colour)
        draw.text((place[0] + margin, place[1] + margin // 2), text, font=font, fill=_ink(colour))
    return np.array(picture)


def _place(
    frame: Rectangle, label: tuple[int, int], image: tuple[int, int], taken: list[Rectangle]
) -> Rectangle:
    """Choose where a label goes: the first free place of above, inside and below its frame, else above.

    Args:
        frame: the box it belongs to.
        label: its width and height.
        image: width and height of the image.
        taken: places of earlier labels.
    """
    x1, y1, x2, y2 = frame
    wide, high = label
    corners = [(x1, y1 - high), (x1, y1), (x1, y2), (x1, y2 - high), (x2 - wide, y1 - high), (x2 - wide, y2)]
    choices = []
    for left, top in corners:
        left, top = max(0, min(left, image[0] - wide)), max(0, min(top, image[1] - high))
        choices.append((left, top, left + wide, top + high))
    free = (choice for choice in choices if not any(_overlap(choice, other) for other in taken))
    return next(free, choices[0])


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _ink(ground: Colour) -> Colour:
    """Black or white, whichever stands out from the ground (luma of ITU-R BT.601)."""
    luma = 0.299 * ground[0] + 0.587 * ground[1] + 0.114 * ground[2]
    return BLACK if luma > 140 else WHITE
