"""Training patches: which are drawn, and where they lie in prepared scans.

Letters in shapes: C channels, S spatial sizes of a prepared scan, P of a patch, n their number (2 or 3), N
voxels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from ...constants import IGNORE_INDEX
from ..shared.loading import Part, RequestSampler
from .prepare.cache import PreparedCases

logger = logging.getLogger("trunkline")

_SAME_SPACING = 0.01  # relative: spacings that differ by rounding are equal


class PatchRequest(NamedTuple):
    """What the sampler asks of the dataset.

    Attributes:
        index: position of the case.
        foreground: whether the patch shall be centred on a voxel that is not background.
        seed: fixes where the patch lies and its augmentation, whichever worker serves it.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index
    foreground: bool
    seed: int


class PatchSampler(RequestSampler):
    """Yields batches of requests: a fixed number of batches an epoch, of cases drawn uniformly.

    An epoch is a number of steps, as in nnU-Net (Isensee et al., Nature Methods 2021), and not a pass through
    the cases. All depends only on ``seed`` and the epoch. Every rank gets other patches, and all together
    see what one sees whose batches are as large as theirs together. The share ``foreground`` of all patches
    is kept exactly, spread evenly over the epoch. An epoch that goes on with steps of another size keeps its
    number of steps, and draws what is left of them anew.

    Args:
        count: number of cases, at least 1.
        batch_size: patches per batch and rank.
        steps: batches per rank and epoch.
        foreground: share of the patches, 0 to 1.
        seed: fixes everything random.
        rank: which of the ranks this is.
        world_size: number of ranks.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        steps: int,
        foreground: float,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        super().__init__(cast(Dataset, range(count)), world_size, rank, shuffle=True, seed=seed)
        self.count = count
        self.batch_size = batch_size
        self.steps = steps
        self.foreground = foreground

    def __len__(self) -> int:
        return self.steps

    def left(self) -> int:
        return self.steps - sum(batches for batches, _ in self._done[1])

    def batches(self, done: Sequence[Part]) -> Iterator[list[PatchRequest]]:
        other = [images for _, images in done if images != self.images_per_step]
        rng = np.random.default_rng([self.seed, self.epoch, *other])
        step = self.images_per_step
        total = self.steps * step
        cases = rng.integers(self.count, size=total)
        seeds = rng.integers(2**63, size=total)
        shares = np.floor(np.arange(total + 1) * self.foreground + 1e-9)
        wanted = np.diff(shares) > 0  # [total]
        # A rank's patches follow each other, so that all ranks get their share of the foreground.
        first = sum(batches for batches, _ in done) * step
        for start in range(first + self.rank * self.batch_size, total, step):
            mine = slice(start, start + self.batch_size)
            rows = zip(cases[mine].tolist(), wanted[mine].tolist(), seeds[mine].tolist(), strict=True)
            yield [PatchRequest(*row) for row in rows]


def check_patch(patch: Sequence[int] | None, slice_axis: int | None) -> None:
    """Raise ValueError if the size of patches, or the axis of slices, makes no sense."""
    if patch is None:
        if slice_axis is not None:
            raise ValueError("data.slice_axis has no effect without data.patch; give patches of 2 numbers")
        return
    if len(patch) not in (2, 3) or any(length < 1 for length in patch):
        raise ValueError(f"data.patch is {list(patch)}; it is 2 or 3 numbers of voxels, each at least 1")
    if slice_axis is not None and len(patch) == 3:
        raise ValueError(f"data.slice_axis is {slice_axis}, but data.patch {list(patch)} is no slice")
    if slice_axis not in (None, 0, 1, 2):
        raise ValueError(f"data.slice_axis is {slice_axis}; it is an axis of prepared scans, 0, 1 or 2")


def fit_patch(cases: PreparedCases, patch: Sequence[int], slice_axis: int | None) -> int | None:
    """Find the axis that patches are slices across, and log how many scans are smaller than the patch.

    Args:
        cases: of training.
        patch: 2 or 3 sizes in voxels.
        slice_axis: as wanted; None for the axis of the coarsest spacing that scans are
            resampled to, else of the coarsest median spacing; the last if equal.

    Returns:
        The axis if patches have two axes and scans three, else None.

    Raises:
        ValueError: if scans have fewer axes than the patch, or none for slices.
    """
    shown = tqdm(range(len(cases)), "measuring scans", unit="case", disable=cases.cache != "none")
    places = [cases[index].placement for index in shown]
    axes = len(places[0].shape)
    if axes < len(patch) or (axes == 2 and slice_axis is not None):
        chosen = "" if slice_axis is None else f" and data.slice_axis {slice_axis}"
        raise ValueError(
            f"data.patch is {list(patch)}{chosen}, but {cases.cases[0].images[0]} has 2 axes; give a patch "
            "of 2 numbers and no slice_axis"
        )
    if len(patch) < axes and slice_axis is None:
        # After resampling spacings differ by rounding to whole voxels, which must not decide.
        spacing = cases.how.spacing or np.median([place.spacing for place in places], axis=0).tolist()
        slice_axis = coarsest_axis(spacing)
        text = " x ".join(f"{length:.3g}" for length in spacing)
        logger.info("slices lie across axis %d of prepared scans (spacing %s mm)", slice_axis, text)
    size = extent(patch, slice_axis)
    small = sum(any(s < p for s, p in zip(place.shape, size, strict=True)) for place in places)
    if small:
        logger.warning(
            "%d of %d training scans are smaller than the patch of %s voxels: they are padded, with voxels "
            "that are ignored", small, len(places), "x".join(map(str, size)),
        )  # fmt: skip
    return slice_axis


def extent(patch: Sequence[int], slice_axis: int | None) -> tuple[int, ...]:
    """Return the size of a patch in the scan: one voxel along the axis that it is a slice of."""
    if slice_axis is None:
        return tuple(patch)
    return (*patch[:slice_axis], 1, *patch[slice_axis:])


def coarsest_axis(spacing: Sequence[float]) -> int:
    """Return the axis of the coarsest spacing, the last one of those that are equal (to 1 %)."""
    coarse = max(spacing) * (1 - _SAME_SPACING)
    return max(axis for axis, length in enumerate(spacing) if length >= coarse)


def foreground_voxel(locations: Mapping[int, np.ndarray], rng: np.random.Generator) -> np.ndarray | None:
    """Draw a class other than the background (label 0), then one of its voxels.

    Args:
        locations: label to ``[N, n]`` voxel indices.
        rng: for the draw.

    Returns:
        ``[n]`` indices, or None if there is only background.
    """
    labels = sorted(k for k, found in locations.items() if k not in (0, IGNORE_INDEX) and len(found))
    if not labels:
        return None
    found = locations[labels[rng.integers(len(labels))]]
    return np.asarray(found[rng.integers(len(found))])


def patch_start(
    shape: Sequence[int], size: Sequence[int], rng: np.random.Generator, centre: np.ndarray | None = None
) -> tuple[int, ...]:
    """Return the first voxel of a patch along each axis; negative where the scan is smaller than the patch.

    Args:
        shape: of the scan.
        size: of the patch.
        rng: for the draw.
        centre: voxel to be in the middle of the patch, as far as it then lies inside the scan; None for
            anywhere.
    """
    start = []
    for axis, (whole, part) in enumerate(zip(shape, size, strict=True)):
        room = whole - part
        if room <= 0:
            start.append(-(-room // 2))
        elif centre is None:
            start.append(int(rng.integers(room + 1)))
        else:
            start.append(min(max(int(centre[axis]) - part // 2, 0), room))
    return tuple(start)


def cut(array: np.ndarray, start: Sequence[int], size: Sequence[int], fill: float) -> np.ndarray:
    """Copy a window of the last axes; of a memory-mapped array nothing else is read.

    Args:
        array: ``[..., *S]``.
        start: first voxel of the window along each axis; may be negative.
        size: of the window.
        fill: for voxels outside the array.

    Returns:
        ``[..., *size]`` of the same type.
    """
    shape = array.shape[-len(size) :]
    low = [max(0, first) for first in start]
    stop = [min(whole, first + length) for whole, first, length in zip(shape, start, size, strict=True)]
    high = [max(a, b) for a, b in zip(low, stop, strict=True)]
    place: list[Any] = list(map(slice, low, high))
    inside = np.asarray(array[(..., *place)])
    if inside.shape[-len(size) :] == tuple(size):
        return np.array(inside, order="C")
    lead = array.shape[: array.ndim - len(size)]
    out = np.full((*lead, *size), fill, dtype=array.dtype)
    where: list[Any] = [slice(a - first, b - first) for a, b, first in zip(low, high, start, strict=True)]
    out[(..., *where)] = inside
    return out
