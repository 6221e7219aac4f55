"""Read a list of classes, or know one: Pascal VOC's and Cityscapes'. Errors name the file and the line."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence

from ..storage import Location
from .classes import Colour, LabelClass, voc_colour
from .table import MaskError, has_control

CLASS_FILES = ("classes", "class_names", "labelmap", "class_dict", "labels", "semantic_classes")
CLASS_SUFFIXES = (".csv", ".tsv", ".txt")

_VOC_NAMES = (
    "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, "
    "motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"
)
VOC_ROWS = tuple(LabelClass(id, name, voc_colour(id)) for id, name in enumerate(_VOC_NAMES.split(", ")))
VOC_BORDER = LabelClass(255, "border", (224, 224, 192))

CITYSCAPES_ROWS = (
    LabelClass(7, "road", (128, 64, 128)),
    LabelClass(8, "sidewalk", (244, 35, 232)),
    LabelClass(11, "building", (70, 70, 70)),
    LabelClass(12, "wall", (102, 102, 156)),
    LabelClass(13, "fence", (190, 153, 153)),
    LabelClass(17, "pole", (153, 153, 153)),
    LabelClass(19, "traffic light", (250, 170, 30)),
    LabelClass(20, "traffic sign", (220, 220, 0)),
    LabelClass(21, "vegetation", (107, 142, 35)),
    LabelClass(22, "terrain", (152, 251, 152)),
    LabelClass(23, "sky", (70, 130, 180)),
    LabelClass(24, "person", (220, 20, 60)),
    LabelClass(25, "rider", (255, 0, 0)),
    LabelClass(26, "car", (0, 0, 142)),
    LabelClass(27, "truck", (0, 0, 70)),
    LabelClass(28, "bus", (0, 60, 100)),
    LabelClass(31, "train", (0, 80, 100)),
    LabelClass(32, "motorcycle", (0, 0, 230)),
    LabelClass(33, "bicycle", (119, 11, 32)),
)
# Ids in Cityscapes' masks that are not evaluated: void, parking, rail track, guard rail, bridge, tunnel,
# polegroup, caravan, trailer.
CITYSCAPES_IGNORED = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)

_ID_COLUMNS = ("id", "idx", "index", "value", "label_id")
_NAME_COLUMNS = ("name", "class", "label", "class_name", "category")
_COLOUR_COLUMNS = ("colour", "color", "rgb", "color_rgb", "colour_rgb")
_CHANNEL_COLUMNS = (("r", "g", "b"), ("red", "green", "blue"))
_NUMBERED = re.compile(r"([+-]?[0-9.]+)\s*:\s*(\S.*)")
_LIKE_NUMBERED = re.compile(r"[0-9]+[\s,;]+\S.*")
_LINE_ENDS = re.compile(r"\r\n|\r|\n")
_MOST_DIGITS = 9


def cityscapes_train_rows() -> tuple[LabelClass, ...]:
    """Return the 19 classes by the values in ``labelTrainIds`` masks, 0..18."""
    return tuple(row._replace(id=number) for number, row in enumerate(CITYSCAPES_ROWS))


def find_class_file(folder: Location) -> Location | None:
    """Return the list of classes in a folder by its usual names, or None."""
    for name in CLASS_FILES:
        for suffix in CLASS_SUFFIXES:
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
    return None


def read_class_rows(source: Location) -> list[LabelClass]:
    """Read a list of classes.

    - ``.txt``: one name a line, of the ids 0, 1, 2 and so on; or ``id: name`` in every line; or CVAT's and
      Datumaro's ``labelmap.txt``, ``name:r,g,b:parts:actions`` below a comment.
    - ``.csv`` and ``.tsv`` with a header: ``name``, and optionally ``id`` (else 0, 1, 2 and so on) and
      ``r``, ``g``, ``b`` or ``colour`` (``r,g,b`` or ``#rrggbb``). Other columns do not matter.

    Raises:
        MaskError: naming the line that is wrong.
    """
    text = read_list(source, "list of classes")
    if source.suffix.lower() in (".csv", ".tsv"):
        rows = _rows_with_header(source, text)
    else:
        rows = _rows_of_lines(source, _LINE_ENDS.split(text.rstrip()))
    if not rows:
        raise MaskError(f"{source}: lists no classes")
    _check_names(source, rows)
    return [row for _, row in rows]


def _check_names(source: Location, rows: Sequence[tuple[int, LabelClass]]) -> None:
    """Refuse names that are empty or hold control characters, and ids and names of two lines."""
    lines: dict[tuple[str, int | str], int] = {}
    for line, row in rows:
        where = f"{source}, line {line}"
        if not row.name:
            raise MaskError(f"{where}: the class has no name")
        if has_control(row.name):
            raise MaskError(f"{where}: the name {row.name!r} holds a control character; remove it")
        for what, value in (("id", row.id), ("name", row.name)):
            other = lines.setdefault((what, value), line)
            if other != line:
                raise MaskError(
                    f"{where}: the {what} {value} is there twice, in line {other} too; each class needs its "
                    "own"
                )


def _whole(source: Location, line: int, written: str) -> int:
    """Parse an id."""
    if not (written.isascii() and written.isdecimal() and len(written) <= _MOST_DIGITS):
        shown = written if len(written) <= 20 else f"{written[:20]}..."
        raise MaskError(f"{source}, line {line}: id is {shown!r}, not a whole number of 0 or more")
    return int(written)


def read_list(source: Location, what: str) -> str:
    """Return the text of a list.

    Args:
        source: the file.
        what: it is, for the error.

    Raises:
        MaskError: if it is no file, or no UTF-8 text.
    """
    if source.exists() and not source.is_file():  # opening a pipe would wait for a writer without end
        raise MaskError(f"{source}: is no file, but a {what} is needed")
    try:
        content = source.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise MaskError(f"{source}: no readable {what} ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise MaskError(
            f"{source}, line {line}: the {what} is no UTF-8 text (byte {content[error.start]:#04x}); save it "
            "as UTF-8"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise MaskError(f"{source}, line {line}: the {what} holds a zero byte; save it as UTF-8 text")
    return text


def has_numbers(source: Location) -> bool:
    """Return whether a list of classes that can be read gives ids of its own, rather than places in it."""
    lines = source.read_text(encoding="utf-8-sig").splitlines()
    if source.suffix.lower() not in (".csv", ".tsv"):
        return not lines[0].startswith("#")
    header = [name.strip().strip('"').lower() for name in re.split(r"[\t;,]", lines[0])]
    return _column(header, _ID_COLUMNS) is not None


def _rows_of_lines(source: Location, lines: Sequence[str]) -> list[tuple[int, LabelClass]]:
    """Return the classes of a text file, each with its line."""
    rows = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    if rows[0][1].startswith("#") and ":" in rows[0][1]:
        fields = [(number, line.split(":")) for number, line in rows if line and line[0] != "#"]
        return [
            (number, LabelClass(id, parts[0].strip(), _colour(source, number, "".join(parts[1:2]))))
            for id, (number, parts) in enumerate(fields)
        ]
    if rows == [(1, "")]:
        return []
    numbered = {number: match for number, line in rows if (match := _NUMBERED.fullmatch(line))}
    for number, line in rows:
        if not line:
            raise MaskError(
                f"{source}, line {number}: is empty; each line is the name of the next id, and the ids of "
                "all that follow would shift"
            )
        if line[0] == "#":
            raise MaskError(f"{source}, line {number}: is a comment; each line is a class: remove it")
        if numbered and number not in numbered:
            raise MaskError(
                f"{source}, line {number}: {line!r} has no id, but line {min(numbered)} has; write id: name "
                "in every line, or in none"
            )
    if numbered:
        return [
            (number, LabelClass(_whole(source, number, match[1]), match[2]))
            for number, match in numbered.items()
        ]
    if all(_LIKE_NUMBERED.fullmatch(line) for _, line in rows) or len(rows) == 1 and "," in rows[0][1]:
        raise MaskError(
            f"{source}, line 1: {rows[0][1][:80]!r} may be an id with a name, or several names; write one "
            "name a line, id: name in every line, or a CSV with the columns id and name"
        )
    return [(number, LabelClass(number - 1, name)) for number, name in rows]


def _rows_with_header(source: Location, text: str) -> list[tuple[int, LabelClass]]:
    """Return the classes of a table, each with its line."""
    lines = _LINE_ENDS.split(text)
    first = lines[0]
    delimiter = "\t" if source.suffix.lower() == ".tsv" or "\t" in first else ";" if ";" in first else ","
    reader = csv.reader([f"{line}\n" for line in lines], delimiter=delimiter, strict=True)
    try:
        records = [(reader.line_num, [field.strip() for field in record]) for record in reader]
    except csv.Error as error:
        raise MaskError(f"{source}, line {reader.line_num}: no table of classes ({error})") from error
    header = [name.lower() for name in (records[0][1] if records else [])]
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise MaskError(f"{source}, line 1: the column {twice[0]} is there twice; remove one")
    name_column = _column(header, _NAME_COLUMNS)
    id_column, colour_column = _column(header, _ID_COLUMNS), _column(header, _COLOUR_COLUMNS)
    for names in _CHANNEL_COLUMNS:
        if len({*names} & {*header}) == 2:
            raise MaskError(f"{source}, line 1: of the columns {', '.join(names)} one is missing")
    whole = (names for names in _CHANNEL_COLUMNS if {*names} <= {*header})
    channels = [header.index(name) for name in next(whole, ())]
    if name_column is None:
        raise MaskError(f"{source}, line 1: no column name (there are {', '.join(header)[:200]})")
    rows: list[tuple[int, LabelClass]] = []
    for line, fields in records[1:]:
        if not any(fields):
            continue
        if len(fields) != len(header) or not fields[name_column]:
            raise MaskError(f"{source}, line {line}: {', '.join(fields)[:200]!r} does not fit the header")
        id = len(rows) if id_column is None else _whole(source, line, fields[id_column])
        written = ",".join(fields[channel] for channel in channels)
        if not written and colour_column is not None:
            written = fields[colour_column]
        rows.append((line, LabelClass(id, fields[name_column], _colour(source, line, written))))
    return rows


def _column(header: Sequence[str], names: Sequence[str]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _colour(source: Location, line: int, written: str) -> Colour | None:
    """Parse ``#rrggbb`` or three numbers with anything between them; nothing is None."""
    if not written.strip(" ,"):
        return None
    if re.fullmatch(r"#[0-9a-fA-F]{6}", written):
        return int(written[1:3], 16), int(written[3:5], 16), int(written[5:7], 16)
    numbers = [int(number[:_MOST_DIGITS]) for number in re.findall(r"[0-9]+", written)]
    if len(numbers) != 3 or max(numbers) > 255 or not re.fullmatch(r"[0-9 ,;/()\[\]]+", written):
        shown = written if len(written) <= 40 else f"{written[:40]}..."
        raise MaskError(f"{source}, line {line}: colour {shown!r} is neither r,g,b (0 to 255) nor #rrggbb")
    return numbers[0], numbers[1], numbers[2]
