"""Spacing, patches and strides of a network for scans, by the rules of nnU-Net.

Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
Nature Methods 2021, and Isensee et al., "nnU-Net revisited", 2024, whose residual encoders these are.

Letters in shapes: N cases, n spatial axes (2 or 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Axes = tuple[int, ...]

COARSE = 3.0  # an axis is coarse if its spacing is 3 times the others', and its size 3 times less
FIELD_OF_VIEW = {2: 2048, 3: 256}  # voxels per axis of the first patch, were the spacing isotropic
LEAST_MAP = 4  # voxels of the coarsest maps along an axis
BLOCKS = (1, 3, 4, 6)  # residual blocks of the first stages; further ones have 6
FIRST_WIDTH = 32
MOST_WIDTH = {2: 512, 3: 320}
FITTING_BATCH = {2: 12, 3: 2}  # patches that have to fit before the batch is raised
LEAST_BATCH = 2
MOST_SHARE = 0.05  # of the dataset's voxels in a batch


@dataclass(frozen=True)
class Stages:
    """The stages of an encoder, the first at full resolution.

    Attributes:
        strides: per stage, per axis 1 or 2.
        kernels: per stage, per axis 1 or 3.
    """

    strides: tuple[Axes, ...]
    kernels: tuple[Axes, ...]

    @property
    def steps(self) -> Axes:
        """How often each axis is halved."""
        return tuple(sum(stride == 2 for stride in axis) for axis in zip(*self.strides, strict=True))

    @property
    def divisor(self) -> Axes:
        """What the sizes of a patch have to be multiples of."""
        return tuple(2**steps for steps in self.steps)

    @property
    def widths(self) -> Axes:
        """Channels of each stage."""
        most = MOST_WIDTH[len(self.strides[0])]
        return tuple(min(FIRST_WIDTH * 2**index, most) for index in range(len(self.strides)))

    @property
    def blocks(self) -> Axes:
        """Residual blocks of each stage."""
        return tuple(BLOCKS[min(index, len(BLOCKS) - 1)] for index in range(len(self.strides)))


def anisotropic_axis(spacing: Sequence[float], shape: Sequence[float]) -> int | None:
    """Return the axis that is coarse, both in its spacing and in its size, or None."""
    axis = int(np.argmax(spacing))
    others = [other for other in range(len(spacing)) if other != axis]
    in_mm = all(spacing[axis] > COARSE * spacing[other] for other in others)
    in_voxels = all(shape[axis] * COARSE < shape[other] for other in others)
    return axis if in_mm and in_voxels else None


def target_spacing(spacings: np.ndarray, shapes: np.ndarray) -> tuple[tuple[float, ...], int | None]:
    """Return the spacing to resample to, and the axis that is coarse, or None.

    The median of each axis. Along a coarse axis the median would blur the finer half of the scans, so the
    10th percentile is taken, but nothing finer than the next coarsest axis.

    Args:
        spacings: ``[N, n]`` mm.
        shapes: ``[N, n]`` voxels.
    """
    spacing = np.median(spacings, axis=0)
    axis = anisotropic_axis(spacing, np.median(shapes, axis=0))
    if axis is not None:
        spacing[axis] = max(np.percentile(spacings[:, axis], 10), *np.delete(spacing, axis))
    return tuple(rounded(value) for value in spacing), axis


def rounded(value: float, digits: int = 6) -> float:
    """Return a number with this number of significant digits: headers hold 0.699999988 for 0.7."""
    return float(f"{value:.{digits}g}")


def median_shape(shapes: np.ndarray, spacings: np.ndarray, spacing: Sequence[float]) -> Axes:
    """Return the median size per axis of scans ``[N, n]`` once they are resampled; at least 1."""
    resampled = np.maximum(1, np.round(shapes * spacings / np.asarray(spacing)))
    return tuple(int(round(size)) for size in np.median(resampled, axis=0))


def first_patch(spacing: Sequence[float], median: Sequence[int]) -> Axes:
    """Return the patch to begin with: the same length in mm along each axis, within the median scan.

    Its volume is 256 x 256 x 256 voxels, or 2048 x 2048 pixels. The two longest axes have at least 8 voxels,
    so that there is something to halve; what a scan lacks is padded.
    """
    count = len(spacing)
    side = (FIELD_OF_VIEW[count] ** count * math.prod(spacing)) ** (1 / count)  # mm
    patch = [min(round(side / mm), size) for mm, size in zip(spacing, median, strict=True)]
    for axis in sorted(range(count), key=lambda axis: -patch[axis])[:2]:
        patch[axis] = max(patch[axis], 2 * LEAST_MAP)
    return tuple(max(1, size) for size in patch)


def stages_of(spacing: Sequence[float], patch: Sequence[int]) -> Stages:
    """Halve the axes until nothing is left to halve.

    In each step those axes whose maps keep 4 voxels and whose spacing is less than twice that of the finest
    of them. An axis has kernels of 3 from the stage on in which its spacing is less than twice the finest,
    and of 1 before; in the last stage of 3. Along an axis of one voxel there is nothing to see: kernels stay
    1.
    """
    size, mm = list(patch), list(spacing)
    axes = range(len(size))
    kernel = [1] * len(size)
    strides: list[Axes] = [(1,) * len(size)]
    kernels: list[Axes] = []
    while halved := _to_halve(size, mm, first=len(strides) == 1):
        kernel = [3 if mm[a] < 2 * min(mm) and patch[a] > 1 else kernel[a] for a in axes]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in axes))
        for axis in halved:
            mm[axis] *= 2
            size[axis] = -(-size[axis] // 2)
    kernels.append(tuple(3 if patch[axis] > 1 else 1 for axis in axes))
    return Stages(tuple(strides), tuple(kernels))


def _to_halve(size: Sequence[int], mm: Sequence[float], first: bool) -> list[int]:
    """Return the axes of the next step; the first always has some, as U-Nets have at least two stages."""
    large = [axis for axis in range(len(size)) if size[axis] >= 2 * LEAST_MAP]
    found = [axis for axis in large if mm[axis] < 2 * min(mm[other] for other in large)]
    if len(found) == 1 and size[found[0]] < 3 * LEAST_MAP and not first:
        return []  # as nnU-Net: a step along only one axis has to be worth it
    return found


def padded(patch: Sequence[int], divisor: Sequence[int]) -> Axes:
    """Round the sizes up to multiples."""
    return tuple(-(-size // by) * by for size, by in zip(patch, divisor, strict=True))


def widest_patch(spacing: Sequence[float], median: Sequence[int]) -> Axes:
    """Return the patch to begin with, rounded up to what its stages divide."""
    patch = first_patch(spacing, median)
    return padded(patch, stages_of(spacing, patch).divisor)


def choose_patch(
    spacing: Sequence[float], median: Sequence[int], fits: Callable[[Stages, Axes], bool]
) -> tuple[Axes, Stages] | None:
    """Return the largest patch that fits into the memory, and its stages; None if the smallest does not fit.

    The patch shrinks along the axis that is largest relative to the median scan, by what keeps it
    divisible.

    Args:
        spacing: mm per axis.
        median: size of the median scan at this spacing.
        fits: whether a network with these stages can train with this patch.
    """
    patch = widest_patch(spacing, median)
    stages = stages_of(spacing, patch)
    while not fits(stages, patch):
        least = [min(2 * LEAST_MAP, size) for size in patch]
        shrinkable = [axis for axis in range(len(patch)) if patch[axis] - stages.divisor[axis] >= least[axis]]
        if not shrinkable:
            return None
        axis = max(shrinkable, key=lambda axis: (patch[axis] / median[axis], axis))
        smaller = [
            size - by * (a == axis) for a, (size, by) in enumerate(zip(patch, stages.divisor, strict=True))
        ]
        # One step less may be enough to make do with a smaller cut.
        by = stages_of(spacing, smaller).divisor[axis]
        patch, stages = _divisible(spacing, [size - by * (a == axis) for a, size in enumerate(patch)], patch)
    return patch, stages


def _divisible(spacing: Sequence[float], wanted: Sequence[int], before: Axes) -> tuple[Axes, Stages]:
    """Round up to what the stages divide; or down, if the patch would not be smaller than before."""
    stages = stages_of(spacing, wanted)
    patch = padded(wanted, stages.divisor)
    if math.prod(patch) < math.prod(before):
        return patch, stages
    patch = tuple(wanted)
    while any(size % by for size, by in zip(patch, stages.divisor, strict=True)):
        patch = tuple(size - size % by for size, by in zip(patch, stages.divisor, strict=True))
        stages = stages_of(spacing, patch)
    return patch, stages


def most_patches(voxels: float, patch: Sequence[int]) -> int:
    """Return how many patches make up 5 % of the voxels of a dataset; at least 2."""
    return max(LEAST_BATCH, round(MOST_SHARE * voxels / math.prod(patch)))
