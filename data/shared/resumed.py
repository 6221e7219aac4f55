"""How much of an epoch a run has had, so that it goes on there, on any number of devices.

An epoch that was begun is described by its *parts*: how many batches it has had on each device, and of how
many images all devices together made a step. There are several parts if the number of devices, or the size of
batches, has changed within the epoch.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch.utils.data import DataLoader

from .loading import Part, RequestSampler, ranks_of

logger = logging.getLogger("trunkline")


class EpochProgress:
    """What a data module stores of the epoch that its trainer is in, and finds again.

    Attributes:
        parts: of the epoch, until this process has gone on from a checkpoint.
    """

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._stored: Mapping[str, Any] = {}
        self._epoch, self._start = -1, 0  # of this process's first batch

    def state(self, trainer: Any, batch_size: int) -> dict[str, Any]:
        """Return plain values for a checkpoint.

        Args:
            trainer: Lightning's.
            batch_size: of training, on each device.
        """
        world = ranks_of(trainer)["world_size"]
        loop = trainer.fit_loop
        progress, epoch = loop.epoch_loop.batch_progress, loop.epoch_progress.current.processed
        parts, start = (self.parts, self._start) if epoch == self._epoch else ([], 0)
        done = 0 if progress.is_last_batch else progress.current.processed - start
        return {
            "devices": world,
            "batch_size": batch_size,
            "parts": []
            if progress.is_last_batch
            else [*map(list, joined([*parts, (done, world * batch_size)]))],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what :meth:`state` returned."""
        self._stored = state

    def apply(self, loader: DataLoader, trainer: Any) -> None:
        """Let a training loader begin where a resumed run stopped: no image twice in an epoch, none left out.

        Lightning counts the batches that the epoch would have had with the devices of now.

        Args:
            loader: with a sampler of this package, else nothing is done.
            trainer: Lightning's, with the state of the run; or None.
        """
        if trainer is None or not isinstance(sampler := loader.sampler, RequestSampler):
            return
        stored, self._stored = self._stored, {}
        if sampler.rank == 0:
            say_changes(stored, sampler)
        progress = trainer.fit_loop.epoch_loop.batch_progress
        current = progress.current
        if not current.processed or progress.is_last_batch:
            return
        # Lightning does not know that this loader goes on where it stopped.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        parts = [(int(batches), int(images)) for batches, images in stored.get("parts", ())]
        self._epoch = trainer.fit_loop.epoch_progress.current.processed
        # Checkpoints of before have no parts; nor is there one between the end of an epoch and the next.
        self.parts = parts or [(current.processed, sampler.images_per_step)]
        sampler.leave_out(self._epoch, self.parts)
        if len(self.parts) > 1 or self.parts[0][1] != sampler.images_per_step:
            uncompleted = current.processed - current.completed  # 1 if saved before a batch was counted
            done = max(len(sampler) - sampler.left(), 0)
            current.ready = current.started = current.processed = done
            current.completed = done - uncompleted
        self._start = current.processed


def say_changes(stored: Mapping[str, Any], sampler: RequestSampler) -> None:
    """Say that a run goes on on another number of devices, or with other batches, if it does."""
    if not stored or (stored["devices"], stored["batch_size"]) == (sampler.num_replicas, sampler.batch_size):
        return
    logger.warning(
        "the run was on %d device(s) with batches of %d, %d images a step, and goes on on %d with %d, %d "
        "images a step: the epoch goes on with the images that it has not had; the learning rate stays, and "
        "random numbers of the network are others",
        stored["devices"], stored["batch_size"], stored["devices"] * stored["batch_size"],
        sampler.num_replicas, sampler.batch_size, sampler.images_per_step,
    )  # fmt: skip


def joined(parts: Iterable[Part]) -> list[Part]:
    """Join parts that follow each other and have the same number of images a step; drop empty ones."""
    found: list[Part] = []
    for batches, images in parts:
        if found and found[-1][1] == images:
            found[-1] = (found[-1][0] + batches, images)
        elif batches:
            found.append((batches, images))
    return found
