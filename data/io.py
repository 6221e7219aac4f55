"""The only place where pictures are decoded and resized.

Letters in shapes: h w height and width in pixels. Arrays are ``[h, w, 3]`` uint8 RGB unless said otherwise.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.nn import functional

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")

_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_SWAPPED = frozenset({5, 6, 7, 8})  # EXIF orientations that exchange width and height
_PNG_ORIENTATION_MARKS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")


class ImageError(ValueError):
    """An image file is missing, is no image, is damaged, or is not what the annotations say."""


def read_image(path: str | PathLike[str]) -> np.ndarray:
    """Decode an image file to 8-bit RGB, turned upright by its EXIF orientation.

    Grey, palette, 1-bit, CMYK and other colour spaces become RGB; an alpha channel or a transparent palette
    entry is dropped, and the colour beneath it is kept. 16-bit grey is divided by 256 (``>> 8``), so the full
    range 0..65535 becomes 0..255 for every image alike; 32-bit integer grey is cut to 0..65535 first, because
    that is how 16-bit files are opened in part. Of an animation the first frame is read.

    Args:
        path: a file in any format that Pillow reads.

    Returns:
        ``[h, w, 3]`` uint8 RGB, contiguous and writable.

    Raises:
        ImageError: if the file is missing, is no image, is truncated, or holds floating-point pixels.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            return _to_rgb(upright, path)
    except ImageError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise _image_error(path, error) from error


def image_size(path: str | PathLike[str]) -> tuple[int, int]:
    """Read height and width of the upright image without decoding its pixels.

    Raises:
        ImageError: if the file is missing or is no image. Damaged pixels are not noticed.
    """
    stored, swapped = stored_size(path)
    return stored[::-1] if swapped else stored


def stored_size(path: str | PathLike[str]) -> tuple[tuple[int, int], bool]:
    """Read ``(height, width)`` as stored in the file, and whether EXIF orientation exchanges the two.

    Raises:
        ImageError: as ``image_size``.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.format == "TIFF":  # some versions of Pillow report the upright size here
                width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
            orientation = 1
            if image.format != "PNG" or _png_may_be_turned(path):
                orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception as error:  # see read_image
        raise _image_error(path, error) from error
    return (height, width), orientation in _SWAPPED


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize bilinearly, with antialiasing when shrinking.

    Pillow's filter (which detectron2 uses) as torch computes it: equal to within one grey level, several
    times faster, and the result lies in memory by channel, as a batch wants it.

    Args:
        image: ``[h, w, 3]`` uint8.
        size: new height and width, at least 1 each.

    Returns:
        ``[size[0], size[1], 3]`` uint8; ``image`` itself if it has that size already.
    """
    if image.shape[:2] == tuple(size):
        return image
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)  # [h, w, 3] -> [3, h, w]
    resized = functional.interpolate(planes[None], tuple(size), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()  # [3, h, w] -> [h, w, 3]


def _to_rgb(image: Image.Image, path: str | PathLike[str]) -> np.ndarray:
    if image.mode == "F":
        raise ImageError(
            f"{path}: the pixels are floating-point numbers of unknown range; save it with 8 or 16 bits"
        )
    if image.mode.startswith("I"):  # I;16, I;16L, I;16B, I
        grey = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)  # [h, w] -> [h, w, 3]
    return np.array(image.convert("RGB"))


def _png_may_be_turned(path: str | PathLike[str]) -> bool:
    """Whether a PNG can name an orientation at all: Pillow decodes the whole image to find out."""
    content = Path(path).read_bytes()
    return any(mark in content for mark in _PNG_ORIENTATION_MARKS)


def _image_error(path: str | PathLike[str], error: Exception) -> ImageError:
    if isinstance(error, FileNotFoundError):
        return ImageError(f"{path}: no such file; check the image folder and the file name")
    if isinstance(error, IsADirectoryError):
        return ImageError(f"{path}: is a folder, not an image file")
    if isinstance(error, PermissionError):
        return ImageError(f"{path}: may not be read; check the permissions of the file")
    if isinstance(error, UnidentifiedImageError):
        return ImageError(f"{path}: is no image that Pillow can read; convert, replace or remove it")
    if isinstance(error, Image.DecompressionBombError):
        return ImageError(f"{path}: {error}; cut the image into tiles or set PIL.Image.MAX_IMAGE_PIXELS")
    return ImageError(f"{path}: damaged image ({type(error).__name__}: {error}); replace or remove it")
