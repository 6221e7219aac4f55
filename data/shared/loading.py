"""Loaders: which images make a batch, on any number of ranks, and the processes that read them.

Letters in shapes: I images, r repetitions.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from .failed import CollateReadable, FailedBatch, SkipUnreadable
from .loader_errors import LoaderProcessError, loader_problem, report_lost_batches
from .prefetch import prefetched

Part = tuple[int, int]  # batches on each rank, and images of a step of all ranks

GRACE = 120  # seconds from SIGTERM to the end of a loader process that is still there


class ImageRequest(NamedTuple):
    """What the sampler asks of the dataset.

    Attributes:
        index: position of the image in the index.
        seed: fixes the augmentation of this image in this epoch, whichever worker serves it.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index
    seed: int = 0


class RequestSampler(DistributedSampler):
    """The base of samplers that yield a list of requests per batch, and can go on in the middle of an epoch.

    It is a ``DistributedSampler`` so that Lightning sets the epoch and does not shard its batches once more.

    Attributes:
        batch_size: images per batch and rank.
    """

    batch_size: int
    _done: tuple[int, Sequence[Part]] = (-1, ())

    @property
    def images_per_step(self) -> int:
        """Images of the batches of all ranks that are trained on at a time."""
        return self.batch_size * self.num_replicas

    def leave_out(self, epoch: int, parts: Sequence[Part]) -> None:
        """Leave out what one epoch has had already: a run goes on after it.

        Args:
            epoch: its number.
            parts: in their order, how many batches each rank has had, and how many images all ranks together
                had in a step then, which may differ from :attr:`images_per_step`.
        """
        self._done = (epoch, tuple(parts))

    def batches(self, done: Sequence[Part]) -> Iterator[list[Any]]:
        """Yield the batches of the epoch that follow those parts of it."""
        raise NotImplementedError

    def left(self) -> int:
        """Return how many batches the epoch still has that :meth:`leave_out` was told of."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[list[Any]]:
        epoch, done = self._done
        return self.batches(done if epoch == self.epoch else ())


class ImageBatchSampler(RequestSampler):
    """Yields batches of requests.

    Training (``shuffle``): every rank gets equally many full batches; the last step is filled up with images
    drawn again. Order and seeds depend only on ``seed`` and the epoch. With ``repeats`` an image comes up r
    times in a row with other augmentation, spread over the ranks, and an epoch shows I / r of the images
    (repeated augmentation; Hoffer et al., 2020), so that its length stays. All ranks together see what one
    sees whose batches are as large as theirs together, and go on in an epoch with whatever it has left.

    Evaluation: every image once over all ranks, in the order of the index, or, with ``spread``, in a random
    one that never changes. Batches are those of one rank, whatever the number of ranks. The last one may be
    smaller, and ranks may have different numbers of them; one without any gets a batch of no image.

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
        super().__init__(cast(Dataset, range(count)), world_size, rank, shuffle, seed)
        self.count = count
        self.batch_size = batch_size
        self.repeats = repeats
        self.spread = spread

    def __len__(self) -> int:
        if self.shuffle:
            return -(-self.count // self.images_per_step)
        batches = -(-self.count // self.batch_size)
        return max(1, len(range(self.rank, batches, self.num_replicas)))

    def left(self) -> int:
        return -(-max(0, self.count - self._positions(self._done[1])) // self.images_per_step)

    def batches(self, done: Sequence[Part]) -> Iterator[list[ImageRequest]]:
        if self.shuffle:
            return self._training_batches(self._positions(done))
        return or_none(self._evaluation_batches())

    @staticmethod
    def _positions(done: Sequence[Part]) -> int:
        """How many places in the order of the epoch were taken."""
        return sum(batches * images for batches, images in done)

    def _training_batches(self, done: int) -> Iterator[list[ImageRequest]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        step = self.images_per_step
        total = max(self.count, done + -(-max(0, self.count - done) // step) * step)
        order = np.repeat(rng.permutation(self.count), self.repeats)[: self.count]
        filling = np.resize(rng.permutation(self.count), total - self.count)  # repeats if too few
        order = np.concatenate([order, filling])
        seeds = rng.integers(2**63, size=total)
        for start in range(done + self.rank, total, step):
            mine = slice(start, start - self.rank + step, self.num_replicas)
            yield list(map(ImageRequest, order[mine].tolist(), seeds[mine].tolist()))

    def _evaluation_batches(self) -> Iterator[list[ImageRequest]]:
        order = np.random.default_rng(0).permutation(self.count) if self.spread else np.arange(self.count)
        skip = self.batch_size * self.num_replicas
        for start in range(self.rank * self.batch_size, self.count, skip):
            yield list(map(ImageRequest, order[start : start + self.batch_size].tolist()))


def or_none(batches: Iterator[list[Any]]) -> Iterator[list[Any]]:
    """Yield the batches of an evaluation, or a single one of no image.

    A rank without a batch would leave the evaluation out, and block the others at its end.
    """
    first = next(batches, [])
    yield first
    yield from batches


class CollateSome:
    """Joins samples by ``collate``; no samples make a batch without an image, see :func:`or_none`."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        return self.collate(samples) if samples else FailedBatch(())


class RequestedBatches(Dataset):
    """Serves whole batches, so that the loader's sampler can be the batch sampler; Lightning sets its epoch.

    ``fixed`` lists the batches by number, for Lightning's overfit_batches, which asks for 0, 1, 2, ...
    """

    def __init__(self, dataset: Dataset, fixed: list[list[Any]] | None):
        self.dataset = dataset
        self.fixed = fixed

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset)) if self.fixed is None else len(self.fixed)

    def __getitem__(self, batch: Sequence[Any] | int) -> list[Any]:
        requests = cast(list, self.fixed)[batch] if isinstance(batch, int) else batch
        return [self.dataset[request] for request in requests]


class PlainErrorLoader(DataLoader):
    """A DataLoader whose loader processes fail with the same message as the main process would.

    torch puts the text of a loader process's traceback in place of the message, and raises from its own code.

    Args:
        dataset: as in a ``DataLoader``.
        device: where the batches are wanted. To a CUDA device each is copied while the step before it
            computes (see ``prefetched``), and Lightning finds it there. For any other device, batches stay in
            main memory.
        **options: what a ``DataLoader`` takes.
    """

    def __init__(self, dataset: Dataset, *, device: torch.device | None = None, **options: Any) -> None:
        # It draws a number for its processes, by default from the generator that the model draws from.
        options.setdefault("generator", torch.Generator())
        options.setdefault("worker_init_fn", start_worker)
        super().__init__(dataset, **options)
        self.device = device

    def __iter__(self) -> Any:
        """Yield the batches.

        Raises:
            ValueError, OSError: (or a subclass) with the message that the dataset or ``collate_fn`` gave.
            LoaderProcessError: if loader processes were killed, or lack shared memory or open files.
        """
        if self.device is None or self.device.type != "cuda":
            return self._in_memory()
        return prefetched(self._in_memory(), self.device)

    def _in_memory(self) -> Iterator[Any]:
        batches = super().__iter__()
        try:
            yield from batches
        except (ValueError, OSError, RuntimeError, EOFError) as error:
            processes = vars(batches).get("_workers", ())
            problem = loader_problem(error, self.num_workers, processes)
            if problem is not None:
                raise LoaderProcessError(problem) from error
            if isinstance(error, RuntimeError | EOFError):
                raise
            kind = type(error)
            module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
            start = f"\n{module}{kind.__qualname__}: "
            _, found, message = str(error).rpartition(start)
            if not found:
                raise
            raise type(error)(message.rstrip("\n")) from error


def capped_workers(wanted: int, batches: int, devices: int = 1) -> int:
    """Return how many loader processes to start: no more than cores per device, nor than batches."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(wanted, max(1, cores // devices), batches)


def global_seed(seed: int | None) -> int:
    """Return the given seed, else the one given to ``seed_everything``, else 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed


def limit_threads(worker_id: int = 0) -> None:
    """Keep OpenCV to one thread in a DataLoader worker, as torch does; use it as ``worker_init_fn``."""
    import cv2  # comes with albumentations

    cv2.setNumThreads(0)


def start_worker(worker_id: int) -> None:
    """Set up a loader process: one thread, and time for the run to save its state when all are asked to stop.

    Queues send SIGTERM to every process of a run. A loader process that ended at once would take the
    run with it before its checkpoint is written.
    """
    limit_threads()
    report_lost_batches()
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # by which a queue announces its time limit


def ranks_of(trainer: Any) -> dict[str, int]:
    """Return ``rank`` and ``world_size`` of this process, for a sampler; 0 and 1 without a trainer."""
    return {
        "rank": 0 if trainer is None else trainer.global_rank,
        "world_size": 1 if trainer is None else trainer.world_size,
    }


def device_of(trainer: Any) -> torch.device:
    """Return the device that this process trains or predicts on; the CPU without a trainer."""
    return torch.device("cpu") if trainer is None else trainer.strategy.root_device


def batch_loader(
    dataset: Dataset,
    sampler: DistributedSampler,
    collate: Callable[[list[Any]], Any],
    workers: int,
    trainer: Any,
    named: Callable[[Any], tuple[int, str]] | None = None,
) -> PlainErrorLoader:
    """Build the loader of the batches that a sampler asks for.

    Args:
        dataset: takes single requests of the sampler.
        sampler: yields a list of requests per batch.
        collate: joins samples into a batch.
        workers: wanted loader processes, see :func:`capped_workers`.
        trainer: Lightning's, or None.
        named: for prediction: returns the id and the file of the image that a request asks for. Images that
            cannot be read then end in ``failed.csv``, and cost none of the others; by default they are an
            error.
    """
    if named is not None:
        dataset, collate = SkipUnreadable(dataset, named), CollateReadable(collate)
    overfit = trainer is not None and trainer.overfit_batches > 0
    devices = 1 if trainer is None else trainer.num_devices
    workers, device = capped_workers(workers, len(sampler), devices), device_of(trainer)
    return PlainErrorLoader(
        RequestedBatches(dataset, fixed=list(sampler) if overfit else None),
        batch_size=None,  # the sampler yields whole batches
        sampler=sampler,
        collate_fn=CollateSome(collate),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        device=device,
    )
