"""Distances between the surfaces of two masks, in mm.

Letters in shapes: S spatial axes of one scan (2 or 3), n their number, N voxels of a surface.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PERCENTILE = 95
# Voxel sizes come from headers in float32: on a 1 mm grid a neighbour may lie at 1.0000001 mm.
ROUNDING = 1e-5


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


def surface_distances(predicted: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> SurfaceDistances:
    """Find the distances between the surfaces of two masks.

    The surface of a mask is its voxels of which a neighbour across a face is outside. What lies beyond the
    edge of the scan is outside. This and the distances are MONAI's (``get_mask_edges`` and
    ``get_surface_distance``). So are the metrics from them (``compute_hausdorff_distance`` and
    ``compute_surface_dice`` without sub-voxels). Two things differ here:

    - Both masks are cut to the box around the two first, which changes nothing but time and memory.
    - An axis along which the scan has one voxel is left out. Otherwise every voxel of a scan of one slice
      were surface, and a wrong outline within two good areas would hardly count.

    Args:
        predicted: ``[*S]`` bool, with at least one voxel.
        truth: ``[*S]`` bool, with at least one voxel.
        spacing: n voxel sizes in mm.

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
    sizes = [float(spacing[axis]) for axis in thick]
    there = get_surface_distance(mine, other, spacing=sizes)
    back = get_surface_distance(other, mine, spacing=sizes)
    return SurfaceDistances(np.asarray(there, np.float32), np.asarray(back, np.float32))


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
