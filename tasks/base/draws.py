"""The random numbers that a network draws itself: sampled boxes, dropout, mixup.

Letters in shapes: B images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor


class OwnDraws(Callback):
    """Lets every process draw other numbers when a run begins.

    ``seed_everything`` gives all the same seed, so that dropout, samples of boxes and mixup would be those of
    the first process in each. The seed of a process follows from that one and its rank (detectron2 adds the
    rank). The first process draws as a single one does. A run that goes on has the states of its checkpoint.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank and trainer.ckpt_path is None:
            torch.manual_seed(seed_of([torch.initial_seed(), trainer.global_rank]))


@contextmanager
def fixed_draws(image_ids: Tensor, device: torch.device) -> Iterator[None]:
    """Draw numbers inside that depend on the images of a batch alone, and leave the generators as they were.

    So the losses of an evaluation, of which those of detectors are on a sample of boxes, are the same each
    time and on any number of processes, and a training draws the same with and without evaluations.

    Args:
        image_ids: ``[B]`` int64, in main memory.
        device: that the network runs on.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed_of(image_ids.tolist()))
        yield


def seed_of(numbers: list[int]) -> int:
    """Return a seed of 63 bits that depends on all numbers, and on their order."""
    entropy = [number % 2**64 for number in numbers]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
