"""What every reader of scans shares: the scan itself, its errors, and files that are complete or not there.

Letters in shapes: C channels, *S the spatial axes of a scan (2 or 3).
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...shared.io import ImageError
from .grid import Grid, affine_problem

logger = logging.getLogger("trunkline")
_reported: set[str] = set()

PathLike = str | os.PathLike[str]


class ScanError(ImageError):
    """A scan is missing or damaged, does not lie in the world as a scan must, or cannot be written."""


@dataclass
class Scan:
    """A scan and where it lies.

    Attributes:
        voxels: ``[C, *S]`` float32, finite, contiguous; the axes are those of the grid.
        grid: where the voxels lie.
        dtype: how the file stores them, before any scaling.
    """

    voxels: np.ndarray
    grid: Grid
    dtype: np.dtype


@dataclass
class Stored:
    """What a reader of one format returns.

    Attributes:
        grid: where the voxels lie.
        channels: C.
        dtype: how the file stores them.
        values: ``[C, *S]``, scaled as the file says; None if only the header was read.
    """

    grid: Grid
    channels: int
    dtype: np.dtype
    values: np.ndarray | None = None


def make_grid(path: PathLike, shape: tuple[int, ...], affine: np.ndarray) -> Grid:
    """Return the grid of a file, or say what is wrong with its affine."""
    affine = np.asarray(affine, dtype=np.float64)
    if min(shape) < 1:
        raise ScanError(f"{path}: has shape {list(shape)} and so no voxel; export it again")
    if problem := affine_problem(affine):
        raise ScanError(
            f"{path}: the affine, which places voxels in the world, {problem}; export the scan again, or "
            "repair its header (spacing, directions and origin)"
        )
    return Grid(shape, affine)


def warn_unplaced(path: PathLike, grid: Grid, lacking: str) -> None:
    """Say, once per file and process, that a file tells voxel sizes but not where the voxels lie."""
    import nibabel

    if str(path) in _reported:
        return
    _reported.add(str(path))
    logger.warning(
        "%s: the header has voxel sizes (%s mm) but %s, so which side is left is not known; taken as %s",
        path,
        " x ".join(f"{size:g}" for size in grid.spacing),
        lacking,
        "".join(nibabel.aff2axcodes(grid.affine)),
    )


def as_floats(path: PathLike, values: np.ndarray) -> np.ndarray:
    """Return float32 voxels in C order, all of them finite."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is reported
        voxels = np.ascontiguousarray(values, dtype=np.float32)
    # A sum is finite only if all its terms are, and needs no second array; float64 cannot overflow here.
    if not np.isfinite(voxels.sum(dtype=np.float64)):
        bad = int((~np.isfinite(voxels)).sum())
        raise ScanError(
            f"{path}: {bad} of {voxels.size} voxels are infinite or not a number; replace them by the value "
            "of the background, or remove the scan"
        )
    return voxels


@contextmanager
def decoding(path: PathLike) -> Iterator[None]:
    """Turn whatever a library raises about a file into a ``ScanError`` that names it."""
    try:
        yield
    except (ScanError, MemoryError):
        raise
    except ImageError as error:  # names the file and the remedy already
        raise ScanError(str(error)) from error
    except Exception as error:  # libraries raise OSError, ValueError, EOFError, RuntimeError and their own
        raise ScanError(f"{path}: {_reason(path, error)}") from error


def check_file(path: PathLike) -> None:
    """Raise ``ScanError`` unless there is a file that may be read and is not empty."""
    path = Path(path)
    try:
        if path.is_dir():
            raise ScanError(f"{path}: is a folder without DICOM slices; name a file, or the series' folder")
        with open(path, "rb") as file:
            if not file.read(1):
                raise ScanError(f"{path}: the file is empty; copy or export it again")
    except OSError as error:
        raise ScanError(f"{path}: {_reason(path, error)}") from error


def _reason(path: PathLike, error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and not Path(path).exists():
        return "no such file; check the folder and the file name"
    if isinstance(error, PermissionError):
        return "may not be read; check the permissions of the file"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else "no reason given"  # ITK ends with what matters
    return (
        f"damaged, or not of the format that its name says ({type(error).__name__}: {text}); "
        "copy or export it again"
    )


@contextmanager
def replacing(path: PathLike) -> Iterator[Path]:
    """Yield a path in a temporary folder; what was written there takes its place when all went well.

    The folder lies beside ``path``, which gets its file in one step; of a format of several files (``.mhd``
    and ``.raw``) the one that names the others comes last.

    Raises:
        ScanError: if anything failed; an older file of that name is as it was then.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            yield folder / path.name
            for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
                with open(file, "rb+") as written:
                    os.fsync(written.fileno())
                os.replace(file, path.parent / file.name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except (ScanError, MemoryError):
        raise
    except Exception as error:  # as in decoding
        raise ScanError(f"{path}: cannot be written ({type(error).__name__}: {error})") from error
