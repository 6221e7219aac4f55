"""Pixels of more than 8 bits, or with a sign: what a file holds, and how its values become 0..255.

Letters in shapes: h w height and width in pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

FULL = (0.0, 65535.0)  # of 16 bits: divided by 256, as without a range

Range: TypeAlias = Sequence[float]  # lowest and highest value: black and white

_SAMPLE_FORMAT = 339  # TIFF tag: 1 unsigned, 2 signed, 3 floating point
_SIGNED = 2
_AT_ONCE = 1 << 20  # values


class Depth(NamedTuple):
    """What a file's header says of its pixels.

    Attributes:
        bits: 8, 16 or 32 per channel.
        signed: whether values can be negative.
        floating: whether they are floating-point numbers, of unknown range.
        reduced: whether Pillow gives only the upper 8 bits of them.
        bands: how many bands Pillow leaves out that are neither colour nor transparency.
    """

    bits: int = 8
    signed: bool = False
    floating: bool = False
    reduced: bool = False
    bands: int = 0

    @property
    def deep(self) -> bool:
        """Whether a range is needed to make bytes of the values."""
        return self.bits > 8 or self.signed


def depth_of(image: Image.Image) -> Depth:
    """Return what the header of an opened image says; before its pixels are loaded, which forgets it."""
    mode, raw = image.mode, _raw_mode(image)
    formats = tiff_tag(image, _SAMPLE_FORMAT, (1,))
    signed = _SIGNED in (formats if isinstance(formats, tuple) else (formats,))
    bands = len(raw) - len(raw.rstrip("X")) if image.format == "TIFF" else 0
    if mode == "F":
        return Depth(32, True, floating=True)
    if mode.startswith("I;16"):
        return Depth(16)
    if mode == "I":
        if image.format == "PPM":  # Pillow stretches them to 16 bits by the file's own largest value
            return Depth(16)
        if image.format == "TIFF" and ";16" in raw:
            return Depth(16, signed)
        return Depth(32, signed if image.format == "TIFF" else True)
    if ";16" in raw:
        return Depth(16, signed, reduced=True, bands=bands)
    return Depth(8, signed, bands=bands)


def deep_values(image: Image.Image, depth: Depth, path: object, content: bytes | None = None) -> np.ndarray:
    """Return the ``[h, w]`` grey or ``[h, w, 3]`` colour values of a deep image, not yet turned upright.

    Args:
        image: the opened file.
        depth: of it, see ``depth_of``.
        path: the file, as its text says.
        content: its bytes, if they do not lie at ``path``.

    Raises:
        ValueError: if the values cannot be decoded.
    """
    if depth.reduced:
        import cv2  # comes with albumentations; Pillow cannot decode these at their depth

        encoded = Path(str(path)).read_bytes() if content is None else content
        values = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
        if values is None or values.shape[:2] != image.size[::-1] or values.dtype.itemsize != 2:
            raise ValueError("its 16-bit colours cannot be decoded; save it with 8 bits, or as grey")
        return values if values.ndim == 2 else values[:, :, 2::-1]  # blue, green, red -> red, green, blue
    values = np.asarray(image)
    if depth.bits == 32 and not depth.signed:
        return values.view(np.uint32)  # Pillow reads them as signed
    return values.view(np.int8) if depth.bits == 8 else values


def to_bytes(values: np.ndarray, black_white: Range | None) -> np.ndarray:
    """Map lowest..highest linearly to 0..255, rounded and clipped; the full range of 16 bits by ``>> 8``.

    Args:
        values: integers or floating-point numbers.
        black_white: None for 0..65535.
    """
    pixels = np.empty(values.shape, dtype=np.uint8)
    rows = max(1, _AT_ONCE * len(values) // max(1, values.size))
    for start in range(0, len(values), rows):  # the steps between take many times the memory of the pixels
        pixels[start : start + rows] = _mapped(values[start : start + rows], black_white)
    return pixels


def _mapped(values: np.ndarray, black_white: Range | None) -> np.ndarray:
    low, high = black_white or FULL
    if (low, high) == FULL and values.dtype.kind != "f":
        return values.astype(np.int64).clip(0, 65535) >> 8
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(np.nan_to_num(scaled)).clip(0, 255)


def range_of_values(low: float, high: float, depth: Depth) -> tuple[float, float]:
    """Return the range that a sample's lowest and highest value suggest.

    Unsigned values of 16 bits: 0 to the largest of 8 to 16 bits that holds all. Others: the lowest and the
    highest.
    """
    if depth.bits == 16 and not depth.signed:
        return 0.0, float(2 ** max(8, int(high).bit_length()) - 1)
    return float(low), float(high) if high > low else float(low) + 1


def tiff_tag(image: Image.Image, tag: int, otherwise: Any) -> Any:
    """Return the value of a tag of an opened TIFF; ``otherwise`` if it is not there, or for other files."""
    return cast(TiffImageFile, image).tag_v2.get(tag, otherwise) if image.format == "TIFF" else otherwise


def _raw_mode(image: Image.Image) -> str:
    """Return Pillow's name of the layout of the pixels in the file; empty where it has none."""
    tiles = cast(ImageFile, image).tile
    args = tiles[0][3] if tiles else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""
