"""Classification: a class, or any number of them, for every image or scan.

Letters in shapes: B images, C channels, K classes, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ...data.classification.batches import ClassificationBatch
from ..base.task import Task
from .mixing import Mixing


class Classification(Task):
    """Trains, validates and applies a classifier of 2D images or scans.

    Without an ``optimizer`` it trains by SGD with rate 0.1, momentum 0.9 and weight decay 1e-4.

    Args:
        mixup: alpha of mixup on training batches, 0 for none, see :class:`.mixing.Mixing`.
        cutmix: alpha of cutmix, 0 for none; with both, one of the two is drawn for each batch.
        pictures: how many validation images with their predictions go to the logger in each epoch, evenly
            spaced over the data of the first process.
        **task: what every ``Task`` takes; the head is a classification head (``Classifier``).

    Raises:
        ValueError: if an alpha is negative.
    """

    kind = "classification"

    def __init__(self, mixup: float = 0.0, cutmix: float = 0.0, pictures: int = 16, **task: Any) -> None:
        super().__init__(pictures=pictures, **task)
        self.mixing = Mixing(mixup, cutmix)

    @staticmethod
    def default_optimizer(parameters: Any) -> torch.optim.Optimizer:
        """SGD as He et al. 2016 train on ImageNet: rate 0.1 for 256 images, momentum 0.9, decay 1e-4."""
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)

    def training_batch(self, batch: ClassificationBatch) -> ClassificationBatch:
        if not self.mixing.methods:
            return batch
        normalised = self.normalise(batch.image, batch.image_sizes)
        image, label = self.mixing(normalised, batch.label, self.head.num_classes)
        return replace(batch, image=image, label=label)
