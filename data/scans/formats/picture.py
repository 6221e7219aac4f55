"""2D images as scans of two axes.

Letters in shapes: C channels (1 of grey images, 3 of coloured ones), h w height and width in pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ...shared.io import image_size, opened, read_image, read_mask
from .scan import Grid, PathLike, ScanError, Stored

LABEL_SUFFIXES = (".png", ".tif", ".tiff")
_GREY_MODES = ("1", "L", "LA")


def read_picture(path: PathLike, header_only: bool = False) -> Stored:
    """Read a 2D image, turned upright by its EXIF orientation.

    A coloured file in which red, green and blue are the same everywhere is grey and has one channel. Grey of
    16 or 32 bits and floating-point numbers keep their values.

    Args:
        path: the file.
        header_only: leave out the pixels (which must still be decoded if the file is in colours).
    """
    with opened(path) as image:
        mode = image.mode
        if mode.startswith("I") or mode == "F":
            values = np.asarray(ImageOps.exif_transpose(image))
            dtype = np.dtype(np.uint16) if mode.startswith("I;16") else values.dtype.newbyteorder("=")
            return _stored(values[None], dtype, header_only)
    if header_only and mode in _GREY_MODES:
        return Stored(Grid(image_size(path), np.eye(4)), 1, np.dtype(np.uint8))
    colours = read_image(path).transpose(2, 0, 1)  # [h, w, 3] -> [3, h, w]
    grey = np.array_equal(colours[0], colours[1]) and np.array_equal(colours[0], colours[2])
    return _stored(colours[:1] if grey else colours, np.dtype(np.uint8), header_only)


def _stored(values: np.ndarray, dtype: np.dtype, header_only: bool) -> Stored:
    grid = Grid(values.shape[1:], np.eye(4))
    return Stored(grid, len(values), dtype, None if header_only else values)


def read_picture_labels(path: PathLike) -> tuple[np.ndarray, Grid]:
    """Read ``[h, w]`` grey values or palette indices and their grid."""
    values = read_mask(path)
    if values.ndim == 3:
        if (values != values[:, :, :1]).any():
            raise ScanError(f"{path}: holds colours, not ids; save the ids as a grey or palette PNG")
        values = np.ascontiguousarray(values[:, :, 0])  # [h, w, 3] -> [h, w]
    return values, Grid(values.shape, np.eye(4))


def write_picture(path: PathLike, values: np.ndarray) -> None:
    """Write ``[1, h, w]`` of 8 or 16 bits, or ``[3, h, w]`` of 8, without loss."""
    if not str(path).lower().endswith(LABEL_SUFFIXES):
        raise ScanError(f"{path}: 2D images are written without loss as {', '.join(LABEL_SUFFIXES)}")
    deep = values.dtype == np.uint16 and len(values) == 1
    if not deep and (values.dtype != np.uint8 or len(values) not in (1, 3)):
        raise ScanError(
            f"{path}: an image cannot hold {len(values)} channels of {values.dtype}; it holds one of uint8 "
            "or uint16, or three of uint8"
        )
    pixels = values[0] if len(values) == 1 else values.transpose(1, 2, 0)  # [3, h, w] -> [h, w, 3]
    Image.fromarray(np.ascontiguousarray(pixels)).save(Path(path))
