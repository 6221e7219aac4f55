"""Loaders of whole batches, as all data modules of images build them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, DistributedSampler

from .augment import limit_threads
from .common import PlainErrorLoader, capped_workers


class RequestedBatches(Dataset):
    """Serves whole batches, so that the loader's sampler can be the batch sampler; Lightning sets its epoch.

    ``fixed`` lists the batches by number, for Lightning's overfit_batches, which asks for 0, 1, 2, ...
    """

    def __init__(self, dataset: Dataset, fixed: list[list[Any]] | None):
        self.dataset = dataset
        self.fixed = fixed

    def __len__(self) -> int:
        return len(self.dataset) if self.fixed is None else len(self.fixed)

    def __getitem__(self, batch: Sequence[Any] | int) -> list[Any]:
        requests = self.fixed[batch] if isinstance(batch, int) else batch
        return [self.dataset[request] for request in requests]


def ranks_of(trainer: Any) -> dict[str, int]:
    """Return ``rank`` and ``world_size`` of this process, for a sampler; 0 and 1 without a trainer."""
    return {
        "rank": 0 if trainer is None else trainer.global_rank,
        "world_size": 1 if trainer is None else trainer.world_size,
    }


def batch_loader(
    dataset: Dataset,
    sampler: DistributedSampler,
    collate: Callable[[list[Any]], Any],
    workers: int,
    trainer: Any,
) -> PlainErrorLoader:
    """Build the loader of the batches that a sampler asks for.

    Args:
        dataset: takes single requests of the sampler.
        sampler: yields a list of requests per batch.
        collate: joins samples into a batch.
        workers: wanted loader processes, see :func:`.common.capped_workers`.
        trainer: Lightning's, or None.
    """
    overfit = trainer is not None and trainer.overfit_batches > 0
    devices = 1 if trainer is None else trainer.num_devices
    workers = capped_workers(workers, len(sampler), devices)
    return PlainErrorLoader(
        RequestedBatches(dataset, fixed=list(sampler) if overfit else None),
        batch_size=None,  # the sampler yields whole batches
        sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=limit_threads,
    )
