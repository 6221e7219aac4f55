"""What every reader of scans shares: scans and their grids, errors, files that are complete or absent.

Letters in shapes: C channels, *S the spatial axes of a scan, n their number (2 or 3), N points.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...shared.io import ImageError

logger = logging.getLogger("trunkline")
# Up to which grids are one: voxels at the corners, per step, and as a share of the size of a single voxel.
_SAME_CORNERS, _SAME_STEPS, _SAME_THICKNESS = 0.1, 1e-4, 0.1
_reported: set[str] = set()

PathLike = str | os.PathLike[str]


class ScanError(ImageError):
    """A scan is missing or damaged, does not lie in the world as a scan must, or cannot be written."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxels of a scan as points in the world.

    The world is that of NIfTI: x points to the patient's right, y to the front, z to the head (RAS+), in
    millimetres. Nothing is asked of the affine but that it can be inverted: axes may be exchanged, flipped,
    oblique to the world and oblique to each other (as with a tilted gantry).

    Args:
        shape: 2 or 3 numbers of voxels, 1 or more each. A grid of two axes is that of a 2D image.
        affine: ``[4, 4]`` float64 from voxel indices ``(i, j, k, 1)`` to millimetres; the third axis of a
            grid of two is not used.

    Raises:
        ValueError: if the shape is none, or the affine is not finite or cannot be inverted.
    """

    shape: tuple[int, ...]
    affine: np.ndarray

    def __post_init__(self) -> None:
        shape = tuple(int(size) for size in self.shape)
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise ValueError(f"a grid has 2 or 3 sizes of 1 or more, got {list(shape)}")
        affine = np.array(self.affine, dtype=np.float64)
        if problem := affine_problem(affine):
            raise ValueError(f"the affine {problem}")
        affine.flags.writeable = False
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres between neighbours along each of the n axes."""
        lengths = np.linalg.norm(self.affine[:3, : len(self.shape)], axis=0)
        return tuple(float(length) for length in lengths)

    @property
    def voxel(self) -> float:
        """Cubic millimetres of a voxel, or square millimetres of a pixel.

        Less than the product of the spacings where axes are oblique to each other.
        """
        axes = self.affine[:3, : len(self.shape)]  # [3, n]
        return math.sqrt(np.linalg.det(axes.T @ axes))

    def world(self, index: np.ndarray) -> np.ndarray:
        """Return the places of voxel indices, which may be fractions.

        Args:
            index: ``[N, n]`` indices.

        Returns:
            ``[N, 3]`` float64 millimetres, RAS+.
        """
        axes = self.affine[:3, : len(self.shape)]  # [3, n]
        return np.asarray(index, dtype=np.float64) @ axes.T + self.affine[:3, 3]


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
        step: by how much values differ whose stored integers differ by 1; 0 if the file does not scale them.
        scaled_by: the fields that scale values, with their numbers; empty if there are none.
    """

    grid: Grid
    channels: int
    dtype: np.dtype
    values: np.ndarray | None = None
    step: float = 0.0
    scaled_by: str = ""


def affine_problem(affine: np.ndarray) -> str | None:
    """Say what is wrong with an affine ("is singular ..."), or return None."""
    if affine.shape != (4, 4):
        return f"has shape {list(affine.shape)}, not 4 x 4"
    if not np.isfinite(affine).all():
        return "holds numbers that are not finite"
    if not np.array_equal(affine[3], (0, 0, 0, 1)):
        return f"has the last row {affine[3].tolist()}, not 0 0 0 1"
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not lengths.all():
        return f"is singular: voxels measure {' x '.join(f'{length:g}' for length in lengths)} mm"
    if abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
        return "is singular: the three axes lie in one plane"
    return None


def difference(a: Grid, b: Grid, tolerance: float | None = None) -> str | None:
    """Say how two grids differ, or return None if they are alike.

    Headers hold rounded numbers, so grids that differ by a tenth of a voxel at their corners, or by 1e-4 of a
    voxel from each voxel to the next, are one grid.

    Args:
        a: a grid.
        b: another one.
        tolerance: millimetres by which the corners may lie apart instead, however large the voxels are.
    """
    if a.shape != b.shape:
        return f"shape {'x'.join(map(str, a.shape))} and {'x'.join(map(str, b.shape))}"
    corners = np.array(list(itertools.product(*((0, size - 1) for size in a.shape))))  # [2 ** n, n]
    moved = b.world(corners) - a.world(corners)  # [2 ** n, 3] mm
    apart = float(np.linalg.norm(moved, axis=1).max())
    voxels = float(np.abs(moved @ np.linalg.inv(a.affine[:3, :3]).T).max())
    most = max(_SAME_CORNERS, _SAME_STEPS * max(a.shape))
    if voxels > most if tolerance is None else apart > tolerance:
        return f"corners lie up to {apart:.3g} mm apart"
    # Along an axis of one voxel the corners are the same whatever the spacing.
    turned = np.abs(a.affine[:3, :3] - b.affine[:3, :3]).max(axis=0)  # [3] mm
    same = _SAME_THICKNESS * np.array([*a.spacing, *[np.inf] * (3 - len(a.shape))])
    different = turned > (same if tolerance is None else tolerance)
    return f"voxels differ by up to {turned.max():.3g} mm" if different.any() else None


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


def warn_once(path: PathLike, text: str) -> None:
    """Log a warning about a file or folder, once per process."""
    message = f"{path}: {text}"
    if message not in _reported:
        _reported.add(message)
        logger.warning("%s", message)


def warn_unplaced(path: PathLike, grid: Grid, lacking: str) -> None:
    """Say, once per file and process, that a file tells voxel sizes but not where the voxels lie."""
    import nibabel

    sizes = " x ".join(f"{size:g}" for size in grid.spacing)
    sides = "".join(nibabel.aff2axcodes(grid.affine))
    warn_once(
        path,
        f"the header has voxel sizes ({sizes} mm) but {lacking}, so which side is left is not known; taken "
        f"as {sides}",
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
        raise failure(path, error) from error


def failure(path: PathLike, error: Exception) -> ScanError:
    """Return the error that names a file and says what a library or the system raised about it."""
    return ScanError(f"{path}: {_reason(path, error)}")


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

    The folder lies next to ``path``, which gets its file in one step; of a format of several files (``.mhd``
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
