"""Outlines of objects in COCO files (polygons and run lengths), without a Python object per record.

Letters in shapes: A annotations, P pieces (polygons, or one run-length code) of all annotations, N bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from .fields import are_numbers

_FEWEST_NUMBERS = 6  # of a polygon: three corners
_FARTHEST = 1e5  # pixels from the origin; drawing takes memory in proportion
MOST_PIXELS = 2**32 - 1  # of run lengths: pycocotools counts in uint32


class Outline(NamedTuple):
    """A segmentation, packed while the file is parsed, so that its numbers never exist all at once.

    Attributes:
        polygons: whether the pieces are polygons, or else one run-length code.
        pieces: x and y as float64 in turn, or COCO's compressed run lengths.
        size: of run lengths, height and width; None for polygons.
        problem: why it cannot be drawn; empty if it can.
        dropped: how many polygons of fewer than three corners were left out.
        reach: of polygons, the largest coordinate, in pixels; 0 for run lengths.
    """

    polygons: bool
    pieces: list[bytes]
    size: tuple[int, int] | None = None
    problem: str = ""
    dropped: int = 0
    reach: float = 0.0


NO_OUTLINE = Outline(True, [], problem="no segmentation")
_UNFILLED = "run lengths without a size that they fill"
_NO_POLYGON = Outline(True, [], problem="a polygon is no list of x and y in turn, in pixels")


def with_packed_outline(record: dict[str, Any]) -> dict[str, Any]:
    """Pack the segmentation of a JSON object, if it has one; an ``object_hook`` of ``json``."""
    if "segmentation" in record:
        record["segmentation"] = pack_outline(record["segmentation"])
    return record


def pack_outline(segmentation: Any) -> Outline:
    """Pack the value of ``segmentation`` of a COCO annotation; what is wrong with it becomes its problem."""
    if isinstance(segmentation, dict):
        return _pack_run_lengths(segmentation)
    if not isinstance(segmentation, list) or not segmentation:
        return NO_OUTLINE
    pieces: list[bytes] = []
    farthest = 0.0
    for polygon in segmentation:
        if not isinstance(polygon, list) or not are_numbers(polygon) or len(polygon) % 2:
            return _NO_POLYGON
        numbers = np.array(polygon, dtype=np.float64)
        reach = float(np.abs(numbers).max(initial=0))
        if not reach < _FARTHEST:  # nan neither
            return _NO_POLYGON
        if len(numbers) >= _FEWEST_NUMBERS:
            pieces.append(numbers.tobytes())
            farthest = max(farthest, reach)
    return Outline(True, pieces, dropped=len(segmentation) - len(pieces), reach=farthest)


def _pack_run_lengths(segmentation: dict[str, Any]) -> Outline:
    counts: Any = segmentation.get("counts")
    size: Any = segmentation.get("size")
    fits = isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
    if not fits or size[0] * size[1] > MOST_PIXELS:
        return Outline(False, [], problem=_UNFILLED)
    pixels = size[0] * size[1]
    if isinstance(counts, str) and counts.isascii() and _pixels_of(counts.encode()) == pixels:
        return Outline(False, [counts.encode()], (size[0], size[1]))
    runs = counts if isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts) else []
    if sum(runs) == pixels:
        code: Any = coco_mask.frPyObjects({"counts": runs, "size": size}, *size)
        return Outline(False, [code["counts"]], (size[0], size[1]))
    return Outline(False, [], problem=_UNFILLED)


def _pixels_of(counts: bytes) -> int:
    """Return how many pixels compressed run lengths fill, -1 for a damaged code.

    pycocotools decodes codes that fill too few, and leaves the rest of the bitmap as memory happened to be.
    The code is that of its ``rleFrString``: digits of five bits, the lowest first. Bit 32 says that more
    follow, bit 16 of the last one is the sign. From the fourth run on, the code is the difference from the
    run two places before.
    """
    digits = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    if not len(digits) or not ((digits >= 0) & (digits < 64)).all() or digits[-1] & 32:
        return -1
    last = np.flatnonzero(digits & 32 == 0)
    first = np.append(0, last[:-1] + 1)
    places = np.arange(len(digits)) - np.repeat(first, last - first + 1)
    if places.max() > 6:  # more than 32 bits
        return -1
    runs = np.add.reduceat((digits & 31) << (5 * places), first)
    runs -= (digits[last] & 16 > 0).astype(np.int64) << (5 * (places[last] + 1))
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return int(runs.sum()) if (runs >= 0).all() else -1


def size_problem(outline: Outline, size: Sequence[int]) -> str:
    """Return what is wrong with run lengths for an image of this height and width; empty if nothing is."""
    if outline.size is None or outline.size == tuple(size):
        return ""
    return f"run lengths of size {list(outline.size)}, but the image has {list(size)}"


@dataclass(frozen=True)
class Outlines:
    """The outlines of annotations.

    Attributes:
        polygons: ``[A]`` bool; the pieces of an annotation are polygons, or else one run-length code.
        pieces: ``[A + 1]`` int64; annotation a has the pieces ``pieces[a]:pieces[a + 1]``.
        offsets: ``[P + 1]`` int64 into ``content``.
        content: ``[N]`` uint8: x and y as float64 in turn, or COCO's compressed run lengths.
    """

    polygons: Tensor
    pieces: Tensor
    offsets: Tensor
    content: Tensor

    @staticmethod
    def pack(outlines: Iterable[Outline]) -> Outlines:
        """Copy outlines into a few tensors."""
        outlines = list(outlines)
        pieces = [piece for outline in outlines for piece in outline.pieces]
        return Outlines(
            polygons=torch.tensor([outline.polygons for outline in outlines], dtype=torch.bool),
            pieces=starts([len(outline.pieces) for outline in outlines]),
            offsets=starts([len(piece) for piece in pieces]),
            content=_tensor_of(pieces),
        )

    def __len__(self) -> int:
        return len(self.polygons)

    def __getitem__(self, annotation: int) -> Outline:
        first, last = self.pieces[annotation : annotation + 2].tolist()
        offsets = self.offsets[first : last + 1].tolist()
        content = self.content[offsets[0] : offsets[-1]].numpy().tobytes()
        ends = zip(offsets[:-1], offsets[1:], strict=True)
        return Outline(
            bool(self.polygons[annotation]),
            [content[low - offsets[0] : high - offsets[0]] for low, high in ends],
        )

    def run_lengths(self, annotation: int, size: Sequence[int]) -> dict[str, Any]:
        """Return pycocotools' run-length code of one annotation; ``size`` is height and width."""
        outline = self[annotation]
        if not outline.polygons:
            return {"size": list(size), "counts": outline.pieces[0]}
        corners = [np.frombuffer(piece) for piece in outline.pieces]
        return coco_mask.merge(coco_mask.frPyObjects(corners, *size))

    def as_coco(self, annotation: int, size: Sequence[int]) -> list[list[float]] | dict[str, Any]:
        """Return the ``segmentation`` of a COCO annotation; run lengths are compressed."""
        outline = self[annotation]
        if outline.polygons:
            return [np.frombuffer(piece).tolist() for piece in outline.pieces]
        return {"size": list(size), "counts": outline.pieces[0].decode()}

    def take(self, rows: Tensor) -> Outlines:
        """Return the outlines of some annotations, by their ``[A']`` int64 positions."""
        pieces, kept = _gathered(self.pieces, rows)
        ends = self.offsets.tolist()
        content = memoryview(cast(Any, self.content.numpy()))
        parts = [content[ends[piece] : ends[piece + 1]] for piece in kept.tolist()]
        return Outlines(
            polygons=self.polygons[rows],
            pieces=pieces,
            offsets=starts([len(part) for part in parts]),
            content=_tensor_of(parts),
        )


def starts(lengths: Sequence[int]) -> Tensor:
    """Return ``[n + 1]`` int64: where each of n neighbours starts, and where the last one ends."""
    return torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int64))


def _gathered(ends: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Take some of the groups ``ends[i]:ends[i + 1]``: where they start and end, and the old positions."""
    lengths = ends.diff()[rows]
    taken = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    moved = torch.repeat_interleave(ends[:-1][rows] - taken[:-1], lengths)
    return taken, torch.arange(len(moved)) + moved


def _tensor_of(parts: Sequence[bytes | memoryview]) -> Tensor:
    return torch.from_numpy(np.frombuffer(b"".join(parts), dtype=np.uint8).copy())  # torch wants it writable
