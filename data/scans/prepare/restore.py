"""From the scores of a prepared scan to labels on the file's own grid, in bounded memory.

Letters in shapes: K classes, S0 spatial axes of the file's grid, T of the box in the turned grid (see
``prepare``), S of the prepared grid. s is the same as S except one axis, of which only some planes are there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .prepare import Placement
from .resample import Taps, taps

Block = tuple[slice, ...]  # of the box in the turned grid, one slice per axis


class Restorer:
    """Undoes ``prepare`` for predictions while they come in, plane by plane.

    Scores (not labels) are resized to the grid before resampling: linearly, and along a coarse axis to the
    nearest. Then the user of this class chooses labels. They are turned back and written into the file's
    grid; outside of the crop they are 0. As in nnU-Net, but the scores of the whole scan are never held: only
    the planes that the next voxels need are kept from one call to the next, and voxels come in blocks. The
    result does not depend on the blocks. Axes that kept their size are not resized at all::

        for planes in ...:
            for block, scores in restorer.blocks(planes):
                restorer.write(block, scores.argmax(0))

    Args:
        placement: of the prepared scan.
        axis: the axis of the prepared scan along which planes arrive.
        most_values: score values held at a time in addition to the planes that were added, roughly; a block
            has at most a quarter of them, but always one row of voxels.

    Raises:
        ValueError: if there is no such axis, or ``most_values`` is below 1.
    """

    def __init__(self, placement: Placement, axis: int, most_values: int = 2**26) -> None:
        if not 0 <= axis < len(placement.shape):
            raise ValueError(f"axis is {axis}; the prepared scan has {len(placement.shape)} axes")
        if most_values < 1:
            raise ValueError(f"most_values is {most_values}; it must be at least 1")
        self._placement, self._axis = placement, axis
        self._block_values = most_values // 4
        self._result = np.zeros(placement.grid.shape, dtype=np.uint8)
        self._target = placement.turn(self._result)  # [*T], a view
        lengths = zip(placement.shape, placement.box_shape, placement.orders(1), strict=True)
        self._steps = [taps(*length) for length in lengths]
        self._received = 0  # prepared planes
        self._done = 0  # planes of the box
        self._kept: Tensor | None = None  # the last of the received planes, [K, *s]

    def blocks(self, scores: Tensor) -> Iterator[tuple[Block, Tensor]]:
        """Take the next finished planes, and return the voxels of the file's grid that they complete.

        Go through all blocks before the next planes.

        Args:
            scores: ``[K, *s]``, finite, on any device and of any floating-point type; full size along all
                axes but ``axis``. They are not kept, except copies of two planes at the most.

        Returns:
            Blocks with their scores, ``[K, *t]`` float32. These may be views of ``scores``: do not
            change them.

        Raises:
            ValueError: if they have another shape, or more planes come than the prepared scan has.
        """
        expected = list(self._placement.shape)
        expected[self._axis] = scores.shape[self._axis + 1] if scores.ndim == len(expected) + 1 else -1
        if list(scores.shape[1:]) != expected:
            raise ValueError(
                f"scores have the shape {list(scores.shape)}, which does not fit the prepared scan of shape "
                f"{list(self._placement.shape)} along axes other than {self._axis}"
            )
        start, self._received = self._received, self._received + expected[self._axis]
        if self._received > self._placement.shape[self._axis]:
            raise ValueError(
                f"{self._received} planes came in along axis {self._axis}; the prepared scan has "
                f"{self._placement.shape[self._axis]}"
            )
        return self._complete(scores, start)

    def _complete(self, scores: Tensor, start: int) -> Iterator[tuple[Block, Tensor]]:
        ready = self._ready()
        for block in self._cut(scores.shape, self._done, ready):
            yield block, self._block(scores, start, block)
        self._done = ready
        self._keep(scores, start)

    def write(self, block: Block, labels: Tensor) -> None:
        """Write the labels of a block, ``[*t]`` uint8 on any device."""
        self._target[block] = labels.cpu().numpy()

    def labels(self) -> np.ndarray:
        """Return ``[*S0]`` uint8 labels on the file's own grid, 0 outside of the crop.

        Raises:
            RuntimeError: if planes are missing.
        """
        if self._received < self._placement.shape[self._axis]:
            raise RuntimeError(
                f"{self._received} of {self._placement.shape[self._axis]} planes along axis {self._axis} "
                "have been added; add all of them first"
            )
        return self._result

    def _ready(self) -> int:
        """Return how many planes of the box the received ones suffice for."""
        step = self._steps[self._axis]
        return self._received if step is None else int((step.high < self._received).sum())

    def _cut(self, shape: torch.Size, start: int, stop: int) -> Iterator[Block]:
        """Cut the planes of the box into blocks of some planes, or of some rows of one."""
        box, prepared = self._placement.box_shape, self._placement.shape
        sizes = [max(lengths) for lengths in zip(box, prepared, strict=True)]
        across = 1 if self._axis == 0 else 0  # blocks of rows are cut along this axis
        row = shape[0] * math.prod(sizes) // sizes[self._axis] // sizes[across]
        rows = min(box[across], max(1, self._block_values // row))
        planes = max(1, self._block_values // (row * sizes[across])) if rows == box[across] else 1
        for plane in range(start, stop, planes):
            for first in range(0, box[across], rows):
                block = [slice(0, length) for length in box]
                block[self._axis] = slice(plane, min(plane + planes, stop))
                block[across] = slice(first, min(first + rows, box[across]))
                yield tuple(block)

    def _block(self, scores: Tensor, start: int, block: Block) -> Tensor:
        """Return the float32 scores of a block of the box, given the planes from number ``start`` on."""
        parts: list[Taps | None] = []
        source = [slice(None)]
        for side, step in zip(block, self._steps, strict=True):
            start_stop = (side.start, side.stop)
            part, *source_range = (None, *start_stop) if step is None else step.part(*start_stop)
            parts.append(part)
            source.append(slice(*source_range))
        values = self._planes(scores, start, tuple(source)).float()
        for dim, part in enumerate(parts, 1):
            values = values if part is None else part.apply(values, dim)
        return values

    def _planes(self, scores: Tensor, start: int, source: Block) -> Tensor:
        """Cut prepared voxels out of the planes kept and those that have just come."""
        dim = self._axis + 1
        wanted = source[dim]
        found = []
        if wanted.start < start:  # the planes kept end where the new ones begin
            assert self._kept is not None
            first = start - self._kept.shape[dim]
            kept = slice(wanted.start - first, min(wanted.stop, start) - first)
            found.append(self._kept[(*source[:dim], kept, *source[dim + 1 :])])
        if wanted.stop > start:
            new = slice(max(wanted.start, start) - start, wanted.stop - start)
            found.append(scores[(*source[:dim], new, *source[dim + 1 :])])
        return found[0] if len(found) == 1 else torch.cat(found, dim)

    def _keep(self, scores: Tensor, start: int) -> None:
        """Copy the planes that the next plane of the box needs."""
        step, dim = self._steps[self._axis], self._axis + 1
        if step is None or self._done == len(step.low):
            self._kept = None
            return
        first = int(step.low[self._done])
        if first >= self._received:
            self._kept = None
            return
        source = [slice(None)] * scores.ndim
        source[dim] = slice(first, self._received)
        self._kept = self._planes(scores, start, tuple(source)).clone()
