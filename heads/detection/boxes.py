"""Arithmetic on whole batches of boxes: IoU, coding, clipping, picking rows.

Letters in shapes: B images, M boxes of the ground truth, N any boxes, ``...`` any leading axes.
Boxes are x1 y1 x2 y2 in pixels, float32, for any precision of the network.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..base import at_least_float32

Weights = tuple[float, float, float, float]
UNIT_WEIGHTS: Weights = (1.0, 1.0, 1.0, 1.0)

# No box grows by more than this factor (as a logarithm) in one step: exp() must not overflow.
_LOG_SCALE_LIMIT = math.log(1000 / 16)

_HAS_TRITON = importlib.util.find_spec("triton") is not None and torch.version.hip is None


def box_areas(boxes: Tensor) -> Tensor:
    """Areas ``[...]`` of boxes ``[..., 4]``."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_intersection(boxes: Tensor, others: Tensor) -> Tensor:
    """Areas of all intersections within each image.

    Args:
        boxes: ``[B, M, 4]``.
        others: ``[B, N, 4]``, or ``[1, N, 4]`` when every image has the same.

    Returns:
        ``[B, M, N]`` in square pixels.
    """
    left, top, right, bottom = boxes[:, :, None].unbind(-1)  # each [B, M, 1]
    other_left, other_top, other_right, other_bottom = others[:, None].unbind(-1)  # each [B|1, 1, N]
    width = (torch.minimum(right, other_right) - torch.maximum(left, other_left)).clamp(min=0)
    height = (torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)).clamp(min=0)
    return width * height


def pairwise_iou(boxes: Tensor, others: Tensor, intersection: Tensor | None = None) -> Tensor:
    """Intersection over union of all pairs within each image.

    It is 0 where both boxes have no area, and where one has x2 < x1 or y2 < y1. NaN stays NaN. Areas must not
    exceed what the type can hold.

    Args:
        boxes: ``[B, M, 4]``.
        others: ``[B, N, 4]`` or ``[1, N, 4]``.
        intersection: ``[B, M, N]`` if it is known already.

    Returns:
        ``[B, M, N]`` in 0..1.
    """
    if intersection is None:
        intersection = pairwise_intersection(boxes, others)
    union = box_areas(boxes)[:, :, None] + box_areas(others)[:, None] - intersection
    # Not where(union > 0, ...), whose gradient is NaN where there is no area.
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def encode(boxes: Tensor, references: Tensor, weights: Weights = UNIT_WEIGHTS) -> Tensor:
    """Deltas that turn ``references`` into ``boxes`` (R-CNN, appendix C; torchvision's ``BoxCoder``).

    Args:
        boxes, references: ``[..., 4]`` with positive sides.
        weights: factors on the deltas of x, y, width and height.

    Returns:
        ``[..., 4]``: shift of the centre in units of the reference's sides, logarithm of the growth.
    """
    reference_size = references[..., 2:] - references[..., :2]
    size = boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + 0.5 * size - references[..., :2] - 0.5 * reference_size) / reference_size
    deltas = torch.cat([shift, torch.log(size / reference_size)], dim=-1)
    return torch.stack([deltas[..., axis] * weight for axis, weight in enumerate(weights)], dim=-1)


def decode(deltas: Tensor, references: Tensor, weights: Weights = UNIT_WEIGHTS) -> Tensor:
    """Apply deltas to references: the inverse of :func:`encode`.

    Args:
        deltas: ``[..., 4]``; growth is limited to a factor of 1000/16.
        references: ``[..., 4]``.
        weights: those given to :func:`encode`.

    Returns:
        ``[..., 4]`` in float32 (float64 if one of the two is), not clipped.
    """
    deltas = at_least_float32(deltas)
    wx, wy, ww, wh = weights
    size = references[..., 2:] - references[..., :2]
    center = references[..., :2] + 0.5 * size
    shift = torch.stack([deltas[..., 0] / wx, deltas[..., 1] / wy], dim=-1)
    growth = torch.stack([deltas[..., 2] / ww, deltas[..., 3] / wh], dim=-1).clamp(max=_LOG_SCALE_LIMIT)
    center = center + shift * size
    half = 0.5 * torch.exp(growth) * size
    return torch.cat([center - half, center + half], dim=-1)


def clip(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Clip boxes to their images.

    Args:
        boxes: ``[B, N, 4]``.
        image_sizes: ``[B, 2]`` height and width in pixels.
    """
    limits = image_sizes.to(boxes).flip(-1).repeat(1, 2)[:, None]  # [B, 2] h w -> [B, 1, 4] w h w h
    return torch.minimum(boxes.clamp(min=0), limits)


def large_enough(boxes: Tensor, size: float) -> Tensor:
    """Which boxes ``[..., 4]`` have no side shorter than ``size``: a mask ``[...]``, false for NaN.

    A box without area is never large enough, also for size 0, as in detectron2 (``Boxes.nonempty``).
    """
    sides = boxes[..., 2:] - boxes[..., :2]
    return (sides >= size if size > 0 else sides > 0).all(-1)


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Pick rows of each image: ``[B, N, c]`` at ``[B, S]`` gives ``[B, S, c]``; zeros if N is 0."""
    if not values.shape[1]:
        return values.new_zeros(*index.shape, values.shape[-1])
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


class _Switch:
    """Whether tensors on the CPU go the way of devices, see :func:`device_paths`."""

    device_paths = False
    triton = False


@contextlib.contextmanager
def device_paths(triton: bool = False) -> Iterator[None]:
    """Within it, tensors on the CPU are treated as those of a device: no shape depends on values.

    For tests and counts on machines without a device. It holds for all threads.

    Args:
        triton: whether they go through Triton's kernels too, which needs its interpreter
            (``TRITON_INTERPRET=1`` before Triton is imported).
    """
    before = _Switch.device_paths, _Switch.triton
    _Switch.device_paths, _Switch.triton = True, triton
    try:
        yield
    finally:
        _Switch.device_paths, _Switch.triton = before


def runs_on_cpu(x: Tensor) -> bool:
    """Whether shapes may depend on the values in ``x``, and kernels be those of the CPU.

    On the CPU that costs nothing and saves work. Elsewhere it would synchronise the device, and in a compiled
    graph shapes are fixed. This is the one switch between the two ways.
    """
    return x.device.type == "cpu" and not _Switch.device_paths and not torch.compiler.is_compiling()


def runs_triton(x: Tensor) -> bool:
    """Whether kernels written in Triton serve ``x``: on CUDA, where Triton is installed.

    Elsewhere (AMD's GPUs, where they were never compiled, Windows, Apple's) operators of torch give the same.
    """
    return _HAS_TRITON and (x.device.type == "cuda" or _Switch.triton)


def rows_needed(valid: Tensor) -> int:
    """How many leading rows hold everything that is valid in ``[B, N]``, at least one.

    All N where shapes must not depend on values, see :func:`runs_on_cpu`.
    """
    if not runs_on_cpu(valid):
        return valid.shape[1]
    used = valid.any(0).nonzero()
    return min(valid.shape[1], int(used[-1]) + 1 if len(used) else 1)
