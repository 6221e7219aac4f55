"""The only place where images and masks are decoded and resized.

Letters in shapes: h w height and width in pixels. Images are ``[h, w, 3]`` uint8 RGB.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile
from torch.nn import functional

from .common import number_of
from .deep import FULL, Depth, Range, deep_values, depth_of, range_of_values, to_bytes
from .opening import ImageError as ImageError
from .opening import ImagePath, bytes_of
from .opening import content_of as content_of
from .opening import image_error as image_error
from .opening import opened as opened
from .png_chunks import file_may_be_turned, may_be_turned
from .storage import is_stored, open_stored

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm",
    ".pbm", ".pnm", ".jp2", ".avif", ".tga",
)  # fmt: skip

Interpolation = Literal["bilinear", "bicubic"]

_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_SWAPPED = frozenset({5, 6, 7, 8})  # EXIF orientations that exchange width and height
_COLOUR_OF_BYTES = np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
_LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000", "AVIF")


class MaskPixels(NamedTuple):
    """What the file of a mask holds.

    Attributes:
        values: as ``read_mask`` returns them.
        palette: ``[n]`` uint32, the colour ``65536 R + 256 G + B`` of each value; None without a palette, and
            if the colours are the grey of the values.
    """

    values: np.ndarray
    palette: np.ndarray | None = None


def read_image(
    path: ImagePath,
    content: bytes | None = None,
    enough: tuple[int, int] | None = None,
    pixel_range: Range | Literal["own"] | None = None,
) -> np.ndarray:
    """Decode an image file to 8-bit RGB, turned upright by its EXIF orientation.

    Grey, palette, 1-bit, CMYK and other colour spaces become RGB; an alpha channel or a transparent palette
    entry is dropped, and the colour beneath it is kept. Values of more than 8 bits, or with a sign, are
    mapped by ``pixel_range``. Of an animation the first frame is read, and bands beside colours are left out.

    Args:
        path: a file in any format that Pillow reads; also at an address or in tar shards.
        content: the bytes of the file if they do not lie at ``path`` (but in an archive); errors name path.
        enough: height and width that the upright image is needed at. A JPEG at least twice as large in both
            comes back at a half, a quarter or an eighth of its size, rounded up, and no smaller than needed.
            That takes a half to two thirds of the time; the decoder averages over 2, 4 or 8 pixels per axis.
        pixel_range: the values that become 0 and 255, for images that do not have 8 bits; what lies between
            is mapped linearly. ``own`` takes them from this image alone. None stands for 0..65535, which is
            divided by 256 (``>> 8``). ``pixel_range.settle_pixel_range`` finds the range of a dataset.

    Returns:
        ``[h, w, 3]`` uint8 RGB, contiguous and writable.

    Raises:
        ImageError: if the file is missing, is no image, is truncated, or holds floating-point pixels without
            a range.
        StorageError: if a server does not answer.
    """
    content = content_of(path, content)
    with opened(path, content) as image:
        if enough is not None:
            swapped = image.getexif().get(_ORIENTATION, 1) in _SWAPPED
            image.draft("RGB", enough if swapped else enough[::-1])  # only JPEGs heed it
        depth = depth_of(image)
        whole = pixel_range is None or tuple(pixel_range) == FULL
        if depth.deep and not (
            depth.reduced and whole
        ):  # else Pillow keeps the upper bits, which is the same
            return _deep_to_rgb(image, depth, path, content, pixel_range)
        ImageOps.exif_transpose(image, in_place=True)  # otherwise it copies images that are upright
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def image_size(path: ImagePath, content: bytes | None = None) -> tuple[int, int]:
    """Read height and width of the upright image without decoding its pixels.

    Args:
        path: the file.
        content: its bytes, as in ``read_image``.

    Raises:
        ImageError: if the file is missing or is no image. Damaged pixels are not noticed.
    """
    stored, swapped = stored_size(path, content)
    return stored[::-1] if swapped else stored


def stored_size(path: ImagePath, content: bytes | None = None) -> tuple[tuple[int, int], bool]:
    """Read ``(height, width)`` as stored in the file, and whether EXIF orientation exchanges the two.

    Args:
        path: the file.
        content: its bytes, as in ``read_image``.

    Raises:
        ImageError: as ``image_size``.
    """
    with opened(path, content) as image:
        width, height = image.size
        if image.format == "TIFF":  # some versions of Pillow report the upright size here
            tags = cast(TiffImageFile, image).tag_v2
            width, height = tags[_TIFF_WIDTH], tags[_TIFF_HEIGHT]
        orientation = 1
        if image.format != "PNG" or _png_may_be_turned(path, content):
            orientation = image.getexif().get(_ORIENTATION, 1)
    return (height, width), orientation in _SWAPPED


def resize(image: np.ndarray, size: tuple[int, int], interpolation: Interpolation = "bilinear") -> np.ndarray:
    """Resize, with antialiasing when shrinking.

    The result is that of Pillow's filter (which detectron2 uses) to within one grey level, several times as
    fast, and lies in memory by channel, as a batch wants it.

    Args:
        image: ``[h, w, 3]`` uint8.
        size: new height and width, at least 1 each.
        interpolation: ``bilinear`` or ``bicubic``.

    Returns:
        ``[size[0], size[1], 3]`` uint8; ``image`` itself if it has that size already.
    """
    height, width = image.shape[:2]
    if (height, width) == tuple(size):
        return image
    image = np.ascontiguousarray(image)
    if interpolation == "bilinear" and size[0] >= height and size[1] >= width:
        return _enlarge(image, size)
    planes = torch.from_numpy(image).permute(2, 0, 1)  # [h, w, 3] -> [3, h, w]
    resized = functional.interpolate(planes[None], tuple(size), mode=interpolation, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()  # [3, h, w] -> [h, w, 3]


def _enlarge(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Do ``resize`` by OpenCV, which cannot antialias, but takes half of torch's time."""
    import cv2  # comes with albumentations

    planes = np.empty((3, *size), dtype=np.uint8)
    for source, target in zip(cv2.split(image), planes, strict=True):
        cv2.resize(source, (size[1], size[0]), dst=target, interpolation=cv2.INTER_LINEAR)
    return planes.transpose(1, 2, 0)  # [3, h, w] -> [h, w, 3]


