"""What is refused of a file before memory is taken for it: a small one may claim, or unpack to, any size.

docs/security.md states the limits. Two of them can be raised by variables of the environment, which the
processes that load data inherit.
"""

from __future__ import annotations

import functools
import math
import os
import zlib
from collections.abc import Sequence
from typing import Any

from PIL import Image

PIXELS, VOXELS = "TRUNKLINE_MAX_PIXELS", "TRUNKLINE_MAX_VOXELS"  # of the environment
MOST_VOXELS = 1 << 31  # 8 GiB as float32
MOST_UNPACKED = 1 << 28  # bytes of a DICOM file that is compressed as a whole
MOST_BEFORE = 1 << 26  # bytes of a header and what stands between it and the voxels
MOST_AFTER = 1 << 20  # bytes of compressed data after the last voxel
MOST_NODES = 100_000  # of a config, each counted as often as aliases repeat it
_MOST_TILE = 1 << 26  # pixels of one tile of a TIFF, which is unpacked as a whole
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_PROGRAMS = ("EPS", "WMF")  # formats that Pillow hands to another program
_BLOCK = 1 << 20
_RAISE = "set {} in the environment to a larger number to read it all the same"


class LimitError(ValueError):
    """A file is larger than is read, or unpacks to more."""


def most_pixels() -> int | None:
    """Return how many pixels an image may have; None if ``PIL.Image.MAX_IMAGE_PIXELS`` was set to None.

    Raises:
        ValueError: if the variable of the environment is no number.
    """
    if PIXELS in os.environ:
        return _number(PIXELS, 0)
    return None if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


def most_voxels() -> int:
    """Return how many voxels a scan may have, all channels together.

    Raises:
        ValueError: if the variable of the environment is no number.
    """
    return _number(VOXELS, MOST_VOXELS)


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, str(otherwise))
    if not text.isdecimal() or not 0 < len(text) < 19:
        raise ValueError(f"the variable {name} of the environment is {text[:40]!r}; it is a whole number")
    return int(text)


@functools.cache
def let_pillow_read() -> None:
    """Tell Pillow of the limit in the environment, once in a process; without one it keeps its own."""
    if PIXELS in os.environ:
        Image.MAX_IMAGE_PIXELS = math.ceil(_number(PIXELS, 0) / 2)  # it refuses twice as many


def pixels_refused() -> str:
    """Return what an error says of an image with too many pixels."""
    return (
        f"has more than {most_pixels():,} pixels, and such an image is not read; cut it into tiles, or "
        + _RAISE.format(PIXELS)
    )


def check_image(image: Image.Image) -> None:
    """Refuse an opened image, before it is decoded, that a program would decode, or of absurd tiles.

    Raises:
        LimitError: saying what it is.
    """
    if image.format in _PROGRAMS:
        raise LimitError(f"is {image.format}, which another program would have to run; save it as PNG")
    if image.format == "TIFF":
        tags: Any = image
        tile = [tags.tag_v2.get(tag, 1) for tag in (_TILE_WIDTH, _TILE_LENGTH)]
        if any(not isinstance(side, int) for side in tile) or math.prod(tile) > _MOST_TILE:
            raise LimitError(
                f"has tiles of {tile[0]} x {tile[1]} pixels; more than {_MOST_TILE:,} are not read; save it "
                "with smaller tiles"
            )


def check_voxels(sizes: Sequence[int]) -> None:
    """Refuse a scan of too many voxels.

    Args:
        sizes: voxels along all axes, channels among them.

    Raises:
        LimitError: naming the limit.
    """
    voxels = math.prod(int(size) for size in sizes)
    if voxels > most_voxels():
        raise LimitError(
            f"has {' x '.join(map(str, sizes))} voxels; more than {most_voxels():,} are not read; crop or "
            "shrink the scan, or " + _RAISE.format(VOXELS)
        )


def unpacked_size(file: Any, most: int, window: int = -zlib.MAX_WBITS) -> int:
    """Return how many bytes deflated data become, without keeping them; it stops counting beyond ``most``.

    Args:
        file: opened where the data begin.
        most: the number up to which it matters.
        window: as for ``zlib.decompressobj``; without a header if not given.

    Raises:
        zlib.error: if the data are damaged.
        EOFError: if they are cut off.
    """
    unpacker, found = zlib.decompressobj(window), 0
    left = b""
    while not unpacker.eof and found <= most:
        left = left or file.read(_BLOCK)
        if not left:
            raise EOFError("the compressed data are cut off")
        found += len(unpacker.decompress(left, _BLOCK))
        left = unpacker.unconsumed_tail
    return found
