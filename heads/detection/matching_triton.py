"""Kernels that match boxes to the ground truth on GPUs, in Triton; :mod:`.matching` imports them there.

Each program takes a block of boxes of one image and goes through the image's rows of the ground truth,
without those that are padding. Nothing the size of all pairs is written: beside the results, memory is one
number per row of the ground truth. With ``low_quality`` there are two passes, the first for the highest IoU
of every object; otherwise there is one.

The arithmetic is that of :func:`.matching.match_by_torch` in float32, operation by operation. Launches
therefore turn off the contraction of products and sums (``enable_fp_fusion``), which would round differently
in the two passes.

Letters in shapes: B images, M box rows of the ground truth, N boxes to match.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512  # boxes per program


def match(
    boxes: Tensor,
    truth: Tensor,
    labels: Tensor,
    crowd: Tensor,
    fg_iou: float,
    bg_iou: float,
    crowd_overlap: float,
    low_quality: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what :func:`.matching.match_boxes` says, on a GPU: 3 launches, or 1 without ``low_quality``."""
    boxes, truth = boxes.float().contiguous(), truth.float().contiguous()
    labels, crowd = labels.contiguous(), crowd.contiguous()
    (images, rows), number = labels.shape, boxes.shape[1]
    index = torch.empty((images, number), dtype=torch.int64, device=boxes.device)
    positive, negative = (torch.empty_like(index, dtype=torch.bool) for _ in range(2))
    if index.numel() == 0:
        return index, positive, negative
    # Numbers that are not negative are in the order of their bits, which integers can be compared by.
    highest = torch.zeros((images, rows), dtype=torch.int32, device=boxes.device) if low_quality else None
    inputs = (boxes, truth, labels, crowd, highest)
    step = number if boxes.shape[0] == images else 0  # boxes from one image to the next
    grid = (triton.cdiv(number, BLOCK), images)
    if low_quality:
        _highest_of_objects[grid](*inputs, step, number, rows, block=BLOCK, enable_fp_fusion=False)
    _closest_of_boxes[grid](
        *inputs,
        index,
        positive,
        negative,
        fg_iou,
        bg_iou,
        crowd_overlap,
        step,
        number,
        rows,
        block=BLOCK,
        enable_fp_fusion=False,
    )
    return index, positive, negative


@triton.jit
def _corners(boxes, place, inside):
    """Load x1 y1 x2 y2."""
    left = tl.load(boxes + place * 4, mask=inside, other=0.0)
    top = tl.load(boxes + place * 4 + 1, mask=inside, other=0.0)
    right = tl.load(boxes + place * 4 + 2, mask=inside, other=0.0)
    bottom = tl.load(boxes + place * 4 + 3, mask=inside, other=0.0)
    return left, top, right, bottom


@triton.jit
def _row(truth, labels, crowd, place):
    """Load a row of the ground truth: its corners, whether it is an object, whether a crowd region."""
    left, top = tl.load(truth + place * 4), tl.load(truth + place * 4 + 1)
    right, bottom = tl.load(truth + place * 4 + 2), tl.load(truth + place * 4 + 3)
    filled = tl.load(labels + place) >= 0
    region = tl.load(crowd + place).to(tl.int32)
    area = (right - left) * (bottom - top)
    is_object = filled & (region == 0) & (right > left) & (area > 0) & (area < float("inf"))
    return left, top, right, bottom, is_object, filled & (region != 0) & (tl.abs(area) < float("inf"))


@triton.jit
def _intersection(left, top, right, bottom, left2, top2, right2, bottom2):
    width = tl.maximum(tl.minimum(right, right2) - tl.maximum(left, left2), 0.0)
    height = tl.maximum(tl.minimum(bottom, bottom2) - tl.maximum(top, top2), 0.0)
    return width * height


@triton.jit
def _iou(intersection, area, area2):
    union = (area + area2) - intersection
    least = 1.1754943508222875e-38  # the smallest normal number
    return tl.where(union > 0, tl.div_rn(intersection, tl.maximum(union, least)), 0.0)  # 0 for a NaN


@triton.jit(do_not_specialize=["rows"])
def _highest_of_objects(
    boxes, truth, labels, crowd, highest, step, number, rows, block: tl.constexpr
):  # fmt: skip
    """Raise the bits of each object's highest IoU, ``highest`` ``[B, M]``, by those with a block of boxes."""
    image = tl.program_id(1).to(tl.int64)
    box = tl.program_id(0) * block + tl.arange(0, block)
    inside = box < number
    left, top, right, bottom = _corners(boxes, image * step + box, inside)
    area = (right - left) * (bottom - top)
    for row in range(rows):
        place = image * rows + row
        left2, top2, right2, bottom2, is_object, _ = _row(truth, labels, crowd, place)
        if is_object:
            area2 = (right2 - left2) * (bottom2 - top2)
            shared = _intersection(left2, top2, right2, bottom2, left, top, right, bottom)
            best = tl.max(tl.where(inside, _iou(shared, area2, area), 0.0), axis=0)
            if best > 0:  # most objects touch no box of the block
                tl.atomic_max(highest + place, best.to(tl.int32, bitcast=True))


@triton.jit(do_not_specialize=["rows"])
def _closest_of_boxes(
    boxes, truth, labels, crowd, highest, index, positive, negative,
    fg_iou, bg_iou, crowd_overlap, step, number, rows, block: tl.constexpr,
):  # fmt: skip
    """Write what a block of boxes is to learn: ``index``, ``positive`` and ``negative``, each ``[B, N]``."""
    image = tl.program_id(1).to(tl.int64)
    box = tl.program_id(0) * block + tl.arange(0, block)
    inside = box < number
    left, top, right, bottom = _corners(boxes, image * step + box, inside)
    area = (right - left) * (bottom - top)
    best = tl.full((block,), -1.0, tl.float32)
    chosen = tl.zeros((block,), tl.int32)
    is_best = tl.zeros((block,), tl.int32)
    in_crowd = tl.zeros((block,), tl.float32)
    for row in range(rows):
        place = image * rows + row
        left2, top2, right2, bottom2, is_object, is_region = _row(truth, labels, crowd, place)
        if is_object | is_region:
            shared = _intersection(left2, top2, right2, bottom2, left, top, right, bottom)
            if is_region:
                in_crowd = tl.maximum(in_crowd, shared)
            else:
                iou = _iou(shared, (right2 - left2) * (bottom2 - top2), area)
                chosen = tl.where(iou > best, row, chosen)
                best = tl.maximum(best, iou)
                if highest is not None:
                    bits = tl.load(highest + place)
                    touches = (iou > 0) & (iou.to(tl.int32, bitcast=True) == bits)
                    is_best = is_best | touches.to(tl.int32)
    sound = tl.abs(area) < float("inf")  # false for NaN
    learns = ((best >= fg_iou) | (is_best != 0)) & sound
    # A box without area is in no crowd region: 0 >= 0 must not count.
    ignored = (in_crowd >= crowd_overlap * area) & (in_crowd > 0)
    target = image * number + box
    tl.store(index + target, chosen.to(tl.int64), mask=inside)
    tl.store(positive + target, learns, mask=inside)
    tl.store(negative + target, (best < bg_iou) & (learns == 0) & (ignored == 0) & sound, mask=inside)
