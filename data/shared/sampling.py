"""Batches of images by number, for training and evaluation, on any number of ranks.

Letters in shapes: I images, r repetitions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import DistributedSampler


class ImageRequest(NamedTuple):
    """What the sampler asks of the data set.

    Attributes:
        index: position of the image in the index.
        seed: fixes the augmentation of this image in this epoch, whichever worker serves it.
    """

    index: int
    seed: int = 0


class ImageBatchSampler(DistributedSampler):
    """Yields batches of requests.

    Training (``shuffle``): every rank gets equally many full batches; the last step is filled up with images
    drawn anew. Order and seeds depend on ``seed`` and the epoch alone. With ``repeats`` an image comes up r
    times in a row with other augmentation, spread over the ranks, and an epoch shows I / r of the images
    (repeated augmentation; Hoffer et al., 2020), so that its length stays.

    Evaluation: every image once over all ranks, in the order of the index, or, with ``spread``, in a random
    one that never changes. The last batch may be smaller, and ranks may have different numbers of batches,
    but each has one as long as there are enough images.

    It is a ``DistributedSampler`` so that Lightning sets the epoch and does not shard its batches once more.

    Args:
        count: number of images, at least 1.
        batch_size: images per batch and rank.
        shuffle: training if true, evaluation if false.
        seed: fixes everything random.
        rank: which of the ranks this is.
        world_size: number of ranks.
        repeats: r, at least 1.
        spread: order of evaluation, see above. Data mostly come class by class; this way some of the batches
            (``limit_val_batches``) show all classes.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        repeats: int = 1,
        spread: bool = False,
    ):
        super().__init__(range(count), world_size, rank, shuffle, seed)
        self.count = count
        # A rank without a batch would leave the others waiting for it at the end of an evaluation.
        self.batch_size = batch_size if shuffle else min(batch_size, max(1, count // world_size))
        self.repeats = repeats
        self.spread = spread

    def __len__(self) -> int:
        if self.shuffle:
            return -(-self.count // (self.batch_size * self.num_replicas))
        batches = -(-self.count // self.batch_size)
        return len(range(self.rank, batches, self.num_replicas))

    def __iter__(self) -> Iterator[list[ImageRequest]]:
        return self._training_batches() if self.shuffle else self._evaluation_batches()

    def _training_batches(self) -> Iterator[list[ImageRequest]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        step = self.batch_size * self.num_replicas
        total = len(self) * step
        order = np.repeat(rng.permutation(self.count), self.repeats)[: self.count]
        filling = np.resize(rng.permutation(self.count), total - self.count)  # repeats if too few
        order = np.concatenate([order, filling])
        seeds = rng.integers(2**63, size=total)
        for start in range(self.rank, total, step):
            mine = slice(start, start - self.rank + step, self.num_replicas)
            yield list(map(ImageRequest, order[mine].tolist(), seeds[mine].tolist()))

    def _evaluation_batches(self) -> Iterator[list[ImageRequest]]:
        order = np.random.default_rng(0).permutation(self.count) if self.spread else np.arange(self.count)
        skip = self.batch_size * self.num_replicas
        for start in range(self.rank * self.batch_size, self.count, skip):
            yield list(map(ImageRequest, order[start : start + self.batch_size].tolist()))
