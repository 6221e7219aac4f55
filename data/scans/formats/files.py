"""Reads and writes scans and label volumes in any of the formats, on their own grids.

A scan is ``[C, i, j, k]`` with an affine from voxel indices to millimetres (RAS+), in every format. So the
same scan as NIfTI, NRRD, MetaImage or DICOM is the same array with the same affine. A 2D image is a scan of
two axes, ``[C, h, w]``, with pixels of 1 mm.

Letters in shapes: C channels, *S the spatial axes (i, j, k of a scan; h, w of a 2D image).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...shared.io import IMAGE_SUFFIXES
from .checks import check_file, check_packing
from .dicom import read_dicom
from .dicom_files import holds_dicom
from .ids import whole_ids
from .itk import ITK_SUFFIXES, read_itk, write_itk
from .nifti import NIFTI_SUFFIXES, read_nifti, write_nifti, write_nifti_like
from .picture import read_picture, read_picture_labels, write_picture
from .scan import (
    Grid,
    PathLike,
    Scan,
    ScanError,
    Stored,
    as_floats,
    decoding,
    difference,
    replacing,
    warn_once,
)

SCAN_SUFFIXES = (*NIFTI_SUFFIXES, *ITK_SUFFIXES)
_SUFFIXES = (*SCAN_SUFFIXES, *IMAGE_SUFFIXES)
_WRITABLE = {"b1": "u1", "f2": "f4"}  # types that files cannot hold, and what holds their values


def is_scan(path: PathLike) -> bool:
    """Whether a path is a scan or a 2D image by its name, or a folder that holds DICOM files.

    A folder, pipe or device that is named like a scan is none; a warning names pipes and devices.
    """
    if not str(path).lower().endswith(_SUFFIXES) or os.path.isdir(path):
        return holds_dicom(path)
    if os.path.exists(path) and not os.path.isfile(path):
        warn_once(path, "is a pipe, socket or device, not a file; it is left out")
        return False
    return True


def scan_stem(path: PathLike) -> str:
    """Return the name without its folder and the suffix of its format (``a.nii.gz``: ``a``)."""
    name = Path(path).name
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def _is_picture(path: PathLike) -> bool:
    return str(path).lower().endswith(IMAGE_SUFFIXES)


def prediction_suffix(like: PathLike) -> str:
    """Return the suffix of a label volume for a scan: that of its format, ``.nii.gz`` for a DICOM series."""
    if _is_picture(like):
        return ".png"
    for suffix, written in (
        (".nii", ".nii"),
        (".nrrd", ".nrrd"),
        (".nhdr", ".nrrd"),
        (".mha", ".mha"),
        (".mhd", ".mha"),
    ):
        if str(like).lower().endswith(suffix):
            return written
    return ".nii.gz"


def read_scan(path: PathLike) -> Scan:
    """Read a scan, scaled as its file says (Hounsfield units of CT).

    Args:
        path: NIfTI, NRRD, MetaImage, a 2D image, or a folder with one DICOM series. The fourth axis of NIfTI
            and the components of voxels are channels.

    Raises:
        ScanError: if the file is missing, damaged or not what its name says, a voxel is not finite, the
            affine is singular or not finite, or a series is not one whole stack of slices.
    """
    stored = _load(path, floats=True)
    return Scan(as_floats(path, cast(np.ndarray, stored.values)), stored.grid, stored.dtype)


def read_scans(paths: Sequence[PathLike]) -> Scan:
    """Read files of one case and join their channels in the order of the paths.

    Args:
        paths: one or more; all on the same grid.

    Returns:
        The scan, with the grid of the first file and the smallest type that holds those of all files.

    Raises:
        ScanError: as ``read_scan``, or if two grids differ, naming the files.
    """
    if not paths:
        raise ScanError("no file to read: a case needs at least one image")
    scans = [read_scan(path) for path in paths]
    for path, scan in zip(paths[1:], scans[1:], strict=True):
        if problem := difference(scans[0].grid, scan.grid):
            raise ScanError(
                f"{path}: does not lie on the grid of {paths[0]} ({problem}); the channels of a case must be "
                "resampled to one grid before"
            )
    if len(scans) == 1:
        return scans[0]
    voxels = np.concatenate([scan.voxels for scan in scans])
    return Scan(voxels, scans[0].grid, np.result_type(*(scan.dtype for scan in scans)))


def read_labels(path: PathLike) -> tuple[np.ndarray, Grid]:
    """Read the ids of a label volume or a label image (grey values or palette indices).

    Returns:
        ``[*S]`` uint8, uint16 or int32, the smallest that holds them, and the grid.

    Raises:
        ScanError: as ``read_scan``, or if there are several channels, or values that are no whole numbers but
            for rounding (see ``whole_ids``).
    """
    if _is_picture(path):
        check_file(path)
        with decoding(path):
            return read_picture_labels(path)
    stored = _load(path, floats=False)
    if stored.channels != 1:
        raise ScanError(
            f"{path}: has {stored.channels} channels where labels have one; write one id per voxel, also of "
            "overlapping classes (declare those as regions)"
        )
    values = cast(np.ndarray, stored.values)[0]
    return whole_ids(path, values, stored.step, stored.scaled_by), stored.grid


def read_grid(path: PathLike) -> tuple[Grid, int]:
    """Read where a scan lies and how many channels it has, only from headers where the format allows.

    Raises:
        ScanError: as ``read_scan``; damage to the voxels is not noticed.
    """
    stored = _load(path, header_only=True)
    return stored.grid, stored.channels


def write_labels(path: PathLike, ids: np.ndarray, like: PathLike, dtype: Any = None) -> None:
    """Write a label volume on the grid of a scan, whole or not at all.

    Shape and affine are the scan's own when read back: bit for bit between NIfTI files, whose sform, qform,
    codes and units are copied, and to the precision of the format otherwise (1e-5 mm). Nothing else of the
    scan's header is copied. A scan with channels has labels with three axes.

    Args:
        path: the file to write; its suffix decides the format (see ``prediction_suffix``).
        ids: ``[*S]`` whole numbers.
        like: the scan.
        dtype: the type to store, such as ``"uint8"``. None takes the scan's own if it holds all ids exactly,
            else the smallest integer type that does.

    Raises:
        ScanError: if shapes differ, the type cannot hold the ids, or the file cannot be written.
    """
    stored = _load(like, header_only=True)
    ids = np.asarray(ids)
    if ids.shape != stored.grid.shape:
        raise ScanError(
            f"{path}: labels of shape {list(ids.shape)} do not fit {like} of shape {list(stored.grid.shape)}"
        )
    ids = whole_ids(path, ids)
    values = ids.astype(_label_type(path, ids, stored.dtype, dtype))[None]
    same = {suffix for suffix in (*NIFTI_SUFFIXES, *ITK_SUFFIXES) if str(like).lower().endswith(suffix)}
    with replacing(path) as temporary:
        if same & set(NIFTI_SUFFIXES) and str(path).lower().endswith(NIFTI_SUFFIXES):
            write_nifti_like(temporary, values, like)
        else:
            _write(temporary, values, stored.grid, like if same & set(ITK_SUFFIXES) else None)


def write_scan(path: PathLike, voxels: np.ndarray, grid: Grid, dtype: Any = None) -> None:
    """Write a scan, whole or not at all.

    Args:
        path: the file to write; its suffix decides the format.
        voxels: ``[*S]`` or ``[C, *S]`` real numbers.
        grid: where they lie.
        dtype: the type to store; that of the voxels if None. Fractions are rounded for integers.

    Raises:
        ScanError: if shapes differ, the type cannot hold the values, the format holds no such scan, or the
            file cannot be written.
    """
    voxels = np.asarray(voxels)
    if voxels.ndim == len(grid.shape):
        voxels = voxels[None]  # [*S] -> [1, *S]
    if voxels.shape[1:] != grid.shape or not len(voxels):
        raise ScanError(
            f"{path}: voxels of shape {list(voxels.shape)} do not fit the grid {list(grid.shape)}"
        )
    target = np.dtype(voxels.dtype if dtype is None else dtype)
    target = np.dtype(_WRITABLE.get(target.str[1:], target))
    if target.kind in "iu":
        if voxels.dtype.kind == "f":
            voxels = np.rint(voxels)
        _check_range(path, voxels, target)
    with replacing(path) as temporary:
        _write(temporary, voxels.astype(target, copy=False), grid)


def _load(path: PathLike, header_only: bool = False, floats: bool = False) -> Stored:
    name = str(path).lower()
    if Path(path).is_dir():
        with decoding(path):
            return read_dicom(path, header_only)
    check_file(path)
    with decoding(path):
        if name.endswith(NIFTI_SUFFIXES):
            check_packing(path)
            return read_nifti(path, header_only, floats)
        if name.endswith(ITK_SUFFIXES):
            return read_itk(path, header_only)
        if _is_picture(path):
            return read_picture(path, header_only)
        known = ", ".join(_SUFFIXES)
        hint = "give the folder that holds the series" if name.endswith(".dcm") else "convert or rename it"
        raise ScanError(f"{path}: no format is known by this name ({known}, or a DICOM folder); {hint}")


def _write(path: PathLike, values: np.ndarray, grid: Grid, like: PathLike | None = None) -> None:
    name = str(path).lower()
    flat = len(grid.shape) == 2
    if not name.endswith(IMAGE_SUFFIXES if flat else SCAN_SUFFIXES):
        wanted = "an image suffix such as .png" if flat else f"one of {', '.join(SCAN_SUFFIXES)}"
        raise ScanError(
            f"{Path(path).name}: {len(grid.shape)} axes cannot be written by this name; use {wanted}"
        )
    if flat:
        write_picture(path, values)
    elif name.endswith(NIFTI_SUFFIXES):
        write_nifti(path, values, grid)
    else:
        write_itk(path, values, grid, like)


def _label_type(path: PathLike, ids: np.ndarray, stored: np.dtype, asked: Any) -> np.dtype:
    if asked is not None:
        _check_exact(path, ids, np.dtype(asked))
        return np.dtype(asked)
    if _is_picture(path) and stored not in (np.uint8, np.uint16):  # PNG holds nothing else
        return ids.dtype
    stored = np.dtype(_WRITABLE.get(stored.str[1:], stored))
    return stored if np.array_equal(_cast(ids, stored), ids) else ids.dtype


def _cast(ids: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return ids.astype(dtype)


def _check_exact(path: PathLike, ids: np.ndarray, dtype: np.dtype) -> None:
    if dtype.kind not in "iuf" or not np.array_equal(_cast(ids, dtype), ids):
        raise ScanError(
            f"{path}: {dtype} cannot hold ids from {ids.min()} to {ids.max()}; name a larger type"
        )


def _check_range(path: PathLike, values: np.ndarray, dtype: np.dtype) -> None:
    low, high = values.min(), values.max()
    if not (
        np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max
    ):  # also false of a value that is no number
        raise ScanError(f"{path}: {dtype} cannot hold values from {low} to {high}; name a larger type")
