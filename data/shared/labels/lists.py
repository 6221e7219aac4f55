"""Read a list of classes, or know one: Pascal VOC's and Cityscapes'. Errors name the file and the line."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from .classes import Colour, LabelClass, voc_colour
from .table import MaskError

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
_NUMBERED = re.compile(r"(\d+)\s*:\s*(\S.*)")


def cityscapes_train_rows() -> tuple[LabelClass, ...]:
    """Return the 19 classes by the values in ``labelTrainIds`` masks, 0..18."""
    return tuple(row._replace(id=number) for number, row in enumerate(CITYSCAPES_ROWS))


def find_class_file(folder: Path) -> Path | None:
    """Return the list of classes in a folder by its usual names, or None."""
    for name in CLASS_FILES:
        for suffix in CLASS_SUFFIXES:
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
    return None


def read_class_rows(source: Path) -> list[LabelClass]:
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
        rows = _rows_of_lines(source, text.rstrip().splitlines())
    if not rows:
        raise MaskError(f"{source}: lists no classes")
    return rows


def read_list(source: Path, what: str) -> str:
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


def has_numbers(source: Path) -> bool:
    """Return whether a list of classes that can be read gives ids of its own, rather than places in it."""
    lines = source.read_text(encoding="utf-8-sig").splitlines()
    if source.suffix.lower() not in (".csv", ".tsv"):
        return not lines[0].startswith("#")
    header = [name.strip().strip('"').lower() for name in re.split(r"[\t;,]", lines[0])]
    return _column(header, _ID_COLUMNS) is not None


def _rows_of_lines(source: Path, lines: Sequence[str]) -> list[LabelClass]:
    lines = [line.strip() for line in lines]
    if lines and lines[0].startswith("#") and ":" in lines[0]:
        fields = [(number, line.split(":")) for number, line in enumerate(lines, start=1) if line[:1] != "#"]
        return [
            LabelClass(position, parts[0], _colour(source, number, parts[1] if len(parts) > 1 else ""))
            for position, (number, parts) in enumerate(fields)
        ]
    if "" in lines:
        raise MaskError(
            f"{source}, line {lines.index('') + 1}: is empty; each line is the name of the next id, and the "
            "ids of all that follow would shift"
        )
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    if lines and all(numbered):
        return [LabelClass(int(match[1]), match[2]) for match in numbered if match]
    return [LabelClass(number, name) for number, name in enumerate(lines)]


def _rows_with_header(source: Path, text: str) -> list[LabelClass]:
    first = text.partition("\n")[0]
    delimiter = "\t" if source.suffix.lower() == ".tsv" or "\t" in first else ";" if ";" in first else ","
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    header = [name.strip().lower() for name in next(reader, [])]
    name_column = _column(header, _NAME_COLUMNS)
    id_column, colour_column = _column(header, _ID_COLUMNS), _column(header, _COLOUR_COLUMNS)
    whole = (names for names in _CHANNEL_COLUMNS if {*names} <= {*header})
    channels = [header.index(name) for name in next(whole, ())]
    if name_column is None:
        raise MaskError(f"{source}, line 1: no column name (there are {', '.join(header)})")
    rows: list[LabelClass] = []
    for record in reader:
        line, fields = reader.line_num, [field.strip() for field in record]
        if not any(fields):
            continue
        if len(fields) != len(header) or not fields[name_column]:
            raise MaskError(f"{source}, line {line}: {', '.join(record)!r} does not fit the header")
        value = str(len(rows)) if id_column is None else fields[id_column]
        if not value.isdecimal():
            raise MaskError(f"{source}, line {line}: id is {value!r}, not a whole number")
        written = ",".join(fields[channel] for channel in channels)
        if not written and colour_column is not None:
            written = fields[colour_column]
        rows.append(LabelClass(int(value), fields[name_column], _colour(source, line, written)))
    return rows


def _column(header: Sequence[str], names: Sequence[str]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _colour(source: Path, line: int, written: str) -> Colour | None:
    """Parse ``#rrggbb`` or three numbers with anything between them; nothing is None."""
    if not written.strip(" ,"):
        return None
    if re.fullmatch(r"#[0-9a-fA-F]{6}", written):
        return int(written[1:3], 16), int(written[3:5], 16), int(written[5:7], 16)
    numbers = [int(number) for number in re.findall(r"\d+", written)]
    if len(numbers) != 3 or max(numbers) > 255 or re.search(r"[a-zA-Z#.-]", written):
        raise MaskError(f"{source}, line {line}: colour {written!r} is neither r,g,b (0 to 255) nor #rrggbb")
    return numbers[0], numbers[1], numbers[2]
