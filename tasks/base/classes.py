"""What head, data and checkpoint must agree on: what is learned, and the list of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# The attribute that holds the classes of a data module tells what its annotations are.
ANNOTATIONS = {
    "categories": ("boxes", "CocoDetection or CocoDetectionAndMasks"),
    "classes": ("masks", "ImageSegmentation, ScanSegmentation or CocoDetectionAndMasks"),
    "class_names": ("classes of whole images", "ImageClassification"),
}


def require_annotations(data: Any, wanted: str, option: str, head: Any) -> None:
    """Check that a data module has the annotations that a head learns; unknown modules pass.

    Args:
        data: the data module.
        wanted: a key of ``ANNOTATIONS``.
        option: where the head is set, such as ``model.head``.
        head: the head.

    Raises:
        ValueError: if the data has annotations of other kinds alone.
    """
    found = [key for key in ANNOTATIONS if hasattr(data, key)]
    if found and wanted not in found:
        what, where = ANNOTATIONS[wanted]
        raise ValueError(
            f"{option} is a {type(head).__name__}, which learns {what}; {type(data).__name__} has "
            f"{' and '.join(ANNOTATIONS[key][0] for key in found)}: set --data to {where}, or another head"
        )


def check_classes(
    known: Sequence[str], found: Sequence[str], num_classes: int, option: str, noun: str = "classes"
) -> None:
    """Check that the data's classes fit the head, and are those that the checkpoint was trained on.

    Args:
        known: the checkpoint's, as texts; empty if there is none.
        found: the data's.
        num_classes: the head's.
        option: where that number is set, such as ``model.head``.
        noun: what the data calls them, in the plural.

    Raises:
        ValueError: if the data has more than the head, or others than the checkpoint.
    """
    if known and list(known) != list(found):
        raise ValueError(
            f"the checkpoint was trained on the {noun} {_some(known)}, the data has "
            f"{_some(found)}{_first_difference(known, found)}; give data with the same {noun} in the same "
            "order, or train from these weights with --model.weights CHECKPOINT"
        )
    if len(found) > num_classes:
        raise ValueError(spare_classes(len(found), num_classes, option, noun))


def spare_classes(found: int, num_classes: int, option: str, noun: str = "classes") -> str:
    """Say that data and head have different numbers of classes, and what to set."""
    return (
        f"the data has {found} {noun}, the head num_classes {num_classes}; set --{option}.num_classes {found}"
    )


def _some(names: Sequence[str], most: int = 8) -> str:
    return f"[{', '.join(names[:most])}{', …' if len(names) > most else ''}] ({len(names)})"


def _first_difference(known: Sequence[str], found: Sequence[str]) -> str:
    """Name the first class that differs, where the lists of :func:`_some` may be cut before it."""
    for index, (one, other) in enumerate(zip(known, found, strict=False)):
        if one != other:
            return f" (class {index} is {one!r} there and {other!r} here)"
    return ""
