"""Resampling of scans along each axis on its own: cubic for voxels, linear or nearest for labels and scores.

Letters in shapes: C channels, S spatial axes of a scan, n their number, m voxels along one axis before and M
after.

The edges of the first and the last voxel stay where they are, as in ``scipy.ndimage.zoom`` with
``grid_mode=True`` and ``mode="nearest"``, and in scikit-image's ``resize``. So a scan covers the same field
of view before and after, and going back is a resize to the old shape. Nothing is smoothed before shrinking,
as in nnU-Net.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

_MOST_VALUES = 2**22  # resampled at a time


def resampled_lengths(
    shape: Sequence[int], spacing: Sequence[float], wanted: Sequence[float]
) -> tuple[int, ...]:
    """Return how many voxels of the wanted spacing come closest to the old extent, at least 1 per axis.

    Args:
        shape: voxels per axis.
        spacing: of these voxels, in mm.
        wanted: new spacing in mm. The true one is ``spacing * shape / result``.
    """
    return tuple(
        max(1, round(length * old / new)) for length, old, new in zip(shape, spacing, wanted, strict=True)
    )


def coarse_axis(spacing: Sequence[float], wanted: Sequence[float], anisotropy: float) -> int | None:
    """Return the axis whose spacing is more than ``anisotropy`` times that of the next coarsest.

    The old spacing decides, and the new one if the old is not that uneven, as in nnU-Net (Isensee et al.
    2021, which divides by the finest spacing; with two coarse axes of alike spacing it separates neither).

    Returns:
        The axis, or None if no axis is that coarse.
    """
    for numbers in (spacing, wanted):
        axis = int(np.argmax(numbers))
        rest = [number for other, number in enumerate(numbers) if other != axis]
        if numbers[axis] > anisotropy * max(rest):
            return axis
    return None


class Taps(NamedTuple):
    """Which old voxels make up each new one along an axis: ``(1 - weight) * old[low] + weight * old[high]``.

    Attributes:
        low: ``[M]`` int64, rising.
        high: ``[M]`` int64, ``low`` or the voxel after it.
        weight: ``[M]`` float32 in 0..1.
    """

    low: Tensor
    high: Tensor
    weight: Tensor

    def part(self, start: int, stop: int) -> tuple[Taps, int, int]:
        """Take the new voxels ``start`` to ``stop``.

        Returns:
            The taps, counted from the first old voxel that they need; this voxel; and the one after the last.
        """
        first, last = int(self.low[start]), int(self.high[stop - 1])
        taps = Taps(self.low[start:stop] - first, self.high[start:stop] - first, self.weight[start:stop])
        return taps, first, last + 1

    def touched(self, start: int, stop: int) -> tuple[int, int]:
        """Return the range of new voxels to which the old voxels ``start`` to ``stop`` may contribute."""
        return int((self.high < start).sum()), int((self.low < stop).sum())

    def apply(self, values: Tensor, dim: int) -> Tensor:
        """Interpolate float32 ``values`` along ``dim``, which has the old voxels."""
        result = _take(values, dim, self.low)
        if not bool(self.weight.any()):
            return result
        weight = self.weight.to(values.device).reshape([-1 if d == dim else 1 for d in range(values.ndim)])
        return result.lerp_(_take(values, dim, self.high), weight)


@lru_cache(maxsize=256)
def taps(length: int, wanted: int, order: int) -> Taps | None:
    """Return what makes up each of ``wanted`` voxels out of ``length``; None if there is nothing to do.

    Args:
        length: old voxels along the axis.
        wanted: new ones.
        order: 0 nearest or 1 linear.
    """
    if length == wanted:
        return None
    position = _zoom(np.arange(length, dtype=np.float64), wanted, order)  # [M], of new centres among the old
    low = np.floor(position + 1e-9).clip(0, length - 1).astype(np.int64)
    weight = np.maximum(position - low, 0)
    high = np.where(weight > 0, np.minimum(low + 1, length - 1), low)
    return Taps(torch.from_numpy(low), torch.from_numpy(high), torch.from_numpy(weight.astype(np.float32)))


@lru_cache(maxsize=64)
def spline_matrix(length: int, wanted: int, order: int) -> Tensor:
    """Return ``[M, m]`` float32, what each old voxel adds to each new one in spline interpolation.

    Splines are linear in the voxels and separable over axes, so the resampling of unit vectors holds all.
    """
    return torch.from_numpy(_zoom(np.eye(length), wanted, order).astype(np.float32))


def resample(voxels: np.ndarray, shape: Sequence[int], orders: Sequence[int]) -> np.ndarray:
    """Resample a scan; equal to ``scipy.ndimage.zoom(..., grid_mode=True, mode="nearest")`` per axis.

    Cubic splines overshoot at edges: the result is clamped to the range of each channel, as scikit-image's
    ``resize`` (and with it nnU-Net) does.

    Args:
        voxels: ``[C, *S]`` float32.
        shape: new sizes, n of them.
        orders: of the spline, per axis: 0 nearest, 1 linear, 3 cubic. Axes that keep their size stay as is.

    Returns:
        ``[C, *shape]`` float32; ``voxels`` itself if nothing changes. One more channel is held in between.
    """
    if voxels.shape[1:] == tuple(shape):
        return voxels
    result = np.empty((len(voxels), *shape), dtype=np.float32)
    for channel, out in zip(voxels, result, strict=True):
        old = torch.from_numpy(np.ascontiguousarray(channel))  # [*S]
        _resample_channel(old, torch.from_numpy(out), tuple(orders))
        if max(orders) > 1:
            np.clip(out, channel.min(), channel.max(), out=out)
    return result


def resample_labels(labels: np.ndarray, shape: Sequence[int], orders: Sequence[int]) -> np.ndarray:
    """Give each new voxel the label with the largest share in it: one-hot, linear, argmax.

    Label by label, each within its own box, and slab by slab, so that little more is held than the result,
    whatever the number of labels. Of equal shares the lower label wins. 255 (ignored) is a label like any
    other.

    Args:
        labels: ``[*S]`` uint8.
        shape: new sizes.
        orders: per axis, 0 nearest or 1 linear.

    Returns:
        ``[*shape]`` uint8; ``labels`` itself if nothing changes.
    """
    if labels.shape == tuple(shape):
        return labels
    steps = [taps(*lengths) for lengths in zip(labels.shape, shape, orders, strict=True)]
    if not any(step is not None and bool(step.weight.any()) for step in steps):  # nearest along all
        return _nearest(labels, steps)
    result = np.zeros(tuple(shape), dtype=np.uint8)
    boxes = label_boxes(labels)
    for start, stop in _slabs(shape[0], max(math.prod(shape[1:]), math.prod(labels.shape[1:]))):
        _decide_slab(labels, boxes, steps, start, result[start:stop])
    return result


def label_boxes(labels: np.ndarray) -> dict[int, tuple[slice, ...]]:
    """Return, of each label that occurs, the smallest box with all of its voxels, lower labels first."""
    from scipy import ndimage

    boxes = {label: box for label, box in enumerate(ndimage.find_objects(labels), 1) if box is not None}
    if not labels.all():
        boxes = {0: tuple(slice(0, length) for length in labels.shape), **boxes}
    return boxes


def count_labels(labels: np.ndarray) -> np.ndarray:
    """Return ``[256]`` int64, how many voxels of ``[*S]`` uint8 have each value."""
    # Plane by plane: bincount makes 8 bytes of each voxel.
    counts = np.zeros(256, np.int64)
    for plane in labels:
        counts += np.bincount(plane.reshape(-1), minlength=256)
    return counts


def _zoom(values: np.ndarray, wanted: int, order: int) -> np.ndarray:
    """Resample the first axis of float64 values to the wanted length."""
    from scipy import ndimage

    zoom = (wanted / values.shape[0], *[1] * (values.ndim - 1))
    return ndimage.zoom(values, zoom, order=order, mode="nearest", grid_mode=True)


def _resample_channel(old: Tensor, out: Tensor, orders: tuple[int, ...]) -> None:
    """Resample all axes but the last by slabs along the last, then the last by slabs along the first."""
    between = old
    if old.shape[:-1] != out.shape[:-1]:
        between = out if old.shape[-1] == out.shape[-1] else out.new_empty(*out.shape[:-1], old.shape[-1])
        rows = max(old[..., 0].numel(), between[..., 0].numel())
        for start, stop in _slabs(old.shape[-1], rows):
            slab = old[..., start:stop]
            for dim, order in enumerate(orders[:-1]):
                slab = _resample_axis(slab, dim, out.shape[dim], order)
            between[..., start:stop] = slab
    if between is not out:
        rows = max(between[0].numel(), out[0].numel())
        for start, stop in _slabs(len(out), rows):
            out[start:stop] = _resample_axis(between[start:stop], out.ndim - 1, out.shape[-1], orders[-1])


def _take(values: Tensor, dim: int, index: Tensor) -> Tensor:
    """Choose along ``dim``; along the last axis ``gather`` is several times faster than ``index_select``."""
    index = index.to(values.device)
    if dim == values.ndim - 1:
        return values.gather(dim, index.expand(*values.shape[:-1], -1))
    return values.index_select(dim, index)


def _slabs(length: int, values: int) -> list[tuple[int, int]]:
    step = max(1, _MOST_VALUES // values)
    return [(start, min(start + step, length)) for start in range(0, length, step)]


def _resample_axis(values: Tensor, dim: int, wanted: int, order: int) -> Tensor:
    length = values.shape[dim]
    if length == wanted:
        return values
    if order < 2:
        return cast(Taps, taps(length, wanted, order)).apply(values, dim)
    return torch.tensordot(values, spline_matrix(length, wanted, order), ([dim], [1])).movedim(-1, dim)


def _nearest(labels: np.ndarray, steps: Sequence[Taps | None]) -> np.ndarray:
    for axis, step in enumerate(steps):
        labels = labels if step is None else labels.take(step.low.numpy(), axis)
    return np.ascontiguousarray(labels)


def _decide_slab(
    labels: np.ndarray,
    boxes: dict[int, tuple[slice, ...]],
    steps: Sequence[Taps | None],
    start: int,
    out: np.ndarray,
) -> None:
    """Write the labels of the new voxels from ``start`` on along the first axis into ``out``."""
    best = np.zeros(out.shape, dtype=np.float32)
    for label, box in boxes.items():
        reached = [_reach(side, step) for side, step in zip(box, steps, strict=True)]
        reached[0] = (max(reached[0][0], start), min(reached[0][1], start + len(out)))
        if any(first >= last for first, last in reached):
            continue
        parts: list[Taps | None] = []
        source = []
        for (first, last), step in zip(reached, steps, strict=True):
            part, *needed = (None, first, last) if step is None else step.part(first, last)
            parts.append(part)
            source.append(slice(*needed))
        share = torch.from_numpy((labels[tuple(source)] == label).astype(np.float32))
        for dim, part in enumerate(parts):
            share = share if part is None else part.apply(share, dim)
        reached[0] = (reached[0][0] - start, reached[0][1] - start)
        target = tuple(slice(*ends) for ends in reached)
        better = share.numpy() > best[target]
        np.copyto(best[target], share.numpy(), where=better)
        np.copyto(out[target], np.uint8(label), where=better)


def _reach(side: slice, step: Taps | None) -> tuple[int, int]:
    """Return the range of new voxels along an axis to which a range of old ones contributes."""
    return (side.start, side.stop) if step is None else step.touched(side.start, side.stop)
