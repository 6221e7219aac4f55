"""The only place where pictures and scans are decoded and resized.

Letters in shapes: h w height and width in pixels; C channels and D H W the axes of a scan, in voxels.
Pictures are ``[h, w, 3]`` uint8 RGB, scans ``[C, D, H, W]`` float32.
"""

from __future__ import annotations

import gzip
import io
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.nn import functional

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
SCAN_SUFFIXES = (".nii", ".nii.gz", ".npy")

Interpolation = Literal["bilinear", "bicubic"]

_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_SWAPPED = frozenset({5, 6, 7, 8})  # EXIF orientations that exchange width and height
_LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000")
_PNG_ORIENTATION_MARKS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")


class ImageError(ValueError):
    """An image file is missing, is no image, is damaged, or is not what the annotations say."""


def is_scan(name: str) -> bool:
    """Whether a file name is that of a scan (``.nii``, ``.nii.gz``, ``.npy``)."""
    return name.lower().endswith(SCAN_SUFFIXES)


def read_image(path: str | PathLike[str], content: bytes | None = None) -> np.ndarray:
    """Decode an image file to 8-bit RGB, turned upright by its EXIF orientation.

    Grey, palette, 1-bit, CMYK and other colour spaces become RGB; an alpha channel or a transparent palette
    entry is dropped, and the colour beneath it is kept. 16-bit grey is divided by 256 (``>> 8``), so the full
    range 0..65535 becomes 0..255 for every image alike; 32-bit integer grey is cut to 0..65535 first, because
    that is how 16-bit files are opened in part. Of an animation the first frame is read.

    Args:
        path: a file in any format that Pillow reads.
        content: the bytes of the file if they do not lie at ``path`` (but in an archive); errors name path.

    Returns:
        ``[h, w, 3]`` uint8 RGB, contiguous and writable.

    Raises:
        ImageError: if the file is missing, is no image, is truncated, or holds floating-point pixels.
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
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


def stored_size(path: str | PathLike[str], content: bytes | None = None) -> tuple[tuple[int, int], bool]:
    """Read ``(height, width)`` as stored in the file, and whether EXIF orientation exchanges the two.

    Args:
        path: the file.
        content: its bytes, as in ``read_image``.

    Raises:
        ImageError: as ``image_size``.
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            width, height = image.size
            if image.format == "TIFF":  # some versions of Pillow report the upright size here
                width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
            orientation = 1
            if image.format != "PNG" or _png_may_be_turned(path, content):
                orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception as error:  # see read_image
        raise _image_error(path, error) from error
    return (height, width), orientation in _SWAPPED


