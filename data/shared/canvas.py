"""Image sizes, the few canvas sizes that images are padded to, and batches of images that share one.

Letters in shapes: I images, G canvases, B images of a batch, W ranks. Sizes are (height, width) in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
from torch.utils.data import Dataset

from .loading import Part, RequestSampler, or_none

Size = tuple[int, int]

PADDING_MULTIPLE = 32  # the coarsest stride of the trunks
ASPECT_RATIOS = (1.04, 4 / 3, 3 / 2)  # nearly square, most cameras, 35 mm film; then the longest


class Request(NamedTuple):
    """What a sampler asks of a dataset.

    Attributes:
        index: position of the image in the dataset.
        short_side: wanted length of the shorter side after resizing, in pixels.
        canvas: height and width to pad to; the resized image is made to fit.
        seed: fixes the augmentation of this image in this epoch, whichever worker serves it.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index
    short_side: int
    canvas: Size
    seed: int = 0


def scaled_size(size: Size, short_side: int, long_side: int, canvas: Size | None = None) -> Size:
    """Scale a size so that its shorter side becomes ``short_side``, unless a limit says smaller.

    The limits are ``long_side`` for the longer side, and the canvas for both. Sides round to the nearest
    pixel (at least 1), as in detectron2's ``ResizeShortestEdge``.
    """
    sides = scaled_sizes(np.asarray([size]), short_side, long_side, canvas)[0]
    return int(sides[0]), int(sides[1])


def scaled_sizes(
    sizes: np.ndarray, short_side: int, long_side: int, canvas: Size | None = None
) -> np.ndarray:
    """Do ``scaled_size`` for ``[I, 2]`` sizes at once; the result is ``[I, 2]`` int64."""
    sizes = np.asarray(sizes, dtype=np.float64)
    scale = np.minimum(short_side / sizes.min(axis=1), long_side / sizes.max(axis=1))
    if canvas is not None:
        scale = np.minimum(scale, (np.asarray(canvas) / sizes).min(axis=1))
    scaled = np.floor(sizes * scale[:, None] + 0.5).astype(np.int64)
    return np.maximum(scaled, 1)


def default_canvases(short_sides: Sequence[int], long_side: int) -> list[Size]:
    """Derive canvases for common aspect ratios, both ways up.

    One short side gives up to seven canvases: for 800 and 1333 these are 800x832, 800x1088, 800x1216,
    800x1344 and their transposes 832x800, 1088x800, 1216x800, 1344x800. Several short sides are split into
    a lower and an upper half, and each half gets the canvases of its largest, so that small images are not
    padded to the size of the largest ones.
    """
    ordered = np.unique(np.asarray(short_sides))
    canvases: set[Size] = set()
    for half in np.array_split(ordered, min(2, len(ordered))):
        short = min(int(half.max()), long_side)
        longest = _round_up(long_side)
        for ratio in ASPECT_RATIOS:
            long = min(_round_up(short * ratio), longest)
            canvases |= {(_round_up(short), long), (long, _round_up(short))}
        canvases |= {(_round_up(short), longest), (longest, _round_up(short))}
    return sorted(canvases, key=lambda canvas: (canvas[0] * canvas[1], canvas))


def choose_canvas(sizes: Sequence[Size] | np.ndarray, canvases: Sequence[Size] | None) -> Size:
    """Choose the smallest canvas that holds every one of the given sizes.

    Args:
        sizes: ``[B, 2]`` heights and widths of resized images.
        canvases: the canvases there are. None (or none at all): the largest height and width, each rounded
            up to a multiple of 32.

    Returns:
        The canvas of least area that holds all; where none does, the one on which the images have to shrink
        least.
    """
    height, width = (int(side) for side in np.asarray(sizes).max(axis=0))
    if not canvases:
        return _round_up(height), _round_up(width)
    holding = [canvas for canvas in canvases if canvas[0] >= height and canvas[1] >= width]
    if holding:
        return min(holding, key=lambda canvas: (canvas[0] * canvas[1], canvas))
    return max(
        canvases, key=lambda canvas: (min(canvas[0] / height, canvas[1] / width), -canvas[0] * canvas[1])
    )


