"""Counts the boxes that augmentation removes, by epoch."""

from __future__ import annotations

import logging

from .batches import DetectionBatch

logger = logging.getLogger("trunkline")

_MANY = 0.5  # share of the boxes; less is what crops are for


class LostBoxes:
    """Adds up what training batches say, in main memory, and logs it when an epoch is over."""

    def __init__(self) -> None:
        self.epoch = 0
        self.given = 0
        self.lost = 0
        self.processes = 1  # of which this is the first

    def add(self, batch: DetectionBatch, epoch: int) -> None:
        """Count a batch; the first one of another epoch logs the one before."""
        if epoch != self.epoch:
            self.finish()
            self.epoch = epoch
        self.given += batch.boxes_given
        self.lost += batch.boxes_lost

    def finish(self) -> None:
        """Log the counts of an epoch, if boxes were removed in it, and forget them."""
        if self.lost:
            share = self.lost / self.given
            logger.log(
                logging.WARNING if share > _MANY else logging.INFO,
                "epoch %d: augmentation removed %d of %d boxes (%.1f %%): outside a crop, below "
                "min_visibility, or below 1 pixel%s",
                self.epoch, self.lost, self.given, 100 * share,
                f" (counted on one of {self.processes} processes)" if self.processes > 1 else "",
            )  # fmt: skip
        self.given = self.lost = 0
