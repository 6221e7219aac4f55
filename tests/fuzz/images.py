"""Targets that read images and masks."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from trunkline.data.scans.formats.files import read_grid, read_labels, read_scan
from trunkline.data.scans.formats.scan import ScanError
from trunkline.data.segmentation.masks import MaskFiles, values_of
from trunkline.data.shared.common import PackedNames
from trunkline.data.shared.io import ImageError, image_size, read_image, read_mask
from trunkline.data.shared.labels.classes import LabelClass
from trunkline.data.shared.labels.table import ClassTable, MaskError

from .mutate import fields_of, mutate_bytes, mutate_png, one_of
from .target import Target

# MiB: of the most pixels that Pillow opens each takes 4 bytes inside it, and 3 as an array.
_MOST_OF_AN_IMAGE = 2048
_RGB = np.random.default_rng(0).integers(0, 255, (9, 13, 3)).astype(np.uint8)
_GREY = _RGB[:, :, 0]
_DEEP = _GREY.astype(np.uint16) * 250
_LABELS = (_GREY % 3).astype(np.uint8)


def encoded(values: np.ndarray, form: str, mode: str | None = None, **options: object) -> bytes:
    """Return an image file."""
    buffer, image = io.BytesIO(), Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(buffer, form, **options)
    return buffer.getvalue()


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def _pngs() -> list[bytes]:
    palette = Image.fromarray(_LABELS).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=0)
    return [
        encoded(_RGB, "PNG", exif=_turned()),
        encoded(_GREY, "PNG"),
        encoded(_DEEP, "PNG"),
        buffer.getvalue(),
        encoded(_RGB, "PNG", "RGBA"),
        encoded(_LABELS, "PNG"),
        encoded(_GREY, "PNG", "1"),
    ]


def _jpegs() -> list[bytes]:
    return [
        encoded(_RGB, "JPEG", exif=_turned()),
        encoded(_GREY, "JPEG", progressive=True),
        encoded(_RGB, "JPEG", "CMYK"),
    ]


def _tiffs() -> list[bytes]:
    deep, single = _DEEP[:4, :5], _GREY[:4, :5].astype(np.float32)
    return [
        encoded(_RGB[:4, :5], "TIFF"),
        encoded(deep, "TIFF"),
        encoded(single, "TIFF"),
        encoded(deep.astype(np.int32), "TIFF"),
        encoded(_GREY, "TIFF", compression="tiff_lzw"),
        encoded(_RGB, "TIFF", compression="tiff_adobe_deflate"),
        encoded(_GREY, "TIFF", "1", compression="group4"),
        encoded(_LABELS, "TIFF", "P"),
        encoded(_GREY[:4, :5], "TIFF", big_tiff=True),
    ]


def _others() -> list[bytes]:
    return [
        encoded(_RGB, "BMP"),
        encoded(_LABELS, "BMP", "P"),
        encoded(_GREY, "GIF"),
        encoded(_RGB, "WEBP"),
        encoded(_RGB, "WEBP", lossless=True),
        encoded(_RGB, "PPM"),
        encoded(_GREY, "PPM"),
        encoded(_DEEP, "PPM"),
        encoded(_RGB, "TGA", compression="tga_rle"),
        encoded(_RGB, "JPEG2000"),
        encoded(_RGB, "AVIF"),
        encoded(_GREY, "PPM", "1"),
        encoded(_RGB, "DDS"),
        encoded(_RGB, "ICO"),
        encoded(_RGB, "SGI"),
        encoded(_RGB, "PCX"),
        encoded(_RGB, "QOI"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n",
    ]


def _tiff_fields(data: bytes) -> Sequence[tuple[int, str]]:
    """Return the parts of the entries of the first directory of a TIFF."""
    if data[:4] != b"II*\0" or len(data) < 8:
        return []
    start = struct.unpack("<I", data[4:8])[0]
    count = int.from_bytes(data[start : start + 2], "little")
    fields = [(4, "<I"), (start, "<H")]
    for entry in range(start + 2, min(start + 2 + 12 * count, len(data) - 12), 12):
        fields += [(entry, "<H"), (entry + 2, "<H"), (entry + 4, "<I"), (entry + 8, "<I"), (entry + 8, "<H")]
    return fields


def _mutate_tiff(data: bytes, rng: random.Random) -> bytes:
    """Give an entry of a TIFF a tag that matters, or set one of its parts."""
    fields = _tiff_fields(data)
    if fields and rng.random() < 0.3:
        content, entry = bytearray(data), rng.choice(fields)[0]
        tag = rng.choice(
            (256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 338, 339, 347, 530)
        )
        content[entry : entry + 2] = struct.pack("<H", tag)
        return bytes(content)
    return fields_of(_tiff_fields)(data, rng)


def _read_pixels(path: Path) -> None:
    read_image(path, pixel_range="own")
    read_image(path, enough=(2, 2), pixel_range=(0, 1000))
    image_size(path)


def _read_undecided(path: Path) -> None:
    read_image(path)


_ROWS = [
    LabelClass(0, "background", (0, 0, 0)),
    LabelClass(1, "cat", (255, 0, 0)),
    LabelClass(2, "dog", (0, 255, 0)),
]
_COLOURED = ClassTable(_ROWS)
_PLAIN = ClassTable([row._replace(colour=None) for row in _ROWS], ignore=[7])


def _read_labels(path: Path) -> None:
    """Read a mask the way training does, and the check of masks before."""
    read_mask(path)
    for table in (_PLAIN, _COLOURED):
        masks = MaskFiles(str(path.parent), PackedNames.pack([path.name]), table)
        masks.size(0)
        masks.survey(0)
        masks.labelled_pixels(0)
        masks.mask(0)


def _read_values(path: Path) -> None:
    values_of(str(path))


def _read_picture(path: Path) -> None:
    read_grid(path)
    read_scan(path)
    read_labels(path)


_TIFF = one_of(_mutate_tiff, _mutate_tiff, mutate_bytes)
_PNG = one_of(mutate_png, mutate_png, mutate_bytes)
_MASKS = (ImageError, MaskError)
TARGETS = [
    Target("image_png", "a.png", _read_pixels, (ImageError,), _pngs, _PNG, _MOST_OF_AN_IMAGE),
    Target("image_jpeg", "a.jpg", _read_pixels, (ImageError,), _jpegs, mutate_bytes, _MOST_OF_AN_IMAGE),
    Target("image_tiff", "a.tif", _read_pixels, (ImageError,), _tiffs, _TIFF, _MOST_OF_AN_IMAGE),
    Target("image_other", "a.bmp", _read_undecided, (ImageError,), _others, mutate_bytes, _MOST_OF_AN_IMAGE),
    Target("mask_png", "a.png", _read_labels, _MASKS, _pngs, _PNG, _MOST_OF_AN_IMAGE),
    Target("mask_tiff", "a.tif", _read_labels, _MASKS, _tiffs, _TIFF, _MOST_OF_AN_IMAGE),
    Target("mask_values", "a.gif", _read_values, _MASKS, _others, mutate_bytes, _MOST_OF_AN_IMAGE),
    Target("picture_png", "a.png", _read_picture, (ScanError,), _pngs, _PNG, _MOST_OF_AN_IMAGE),
    Target("picture_tiff", "a.tif", _read_picture, (ScanError,), _tiffs, _TIFF, _MOST_OF_AN_IMAGE),
]
