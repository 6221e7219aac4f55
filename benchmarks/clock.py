"""A Lightning callback that times training: images a second, and the time that steps wait for data."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch


class Clock(pl.Callback):
    """Times the batches after the first few, in which loader processes start and memory is laid out.

    Args:
        skip: batches that are not timed.
    """

    last: Clock | None = None  # of the latest run, for whoever started it

    def __init__(self, skip: int = 4) -> None:
        self.skip = skip
        self.batches = self.images = 0
        self.boxes: list[torch.Tensor] = []
        self.begin = self.finish = self.ended = self.waited = 0.0
        Clock.last = self

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.start(len(batch), (batch.labels >= 0).sum())

    def on_train_batch_end(self, *_: Any) -> None:
        self.end()

    def on_train_end(self, *_: Any) -> None:
        self.stop()

    def start(self, images: int, boxes: torch.Tensor) -> None:
        """Note that a batch has come."""
        now = self._now() if self.batches == self.skip else time.perf_counter()
        if self.batches == self.skip:
            self.begin = now
        elif self.batches > self.skip:
            self.waited += now - self.ended
        self.images += images if self.batches >= self.skip else 0
        self.boxes.append(boxes)
        self.batches += 1

    def end(self) -> None:
        """Note that its step is over; on a GPU, that it is queued."""
        self.ended = time.perf_counter()

    def stop(self) -> None:
        """Note that training is over."""
        self.finish = self._now()

    def result(self) -> dict[str, float]:
        """Return images a second, the share of time waiting for data, and the boxes of all batches."""
        seconds = self.finish - self.begin
        return {
            "images_per_second": self.images / seconds,
            "waiting": self.waited / seconds,
            "boxes": float(sum(int(count) for count in self.boxes)),
        }

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()
