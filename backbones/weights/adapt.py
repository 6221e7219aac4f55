"""How tensors that differ in a well-defined way are made to fit.

Letters in shapes: K classes, N classes of the source, C input channels, F features (output channels), S
spatial axes of a kernel (kh, kw or kd, kh, kw).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..layers import Inflation
from .parts import Entry

# The ids of the 80 categories that the COCO instances files use, ascending. Detectors of torchvision have a
# row for each id up to 90; ours number the categories without gaps in this order.
COCO_CATEGORY_IDS = tuple(
    number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
)
COCO_ROWS = 91


def class_rows(rows: int, classes: int) -> list[int] | None:
    """Rows of a background-first predictor in our order: foreground 0..K-1, then background.

    Args:
        rows: rows of the source, background included.
        classes: K, our number of foreground classes.

    Returns:
        K + 1 row numbers, or None if it is not known which row is which class.
    """
    if rows == classes + 1:
        return [*range(1, rows), 0]
    if rows == COCO_ROWS and classes == len(COCO_CATEGORY_IDS):
        return [*COCO_CATEGORY_IDS, 0]
    return None


def fit_predictor(entry: Entry, target: Tensor, classes: int) -> tuple[Tensor | None, str]:
    """Reorder a background-first box predictor.

    Args:
        entry: classifier ``[N + 1, F]`` or regressor ``[4 * (N + 1), F]`` of the source (or its bias).
        target: ours, ``[K + 1, F]``, ``[4 * K, F]`` or, for class-agnostic boxes, ``[4, F]``.
        classes: K.

    Returns:
        The tensor and how it was made, or None and why there is none.
    """
    boxes = entry.name.startswith("roi.regressor")
    rows = len(entry.tensor) // 4 if boxes else len(entry.tensor)
    order = class_rows(rows, classes)
    if order is None:
        return None, f"it has {rows - 1} classes and background, the model {classes}"
    if boxes:
        # [4 * (N + 1), F] -> [N + 1, 4, F] -> [K, 4, F] -> [4 * K, F]; the background has no box
        per_class = entry.tensor.unflatten(0, (rows, 4))
        chosen = per_class[order[:-1]].flatten(0, 1)
    else:
        chosen = entry.tensor[order]  # [N + 1, F] -> [K + 1, F]
    if chosen.shape != target.shape:
        return None, shape_difference(entry.tensor, target)
    return chosen, f"rows of {rows - 1} classes chosen for {classes}, background moved to the end"


def fit_channels(weight: Tensor, channels: int) -> tuple[Tensor, str]:
    """Make a first convolution for RGB, or for one channel, read another number of channels.

    From three to one channel they are summed, so that a grey image gives what its three equal channels
    would. Otherwise they are repeated cyclically and scaled by the ratio of the numbers, which keeps the
    size of the response; from one channel, C equal channels give what the one gave.

    Args:
        weight: ``[F, 3, *S]`` or ``[F, 1, *S]``.
        channels: C.
    """
    before = weight.shape[1]
    plural = "s" if before > 1 else ""
    if channels == 1:
        return weight.sum(1, keepdim=True), f"summed over its {before} input channels"
    # [F, 3, *S] -> [F, C, *S]
    repeated = weight[:, torch.arange(channels) % before] * (before / channels)
    return (
        repeated,
        f"{before} input channel{plural} repeated for {channels}, times {before}/{channels}",
    )


def flip_channels(weight: Tensor) -> tuple[Tensor, str]:
    """Make a first convolution ``[F, 3, *S]`` that reads BGR read RGB, or the other way round."""
    return weight.flip(1), "input channels turned from BGR to RGB"


def inflate(weight: Tensor, depth: int, inflation: Inflation) -> tuple[Tensor, str]:
    """Make a 2-D kernel a 3-D one.

    ``centre`` puts it in the middle slice along depth and zeros around it. On a volume that is constant along
    depth the 3-D network then gives exactly what the 2-D one gives on a slice, also at the border. ``mean``
    divides it evenly over all slices (Carreira and Zisserman 2017, "I3D"): equal away from the border, and
    every slice is used from the start.

    Args:
        weight: ``[F, C, kh, kw]``.
        depth: kd of the 3-D kernel.
        inflation: ``centre`` or ``mean``.

    Returns:
        ``[F, C, kd, kh, kw]``, and what was done.
    """
    if inflation == "mean":
        return (weight / depth).unsqueeze(2).repeat(1, 1, depth, 1, 1), "2-D kernel spread over the depth"
    inflated = weight.new_zeros(*weight.shape[:2], depth, *weight.shape[2:])
    inflated[:, :, depth // 2] = weight
    return inflated, "2-D kernel put in the middle of a 3-D one"


def inflate_transposed(weight: Tensor, depth: int) -> tuple[Tensor, str]:
    """Make the kernel of a 2-D transposed convolution, as large as its stride, a 3-D one.

    Each of the planes that a plane becomes gets the whole kernel: on a volume that is constant along depth
    the 3-D layer gives what the 2-D one gives on a slice.

    Args:
        weight: ``[C, F, kh, kw]``.
        depth: kd of the 3-D kernel.

    Returns:
        ``[C, F, kd, kh, kw]``, and what was done.
    """
    return weight.unsqueeze(2).repeat(1, 1, depth, 1, 1), "2-D transposed kernel repeated for each plane"


def absorb_missing_eps(weight: Tensor, variance: Tensor, eps: float) -> Tensor:
    """Scale a norm's weight so that dividing by ``sqrt(variance + eps)`` gives what eps = 0 gave.

    Lowering the variance instead would round away those that are smaller than eps.
    """
    variance = variance.double()
    factor = ((variance + eps) / variance).sqrt()
    return (weight.double() * torch.where(variance > 0, factor, 1.0)).to(weight.dtype)


def shape_difference(tensor: Tensor, target: Tensor) -> str:
    """Say how two shapes differ."""
    shapes = f"its shape is {list(tensor.shape)}, the model's {list(target.shape)}"
    if tensor.ndim == 5 and target.ndim == 4:
        return f"{shapes}: the source is 3-D, the model 2-D"
    return shapes
