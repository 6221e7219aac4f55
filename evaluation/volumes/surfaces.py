"""Distances between the surfaces of two masks, in mm.

Letters in shapes: S spatial axes of one scan (2 or 3), n their number, N voxels of a surface.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PERCENTILE = 95
# Voxel sizes come from headers in float32: on a 1 mm grid a neighbour may lie at 1.0000001 mm.
ROUNDING = 1e-5
# Cosine of the angle between two axes up to which they are at right angles: headers hold rounded directions.
UPRIGHT = 1e-4


class SurfaceDistances(NamedTuple):
    """How far each voxel of one surface lies from the other surface.

    Attributes:
        predicted: ``[N]`` float32 mm, from the surface of the prediction to that of the truth.
        truth: ``[N']`` float32 mm, the other way.
    """

    predicted: np.ndarray
    truth: np.ndarray

    def hausdorff(self, percentile: float = PERCENTILE) -> float:
        """Return the larger of the two percentiles (in percent, interpolated linearly), in mm."""
        return float(max(np.percentile(distances, percentile) for distances in self))

    def dice(self, tolerance: float) -> float:
        """Return the share of all surface voxels that lie at most ``tolerance`` mm from the other surface."""
        near = sum(int((distances <= tolerance * (1 + ROUNDING)).sum()) for distances in self)
        return near / sum(map(len, self))


def sheared(axes: np.ndarray) -> bool:
    """Whether voxels are no boxes: two of the axes ``[3, n]`` (mm) are not at right angles, as where a gantry
    is tilted."""
    directions = axes / np.linalg.norm(axes, axis=0)
    return bool(np.abs(directions.T @ directions - np.eye(axes.shape[1])).max() > UPRIGHT)


def longest_diagonal(shape: Sequence[int], sizes: Sequence[float], axes: np.ndarray | None) -> float:
    """Return the largest distance between two corners of a scan, mm.

    Args:
        shape: n numbers of voxels.
        sizes: n voxel sizes in mm.
        axes: as for :func:`surface_distances`.
    """
    if axes is None:
        return math.hypot(*(size * width for size, width in zip(shape, sizes, strict=True)))
    signs = np.array(list(itertools.product((1, -1), repeat=len(shape))))  # [2 ** n, n]
    return float(np.linalg.norm((signs * np.array(shape)) @ axes.T, axis=1).max())


def surface_distances(
    predicted: np.ndarray, truth: np.ndarray, spacing: Sequence[float], axes: np.ndarray | None = None
) -> SurfaceDistances:
    """Find the distances between the surfaces of two masks.

    The surface of a mask is its voxels of which a neighbour across a face is outside. What lies beyond the
    edge of the scan is outside. This and the distances are MONAI's (``get_mask_edges`` and
    ``get_surface_distance``). So are the metrics from them (``compute_hausdorff_distance`` and
    ``compute_surface_dice`` without sub-voxels). Two things differ here:

    - Both masks are cut to the box around the two first, which changes nothing but time and memory.
    - An axis along which the scan has one voxel is left out. Otherwise every voxel of a scan of one slice
      were surface, and a wrong outline within two good areas would hardly count.

    MONAI knows only boxes as voxels. With ``axes`` distances are those of the voxels' places in the world.

    Args:
        predicted: ``[*S]`` bool, with at least one voxel.
        truth: ``[*S]`` bool, with at least one voxel.
        spacing: n voxel sizes in mm.
        axes: ``[3, n]`` mm, the step in the world from a voxel to the next along each axis, if these are not
            at right angles (see :func:`sheared`); None if they are.

    Raises:
        ValueError: if a mask is empty.
    """
    # MONAI takes a second to import, which a program that never evaluates a scan should not pay.
    from monai.metrics.utils import get_mask_edges, get_surface_distance

    if not (predicted.any() and truth.any()):
        raise ValueError("a mask without a voxel has no surface to measure distances from")
    thick = [axis for axis, size in enumerate(predicted.shape) if size > 1] or [0]
    index = tuple(slice(None) if axis in thick else 0 for axis in range(predicted.ndim))
    predicted, truth = predicted[index], truth[index]
    box = _joint_box(predicted, truth)
    edges = get_mask_edges(predicted[box], truth[box], crop=False)
    mine, other = (np.asarray(edge, dtype=bool) for edge in edges)
    if axes is not None:
        return _in_the_world(mine, other, axes[:, thick])
    sizes = [float(spacing[axis]) for axis in thick]
    there = get_surface_distance(mine, other, spacing=sizes)
    back = get_surface_distance(other, mine, spacing=sizes)
    return SurfaceDistances(np.asarray(there, np.float32), np.asarray(back, np.float32))


def _in_the_world(mine: np.ndarray, other: np.ndarray, axes: np.ndarray) -> SurfaceDistances:
    """Find the distances between the voxels ``[*S]`` of two surfaces, whose places ``axes`` say."""
    from scipy.spatial import KDTree

    one, two = (np.argwhere(edge) @ axes.T for edge in (mine, other))  # [N, n] @ [n, 3] -> [N, 3]
    there, back = KDTree(two).query(one)[0], KDTree(one).query(two)[0]
    return SurfaceDistances(there.astype(np.float32), back.astype(np.float32))


def _joint_box(one: np.ndarray, other: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box with every voxel of both masks; one of them must have some."""
    box: list[slice] = []
    for axis in range(one.ndim):
        # What is known of earlier axes makes the later ones cheaper.
        inner = (*box, *(slice(None) for _ in range(one.ndim - len(box))))
        rest = tuple(number for number in range(one.ndim) if number != axis)
        filled = np.flatnonzero(one[inner].any(axis=rest) | other[inner].any(axis=rest))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)
