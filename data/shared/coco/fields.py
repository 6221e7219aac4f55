"""Fields of COCO records: their types and ranges, and errors that name file, record, field and value."""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..common import LISTED, listing
from ..storage import Location

LARGEST_ID = 2**53  # evaluation holds ids in float64
_LARGEST_AREA = 1e18  # square pixels
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxlong = 3, 60, 40


class AnnotationError(ValueError):
    """An annotation file is missing, unreadable, or contradicts itself."""


def shown(value: Any) -> str:
    """Return a value of a file for a message, cut if it is long."""
    return _SHORT.repr(value)


def is_integer(value: Any) -> bool:
    """Whether a value is a whole number that int64 holds; ``true`` is none."""
    return type(value) is int and value.bit_length() <= 63


def is_number(value: Any) -> bool:
    """Whether a value is a number that float64 holds (nan and infinity are floats too); ``true`` is none."""
    return type(value) is float or (type(value) is int and value.bit_length() <= 1023)


def are_numbers(values: Sequence[Any]) -> bool:
    """Whether all values are numbers, see :func:`is_number`."""
    kinds = set(map(type, values))
    return kinds <= {float} or (kinds <= {int, float} and all(map(is_number, values)))


def require(records: list[Any], fields: dict[str, type], kind: str, source: Location) -> None:
    """Raise unless every record is an object with these fields of these types (``true`` is no int)."""
    problems = []
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            problems.append(f"{kind} number {number}: is no object")
            continue
        for field, kind_of in fields.items():
            value = record.get(field)
            if type(value) is not kind_of or (kind_of is int and not is_integer(value)):
                name = record_name(record, number, kind)
                problems.append(f"{name}: {field} is {shown(value) if field in record else 'missing'}")
    if problems:
        wanted = ", ".join(f"{field} ({kind_of.__name__})" for field, kind_of in fields.items())
        raise AnnotationError(
            f"{source}: {len(problems)} {kind} fields are missing or of the wrong type; every {kind} needs "
            f"{wanted}; correct these records\n{listing(problems)}"
        )


def require_distinct(ids: np.ndarray, kind: str, source: Location) -> None:
    """Raise if an id occurs twice."""
    values, counts = np.unique(ids, return_counts=True)
    raise_if(
        np.flatnonzero(counts > 1),
        lambda n: f"{kind} id {values[n]} occurs {counts[n]} times",
        f"{source}: duplicate {kind} ids; every {kind} needs its own, renumber them",
    )


def require_each(
    records: Sequence[dict], field: str, fits: Callable[[Any], bool], kind: str, headline: str
) -> None:
    """Raise unless a field of every record fits.

    Args:
        records: objects.
        field: its name; None stands for one that is missing.
        fits: says whether a value may be used.
        kind: of the records, for the message.
        headline: of the message: the file, what the field has to be, and what to do.
    """
    bad = [number for number, record in enumerate(records) if not fits(record.get(field))]
    raise_if(
        np.array(bad, dtype=np.int64),
        lambda n: f"{record_name(records[n], n, kind)}: {field} {shown(records[n].get(field))}",
        headline,
    )


def flags(records: Sequence[dict], source: Location) -> np.ndarray:
    """Return ``iscrowd`` as ``[N]`` bool: 0, 1, true, false; a missing one (or null) is 0.

    Raises:
        AnnotationError: for any other value, texts such as "0" and "false" too.
    """
    require_each(
        records,
        "iscrowd",
        is_flag,
        "annotation",
        f"{source}: iscrowd is the number 0 (one object) or 1 (a region of many, which is neither learned "
        "nor counted), not a text; correct these records",
    )
    return np.array([bool(record.get("iscrowd")) for record in records], dtype=bool)


def is_flag(value: Any) -> bool:
    """Whether a value says yes or no without doubt; None is no."""
    return value is None or type(value) is bool or (type(value) in (int, float) and value in (0, 1))


def areas(records: Sequence[dict], source: Location) -> np.ndarray:
    """Return ``area`` as ``[N]`` float64 in square pixels, NaN where it is missing (or null).

    Raises:
        AnnotationError: for anything but a finite number of at least 0.
    """
    require_each(
        records,
        "area",
        lambda area: area is None or (type(area) in (int, float) and 0 <= area <= _LARGEST_AREA),
        "annotation",
        f"{source}: an area is a number of square pixels, 0 or more; correct or remove it",
    )
    return np.array([record.get("area") for record in records], dtype=np.float64)  # None becomes nan


def text_problem(text: str, one_line: bool = False) -> str:
    """Return what is wrong with a name; empty if nothing is.

    Args:
        text: of the file.
        one_line: whether line feeds and other control characters are wrong.
    """
    if not text.strip():
        return "is blank"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "holds half of a character (a lone surrogate)"
    if "\0" in text:
        return "holds a null character"
    if one_line and any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text):
        return "holds a line feed, a tab or another control character"
    return ""


def require_texts(records: Sequence[dict], field: str, kind: str, source: Location, one_line: bool) -> None:
    """Raise unless a text of every record can be used as a name, see :func:`text_problem`."""
    problems = {n: text_problem(record[field], one_line) for n, record in enumerate(records)}
    bad = [n for n, problem in problems.items() if problem]
    raise_if(
        np.array(bad, dtype=np.int64),
        lambda n: f"{record_name(records[n], n, kind)}: {field} {shown(records[n][field])} {problems[n]}",
        f"{source}: names that cannot be used; correct these records",
    )


def record_name(record: dict, number: int, kind: str) -> str:
    """Return what to call a record in a message: by its id, or by its place in the list."""
    return f"{kind} id {shown(record['id'])}" if "id" in record else f"{kind} number {number}"


def raise_if(bad: np.ndarray, describe: Callable[[int], str], headline: str) -> None:
    """Raise an AnnotationError that lists the first of some positions."""
    if len(bad):
        problems = [describe(int(n)) for n in bad[:LISTED]]
        raise AnnotationError(f"{headline} ({len(bad)} in all)\n{listing(problems, len(bad))}")


def first_few(values: Sequence[Any] | np.ndarray) -> str:
    """Return up to 20 values, separated by commas."""
    text = ", ".join(str(value) for value in values[:LISTED])
    return text + (", ..." if len(values) > LISTED else "")
