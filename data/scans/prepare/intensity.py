"""Intensities of scans: windows, percentiles, z-scores, ranges.

Letters in shapes: C channels, S spatial axes of a scan, N voxels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

_CHUNK = 2**20  # voxels
_KEY = "data.preparation.intensity"


@dataclass(frozen=True)
class Intensity:
    """What happens to the intensities of one channel, or of all.

    Clipping comes first, then the scaling with statistics of the clipped voxels. A channel that is constant
    becomes 0, unless mean and std are given.

    Args:
        clip: lowest and highest value in the file's units (Hounsfield units of CT); what lies beyond is set
            to them.
        percentiles: the same, by two percentiles (0..100) of each scan.
        scale: ``zscore`` subtracts a mean and divides by a standard deviation; ``unit`` brings the clipping
            range to 0..1; ``none`` keeps the units.
        mean: for ``zscore``, such as that of a whole dataset; None takes that of each scan.
        std: the same; above 0.
        nonzero: percentiles, mean and standard deviation are those of only the voxels other than 0, and
            voxels that are 0 in the file stay 0.

    Raises:
        ValueError: if the options are out of range, contradict each other or have no effect.
    """

    clip: list[float] | None = None
    percentiles: list[float] | None = None
    scale: Literal["zscore", "unit", "none"] = "zscore"
    mean: float | None = None
    std: float | None = None
    nonzero: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        self._check_range("clip", -math.inf, math.inf)
        self._check_range("percentiles", 0, 100)
        clipped = self.clip is not None or self.percentiles is not None
        if self.clip is not None and self.percentiles is not None:
            raise ValueError(f"{_KEY}: clip and percentiles are both given; leave one of them out")
        if self.scale not in ("zscore", "unit", "none"):
            raise ValueError(f"{_KEY}.scale is {self.scale!r}; it is zscore, unit or none")
        if self.scale == "unit" and not clipped:
            raise ValueError(
                f"{_KEY}.scale is unit, which brings the clipping range to 0..1: set clip or percentiles"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"{_KEY}: mean and std go together: give both, or neither")
        if self.mean is not None and self.scale != "zscore":
            raise ValueError(f"{_KEY}: mean and std have no effect with scale {self.scale}; leave them out")
        if self.mean is not None and not math.isfinite(self.mean):
            raise ValueError(f"{_KEY}.mean is {self.mean}; it must be a finite number")
        if self.std is not None and not (math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"{_KEY}.std is {self.std}; it must be above 0")
        if self.nonzero and self.scale == "none" and not clipped:
            raise ValueError(f"{_KEY}.nonzero has no effect without clipping and scaling; leave it out")

    def _check_range(self, name: str, lowest: float, highest: float) -> None:
        given = getattr(self, name)
        if given is None:
            return
        if len(given) != 2 or not all(math.isfinite(number) for number in given):
            raise ValueError(f"{_KEY}.{name} is {given}; give two numbers, the lower one first")
        if not given[0] < given[1]:
            raise ValueError(f"{_KEY}.{name} is {given}; the first number must be below the second")
        if given[0] < lowest or given[1] > highest:
            raise ValueError(f"{_KEY}.{name} is {given}; percentiles lie in 0..100")

    def apply(self, voxels: np.ndarray) -> None:
        """Change the voxels of one channel in place.

        Statistics are added up in float64, a part of the scan at a time.

        Args:
            voxels: ``[*S]`` float32, finite, contiguous.
        """
        flat = voxels.reshape(-1)  # [*S] -> [N], the same memory
        zeros = flat == 0 if self.nonzero else None
        if zeros is not None and zeros.all():
            return
        limits = self._limits(flat, zeros)
        if limits is not None:
            np.clip(flat, *limits, out=flat)
        if self.scale == "unit":
            assert limits is not None  # the constructor asks for them
            _shift_and_divide(flat, limits[0], limits[1] - limits[0])
        elif self.scale == "zscore":
            if self.mean is None or self.std is None:
                mean, std = _mean_and_std(flat, zeros)
            else:
                mean, std = self.mean, self.std
            _shift_and_divide(flat, mean, std)
        if zeros is not None:
            flat[zeros] = 0

    def _limits(self, flat: np.ndarray, zeros: np.ndarray | None) -> tuple[float, float] | None:
        if self.clip is not None:
            return self.clip[0], self.clip[1]
        if self.percentiles is None:
            return None
        chosen = flat if zeros is None else flat[~zeros]
        low, high = np.percentile(chosen, self.percentiles)
        return float(low), float(high)


def apply_intensities(voxels: np.ndarray, intensity: Sequence[Intensity]) -> None:
    """Change all channels in place.

    Args:
        voxels: ``[C, *S]`` float32, finite, contiguous.
        intensity: one for all channels, or one per channel.

    Raises:
        ValueError: if there is another number of them.
    """
    if len(intensity) not in (1, len(voxels)):
        raise ValueError(
            f"{_KEY} has {len(intensity)} entries and the scan has {len(voxels)} channels; "
            "give one entry for all channels or one for each"
        )
    for number, channel in enumerate(voxels):
        intensity[number if len(intensity) > 1 else 0].apply(channel)


def _shift_and_divide(flat: np.ndarray, shift: float, divisor: float) -> None:
    if divisor == 0:
        flat[:] = 0
        return
    for part in _parts(flat):
        part[:] = (part.astype(np.float64) - shift) / divisor


def _mean_and_std(flat: np.ndarray, zeros: np.ndarray | None) -> tuple[float, float]:
    """Return mean and standard deviation; the latter is exactly 0 for constant voxels."""
    count, total, lowest, highest = 0, 0.0, math.inf, -math.inf
    for part in _chosen_parts(flat, zeros):
        count += len(part)
        total += float(part.sum())
        lowest, highest = min(lowest, float(part.min())), max(highest, float(part.max()))
    mean = total / count
    if lowest == highest:
        return lowest, 0.0
    squares = sum(float(np.square(part - mean).sum()) for part in _chosen_parts(flat, zeros))
    return mean, math.sqrt(squares / count)


def _chosen_parts(flat: np.ndarray, zeros: np.ndarray | None) -> Iterator[np.ndarray]:
    """Yield the voxels that count as float64, without those left out."""
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK]
        if zeros is not None:
            part = part[~zeros[start : start + _CHUNK]]
        if len(part):
            yield part.astype(np.float64)


def _parts(flat: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(flat), _CHUNK):
        yield flat[start : start + _CHUNK]
