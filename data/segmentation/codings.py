"""Whether all masks of a dataset write the same class in the same way."""

from __future__ import annotations

from collections.abc import Sequence

from ...constants import IGNORE_INDEX
from ..shared.common import number_of
from ..shared.labels.table import ClassTable, MaskError
from .masks import Survey
from .palettes import check_same_palette

_BLACK_AND_WHITE = (0, IGNORE_INDEX)


def check_codings(masks: Sequence[tuple[str, Survey]], table: ClassTable) -> None:
    """Refuse palettes that differ where only their numbers are known, and see ``check_ignored``.

    Args:
        masks: name and content of each.
        table: of their classes.

    Raises:
        MaskError: naming two masks that differ.
    """
    check_same_palette((name, survey.entries) for name, survey in masks)
    check_ignored(masks, table)


def check_ignored(masks: Sequence[tuple[str, Survey]], table: ClassTable) -> None:
    """Look whether pixels that are ignored by default are the foreground of some masks, or of all.

    Masks often hold 0 and 255 for background and foreground, and 255 is ignored unless the dataset says
    otherwise. Nothing is looked for if it does: if 255 is a class, or stands in ``data.ignore``.

    Args:
        masks: name and content of each.
        table: of their classes.

    Raises:
        MaskError: if some masks hold 0 and 255 alone, and no mask holds 255 beside another class.
    """
    if IGNORE_INDEX in table.ignored or any(row.id == IGNORE_INDEX for row in table.rows):
        return
    white = [name for name, survey in masks if survey.values == _BLACK_AND_WHITE]
    others = [(name, survey) for name, survey in masks if not set(survey.values) <= {*_BLACK_AND_WHITE}]
    others += [(name, survey) for name, survey in masks if not survey.values]  # many values
    if not white or any(_beside(survey) for _, survey in others):
        return
    if others:
        what = (
            f"{number_of(len(white), 'mask')} of the values 0 and 255 ({white[0]}), {len(others)} with "
            f"classes and no 255 ({others[0][0]})"
        )
        cure = "write one value for one class in all masks, if 255 is a class"
    else:
        what = f"no mask has a class other than the background, but {len(white)} have the value 255"
        cure = (
            "name it: data.classes [background, NAME] with data.mask_values [0, 255], or a CSV with the "
            "columns id and name"
        )
    raise MaskError(
        f"{white[0]}: {what}; 255 is ignored unless it is a class; {cure}, or set data.ignore to [255] if "
        "these pixels are to be ignored"
    )


def _beside(survey: Survey) -> bool:
    """Whether a mask of other values than 0 and 255 has ignored pixels too."""
    return IGNORE_INDEX in survey.values or not survey.values and bool(survey.counts[-1])
