"""Read and check a CSV of images and their classes; errors name the file and the line."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Sequence

from ..shared.common import listing, number_of
from ..shared.inside import REMEDY, outside
from ..shared.locate import SPLIT_NAMES
from ..shared.storage import Location
from .names import LabelError, control_characters, number_written, require_class_names, require_file
from .table import ImageTable

logger = logging.getLogger("trunkline")

_SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
_FLAGS = {"0": False, "0.0": False, "1": True, "1.0": True}
_OURS = ("path", "split", "label", "labels")
# What such columns hold is no class of its own, even if it is all 0 and 1.
_NO_CLASSES = frozenset(
    [
        "class",
        "class_id",
        "class_name",
        "category",
        "category_id",
        "target",
        "truth",
        "gt",
        "id",
        "index",
        "idx",
        "fold",
        "weight",
        "weights",
        "sample_weight",
        "is_valid",
        "is_train",
        "is_test",
        "width",
        "height",
    ]
)
_NOT_A_LABEL = frozenset(("nan", "<na>", "#n/a", "#name?", "#ref!", "#value!", "#null!", "#div/0!"))
_SHOWN = 80  # letters of a header that a message quotes

Record = tuple[int, list[str]]  # the line where it ends, and its fields


def read_image_table(source: Location, labelled: bool = True) -> ImageTable:
    """Read a CSV with a header.

    Args:
        source: the file, UTF-8, with commas.
        labelled: whether it has to have classes; if not, only ``path`` is read.

    Raises:
        LabelError: listing the lines where a path or label is empty or no text, a path is one of Windows, a
            split is none of train, val and test, a class column holds something else than 0 and 1, or a path
            is there for the second time. Also if ``path`` or all class columns are missing, if names of
            columns cannot be told apart or are no classes, and if a number is a label in two ways.
    """
    header, records = _read_records(source)
    _require_columns(source, header, labelled)
    columns = _class_columns(source, header) if labelled else []
    if not records:
        raise LabelError(f"{source}: has a header but no rows")
    problems: list[str] = []
    table = _read_rows(source, header, columns, records, problems)
    if problems:
        raise LabelError(f"{source}: {number_of(len(problems), 'wrong row')}:\n{listing(problems)}")
    if labelled:
        require_class_names(table.classes, str(source), several=table.multi_label)
        _require_numbers_alike(table)
        _tell(table, [name for name in header if name not in (*_OURS, *columns)])
    return table


def _read_records(source: Location) -> tuple[list[str], list[Record]]:
    require_file(source)
    try:
        content = source.read_bytes()
    except OSError as error:
        raise LabelError(f"{source}: cannot be read ({error.strerror or error})") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise LabelError(
            f"{source}, line {line}: not readable as CSV, byte {content[error.start]:#x} is not UTF-8; "
            "save it as UTF-8 with commas"
        ) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    records: list[Record] = []
    line = 0
    try:
        header = [name.strip() for name in next(reader, [])]
        line = reader.line_num
        for record in reader:
            line = reader.line_num
            if record:
                records.append((line, record))
    except csv.Error as error:
        raise LabelError(
            f"{source}, line {line + 1}: not readable as CSV ({error}); look for a quote that is not closed"
        ) from error
    return header, records


def _require_columns(source: Location, header: list[str], labelled: bool) -> None:
    if "path" not in header:
        hint = "; the first line names the columns, one of them path"
        if len(header) == 1 and any(sign in header[0] for sign in ";\t"):
            hint = "; separate columns by commas"
        shown = ", ".join(header)
        shown = shown[:_SHOWN] + (" ..." if len(shown) > _SHOWN else "")
        raise LabelError(f"{source}, line 1: no column path (there are {shown or 'none'}){hint}")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise LabelError(
            f"{source}, line 1: column {', '.join(twice) or 'without a name'} is there twice; rename or "
            "remove one"
        )
    wrong = [name for name in header if name not in _OURS and name.lower() in _OURS]
    if wrong and labelled:
        raise LabelError(f"{source}, line 1: column {wrong[0]}: write {wrong[0].lower()}, in small letters")


def _class_columns(source: Location, header: list[str]) -> list[str]:
    if "label" in header and "labels" in header:
        raise LabelError(f"{source}, line 1: has both label (one class) and labels (several); remove one")
    for name in ("label", "labels"):
        if name in header:
            return [name]
    columns = [name for name in header if name not in ("path", "split")]
    if not columns:
        raise LabelError(
            f"{source}, line 1: no classes; add a column label, or labels (names with ; between them), or "
            "one column of 0 and 1 per class"
        )
    if wrong := [name for name in columns if not name or name.lower() in _NO_CLASSES]:
        raise LabelError(
            f"{source}, line 1: column {wrong[0] or 'without a name'}: every column but path and split is a "
            "class of that name, with 0 and 1; name a column of classes label, and remove others"
        )
    return columns


def _read_rows(
    source: Location, header: list[str], columns: list[str], records: list[Record], problems: list[str]
) -> ImageTable:
    """Read all rows, and write down what is wrong with which line."""
    paths: list[str] = []
    splits: list[str] = []
    labels: list[tuple[str, ...]] = []
    lines: list[int] = []
    row_of: dict[str, int] = {}  # by path, its position among the lines
    folder = str(source.parent.absolute())
    for line, record in records:
        if len(record) != len(header):
            problems.append(f"line {line}: {len(record)} fields, the header has {len(header)}")
            continue
        row = {name: value.strip() for name, value in zip(header, record, strict=True)}
        names = _labels_of(row, columns)
        problem = _row_problem(row, columns, names) or _path_problem(row["path"], folder)
        if problem is None:
            same = os.path.normpath(os.path.join(folder, row["path"]))
            before = row_of.setdefault(same, len(lines))
            if before < len(lines):
                problem = _twice(row["path"], lines[before], labels[before], names, columns)
        if problem is not None:
            problems.append(f"line {line}: {problem}")
            continue
        paths.append(row["path"])
        splits.append(_SPLIT_OF.get(row.get("split", "").lower(), ""))
        labels.append(names)
        lines.append(line)
    named = columns in (["label"], ["labels"])
    classes = _sorted_names({name for names in labels for name in names}) if named else tuple(columns)
    return ImageTable(
        source,
        paths,
        splits if "split" in header else None,
        labels,
        lines,
        classes,
        multi_label=bool(columns) and columns != ["label"],
        named=named,
    )


def _twice(path: str, line: int, before: Sequence[str], names: Sequence[str], columns: Sequence[str]) -> str:
    text = f"{path} is there already, in line {line}"
    if set(before) == set(names):
        return f"{text}; an image belongs to one split and row"
    other = f"{text}, with {'; '.join(before) or 'no class'} and not {'; '.join(names) or 'none'}"
    several = " if it shows both, write them into one row of a column labels, with ; between them"
    return f"{other}; an image belongs to one row{':' + several if columns == ['label'] else ''}"


def _path_problem(path: str, folder: str) -> str | None:
    if not path:
        return "the path is empty"
    if control_characters(path):
        return f"the path {path!r} holds a control character; rename the file"
    if "://" in path:
        return f"{path} is an address; give paths relative to the CSV, or to an address in data.root"
    if why := outside(path, folder):
        return f"{path} {why}; {REMEDY}"
    if "\\" in path and os.sep == "/" and not os.path.exists(os.path.join(folder, path)):
        return f"{path} is a path of Windows, and there is no such file; write / in place of \\"
    return None


def _row_problem(row: dict[str, str], columns: list[str], names: Sequence[str]) -> str | None:
    if not row["path"]:
        return "the path is empty"
    if columns and "split" in row and row["split"].lower() not in _SPLIT_OF:
        return f"split is {row['split']!r}, not train, val or test"
    if columns == ["label"] and not row["label"]:
        return "the label is empty; remove the row or name its class"
    if columns in (["label"], ["labels"]):
        wrong = next((name for name in names if name.lower() in _NOT_A_LABEL), None)
        return None if wrong is None else f"the label is {wrong!r}; remove the row or name its class"
    for name in columns:
        if row[name] not in _FLAGS:
            return f"column {name} holds {row[name]!r}, not 0 or 1; remove columns that are no classes"
    return None


def _labels_of(row: dict[str, str], columns: list[str]) -> tuple[str, ...]:
    if columns == ["label"]:
        return (row["label"],)
    if columns == ["labels"]:
        names = (name.strip() for name in row["labels"].split(";"))
        return tuple(dict.fromkeys(name for name in names if name))
    return tuple(name for name in columns if _FLAGS.get(row[name], False))


def _sorted_names(names: set[str]) -> tuple[str, ...]:
    # Longer ones are refused later, and Python refuses to read numbers of thousands of digits.
    if all(name.isdecimal() and len(name) < 1000 for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _require_numbers_alike(table: ImageTable) -> None:
    """Refuse labels such as 1 and 1.0 in one file: pandas writes whole numbers so beside empty fields."""
    if not table.named:
        return
    first: dict[str, int] = {}
    for line, names in zip(table.lines, table.labels, strict=True):
        for name in names:
            first.setdefault(name, line)
    written: dict[float, str] = {}
    for name, line in first.items():
        number = number_written(name)
        if number is None:
            continue
        other = written.setdefault(number, name)
        if other != name:
            raise LabelError(
                f"{table.source}, line {line}: the label {name} is {other} of line {first[other]} written "
                "otherwise, and would be another class; write it the same way everywhere"
            )


def _tell(table: ImageTable, unused: Sequence[str]) -> None:
    weights = [name for name in unused if "weight" in name.lower()]
    if weights:
        logger.warning(
            "%s: column %s has no effect: images have no weights; classes do, by head.class_weights",
            table.source,
            ", ".join(weights),
        )
    elif unused:
        logger.info(
            "%s: not used are the columns %s", table.source, ", ".join(name or "''" for name in unused)
        )
    if not (table.named and table.multi_label):
        return
    joined = [name for name in table.classes if "," in name or "|" in name]
    if joined and max(map(len, table.labels)) == 1:
        logger.warning(
            "%s: no row of the column labels has a ; but %s holds a comma or a bar, and is one class of that "
            "name; write ; between the names of several classes",
            table.source,
            repr(joined[0]),
        )
