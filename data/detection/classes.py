"""The same classes under other ids: labels are matched by the names.

Letters in shapes: N boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..shared.labels.classes import LabelClass, places_by_name
from .index import CocoIndex
from .instances import KeypointClasses


def renumbered(index: CocoIndex, categories: Sequence[LabelClass]) -> CocoIndex | None:
    """Return the index with the labels of some other classes of the same names; None if names differ."""
    places = places_by_name(index.categories, categories)
    if places is None:
        return None
    new = torch.tensor(places, dtype=torch.int64)
    return replace(
        index,
        categories=tuple(categories),
        labels=new[index.labels],
        truth=None if index.truth is None else index.truth._replace(labels=new[index.truth.labels]),
        keypoint_classes=_moved(index.keypoint_classes, places),
    )


def _moved(classes: KeypointClasses | None, places: Sequence[int]) -> KeypointClasses | None:
    if classes is None:
        return None
    order = sorted(range(len(places)), key=places.__getitem__)
    return KeypointClasses(
        tuple(classes.names[label] for label in order), tuple(classes.skeletons[label] for label in order)
    )
