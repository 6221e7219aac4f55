"""Datasets of scans: patches to train on, whole cases to evaluate and to predict on.

Letters in shapes: C channels, S spatial sizes of a prepared scan, P of a patch, n their number (2 or 3), S0
of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...constants import IGNORE_INDEX
from ..shared.common import number_of
from ..shared.loading import ImageRequest
from .batches import EvaluationCase, PatchSample
from .cases.classes import to_labels
from .cases.types import Case, CasesError
from .formats.files import read_labels
from .patches import PatchRequest, cut, extent, foreground_voxel, patch_start
from .prepare.cache import PreparedCases
from .prepare.prepare import Preparation, prepare_case


class PatchDataset(Dataset):
    """Random patches of prepared scans.

    A patch anywhere lies wholly inside the scan, with equal chance for each place. For a
    foreground patch a class is drawn from those of the case other than the background. The patch is centred
    on a voxel of it, moved as far as needed to lie inside the scan; without such voxels it may lie anywhere.
    Where a scan is smaller than the patch it is padded on both sides with image 0 and mask 255.

    Args:
        cases: prepared scans with masks.
        patch: n sizes in voxels.
        slice_axis: for patches of two axes from scans of three: the axis that patches are perpendicular to.
        augmentation: takes image ``[C, *P]``, mask ``[*P]`` and a seed, and returns both; or None.
    """

    def __init__(
        self,
        cases: PreparedCases,
        patch: Sequence[int],
        slice_axis: int | None = None,
        augmentation: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] | None = None,
    ):
        self.cases = cases
        self.patch = tuple(patch)
        self.slice_axis = slice_axis
        self.augmentation = augmentation
        self.size = extent(self.patch, slice_axis)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, request: PatchRequest) -> PatchSample:
        """Cut out one patch.

        Raises:
            ValueError: if a transform fails on it.
        """
        rng = np.random.default_rng(request.seed)
        prepared = self.cases[request.index]
        centre = foreground_voxel(self.cases.locations(request.index), rng) if request.foreground else None
        labels = cast(np.ndarray, prepared.mask)
        start = patch_start(labels.shape, self.size, rng, centre)
        image = torch.from_numpy(cut(prepared.image, start, self.size, 0)).reshape(-1, *self.patch)
        mask = torch.from_numpy(cut(labels, start, self.size, IGNORE_INDEX)).reshape(self.patch)
        if self.augmentation is not None:
            image, mask = self.augmentation(image, mask, int(rng.integers(2**63)))
        return PatchSample(image, mask, request.index)


class LabelledCases(Dataset):
    """Prepared cases with their labels on the grids of the files.

    Args:
        cases: prepared cases; all have labels.
    """

    def __init__(self, cases: PreparedCases):
        self.cases = cases

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, request: ImageRequest) -> EvaluationCase:
        """Load one case.

        Raises:
            ValueError: if a file cannot be read.
        """
        case = self.cases.cases[request.index]
        prepared = self.cases[request.index]
        label = cast(str, case.label)
        ids, _ = read_labels(label)
        truth = to_labels(ids, self.cases.classes, self.cases.ignore_id, label)
        return EvaluationCase(prepared.image, prepared.placement, case, truth, np.array([request.index]))


class CasesToPredict(Dataset):
    """Cases without labels, prepared as they are asked for. One that cannot be read says why.

    Args:
        cases: files.
        preparation: how to prepare them.
        channels: how many they need, or None if that is not known.
    """

    def __init__(self, cases: Sequence[Case], preparation: Preparation, channels: int | None = None):
        self.cases = tuple(cases)
        self.preparation = preparation
        self.channels = channels

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, request: ImageRequest) -> EvaluationCase:
        """Load one case; a file that cannot be read is no exception but ``error``."""
        case = self.cases[request.index]
        ids = np.array([request.index])
        try:
            prepared = prepare_case(case, self.preparation, (), IGNORE_INDEX)
            found = len(prepared.image)
            if self.channels not in (None, found):
                raise CasesError(
                    f"{', '.join(case.images)}: {number_of(found, 'channel')}, but the training data have "
                    f"{self.channels}; channels in files of their own are one scan in a folder that holds no "
                    "other, or as CASE_0000, CASE_0001"
                )
        except (ValueError, OSError) as error:
            return EvaluationCase(None, None, case, None, ids, error=str(error))
        return EvaluationCase(prepared.image, prepared.placement, case, None, ids)
