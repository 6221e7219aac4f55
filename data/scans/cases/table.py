"""Reads a CSV of cases; errors name the line and the column."""

from __future__ import annotations

import csv
import difflib
import io
import logging
import os
import re
from pathlib import Path
from typing import Any

from ...shared.common import listing, number_of
from ...shared.inside import REMEDY, outside
from ...shared.io import IMAGE_SUFFIXES
from ...shared.locate import SPLIT_NAMES, DataNotFoundError
from ..formats.files import SCAN_SUFFIXES, is_scan, scan_stem
from .dataset_json import repeated
from .names import by_number, unique_names
from .types import Case, CasesError, Declared, Layout, Unlabelled

logger = logging.getLogger("trunkline")

_SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
_NUMBERED = re.compile(r"image_(\d{1,9})")
_OTHERS = ("label", "case", "patient", "split", "fold")
_ALIKE = 0.8  # of the names of two columns, from which one is taken for a misspelt other
_MOST_DIGITS = 6  # of the number of a fold

Row = tuple[int, dict[str, str]]  # line of the file, fields by column


def read_rows(source: Path, argument: str) -> tuple[list[str], list[Row]]:
    """Read a CSV with a header, with commas, semicolons or tabs.

    Args:
        source: the file.
        argument: that of the data module, for the error.

    Returns:
        The names of the columns, and the rows.

    Raises:
        DataNotFoundError: if the file is missing.
        CasesError: naming the line with another number of fields than the header.
    """
    if not source.is_file():
        raise DataNotFoundError(f"data.{argument}: there is no file {source}; it is relative to data.root")
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CasesError(f"{source}: not readable as CSV ({error}); save it as UTF-8") from error
    first = text.partition("\n")[0]
    delimiter = next((mark for mark in "\t;" if mark in first), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return _header_and_rows(source, reader)
    except csv.Error as error:
        raise CasesError(f"{source}, line {reader.line_num}: not readable as CSV ({error})") from error


def _header_and_rows(source: Path, reader: Any) -> tuple[list[str], list[Row]]:
    header = [_column_name(name.strip()) for name in next(reader, [])]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise CasesError(f"{source}, line 1: column {', '.join(twice)} is there twice; rename or remove one")
    rows: list[Row] = []
    for record in reader:
        if not any(field.strip() for field in record):
            continue
        if len(record) != len(header):
            raise CasesError(
                f"{source}, line {reader.line_num}: has {number_of(len(record), 'field')}, the header "
                f"{len(header)}"
            )
        fields = zip(header, (field.strip() for field in record), strict=True)
        rows.append((reader.line_num, dict(fields)))
    if not rows:
        raise CasesError(f"{source}: has no rows")
    return header, rows


def _column_name(name: str) -> str:
    """Return the name of a column that has a meaning in small letters, any other as it is."""
    small = name.lower()
    return small if small in ("image", *_OTHERS) or _NUMBERED.fullmatch(small) else name


def read_case_table(source: Path, missing: Unlabelled = "error") -> Layout:
    """Read the cases that a CSV lists.

    The scans of a case are in the column ``image``; or in ``image_1``, ``image_2`` and so on; or in all other
    columns that hold names of scans, which name the modalities. ``label`` may be empty for cases to test
    with. Optional are ``case`` (unique; else it is made from the names of the files), ``patient``, ``split``
    (train, val or test) and ``fold`` (where the case validates, from 0 on). Further columns do not matter.

    Args:
        source: the file; its paths are relative to its folder.
        missing: whether an empty ``label`` is an error in ``train`` and ``val``, or not (``skip``).

    Raises:
        DataNotFoundError: if the table is missing.
        CasesError: listing the lines and columns that are wrong.
    """
    header, rows = read_rows(source, "table")
    columns = _image_columns(source, header, rows)
    _warn_of_columns(source, header, columns)
    named = not any(column == "image" or _NUMBERED.fullmatch(column) for column in columns)
    problems: list[str] = []
    for line, row in rows:
        problems += [f"line {line}, {text}" for text in _row_problems(source.parent, row, columns, missing)]
    problems += _repeated(rows, columns, "case" in header)
    if problems:
        raise CasesError(f"{source}: {number_of(len(problems), 'problem')}:\n{listing(problems)}")
    names = [row["case"] for _, row in rows] if "case" in header else _names(source.parent, rows, columns)
    cases: dict[str, list[Case]] = {}
    folds: dict[str, int] = {}
    for name, (_, row) in zip(names, rows, strict=True):
        images = tuple(str(source.parent / row[column]) for column in columns)
        label = str(source.parent / row["label"]) if row.get("label") else None
        split = _split(row)
        cases.setdefault(split, []).append(Case(name, images, label, row.get("patient") or name))
        if row.get("fold") and split != "test":
            folds[name] = int(row["fold"])
    if twice := repeated(cases):
        raise CasesError(f"{source}: {number_of(len(twice), 'problem')}:\n{listing(twice)}")
    channels = tuple(columns)
    if not named:
        channels = tuple(f"channel_{n}" for n in range(len(columns))) if len(columns) > 1 else ()
    return Layout(str(source), cases, Declared(channels=channels), folds)


def _warn_of_columns(source: Path, header: list[str], columns: list[str]) -> None:
    """Say which columns without a meaning look like misspelt ones."""
    for name in header:
        near = difflib.get_close_matches(
            name.lower(), [known for known in _OTHERS if known not in header], 1, _ALIKE
        )
        if near and name not in (*columns, *_OTHERS):
            logger.warning("%s: column %s has no meaning; is %s meant?", source, name, near[0])


def _split(row: dict[str, str]) -> str:
    return _SPLIT_OF[row["split"].lower()] if "split" in row else "train"


def _image_columns(source: Path, header: list[str], rows: list[Row]) -> list[str]:
    """Return the columns that hold scans, in the order of the channels."""
    if "image" in header:
        return ["image"]
    numbered = {int(match[1]): name for name in header if (match := _NUMBERED.fullmatch(name))}
    if numbered:
        first = min(numbered)
        lacks = next((n for n in range(first, first + len(numbered)) if n not in numbered), None)
        if lacks is not None or first > 1:
            lacks = 1 if lacks is None else lacks
            raise CasesError(f"{source}, line 1: no column image_{lacks} (there are {', '.join(header)})")
        return [numbered[number] for number in sorted(numbered)]
    suffixes = (*SCAN_SUFFIXES, *IMAGE_SUFFIXES)
    found = [
        name
        for name in header
        if name
        and name not in _OTHERS
        and any(
            row[name] and (row[name].lower().endswith(suffixes) or _is_scan(source.parent, row[name]))
            for _, row in rows
        )
    ]
    if not found:
        raise CasesError(
            f"{source}, line 1: no column with scans (there are {', '.join(header)}); name it image, or "
            "image_1, image_2 and so on, or have a column per modality"
        )
    return found


def _is_scan(folder: Path, name: str) -> bool:
    return not outside(name, folder) and is_scan(folder / name)


def _row_problems(folder: Path, row: dict[str, str], columns: list[str], missing: Unlabelled) -> list[str]:
    problems = []
    for column in columns:
        if not row[column]:
            problems.append(f"column {column}: is empty; every case needs all channels")
        elif why := outside(row[column], folder):
            problems.append(f"column {column}: {row[column]} {why}; {REMEDY}")
        elif not os.path.exists(folder / row[column]):  # a Path takes no names of any length
            problems.append(f"column {column}: {folder / row[column]} does not exist")
    split = _SPLIT_OF.get(row["split"].lower()) if "split" in row else "train"
    if split is None:
        problems.append(f"column split: is {row['split']!r}, not train, val or test")
    if not row.get("label"):
        if split != "test" and missing == "error":
            problems.append(
                "column label: is empty; give the file of the labels, or set split to test, or "
                "data.missing to skip"
            )
    elif why := outside(row["label"], folder):
        problems.append(f"column label: {row['label']} {why}; {REMEDY}")
    elif not os.path.exists(folder / row["label"]):
        problems.append(f"column label: {folder / row['label']} does not exist")
    whole = row.get("fold", "").isdecimal() and len(row["fold"]) <= _MOST_DIGITS
    if "fold" in row and not whole and (row["fold"] or split != "test"):
        problems.append(f"column fold: is {row['fold']!r}, not 0, 1, 2 and so on")
    if "patient" in row and not row["patient"]:
        problems.append("column patient: is empty; fill it or remove the column")
    if "case" in row and (not row["case"] or {"/", "\\"} & set(row["case"])):
        problems.append(f"column case: is {row['case']!r}; predictions are named so, without / and \\")
    return problems


def _repeated(rows: list[Row], columns: list[str], named: bool) -> list[str]:
    """Describe names of cases, and files of images, that are there for the second time."""
    problems = []
    for column in [*columns, *(["case"] if named else [])]:
        lines: dict[str, int] = {}
        for line, row in rows:
            value = row[column] if column == "case" else os.path.normpath(row[column])
            before = lines.setdefault(value, line)
            if before != line and row[column]:
                problems.append(f"line {line}, column {column}: {row[column]} is in line {before} already")
    return problems


def _names(folder: Path, rows: list[Row], columns: list[str]) -> list[str]:
    """Name the cases by their images, less the number of the channel; by folders where these are alike."""
    first = [folder / row[columns[0]] for _, row in rows]
    stems = [scan_stem(path) for path in first]
    numbered = all(by_number([path]) for path in first)
    if len(columns) > 1 and numbered:
        stems = [next(iter(by_number([path]))) for path in first]
    if len(columns) > 1 and len(set(stems)) < len(stems):
        parents = [path.absolute().parent.name for path in first]
        stems = parents if len(set(parents)) == len(parents) else stems
    return unique_names(first, stems)