class CanvasBatchSampler(RequestSampler):
    """Yields batches of requests; the images of a batch have similar shapes and share one canvas.

    Training (``shuffle``): images of the same canvas are shuffled and cut into steps of ``batch_size``
    images on each rank, and a step has one canvas, so ranks work on equal shapes at the same time. What is
    left of each canvas is put together, ordered by aspect ratio; the last step is filled up with repeated
    images of a like shape. Every step draws one of the short sides. Order, short sides and seeds depend only
    on ``seed``, the epoch and the images of a step, so that all ranks together see what one sees whose
    batches are as large as theirs together. An epoch that goes on with steps of another size makes new steps
    of the images that it has not had.

    Evaluation: every image once over all ranks, at the largest short side, in file order as far as grouping
    allows. Batches are those of one rank, whatever the number of ranks. Some may be smaller, and ranks may
    have different numbers of them; one without any gets a batch of no image.

    Args:
        sizes: ``[I, 2]`` heights and widths of the images on disk.
        batch_size: images per batch and rank.
        short_sides: the lengths to draw from.
        long_side: limit of the longer side after resizing.
        canvases: the canvases to pad to, see ``choose_canvas``.
        shuffle: training if true, evaluation if false.
        seed: fixes everything random.
        rank: which of the ranks this is.
        world_size: number of ranks.
        drop_last: drop the last, incomplete training step instead of filling it up.

    Raises:
        ValueError: if there are no images, or not one full step with ``drop_last``.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        batch_size: int,
        short_sides: Sequence[int],
        long_side: int,
        canvases: Sequence[Size] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ):
        self.sizes = np.asarray(sizes).reshape(-1, 2)
        if len(self.sizes) == 0:
            raise ValueError("there are no images to make batches of")
        super().__init__(cast(Dataset, self.sizes), world_size, rank, shuffle, seed, drop_last)
        self.batch_size = batch_size
        self.short_sides = tuple(sorted(short_sides))
        self.long_side = long_side
        self.canvases = [(int(height), int(width)) for height, width in canvases or ()]
        self.groups = _group_by_canvas(self.sizes, self.short_sides[-1], long_side, self.canvases)
        self._fixed = None if shuffle else self._evaluation_batches()[rank::world_size]
        if shuffle and len(self) == 0:
            raise ValueError(
                f"{len(self.sizes)} images do not fill one step of {batch_size} images on {world_size} "
                "ranks; use a smaller batch_size or drop_last=False"
            )

    def __len__(self) -> int:
        if self._fixed is not None:
            return max(1, len(self._fixed))
        return self._count(self.groups)

    def left(self) -> int:
        epoch, done = self._done
        groups, _, skipped = self._remaining(done, epoch)
        return self._count(groups) - skipped

    def _count(self, groups: list[np.ndarray]) -> int:
        """Return the number of steps of the images of some groups."""
        step = self.images_per_step
        left = sum(len(group) % step for group in groups)
        full = sum(len(group) // step for group in groups) + left // step
        return full + int(left % step > 0 and not self.drop_last)

    def batches(self, done: Sequence[Part]) -> Iterator[list[Request]]:
        if self._fixed is not None:
            return or_none(self._requests(members, self.short_sides[-1]) for members in self._fixed)
        return self._training_batches(done)

    def _training_batches(self, done: Sequence[Part]) -> Iterator[list[Request]]:
        groups, before, skipped = self._remaining(done, self.epoch)
        rng = self._rng(self.epoch, before)
        steps = self._training_steps(rng, groups, self.images_per_step)
        short_sides = rng.choice(self.short_sides, size=len(steps))
        seeds = rng.integers(2**63, size=(len(steps), self.images_per_step))
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for step in rng.permutation(len(steps))[skipped:]:
            short_side = int(short_sides[step])
            canvas = self._canvas(steps[step], short_side)  # of all ranks: they wait for the slowest anyway
            yield self._requests(steps[step][mine], short_side, seeds[step, mine], canvas)

    def _remaining(self, done: Sequence[Part], epoch: int) -> tuple[list[np.ndarray], int, int]:
        """Return the groups of images that steps are made of, and where in them an epoch goes on.

        Args:
            done: parts of the epoch, see :meth:`leave_out`.
            epoch: its number.

        Returns:
            The groups, without the images of parts whose steps had another size; the number of those parts;
            and how many steps of the groups are over.
        """
        groups, last = self.groups, done[-1:]
        same = [batches for batches, images in last if images == self.images_per_step]
        before = done[:-1] if same else done
        for number, (batches, images) in enumerate(before):
            rng = self._rng(epoch, number)
            steps = self._training_steps(rng, groups, images)
            rng.choice(self.short_sides, size=len(steps))  # drawn again for the order of steps to be theirs
            rng.integers(2**63, size=(len(steps), images))
            gone = [steps[step] for step in rng.permutation(len(steps))[:batches]]
            had = np.concatenate([np.zeros(0, np.int64), *gone])
            groups = [group[~np.isin(group, had)] for group in groups]
            groups = [group for group in groups if len(group)]
        return groups, len(before), sum(same)

    def _rng(self, epoch: int, part: int) -> np.random.Generator:
        """Return the generator of an epoch; after a change of its steps it is another."""
        return np.random.default_rng([self.seed, epoch, part] if part else [self.seed, epoch])

    def _training_steps(
        self, rng: np.random.Generator, groups: list[np.ndarray], size: int
    ) -> list[np.ndarray]:
        """Cut images into steps of ``size`` = W * B, the batch of rank r at ``[r * B, (r + 1) * B)``."""
        steps: list[np.ndarray] = []
        left: list[np.ndarray] = [np.zeros(0, np.int64)]
        for group in groups:
            order = rng.permutation(group)
            whole = len(order) // size * size
            steps.extend(order[:whole].reshape(-1, size))
            left.append(order[whole:])
        rest = np.concatenate(left)
        rest = rest[np.argsort(self.sizes[rest, 0] / self.sizes[rest, 1], kind="stable")]
        whole = len(rest) // size * size
        steps.extend(rest[:whole].reshape(-1, size))
        if whole < len(rest) and not self.drop_last:
            like = next(group for group in groups if rest[-1] in group)
            filling = np.resize(rng.permutation(like), size - (len(rest) - whole))  # repeats if too few
            steps.append(np.concatenate([rest[whole:], filling]))
        return steps

    def _evaluation_batches(self) -> list[np.ndarray]:
        size = self.batch_size
        batches = [
            group[start : start + size] for group in self.groups for start in range(0, len(group), size)
        ]
        return sorted(batches, key=lambda batch: batch[0])

    def _canvas(self, members: np.ndarray, short_side: int) -> Size:
        return choose_canvas(scaled_sizes(self.sizes[members], short_side, self.long_side), self.canvases)

    def _requests(
        self,
        members: np.ndarray,
        short_side: int,
        seeds: np.ndarray | None = None,
        canvas: Size | None = None,
    ) -> list[Request]:
        canvas = self._canvas(members, short_side) if canvas is None else canvas
        seeds = np.zeros(len(members), dtype=np.int64) if seeds is None else seeds
        return [
            Request(int(index), short_side, canvas, int(seed))
            for index, seed in zip(members, seeds, strict=True)
        ]


def _group_by_canvas(
    sizes: np.ndarray, short_side: int, long_side: int, canvases: list[Size]
) -> list[np.ndarray]:
    """Group image positions by the canvas that each would get in its own batch; ascending inside a group."""
    scaled = scaled_sizes(sizes, short_side, long_side)
    distinct, which = np.unique(scaled, axis=0, return_inverse=True)
    # Without fixed canvases, one group for each rounded size would be too fine.
    chosen = [
        choose_canvas([size], canvases or default_canvases([short_side], long_side)) for size in distinct
    ]
    names, group_of = np.unique(np.asarray(chosen), axis=0, return_inverse=True)
    group = group_of.reshape(-1)[which.reshape(-1)]
    return [np.flatnonzero(group == number) for number in range(len(names))]


def _round_up(side: float) -> int:
    return max(1, -(-int(np.ceil(side - 1e-6)) // PADDING_MULTIPLE)) * PADDING_MULTIPLE
