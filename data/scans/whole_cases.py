"""Data sets of whole cases, for evaluation and prediction.

Letters in shapes: C channels, S spatial sizes of a prepared scan, S0 of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ...constants import IGNORE_INDEX
from ..shared.common import number_of
from ..shared.loading import (
    ImageBatchSampler,
    ImageRequest,
    PlainErrorLoader,
    RequestedBatches,
    capped_workers,
    ranks_of,
)
from .batches import EvaluationCase
from .cases.cases import Case, CasesError
from .cases.classes import to_labels
from .formats.files import read_labels
from .prepare.cache import PreparedCases
from .prepare.prepare import Preparation, prepare_case


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
        ids, _ = read_labels(case.label)
        truth = to_labels(ids, self.cases.classes, self.cases.ignore_id, case.label)
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


def case_loader(dataset: LabelledCases | CasesToPredict, workers: int, trainer: Any) -> PlainErrorLoader:
    """Build the loader of single cases: each once over all ranks, in their order.

    A rank for which there is none gets one that another has too: it would leave the others waiting for it.

    Args:
        dataset: the cases.
        workers: 0 loads in the main process, anything else in one other: cases may take gigabytes.
        trainer: Lightning's, or None.
    """
    ranks = ranks_of(trainer)
    sampler = ImageBatchSampler(len(dataset), 1, **ranks | {"rank": ranks["rank"] % len(dataset)})
    overfit = trainer is not None and trainer.overfit_batches > 0
    workers = capped_workers(min(workers, 1), len(sampler))
    return PlainErrorLoader(
        RequestedBatches(dataset, fixed=list(sampler) if overfit else None),
        batch_size=None,  # the sampler yields whole batches, of one case
        sampler=sampler,
        collate_fn=_only,
        num_workers=workers,
        prefetch_factor=1 if workers else None,
    )


def _only(cases: list[EvaluationCase]) -> EvaluationCase:
    (case,) = cases
    return case
