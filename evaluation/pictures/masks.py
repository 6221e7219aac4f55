"""Pictures of segmentations for people, and id masks for programs.

Letters in shapes: h w height and width of an image, K classes.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from ...constants import IGNORE_INDEX
from ..files import write_atomically
from .text import fitted, font_of, readable

MOST_ENTRIES = 40  # of a legend: more would be larger than the picture
PAPER, INK, FRAME = (255, 255, 255), (0, 0, 0), (96, 96, 96)


def draw_mask(image: ArrayLike, labels: ArrayLike, colours: ArrayLike, opacity: float = 0.5) -> np.ndarray:
    """Lay the colours of the classes over a copy of an image, with an outline around each region.

    The outline lies inside the region, in the full colour, and gets thicker as the image gets larger. Pixels
    with the label 255 stay as they are.

    Args:
        image: ``[h, w, 3]`` uint8 RGB, an array or CPU tensor.
        labels: ``[h, w]`` uint8, 0..K-1 or 255.
        colours: ``[K, 3]`` uint8.
        opacity: share of the colour in a pixel, 0 to 1; at 0 only the outlines are drawn.

    Returns:
        ``[h, w, 3]`` uint8.

    Raises:
        ValueError: if shapes or types do not fit, a label has no colour, or the opacity is out of range.
    """
    pixels, labels, table = np.asarray(image), np.asarray(labels), _table(colours)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"image must be [h, w, 3] uint8, got {list(pixels.shape)} {pixels.dtype}")
    _check_labels(labels, pixels.shape[:2], len(table))
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie in 0 to 1, got {opacity}")
    shown = labels != IGNORE_INDEX
    lookup = np.zeros((IGNORE_INDEX + 1, 3), np.float32)
    lookup[: len(table)] = table
    colour = lookup[labels]  # [h, w, 3]
    picture = pixels * np.float32(1 - opacity) + colour * np.float32(opacity)
    width = max(1, round(math.sqrt(labels.shape[0] * labels.shape[1]) / 400))
    picture = np.where(_outlines(labels, width)[..., None], colour, picture)
    return np.where(shown[..., None], np.rint(picture).astype(np.uint8), pixels)


def draw_legend(names: Sequence[str], colours: ArrayLike, width: int) -> np.ndarray:
    """Draw a strip that shows which colour is which class.

    Entries run from left to right and go on in the next line where one is full; a name that is wider than the
    strip is cut short.

    Args:
        names: K names.
        colours: ``[K, 3]`` uint8.
        width: of the strip in pixels, at least 1; the text grows with it up to 1100.

    Returns:
        ``[h', width, 3]`` uint8, of height 0 without a name.

    Raises:
        ValueError: if there is not one colour per name, or no width.
    """
    table = _table(colours)
    if len(table) != len(names) or width < 1:
        raise ValueError(
            f"a legend needs a colour per name and a width, got {len(names)} names, "
            f"{len(table)} colours and {width} pixels"
        )
    if not len(names):
        return np.zeros((0, width, 3), np.uint8)
    size = max(10, min(28, round(width / 40)))
    font = font_of(size)
    line, gap = sum(font.getmetrics()), max(3, size // 2)
    texts = [fitted(readable(name), font, width - line - 3 * gap) for name in names]
    places, left, top = [], gap, gap
    for text in texts:
        wide = line + gap + math.ceil(font.getlength(text))
        if left > gap and left + wide + gap > width:
            left, top = gap, top + line + gap
        places.append((left, top))
        left += wide + 2 * gap
    picture = Image.new("RGB", (width, top + line + gap), PAPER)
    draw = ImageDraw.Draw(picture)
    for (left, top), text, colour in zip(places, texts, table.tolist(), strict=True):
        draw.rectangle((left, top, left + line - 1, top + line - 1), fill=tuple(colour), outline=FRAME)
        draw.text((left + line + gap, top), text, font=font, fill=INK)
    return np.array(picture)


def with_legend(
    picture: ArrayLike, labels: ArrayLike, names: Sequence[str], colours: ArrayLike
) -> np.ndarray:
    """Put a legend of the classes that are present below a picture.

    Args:
        picture: ``[h, w, 3]`` uint8.
        labels: of any shape, 0..K-1 or 255; the classes in it are shown, in their order (the 40 largest).
        names: K names.
        colours: ``[K, 3]`` uint8.

    Returns:
        ``[h + h', w, 3]`` uint8; only the picture if no class is present.

    Raises:
        ValueError: if there is not one colour per name, or a label has none.
    """
    pixels, labels, table = np.asarray(picture), np.asarray(labels), _table(colours)
    if len(table) != len(names):
        raise ValueError(f"a legend needs a colour per name, got {len(names)} names and {len(table)} colours")
    _check_labels(labels, labels.shape, len(table))
    counts = np.bincount(labels.ravel(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
    present = np.flatnonzero(counts)
    shown = np.sort(present[np.argsort(-counts[present], kind="stable")[:MOST_ENTRIES]])
    texts, ground = [readable(names[label], label) for label in shown.tolist()], table[shown]
    if len(present) > len(shown):
        texts.append(f"and {len(present) - len(shown)} smaller ones")
        ground = np.concatenate([ground, np.array([PAPER], np.uint8)])
    strip = draw_legend(texts, ground, pixels.shape[1])
    return np.concatenate([pixels, strip])


def save_id_mask(
    path: str | os.PathLike[str], ids: ArrayLike, palette: Mapping[int, tuple[int, int, int]]
) -> Path:
    """Write ids as a PNG, atomically: programs read the ids, viewers show the colours.

    Palettes have 256 entries, so 16-bit ids are written as grey, without colours.

    Args:
        path: a name that ends in ``.png``; missing parent folders are created.
        ids: ``[h, w]`` uint8, or uint16.
        palette: of uint8 ids: red, green and blue in 0..255 for each id in 0..255; other ids are black.

    Raises:
        ValueError: if the name has another suffix, or ids or palette are not as above.
    """
    pixels = np.asarray(ids)
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"{path}: an id mask is a PNG file; its name must end in .png")
    if pixels.ndim != 2 or pixels.dtype not in (np.uint8, np.uint16) or not pixels.size:
        given = f"{list(pixels.shape)} {pixels.dtype}"
        raise ValueError(f"{path}: ids must be [h, w] uint8 or uint16, got {given}")
    if pixels.dtype == np.uint16:
        return _save_png(path, Image.fromarray(np.ascontiguousarray(pixels)))
    table = np.zeros((256, 3), np.uint8)
    for label, colour in palette.items():
        if not 0 <= label <= 255 or len(colour) != 3 or not all(0 <= part <= 255 for part in colour):
            raise ValueError(f"{path}: palette has id {label} with colour {colour}; all must lie in 0..255")
        table[label] = colour
    picture = Image.frombytes("P", pixels.shape[::-1], np.ascontiguousarray(pixels).tobytes())
    picture.putpalette(table.tobytes())
    return _save_png(path, picture)


def _save_png(path: str | os.PathLike[str], picture: Image.Image) -> Path:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return write_atomically(path, buffer.getvalue())


def _table(colours: ArrayLike) -> np.ndarray:
    """Return colours as ``[K, 3]`` uint8."""
    table = np.asarray(colours).reshape(-1, 3)
    if len(table) > IGNORE_INDEX:
        raise ValueError(f"a mask holds at most {IGNORE_INDEX} classes, got {len(table)} colours")
    if table.size and (table.min() < 0 or table.max() > 255):
        raise ValueError(f"colours must lie in 0..255, got {table.min()}..{table.max()}")
    return table.astype(np.uint8)


def _check_labels(labels: np.ndarray, shape: tuple[int, ...], classes: int) -> None:
    """Raise a ValueError unless labels have this shape and lie in 0..K-1 or are 255."""
    if labels.shape != tuple(shape) or labels.dtype != np.uint8:
        raise ValueError(f"labels must be {list(shape)} uint8, got {list(labels.shape)} {labels.dtype}")
    unknown = np.unique(labels[(labels >= classes) & (labels != IGNORE_INDEX)])
    if len(unknown):
        raise ValueError(f"labels {unknown.tolist()} have no colour; there are {classes}")


def _outlines(labels: np.ndarray, width: int) -> np.ndarray:
    """Find pixels with another label at most ``width`` pixels up, down, left or right: ``[h, w]`` bool."""
    outline = np.zeros(labels.shape, dtype=bool)
    for step in range(1, width + 1):
        across = labels[:, step:] != labels[:, :-step]
        down = labels[step:] != labels[:-step]
        outline[:, step:] |= across
        outline[:, :-step] |= across
        outline[step:] |= down
        outline[:-step] |= down
    return outline
