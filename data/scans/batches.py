"""What the loaders of scans yield: batches of training patches, and whole cases.

Letters in shapes: B patches, C channels, S spatial sizes of a prepared scan, P of a patch, S0 of the file; n
their number (2 or 3).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...constants import IGNORE_INDEX
from ..shared.batches import Batch
from ..shared.failed import FailedImage
from .cases.types import Case
from .prepare.prepare import Placement


class PatchSample(NamedTuple):
    """One training patch.

    Attributes:
        image: ``[C, *P]`` float32.
        mask: ``[*P]`` uint8 labels 0..K-1, 255 for voxels to ignore.
        id: position of its case among the training cases.
    """

    image: Tensor
    mask: Tensor
    id: int


@dataclass(kw_only=True)
class ScanBatch(Batch):
    """Training patches.

    Attributes:
        image: ``[B, C, *P]`` float32, prepared intensities; 0 outside the scan.
        image_sizes: ``[B, n]`` int64, the sizes P of each patch; nothing is padded beyond them.
        image_ids: ``[B]`` int64, positions among the training cases.
        mask: ``[B, *P]`` uint8 labels 0..K-1; 255 for voxels to ignore, and outside the scan.
    """

    mask: Tensor

    def objects(self, known: Collection[str] = ()) -> dict[str, Tensor]:
        if "voxel of a class" in known:
            return {}
        return {"voxel of a class": ((self.mask > 0) & (self.mask != IGNORE_INDEX)).any()}


def collate_patches(samples: Sequence[PatchSample]) -> ScanBatch:
    """Stack patches of one size.

    Raises:
        ValueError: if patches differ in their number of channels.
    """
    channels = [sample.image.shape[0] for sample in samples]
    if len(set(channels)) > 1:
        other = next(i for i, count in enumerate(channels) if count != channels[0])
        raise ValueError(
            f"training case {samples[0].id} has {channels[0]} channels and case {samples[other].id} "
            f"{channels[other]}; all need the same"
        )
    sizes = torch.tensor(samples[0].mask.shape, dtype=torch.int64)
    return ScanBatch(
        image=torch.stack([sample.image for sample in samples]),
        mask=torch.stack([sample.mask for sample in samples]),
        image_sizes=sizes.repeat(len(samples), 1),
        image_ids=torch.tensor([sample.id for sample in samples], dtype=torch.int64),
    )


class EvaluationCase:
    """One whole scan to evaluate or predict. It stays in main memory: scans may be larger than the
    device.

    No dataclass: Lightning would look for tensors to convert in its fields, and refuses frozen ones.

    Attributes:
        image: ``[C, *S]`` float32, the prepared scan, possibly memory-mapped; None if it cannot be read.
        placement: where the prepared scan lies on the file's grid; None with ``image``.
        case: the files.
        truth: ``[*S0]`` uint8 labels 0..K-1, 255 where ignored, on the grid of the file; None for prediction.
        image_ids: ``[1]`` int64, the position of the case in its split.
        error: why the case cannot be read; None if it can.
        failed: none: such a case has an ``error``.
    """

    def __init__(
        self,
        image: np.ndarray | None,
        placement: Placement | None,
        case: Case,
        truth: np.ndarray | None,
        image_ids: np.ndarray,
        error: str | None = None,
    ) -> None:
        self.image = image
        self.placement = placement
        self.case = case
        self.truth = truth
        self.image_ids = image_ids
        self.error = error
        self.failed: tuple[FailedImage, ...] = ()

    def __len__(self) -> int:
        return 1

    def labelled(self) -> int:
        """Return 1: how many scans count in the mean of an evaluation."""
        return 1

    def for_head(self, name: str) -> EvaluationCase:
        """Return itself: there is one head."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Send the name of a memory-mapped file to other processes, rather than gigabytes."""
        state = dict(vars(self))
        if isinstance(self.image, np.memmap):
            state["image"] = str(self.image.filename)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.image, str):
            self.image = np.load(self.image, mmap_mode="r")

    def to(self, device: Any, **_: Any) -> EvaluationCase:
        """Return itself, wherever Lightning wants it: the task moves one window after the other."""
        return self
