"""Sliding windows over volumes of any size, in memory that does not grow with their depth.

Windows are visited plane by plane along one axis. So planes before the current row of windows are final, and
are handed on at once. Never more planes are held than a window is deep.

Letters in shapes: C channels, K scores per voxel, S spatial axes (2 or 3), W axes of a window, b windows
that run at once, P planes.
"""

from __future__ import annotations

import itertools
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from ...backbones.layers import check_choice
from ...data.scans.patches import cut
from ..segmentation.inference import Weights, window_starts, window_weights

logger = logging.getLogger("trunkline")

Buffer = Literal["auto", "device", "host", "disk"]
Run = Callable[[Tensor], Tensor]  # [b, C, *W] -> [b, K, *W] probabilities


@dataclass(frozen=True)
class VolumeInference:
    """How a scan becomes class probabilities.

    Attributes:
        window: voxels of the sliding window, one number per axis of the network; None for the patch that it
            was trained with. Scans that are smaller are padded with zeros (the mean intensity) on both
            sides.
        overlap: of neighbouring windows, as a share of the window, 0 to below 1.
        weights: how overlapping windows are averaged: ``gaussian`` trusts the middle of a window most
            (Isensee et al. 2021, nnU-Net), ``constant`` all of it alike.
        window_batch: windows that run at once, 1 or more.
        mirror: axes of the network, 0 first, along which windows are mirrored too; all combinations are
            averaged, so three axes take eight times as long.
        buffer: where probabilities are summed up: on the network's ``device``, in the main memory of the
            ``host``, or in a temporary file on ``disk``; ``auto`` for the device if they fill less than half
            of what is free there, else ``host``. They take 4 bytes * K * the depth of a window * the two
            other sizes of the scan.
        keep_largest: names of classes of which only the largest connected piece is kept (neighbours touch by
            face, edge or corner); the rest becomes background.

    Raises:
        ValueError: if one of them is out of its range.
    """

    window: list[int] | None = None
    overlap: float = 0.5
    weights: Weights = "gaussian"
    window_batch: int = 1
    mirror: tuple[int, ...] = ()
    buffer: Buffer = "auto"
    keep_largest: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.window is not None and (not len(self.window) or min(self.window) < 1):
            raise ValueError(f"inference.window is {self.window}; give a number of voxels per axis")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"inference.overlap must lie in 0 to below 1, got {self.overlap}")
        check_choice("inference.weights", self.weights, get_args(Weights))
        check_choice("inference.buffer", self.buffer, get_args(Buffer))
        if self.window_batch < 1:
            raise ValueError(f"inference.window_batch must be at least 1, got {self.window_batch}")
        if len(set(self.mirror)) != len(self.mirror) or not set(self.mirror) <= {0, 1, 2}:
            raise ValueError(f"inference.mirror lists axes, each once, from 0 to 2; got {list(self.mirror)}")


def best_axis(size: Sequence[int], window: Sequence[int]) -> int:
    """Return the axis to sweep along, which needs the smallest buffer: that with most windows."""
    return max(range(len(size)), key=lambda axis: size[axis] / min(size[axis], window[axis]))


@torch.no_grad()
def sweep(
    run: Run,
    image: np.ndarray,
    window: Sequence[int],
    options: VolumeInference,
    device: torch.device,
    axis: int | None = None,
) -> Iterator[Tensor]:
    """Run on all windows of a volume, and yield the averaged probabilities as soon as they are final.

    The same as MONAI's ``sliding_window_inference`` (Gaussian weights with ``sigma_scale=0.125``) on the
    whole.

    Args:
        run: maps windows ``[b, C, *W]`` on ``device`` to probabilities ``[b, K, *W]``.
        image: ``[C, *S]`` float32, may be a memory map; read window by window.
        window: voxels per axis.
        options: overlap, weights, batch and buffer.
        device: of the network.
        axis: to sweep along; None for :func:`best_axis`.

    Yields:
        ``[K, *s]`` float32, consecutive planes along ``axis`` from first to last, whole along the others; on
        the device of the buffer, and to be used before the next ones are asked for.

    Raises:
        ValueError: if ``run`` returns another size than it was given.
    """
    size = image.shape[1:]
    axis = best_axis(size, window) if axis is None else axis
    rows = [_starts(length, width, options.overlap) for length, width in zip(size, window, strict=True)]
    along = rows[axis]
    others = [[0] if index == axis else starts for index, starts in enumerate(rows)]
    sums: _Planes | None = None
    for start, following in zip(along, [*along[1:], None], strict=True):
        corners = [
            tuple(start if i == axis else at for i, at in enumerate(c)) for c in itertools.product(*others)
        ]
        for first in range(0, len(corners), options.window_batch):
            some = corners[first : first + options.window_batch]
            windows = torch.from_numpy(np.stack([cut(image, corner, window, fill=0) for corner in some]))
            found = run(windows.to(device))
            if found.shape[2:] != windows.shape[2:]:
                raise ValueError(
                    f"scores must have the size of the window, {list(windows.shape[2:])}, got "
                    f"{list(found.shape[2:])}"
                )
            if sums is None:
                sums = _Planes(found.shape[1], size, window, axis, options, device)
            for corner, probabilities in zip(some, found.float(), strict=True):
                sums.add(corner, probabilities)
            del found, probabilities  # as large as windows of all scores are: not while others use the planes
        assert sums is not None  # there is a corner
        yield sums.finished(following)
        sums.move_on(following)


