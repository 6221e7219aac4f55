"""Kernels of non-maximum suppression for GPUs, in Triton; :mod:`.nms` imports them where they can be used.

Rows are taken in slabs of at most ``SLAB``, the best first. ``_overlaps`` writes which rows of a slab may
drop which later ones of it, one bit a pair. ``_scan`` goes through the slab once, in order, with one program
per image. ``_strike`` drops the rows after the slab that its kept rows overlap. A slab takes 2 launches, and
one more if rows follow it. Nothing is synchronised, and no shape depends on values.

Memory: at most ``B * SLAB * SLAB / 8`` bytes, whatever N is (16 images: 32 MiB). A grid has at most 65,535
blocks of 64 rows, so N is at most 4 million.

The arithmetic is that of :func:`.nms.suppress` in float32, operation by operation. Launches therefore turn
off the contraction of products and sums (``enable_fp_fusion``), which would round differently.

Letters in shapes: B images, N boxes per image, S rows of a slab, W words of 32 of its rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Most rows of a slab: its words must fit the registers of one program.
SLAB = 4096
_WORD = 32  # rows per word
_COLUMNS = 64  # rows of the other side that a program compares with _WORD rows: several words
_WORDS = _COLUMNS // _WORD


def suppress(
    boxes: Tensor, scores: Tensor | None, groups: Tensor | None, valid: Tensor, threshold: float
) -> Tensor:
    """Do what :func:`.nms.nms_keep` says, on a GPU.

    Args:
        boxes: ``[B, N, 4]`` float32.
        scores: ``[B, N]``; None if the rows come best first.
        groups: ``[B, N]`` int64; None if there is one.
        valid: ``[B, N]`` bool.
        threshold: rounded to float32.

    Returns:
        ``[B, N]`` bool.
    """
    with torch.cuda.device_of(boxes):  # Triton starts kernels on the current device
        return _suppress(boxes.contiguous(), scores, groups, valid.contiguous(), threshold)


def _suppress(
    boxes: Tensor, scores: Tensor | None, groups: Tensor | None, valid: Tensor, threshold: float
) -> Tensor:
    images, number = valid.shape
    keep = torch.empty_like(valid)
    if keep.numel() == 0:
        return keep
    order = None
    if scores is not None:
        scores, order = scores.sort(dim=1, descending=True, stable=True)
    groups = None if groups is None else groups.contiguous()
    slab = min(SLAB, number)
    words = triton.cdiv(slab, _WORD)
    bits = torch.empty((images, words * _WORD, words), dtype=torch.int32, device=boxes.device)
    source = valid  # which rows are still there: at first the valid ones
    for start in range(0, number, slab):
        count = min(slab, number - start)
        blocks = triton.cdiv(count, _WORD)
        columns = triton.cdiv(count, _COLUMNS)
        shape = {"number": number, "start": start, "count": count}
        _overlaps[(images, blocks, columns)](
            boxes, groups, order, bits, threshold, words=words, **shape, enable_fp_fusion=False
        )
        _scan[(images,)](
            boxes,
            scores,
            order,
            source,
            keep,
            bits,
            **shape,
            words=words,
            width=triton.next_power_of_2(words),
        )
        after = number - start - count
        if after > 0:
            _strike[(images, triton.cdiv(after, _COLUMNS))](
                boxes, groups, order, source, keep, threshold, **shape, enable_fp_fusion=False
            )
        source = keep
    return keep


@triton.jit
def _place(order, image, number, row, inside):
    """Return where the rows of an image, counted from the best, lie in its tensors."""
    place = image * number + row
    if order is not None:
        place = image * number + tl.load(order + place, mask=inside, other=0)
    return place


@triton.jit
def _corners(boxes, place, inside):
    """Load x1 y1 x2 y2."""
    left = tl.load(boxes + place * 4, mask=inside, other=0.0)
    top = tl.load(boxes + place * 4 + 1, mask=inside, other=0.0)
    right = tl.load(boxes + place * 4 + 2, mask=inside, other=0.0)
    bottom = tl.load(boxes + place * 4 + 3, mask=inside, other=0.0)
    return left, top, right, bottom


@triton.jit
def _finite(x):
    return tl.abs(x) < float("inf")  # false for NaN


@triton.jit
def _either(one, other):
    return one | other


@triton.jit
def _too_close(boxes, groups, place, inside, others, others_inside, threshold):
    """Compare rows ``[R]`` with others ``[C]``: ``[R, C]``, of one group and with a larger IoU."""
    left, top, right, bottom = _corners(boxes, place, inside)
    left2, top2, right2, bottom2 = _corners(boxes, others, others_inside)
    area = tl.maximum((right - left) * (bottom - top), 0.0)
    area2 = tl.maximum((right2 - left2) * (bottom2 - top2), 0.0)
    width = tl.minimum(right[:, None], right2[None]) - tl.maximum(left[:, None], left2[None])
    height = tl.minimum(bottom[:, None], bottom2[None]) - tl.maximum(top[:, None], top2[None])
    overlap = tl.maximum(width, 0.0) * tl.maximum(height, 0.0)
    union = (area[:, None] + area2[None]) - overlap
    close = overlap > threshold * union
    if groups is not None:
        group = tl.load(groups + place, mask=inside, other=-1)
        group2 = tl.load(groups + others, mask=others_inside, other=-2)
        close = close & (group[:, None] == group2[None])
    return close & inside[:, None] & others_inside[None]


@triton.jit
def _overlaps(
    boxes, groups, order, bits, threshold, words: tl.constexpr, number, start, count
):  # fmt: skip
    """Write a tile of ``bits``: bit c of ``[image, row, w]`` says whether the row may drop row 32 w + c.

    A program does 32 rows and 64 later ones. Words of earlier rows only stay as they are; nobody reads them.
    """
    image = tl.program_id(0).to(tl.int64)
    first, second = tl.program_id(1) * 32, tl.program_id(2) * 64
    if second + 64 <= first:
        return
    row = first + tl.arange(0, 32)
    other = second + tl.arange(0, 64)
    inside, others_inside = row < count, other < count
    place = _place(order, image, number, start + row, inside)
    others = _place(order, image, number, start + other, others_inside)
    close = _too_close(boxes, groups, place, inside, others, others_inside, threshold)
    close = close & (other[None] > row[:, None])
    bit = close.to(tl.int32) << (other % 32)[None]
    packed = tl.sum(tl.reshape(bit, (32, 2, 32)), axis=2)  # [32, 2]
    word = tl.program_id(2) * 2 + tl.arange(0, 2)
    target = bits + (image * words * 32 + row[:, None]) * words + word[None]
    tl.store(target, packed, mask=(word < words)[None] & inside[:, None])


@triton.jit
def _scan(
    boxes, scores, order, source, keep, bits, number, start, count, words: tl.constexpr, width: tl.constexpr
):  # fmt: skip
    """Settle the rows of a slab in order, 32 at a time: each kept one drops those it overlaps."""
    image = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, 32)
    word = tl.arange(0, width)
    dropped = tl.zeros((width,), dtype=tl.int32)  # one bit per row of the slab
    for block in range(tl.cdiv(count, 32)):
        row = block * 32 + lane
        inside = row < count
        place = _place(order, image, number, start + row, inside)
        left, top, right, bottom = _corners(boxes, place, inside)
        usable = inside & (tl.load(source + place, mask=inside, other=0) != 0)
        usable = usable & _finite((right - left) * (bottom - top))
        if scores is not None:  # sorted already
            score = tl.load(scores + image * number + start + row, mask=inside, other=0.0)
            usable = usable & _finite(score)
        gone = tl.sum(tl.where(word == block, dropped, 0)) | tl.sum(tl.where(usable, 0, 1) << lane)
        base = bits + (image * words + block) * 32 * words
        for bit in tl.static_range(32):
            # Rows beyond the last hold anything, and are gone from the beginning.
            drops = tl.load(base + bit * words + block)
            gone = gone | tl.where(((gone >> bit) & 1) == 0, drops, 0)
        stays = ((gone >> lane) & 1) == 0
        tl.store(keep + place, stays, mask=inside)
        wanted = stays[:, None] & ((word > block) & (word < words))[None]
        drops = tl.load(base + lane[:, None] * words + word[None], mask=wanted, other=0)
        dropped = dropped | tl.reduce(drops, 0, _either)


@triton.jit
def _strike(boxes, groups, order, source, keep, threshold, number, start, count):
    """Drop 64 rows after a slab that one of its kept rows overlaps, and pass the others on."""
    image = tl.program_id(0).to(tl.int64)
    other = start + count + tl.program_id(1) * 64 + tl.arange(0, 64)
    others_inside = other < number
    others = _place(order, image, number, other, others_inside)
    struck = tl.zeros((64,), dtype=tl.int32)
    for block in range(tl.cdiv(count, 32)):
        row = block * 32 + tl.arange(0, 32)
        inside = row < count
        place = _place(order, image, number, start + row, inside)
        stays = inside & (tl.load(keep + place, mask=inside, other=0) != 0)
        close = _too_close(boxes, groups, place, stays, others, others_inside, threshold)
        struck = struck | tl.max(close.to(tl.int32), axis=0)
    left = (tl.load(source + others, mask=others_inside, other=0) != 0) & (struck == 0)
    tl.store(keep + others, left, mask=others_inside)
