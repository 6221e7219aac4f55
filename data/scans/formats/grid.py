"""Where the voxels of a scan lie in the world.

Letters in shapes: n spatial axes of a scan (2 or 3), N points.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxels of a scan as points in the world.

    The world is that of NIfTI: x points to the patient's right, y to the front, z to the head (RAS+), in
    millimetres. Nothing is asked of the affine but that it can be inverted: axes may be exchanged, flipped,
    oblique to the world and oblique to each other (as with a tilted gantry).

    Args:
        shape: 2 or 3 numbers of voxels, 1 or more each. A grid of two axes is that of a picture.
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


def difference(a: Grid, b: Grid, tolerance: float = 1e-2) -> str | None:
    """Say how two grids differ, or return None if they are alike.

    Args:
        a: a grid.
        b: another one.
        tolerance: millimetres by which the corners may lie apart.
    """
    if a.shape != b.shape:
        return f"shape {'x'.join(map(str, a.shape))} and {'x'.join(map(str, b.shape))}"
    corners = np.array(list(itertools.product(*((0, size - 1) for size in a.shape))))  # [2 ** n, n]
    apart = float(np.linalg.norm(a.world(corners) - b.world(corners), axis=1).max())
    if apart > tolerance:
        return f"corners lie up to {apart:.3g} mm apart"
    # Along an axis of one voxel the corners are the same whatever the spacing.
    turned = float(np.abs(a.affine[:3, :3] - b.affine[:3, :3]).max())
    return f"voxels differ by up to {turned:.3g} mm" if turned > tolerance else None