def _starts(length: int, window: int, overlap: float) -> list[int]:
    """Place windows along an axis; one that is longer than the axis begins before it, centred."""
    return [-((window - length) // 2)] if window > length else window_starts(length, window, overlap)


class _Planes:
    """Sums of weighted probabilities, and of weights, over the planes that are not final yet.

    Args:
        scores: K.
        size: of the volume.
        window: voxels per axis.
        axis: along which windows move on.
        options: kind of weights, place of the buffer.
        device: of the network.
    """

    def __init__(
        self,
        scores: int,
        size: Sequence[int],
        window: Sequence[int],
        axis: int,
        options: VolumeInference,
        device: torch.device,
    ) -> None:
        self.axis = axis
        self.end = size[axis]
        self.begin = 0  # the plane of the volume that the buffer's first one is
        shape = list(size)
        shape[axis] = min(window[axis], size[axis])
        self._file: tempfile._TemporaryFileWrapper | None = None
        self.total = self._allocate([scores, *shape], options.buffer, device)
        self.share = torch.zeros(shape, device=self.total.device)
        self.weights = window_weights(window, options.weights, self.total.device)
        self.size = tuple(size)

    def _allocate(self, shape: list[int], place: Buffer, device: torch.device) -> Tensor:
        needed = 4 * math.prod(shape)
        if place == "disk":
            self._file = tempfile.NamedTemporaryFile(prefix="trunkline-")  # noqa: SIM115, kept as long as this
            self._file.truncate(needed)
            values = needed // 4
            return torch.from_file(self._file.name, shared=True, size=values, dtype=torch.float32).view(shape)
        if place == "auto" and device.type == "cuda":
            place = "device" if needed < torch.cuda.mem_get_info(device)[0] // 2 else "host"
        return torch.zeros(shape, device=device if place == "device" else "cpu")

    def add(self, corner: Sequence[int], probabilities: Tensor) -> None:
        """Add those of one window, ``[K, *W]``, whose first voxel is ``corner``."""
        inside, place = [], []
        for index, (start, width, length) in enumerate(
            zip(corner, probabilities.shape[1:], self.size, strict=True)
        ):
            low, high = max(start, 0), min(start + width, length)
            inside.append(slice(low - start, high - start))
            shift = self.begin if index == self.axis else 0
            place.append(slice(low - shift, high - shift))
        weights = self.weights[tuple(inside)]
        part = probabilities[(slice(None), *inside)].to(self.total.device)
        # In place: a weighted copy would take as much memory as the window's probabilities.
        self.total[(slice(None), *place)].addcmul_(part, weights)
        self.share[tuple(place)] += weights

    def finished(self, following: int | None) -> Tensor:
        """Return the mean over the planes before ``following``, all if it is None; a view of the buffer."""
        count = (self.end if following is None else following) - self.begin
        done = self.total.narrow(1 + self.axis, 0, count)
        done /= self.share.narrow(self.axis, 0, count)
        return done

    def move_on(self, following: int | None) -> None:
        """Let the plane ``following`` be the buffer's first."""
        if following is None:
            return
        count = following - self.begin
        kept = self.share.shape[self.axis] - count
        for part in (*self.total, self.share):  # one class at a time: source and target overlap
            moved = part.narrow(self.axis, count, kept).clone()
            part.narrow(self.axis, 0, kept).copy_(moved)
            part.narrow(self.axis, kept, count).zero_()
        self.begin = following


def mirrored(run: Run, axes: Sequence[int]) -> Run:
    """Average ``run`` over all combinations of mirroring its windows ``[b, C, *W]`` along ``axes``."""
    if not axes:
        return run
    combinations = [
        [2 + axis for axis in some]
        for number in range(len(axes) + 1)
        for some in itertools.combinations(axes, number)
    ]

    def averaged(windows: Tensor) -> Tensor:
        total: Tensor | None = None
        for flips in combinations:
            found = run(windows.flip(flips)).flip(flips) if flips else run(windows)
            total = found if total is None else total + found
        return cast(Tensor, total) / len(combinations)

    return averaged


def sliced(run: Run, axis: int) -> Run:
    """Let a 2D network run on windows ``[b, C, *W]`` that are one voxel thick along ``axis``."""
    return lambda windows: run(windows.squeeze(2 + axis)).unsqueeze(2 + axis)


def keep_largest(labels: np.ndarray, kept: Sequence[int]) -> np.ndarray:
    """Turn all but the largest connected piece of each given label into 0, in place.

    Args:
        labels: ``[*S]`` uint8.
        kept: labels to look at; pieces are connected over faces, edges and corners.

    Returns:
        ``labels``.
    """
    from scipy import ndimage

    for label in kept:
        (places,) = ndimage.find_objects((labels == label).astype(np.uint8)) or (None,)
        if places is None:
            continue
        box = labels[places]
        pieces, number = ndimage.label(box == label, structure=np.ones((3,) * labels.ndim))
        if number > 1:
            # Plane by plane: bincount makes 8 bytes of each voxel.
            sizes: Any = sum(np.bincount(plane.ravel(), minlength=number + 1) for plane in pieces)
            sizes[0] = 0
            box[(pieces > 0) & (pieces != sizes.argmax())] = 0
    return labels
