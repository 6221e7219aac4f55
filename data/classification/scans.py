"""Scans as images to classify: decoding, standardising and resizing.

Letters in shapes: C channels and D H W the axes of a scan, in voxels. Scans are ``[C, D, H, W]`` float32.
"""

from __future__ import annotations

import gzip
import io
import os
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ..shared.bounded import BoundedFile
from ..shared.io import ImageError, image_error
from ..shared.limits import MOST_AFTER
from .scan_headers import array_shape, check_packing, check_placed, nifti_kind

_HEADER = 540  # bytes of the longer of NIfTI's two headers
_BLOCK = 1 << 20
SCAN_SUFFIXES = (".nii", ".nii.gz", ".npy")


def is_scan(name: str) -> bool:
    """Whether a file name is that of a scan (``.nii``, ``.nii.gz``, ``.npy``)."""
    return name.lower().endswith(SCAN_SUFFIXES)


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
        ImageError: if the file is missing, damaged or not what its name says, tells of more voxels than it
            has data or than are read, has another number of axes, no real numbers, or a voxel is not finite.
    """
    try:
        with _open_scan(path, content) as file:
            held = _size(path, content)
            if _is_array(path):
                array_shape(path, file, held)
                voxels = np.load(file, allow_pickle=False)
            else:
                voxels = _canonical_voxels(path, file, held)
    except ImageError:
        raise
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
            held = _size(path, content)
            if _is_array(path):
                shape = array_shape(path, file, held)
            else:
                _, header, _ = nifti_kind(path, file.read(_HEADER), held, _is_packed(path))
                shape = tuple(int(size) for size in header.get_data_shape())
    except ImageError:
        raise
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


def _is_array(path: str | PathLike[str]) -> bool:
    return str(path).lower().endswith(".npy")


def _is_packed(path: str | PathLike[str]) -> bool:
    return str(path).lower().endswith(".gz")


def _size(path: str | PathLike[str], content: bytes | None) -> int:
    return os.path.getsize(path) if content is None else len(content)


def _open_scan(path: str | PathLike[str], content: bytes | None) -> Any:
    """Open a scan, unpacked; the caller closes it."""
    if content is None and os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise ImageError(
            f"{path}: is a pipe, socket or device, not a file; remove it"
        )  # opening it would wait
    file: Any = BoundedFile(path) if content is None else io.BytesIO(content)
    try:
        start = file.read(4)
        file.seek(0)
        check_packing(path, start)
    except BaseException:
        file.close()
        raise
    if not _is_packed(path):
        return file
    file.close()
    return gzip.open(path if content is None else io.BytesIO(content))


def _canonical_voxels(path: str | PathLike[str], file: Any, held: int) -> np.ndarray:
    import nibabel

    start = file.read(_HEADER)
    kind, _, size = nifti_kind(path, start, held, _is_packed(path))
    content = start + file.read(max(0, size - len(start)))
    after = 0
    while block := file.read(_BLOCK):  # to its end, where the checksum stands
        after += len(block)
        if _is_packed(path) and after > MOST_AFTER:
            raise ImageError(
                f"{path}: the header tells of {size} bytes, and the compressed data hold more than "
                f"{size + MOST_AFTER}; replace it, or remove it"
            )
    image = kind.from_bytes(content)
    check_placed(path, image)
    image = nibabel.as_closest_canonical(image)
    scaled = image.get_data_dtype().kind in "biuf"  # records (colours) cannot be
    return image.get_fdata(dtype=np.float32) if scaled else np.asarray(image.dataobj)


def _check_scan_shape(path: str | PathLike[str], shape: tuple[int, ...]) -> None:
    if len(shape) not in (3, 4) or 0 in shape:
        raise ImageError(
            f"{path}: has shape {list(shape)}; a scan has three axes, and a fourth if it has channels"
        )


def _scan_error(path: str | PathLike[str], error: Exception) -> ImageError:
    if isinstance(error, ModuleNotFoundError):
        return ImageError(f"{path}: reading NIfTI needs the package nibabel: pip install nibabel")
    if isinstance(error, (FileNotFoundError, IsADirectoryError, PermissionError)):
        return image_error(path, error)
    return ImageError(f"{path}: damaged scan ({type(error).__name__}: {error}); replace or remove it")