def resize(image: np.ndarray, size: tuple[int, int], interpolation: Interpolation = "bilinear") -> np.ndarray:
    """Resize, with antialiasing when shrinking.

    Pillow's filter (which detectron2 uses) as torch computes it: equal to within one grey level, several
    times faster, and the result lies in memory by channel, as a batch wants it.

    Args:
        image: ``[h, w, 3]`` uint8.
        size: new height and width, at least 1 each.
        interpolation: ``bilinear`` or ``bicubic``.

    Returns:
        ``[size[0], size[1], 3]`` uint8; ``image`` itself if it has that size already.
    """
    if image.shape[:2] == tuple(size):
        return image
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)  # [h, w, 3] -> [3, h, w]
    resized = functional.interpolate(planes[None], tuple(size), mode=interpolation, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()  # [3, h, w] -> [h, w, 3]


def read_scan(path: str | PathLike[str], content: bytes | None = None) -> np.ndarray:
    """Decode a scan.

    NIfTI (``.nii``, ``.nii.gz``) is brought to the closest canonical orientation, so that D points right, H
    anterior and W superior; intensities are scaled as the header says. A fourth axis of the file holds
    channels (or times) and becomes the first. Arrays (``.npy``) are taken as they are: ``[D, H, W]``, or
    ``[C, D, H, W]`` with channels first.

    Args:
        path: the file; its name decides the format.
        content: its bytes, as in ``read_image``.

    Returns:
        ``[C, D, H, W]`` float32, contiguous.

    Raises:
        ImageError: if the file is missing or damaged, has another number of axes, holds no real numbers, or a
            voxel is infinite or not a number.
    """
    try:
        with _open_scan(path, content) as file:
            voxels = np.load(file, allow_pickle=False) if _is_array(path) else _canonical_voxels(file)
    except Exception as error:  # decoders raise OSError, ValueError, EOFError, zlib.error and others
        raise _scan_error(path, error) from error
    _check_scan_shape(path, voxels.shape)
    if voxels.dtype.kind not in "biuf":
        raise ImageError(f"{path}: voxels are {voxels.dtype}, not real numbers; export the scan as numbers")
    if voxels.ndim == 3:
        voxels = voxels[None]  # [D, H, W] -> [1, D, H, W]
    elif not _is_array(path):
        voxels = np.moveaxis(voxels, -1, 0)  # [D, H, W, C] -> [C, D, H, W]
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is reported
        scan = np.ascontiguousarray(voxels, dtype=np.float32)
    if bad := int((~np.isfinite(scan)).sum()):
        raise ImageError(
            f"{path}: {bad} of {scan.size} voxels are infinite or not a number; repair or remove it"
        )
    return scan


def scan_shape(path: str | PathLike[str], content: bytes | None = None) -> tuple[int, ...]:
    """Read C and the three sizes of a scan from its header; for NIfTI in the order of the file's axes.

    Raises:
        ImageError: if the file is missing, is no scan, or has another number of axes.
    """
    try:
        with _open_scan(path, content) as file:
            if _is_array(path):
                shape = _array_shape(file)
            else:
                header = _nifti_class(start := file.read(4)).header_class
                rest = header.template_dtype.itemsize - len(start)
                shape = header(start + file.read(rest)).get_data_shape()
    except Exception as error:  # see read_scan
        raise _scan_error(path, error) from error
    _check_scan_shape(path, shape)
    if len(shape) == 3:
        return 1, *shape
    return tuple(shape) if _is_array(path) else (shape[3], *shape[:3])


def standardise_scan(scan: np.ndarray) -> np.ndarray:
    """Bring each channel to mean 0 and standard deviation 1 over the volume; a constant one becomes 0.

    Args:
        scan: ``[C, D, H, W]`` float32, finite. The result is a new array.
    """
    flat = scan.reshape(len(scan), -1).astype(np.float64)  # [C, D * H * W]
    varies = flat.max(axis=1, keepdims=True) > flat.min(axis=1, keepdims=True)
    spread = np.where(varies, flat.std(axis=1, keepdims=True), 1)
    return (
        ((flat - flat.mean(axis=1, keepdims=True)) / spread * varies).astype(np.float32).reshape(scan.shape)
    )


def read_mask(path: str | PathLike[str]) -> np.ndarray:
    """Decode a mask to the values it holds, turned upright by its EXIF orientation.

    Grey masks hold values of 8 or 16 bits, 1-bit masks 0 and 1, palette masks the indices of their colours
    (not the colours). Of masks in red, green and blue the colours are returned; an alpha channel is dropped.

    Args:
        path: a file in a format that keeps every pixel, such as PNG.

    Returns:
        ``[h, w]`` uint8 or uint16 values, or ``[h, w, 3]`` uint8 colours.

    Raises:
        ImageError: if the file is missing, is no image, is truncated, is a JPEG, or holds anything else.
    """
    try:
        with Image.open(path) as image:
            return _mask_values(ImageOps.exif_transpose(image), image.format, path)
    except ImageError:
        raise
    except Exception as error:  # see read_image
        raise _image_error(path, error) from error


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


def resize_scan(scan: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """Resize trilinearly, with antialiasing along axes that shrink.

    Two of the axes are resized together and then the third, which is the same as all at once: torch
    antialiases in two dimensions only.

    Args:
        scan: ``[C, D, H, W]`` float32.
        size: new D, H and W, at least 1 each.

    Returns:
        ``[C, *size]`` float32; ``scan`` itself if it has that size already.
    """
    if scan.shape[1:] == tuple(size):
        return scan
    depth, height, width = size
    options: dict[str, Any] = {"mode": "bilinear", "antialias": True}
    planes = torch.from_numpy(np.ascontiguousarray(scan))  # [C, d, h, w], C as a batch and d as channels
    planes = functional.interpolate(planes, (height, width), **options)  # [C, d, H, W]
    columns = planes.flatten(2)[:, None]  # [C, 1, d, H * W]
    resized = functional.interpolate(columns, (depth, height * width), **options)  # [C, 1, D, H * W]
    return resized.reshape(len(scan), depth, height, width).numpy()


def _to_rgb(image: Image.Image, path: str | PathLike[str]) -> np.ndarray:
    if image.mode == "F":
        raise ImageError(
            f"{path}: the pixels are floating-point numbers of unknown range; save it with 8 or 16 bits"
        )
    if image.mode.startswith("I"):  # I;16, I;16L, I;16B, I
        grey = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)  # [h, w] -> [h, w, 3]
    return np.array(image.convert("RGB"))


def _mask_values(image: Image.Image, form: str | None, path: str | PathLike[str]) -> np.ndarray:
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


def _png_may_be_turned(path: str | PathLike[str], content: bytes | None) -> bool:
    """Whether a PNG can name an orientation at all: Pillow decodes the whole image to find out."""
    content = Path(path).read_bytes() if content is None else content
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


def _is_array(path: str | PathLike[str]) -> bool:
    return str(path).lower().endswith(".npy")


def _open_scan(path: str | PathLike[str], content: bytes | None) -> Any:
    source = path if content is None else io.BytesIO(content)
    if str(path).lower().endswith(".gz"):
        return gzip.open(source)
    return open(source, "rb") if content is None else source  # the caller closes it


def _nifti_class(start: bytes) -> Any:
    """Choose the version of NIfTI by the header's size, its first number in either byte order."""
    import nibabel

    sizes = {int.from_bytes(start, order) for order in ("little", "big")}
    if 348 in sizes:
        return nibabel.Nifti1Image
    if 540 in sizes:
        return nibabel.Nifti2Image
    raise ValueError("no NIfTI header")


def _canonical_voxels(file: Any) -> np.ndarray:
    import nibabel

    content = file.read()
    image = nibabel.as_closest_canonical(_nifti_class(content[:4]).from_bytes(content))
    scaled = image.get_data_dtype().kind in "biuf"  # records (colours) cannot be
    return image.get_fdata(dtype=np.float32) if scaled else np.asarray(image.dataobj)


def _array_shape(file: Any) -> tuple[int, ...]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)[0]


def _check_scan_shape(path: str | PathLike[str], shape: tuple[int, ...]) -> None:
    if len(shape) not in (3, 4) or 0 in shape:
        raise ImageError(
            f"{path}: has shape {list(shape)}; a scan has three axes, and a fourth if it has channels"
        )


def _scan_error(path: str | PathLike[str], error: Exception) -> ImageError:
    if isinstance(error, ModuleNotFoundError):
        return ImageError(f"{path}: reading NIfTI needs the package nibabel: pip install nibabel")
    if isinstance(error, (FileNotFoundError, IsADirectoryError, PermissionError)):
        return _image_error(path, error)
    return ImageError(f"{path}: damaged scan ({type(error).__name__}: {error}); replace or remove it")
