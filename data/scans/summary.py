"""What prepared scans hold to learn from, and whether their voxels are as large as those of the training."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..shared.common import number_of
from ..shared.summary import SplitSummary
from .prepare.cache import PreparedCases
from .prepare.prepare import Placement

logger = logging.getLogger("trunkline")

FAR = 5.0  # ratio of two spacings above which one is far from the other
_NAMED = 5


def summary(cases: PreparedCases) -> SplitSummary:
    """Count what the preparation has found: voxels by label, ignored ones, classes and cases without any.

    With ``cache: none`` voxels are known of those cases only that have been prepared; of others there are no
    numbers, and they count as something to learn.
    """
    counts = cases.known_counts()
    if counts is None:
        return SplitSummary({"cases": len(cases)}, learnable=len(cases))
    foreground = int(counts[:, 1:-1].sum())
    return SplitSummary(
        {
            "cases": len(cases),
            "without foreground": int((counts[:, 1:-1].sum(axis=1) == 0).sum()),
            "voxels": int(counts.sum()),
            "background": int(counts[:, 0].sum()),
            "foreground": foreground,
            "ignored": int(counts[:, -1].sum()),
            "classes never seen": int((counts[:, :-1].sum(axis=0) == 0).sum()),
        },
        learnable=foreground,
        remedy="all voxels are background or ignored: look at data.classes, data.ignore_id and the labels",
    )


def trained_spacing(places: Sequence[Placement], wanted: Sequence[float] | None) -> tuple[float, ...]:
    """Return the mm per axis that a network is trained with: what scans are resampled to, or else their
    median."""
    if wanted is not None:
        return tuple(float(mm) for mm in wanted)
    return tuple(np.median([place.turned_spacing for place in places], axis=0).tolist())


def middle_spacing(places: Sequence[Placement]) -> tuple[float, ...]:
    """Return the median mm per axis; the lower of two that differ, so that the other one is far from it."""
    spacings = [place.turned_spacing for place in places]
    return tuple(np.quantile(spacings, 0.5, axis=0, method="lower").tolist())


def far_spacing(place: Placement, trained: Sequence[float]) -> str | None:
    """Say how far the voxels of a scan are from those of the training; None if they are near, or unknown.

    Args:
        place: of the scan.
        trained: mm per axis of prepared scans; empty if not known.
    """
    own = place.turned_spacing
    if len(own) != len(trained) or len(own) < 3:  # images have pixels, not mm
        return None
    ratios = [mine / theirs for mine, theirs in zip(own, trained, strict=True)]
    ratio = max(ratios, key=lambda value: abs(math.log(value)))
    if 1 / FAR <= ratio <= FAR:
        return None
    by = f"{ratio:.4g} times as large" if ratio > 1 else f"{1 / ratio:.4g} times as small"
    return (
        f"its voxels measure {_times(own)} mm, those of the training {_times(trained)} mm, {by} along axis "
        f"{ratios.index(ratio)}; is the unit of its header right (mm, micron, m)?"
    )


def warn_of_far_spacings(
    cases: PreparedCases, places: Sequence[Placement], wanted: Sequence[float] | None
) -> None:
    """Log the training scans whose voxels are far from those of the others, or from what they become."""
    trained = trained_spacing(places, wanted)
    median = middle_spacing(places)
    found: Mapping[str, str | None] = {
        case.images[0]: far_spacing(place, median) or far_spacing(place, trained)
        for case, place in zip(cases.cases, places, strict=True)
    }
    far = [f"{name}: {text}" for name, text in found.items() if text is not None]
    if far:
        more = f"\n  and {len(far) - _NAMED} more" if len(far) > _NAMED else ""
        logger.warning(
            "%s with other voxels than most:\n  %s%s",
            number_of(len(far), "training scan"), "\n  ".join(far[:_NAMED]), more,
        )  # fmt: skip


def _times(spacing: Sequence[float]) -> str:
    return " x ".join(f"{mm:.4g}" for mm in spacing)
