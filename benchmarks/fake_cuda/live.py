"""Follows the memory of tensors on the device: the largest set of storages that live at the same time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from .recorder import Recorder, place

COARSE = 1.01  # what holds the memory is noted whenever the peak has grown by this factor


class LiveRecorder(Recorder):
    """Adds the bytes of all storages of tensors that operators have made and that still live.

    What an operator needs inside itself (workspaces of cuDNN) is not in it, nor what the allocator rounds up.

    Attributes:
        peak: bytes at most since the last ``clear``.
        held: bytes at about that time, by the line that made them.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__(mode)
        self._live: dict[int, tuple[StorageWeakRef, int, str]] = {}
        self._bytes = 0
        self._noted = 0.0

    def clear(self) -> None:
        super().clear()
        self._drop()
        self.peak, self._noted, self.held = self._bytes, 0.0, Counter()

    def count(self, func: Any, flat: list[Any], args: Any, kwargs: Any, result: Any) -> None:
        super().count(func, flat, args, kwargs, result)
        new = False
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.device.type == "cuda":
                storage = value.untyped_storage()
                reference = StorageWeakRef(storage)
                known = self._live.get(reference.cdata)
                if known is None or known[0].expired():
                    new = True
                    self._bytes += storage.nbytes() - (known[1] if known else 0)
                    self._live[reference.cdata] = (reference, storage.nbytes(), place())
        if new and self._bytes > self.peak:
            self._drop()
            self.peak = max(self.peak, self._bytes)
            if self.peak > self._noted * COARSE:
                self._noted, self.held = self.peak, Counter()
                for _, number, where in self._live.values():
                    self.held[where] += number

    def _drop(self) -> None:
        for key, (reference, number, _) in list(self._live.items()):
            if reference.expired():
                self._bytes -= number
                del self._live[key]