def read_mask(path: ImagePath) -> np.ndarray:
    """Decode a mask to the values it holds, turned upright by its EXIF orientation.

    Grey masks hold values of 8 or 16 bits, 1-bit masks 0 and 1, palette masks the indices of their colours
    (not the colours). Of masks in red, green and blue the colours are returned; an alpha channel is dropped.

    Args:
        path: a file in a format that keeps every pixel, such as PNG.

    Returns:
        ``[h, w]`` uint8 or uint16 values, or ``[h, w, 3]`` uint8 colours.

    Raises:
        ImageError: if the file is missing, is no image, is truncated, is a JPEG or a lossy WebP, has
            several pages or frames, is a pipe or a device, or holds anything else.
    """
    return read_mask_pixels(path).values


def read_mask_pixels(path: ImagePath) -> MaskPixels:
    """Decode a mask as ``read_mask`` does, and keep what else the file says of its values."""
    content = content_of(path)
    with opened(path, content) as image:
        _check_one_lossless_frame(image, path, content)
        depth = depth_of(image)
        _check_type(image, depth, path, content)
        upright = ImageOps.exif_transpose(image)
        return MaskPixels(_mask_values(upright, image.format, path), _palette(upright))


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Give each pixel of the new grid the label of the old pixel that its centre lies in.

    Args:
        mask: ``[h, w]`` uint8.
        size: new height and width, at least 1 each.

    Returns:
        ``[size[0], size[1]]`` uint8; ``mask`` itself if it has that size already.
    """
    if mask.shape == tuple(size):
        return mask
    labels = torch.from_numpy(np.ascontiguousarray(mask))[None, None]  # [1, 1, h, w]
    return functional.interpolate(labels, tuple(size), mode="nearest-exact")[0, 0].numpy()


def _check_one_lossless_frame(image: Image.Image, path: ImagePath, content: bytes | None) -> None:
    """Refuse masks of several pages, and WebP that changed values; both are seen before decoding."""
    try:
        image.seek(1)
    except EOFError:
        image.seek(0)
    else:
        raise ImageError(
            f"{path}: has several pages or frames; a mask has one: save each as a file of its own"
        )
    if image.format == "WEBP" and _lossy_webp(bytes_of(path, content)):
        raise ImageError(f"{path}: a lossy WEBP changes the values of a mask; save the mask as PNG")


def _lossy_webp(content: bytes) -> bool:
    """Whether a chunk of the file, by its list of chunks after ``RIFF....WEBP``, is of the lossy coder."""
    position = 12
    while position + 8 <= len(content):
        if content[position : position + 4] == b"VP8 ":
            return True
        length = int.from_bytes(content[position + 4 : position + 8], "little")
        position += 8 + length + length % 2
    return False


def _deep_to_rgb(
    image: Image.Image,
    depth: Depth,
    path: ImagePath,
    content: bytes | None,
    pixel_range: Range | Literal["own"] | None,
) -> np.ndarray:
    """Return ``[h, w, 3]`` uint8 of an image that needs a range."""
    if depth.floating and pixel_range is None:
        raise ImageError(
            f"{path}: the pixels are floating-point numbers of unknown range; give the values of black and "
            "white in data.pixel_range, or save it with 8 or 16 bits"
        )
    values = deep_values(image, depth, path, content)
    if pixel_range == "own":
        low, high = (float(values.min(initial=0)), float(values.max(initial=0)))
        pixel_range = range_of_values(low, high, depth)
    pixels = to_bytes(values, pixel_range)
    turned = Image.fromarray(pixels)
    turned.getexif()[_ORIENTATION] = image.getexif().get(_ORIENTATION, 1)
    pixels = np.array(ImageOps.exif_transpose(turned))
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)  # [h, w] -> [h, w, 3]


def _mask_values(image: Image.Image, form: str | None, path: ImagePath) -> np.ndarray:
    if form in _LOSSY_FORMATS:
        raise ImageError(f"{path}: a {form} changes the values of a mask; save the mask as PNG")
    if image.mode in ("RGB", "RGBA"):
        return np.array(image.convert("RGB"))
    if image.mode in ("1", "L", "P", "LA", "PA"):
        return np.array(image.getchannel(0), dtype=np.uint8)
    if image.mode.startswith("I"):  # I;16, I;16L, I;16B, I
        values = np.asarray(image).astype(np.int64)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise ImageError(f"{path}: values from {values.min()} to {values.max()}; a mask has 0 to 65535")
        return values.astype(np.uint16)
    raise ImageError(f"{path}: a mask cannot have pixels of mode {image.mode}; save it with 8 or 16 bits")


def _check_type(image: Image.Image, depth: Depth, path: ImagePath, content: bytes | None) -> None:
    """Refuse masks of which Pillow would drop a part, or read the sign as a large number."""
    if depth.bands:
        raise ImageError(
            f"{path}: has {number_of(depth.bands, 'band')} beside grey or colours; a mask has one value or "
            "one colour per pixel: save that alone"
        )
    if depth.reduced and (deep_values(image, depth, path, content).astype(np.uint16) % 257).any():  # no 257 v
        raise ImageError(f"{path}: has colours of 16 bits; save the mask with 8 bits, or as 16-bit grey")
    if (
        depth.signed
        and depth.bits == 8
        and (low := deep_values(image, depth, path, content).min(initial=0)) < 0
    ):
        raise ImageError(f"{path}: values from {low}; a mask has no negative values")


def _palette(image: Image.Image) -> np.ndarray | None:
    """Return ``[n]`` colours as numbers; None without a palette, or if it is the grey of the values."""
    if image.mode not in ("P", "PA"):
        return None
    colours = np.array(image.getpalette("RGB"), dtype=np.uint32).reshape(-1, 3) @ _COLOUR_OF_BYTES  # [n]
    grey = np.arange(len(colours), dtype=np.uint32) * 0x010101
    return None if (colours == grey).all() else colours


def _png_may_be_turned(path: ImagePath, content: bytes | None) -> bool:
    """Whether a PNG can name an orientation at all: Pillow decodes the whole image to find out."""
    if content is None and is_stored(path):
        with open_stored(str(path)) as file:
            return file_may_be_turned(file, file.size)
    return may_be_turned(bytes_of(path, content))
