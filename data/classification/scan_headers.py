"""Headers of scans to classify, checked before memory is taken for what they claim."""

from __future__ import annotations

import io
import logging
import math
import os
from os import PathLike
from typing import Any

import numpy as np

from ..shared.io import ImageError
from ..shared.limits import MOST_BEFORE, LimitError, check_voxels

logger = logging.getLogger("trunkline")
GZIP, ZIP = b"\x1f\x8b", b"PK"
_DEFLATE = 1032  # bytes that one byte of gzip data can become, at most (zlib, "Technical Details")
_reported: set[str] = set()


def check_packing(path: str | PathLike[str], start: bytes) -> None:
    """Raise ``ImageError`` if the first bytes show that a file is compressed and its name says it is not, or
    the reverse, or that it is a zip file."""
    name = os.path.basename(str(path))
    named, packed = name.lower().endswith(".gz"), start.startswith(GZIP)
    if packed and not named:
        raise ImageError(
            f"{path}: is compressed by gzip, unlike its name says; rename it to {name}.gz if it is NIfTI, or "
            "unpack it"
        )
    if named and not packed:
        raise ImageError(
            f"{path}: is not compressed by gzip, unlike its name says; rename it to {name[:-3]} if it is a "
            "whole file, else copy it again"
        )
    if start.startswith(ZIP):
        raise ImageError(f"{path}: is a zip file, such as numpy.savez writes; save one array by numpy.save")


def nifti_kind(path: str | PathLike[str], start: bytes, held: int, packed: bool) -> tuple[Any, Any, int]:
    """Check the header of a NIfTI file.

    Args:
        path: the file, for errors.
        start: its first 540 bytes or more, unpacked.
        held: bytes of the file, packed as it is.
        packed: whether it is compressed by gzip.

    Returns:
        nibabel's class of image, the header as it stands in the file, and the bytes up to the last voxel.

    Raises:
        ImageError: if it is no such header, or has sizes that cannot be, of more voxels than there are data.
    """
    import nibabel

    kinds = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}
    found = [
        kinds[size]
        for size in (int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big"))
        if size in kinds
    ]
    if not found or len(start) < found[0].header_class.template_dtype.itemsize:
        raise ImageError(f"{path}: has no NIfTI header; replace it, or remove it")
    kind: Any = found[0]
    header = kind.header_class(start[: kind.header_class.template_dtype.itemsize], check=False)
    sizes = header["dim"].tolist()
    shape = tuple(sizes[1 : sizes[0] + 1]) if 0 < sizes[0] < len(sizes) else (0,)
    if min(shape) < 1:
        raise ImageError(f"{path}: the header has the sizes {sizes}, so no voxels; replace it, or remove it")
    begin, least = float(header["vox_offset"]), kind.header_class.template_dtype.itemsize
    if not least <= begin < 1 << 62:  # nibabel reads the header as voxels
        raise ImageError(
            f"{path}: the header has vox_offset {begin:g}, where no voxels can begin (they follow the "
            f"{least} bytes of the header); repair it, or export the scan again"
        )
    if int(header["datatype"]) not in nibabel.nifti1.data_type_codes.dtype:
        raise ImageError(
            f"{path}: the header has the unknown datatype {header['datatype']}; replace or remove it"
        )
    if begin > MOST_BEFORE:
        raise ImageError(
            f"{path}: the header has vox_offset {begin:g}; more than {MOST_BEFORE} bytes before the voxels "
            "are not read; export the scan again without extensions of its header"
        )
    offset, size = int(header["vox_offset"]), header.get_data_dtype().itemsize
    check_claim(path, shape, size, held if packed else held - offset, _DEFLATE if packed else 1)
    if not header["sform_code"]:
        zooms = [float(zoom) for zoom, many in zip(header["pixdim"][1:4], shape, strict=False) if many > 1]
        if not all(math.isfinite(zoom) and zoom > 0 for zoom in zooms):
            raise ImageError(
                f"{path}: pixdim, the sizes of voxels, are {' x '.join(f'{zoom:g}' for zoom in zooms)}, and "
                "no sform places the voxels without them; repair the header, or remove the scan"
            )
    return kind, header, offset + math.prod(shape) * size


def check_placed(path: str | PathLike[str], image: Any) -> None:
    """Check that an image says which ends of its axes are right, front and head; warn if it only may.

    Raises:
        ImageError: if its affine is not finite, or singular.
    """
    axes = image.affine[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(image.affine).all() or not lengths.all() or abs(np.linalg.det(axes / lengths)) < 1e-6:
        raise ImageError(
            f"{path}: the affine, which says where the axes point, is singular or not finite; export the "
            "scan again, or repair its header"
        )
    if (
        not (int(image.header["sform_code"]) or int(image.header["qform_code"]))
        and str(path) not in _reported
    ):
        _reported.add(str(path))
        logger.warning(
            "%s: the header has neither sform nor qform, so which side is left is not known; taken as LAS",
            path,
        )


def array_shape(path: str | PathLike[str], file: Any, held: int) -> tuple[int, ...]:
    """Check the header of a ``.npy`` file, and leave the file at its start.

    Args:
        path: the file, for errors.
        file: it, opened.
        held: its bytes.

    Raises:
        ImageError: if it holds Python objects, or tells of more voxels than there are data.
        ValueError: if it has no such header.
    """
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ImageError(
            f"{path}: holds Python objects, which could run code when they are read; save the scan as numbers"
        )
    if min(shape, default=1) < 0:
        raise ImageError(f"{path}: the header has the sizes {list(shape)}; replace it, or remove it")
    check_claim(path, shape, dtype.itemsize, held - file.tell())
    file.seek(0, io.SEEK_SET)
    return shape


def check_claim(
    path: str | PathLike[str], shape: tuple[int, ...], size: int, held: int, ratio: int = 1
) -> None:
    """Raise ``ImageError`` if a header tells of more voxels than there are data, or than are read.

    Args:
        path: the file.
        shape: sizes of all axes.
        size: bytes of a voxel.
        held: bytes that there are of the voxels.
        ratio: bytes that each of those can become; 1 if they are not compressed.
    """
    voxels, shown = math.prod(shape), " x ".join(map(str, shape))
    if voxels * size > held * ratio:
        most = f"{held} bytes" if ratio == 1 else f"{held} bytes of compressed data, too few for them"
        raise ImageError(
            f"{path}: the header tells of {shown} voxels of {size} bytes each, but there are {most}: the "
            "file is cut off, or its header is damaged; replace or remove it"
        )
    try:
        check_voxels(shape)
    except LimitError as error:
        raise ImageError(f"{path}: {error}") from error
