"""Images that cannot be read, in the place of their samples: they cost none of the others.

Letters in shapes: B images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.data import Dataset

OnBadImage = Literal["error", "skip"]
OnChangedData = Literal["error", "accept"]

READING_ERRORS = (ValueError, OSError, MemoryError)


@dataclass
class FailedImage:
    """An image that cannot be read, in the place of its sample.

    Attributes:
        image_id: as in the batches.
        file_name: the file, or the first of several.
        error: what is wrong with it, and what to do.
    """

    image_id: int
    file_name: str
    error: str


class FailedBatch:
    """Takes the place of a batch of which no image could be read.

    Attributes:
        failed: those images.
        image_ids: ``[0]`` int64.
    """

    def __init__(self, failed: Sequence[FailedImage]) -> None:
        self.failed = tuple(failed)
        self.image_ids = torch.zeros(0, dtype=torch.int64)

    def __len__(self) -> int:
        return 0

    def to(self, device: Any) -> FailedBatch:
        """Return itself: there is nothing to move."""
        return self

    def rendered(self) -> FailedBatch:
        """Return itself: there are no images."""
        return self

    def for_head(self, name: str) -> FailedBatch:
        """Return itself: no head has anything to do."""
        return self


class SkipUnreadable(Dataset):
    """Samples of another dataset, and a ``FailedImage`` for each that cannot be read.

    Args:
        dataset: raises ValueError or OSError for a sample that it cannot read.
        named: returns the id and the file of the image that a request asks for.
        delivered: whether an error becomes a ``FailedImage``; None for all errors of reading.
    """

    def __init__(
        self,
        dataset: Any,
        named: Callable[[Any], tuple[int, str]],
        delivered: Callable[[BaseException], bool] | None = None,
    ) -> None:
        self.dataset = dataset
        self.named = named
        self.delivered = delivered

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, request: Any) -> Any:
        try:
            return self.dataset[request]
        except READING_ERRORS as error:
            if self.delivered is not None and not self.delivered(error):
                raise
            return FailedImage(*self.named(request), why(error))


class CollateReadable:
    """Joins the samples that could be read; the batch names the others in ``failed``.

    Args:
        collate: joins samples into a ``Batch``.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[Any]) -> Any:
        """Return the batch; a ``FailedBatch`` if no sample could be read."""
        failed = tuple(sample for sample in samples if isinstance(sample, FailedImage))
        if len(failed) == len(samples):
            return FailedBatch(failed)
        batch = self.collate([sample for sample in samples if not isinstance(sample, FailedImage)])
        batch.failed = failed
        return batch


def why(error: BaseException) -> str:
    """Return the message of an error of reading; one without a message is named."""
    if isinstance(error, MemoryError):
        return "does not fit into the memory; make it smaller, or cut it into pieces"
    return str(error) or type(error).__name__
