"""Headers of NRRD and MetaImage files, checked before ITK reads them.

ITK's readers believe what a header says: some numbers end the process, others take all memory. Both formats
have a header of text lines; the voxels follow it or lie in files that it names.
NRRD: https://teem.sourceforge.net/nrrd/format.html; MetaImage: https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .checks import DEFLATE, check_claim, check_deflated, check_words
from .scan import PathLike, ScanError

T = TypeVar("T")

NRRD_SUFFIXES = (".nrrd", ".nhdr")
_MOST = 1 << 20  # bytes of a header
_WORD = 100  # characters of a number or name in it
_TEXTS = ("content", "labels", "data file", "datafile", "sample units")  # NRRD's fields of free text
_LISTED = ("data file", "datafile")
_SIZES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(
        ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4
    ),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), 8),
    **dict.fromkeys(("signed long long int", "ulonglong", "unsigned long long", "uint64", "uint64_t"), 8),
    **dict.fromkeys(("unsigned long long int", "double"), 8),
    "float": 4,
}
_META_SIZES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4}
_META_SIZES |= {"LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
_META_NUMBERS = {
    "DimSize",
    "ElementSpacing",
    "ElementSize",
    "Offset",
    "Origin",
    "Position",
    "TransformMatrix",
}
_META_NUMBERS |= {"Rotation", "Orientation", "CenterOfRotation", "ElementMin", "ElementMax", "ElementType"}
_META_NUMBERS |= {"NDims", "HeaderSize", "CompressedDataSize", "ElementNumberOfChannels"}
_HELD: dict[str, int | None] = {
    "raw": 1,
    "txt": None,
    "text": None,
    "ascii": None,
    "hex": 1,
    "gz": DEFLATE,
    "gzip": DEFLATE,
}
# Bytes that one byte can become; None where there is no such limit. ITK is built without bzip2.
_MM = {
    "mm": 1.0,
    "millimeter": 1.0,
    "millimetre": 1.0,
    "millimeters": 1.0,
    "millimetres": 1.0,
    "": 1.0,
    "?": 1.0,
}
_MM |= {"um": 1e-3, "µm": 1e-3, "μm": 1e-3, "micron": 1e-3, "microns": 1e-3, "micrometer": 1e-3}
_MM |= {"micrometre": 1e-3, "micrometers": 1e-3, "nm": 1e-6, "cm": 10.0, "m": 1e3, "meter": 1e3, "metre": 1e3}


@dataclass(frozen=True)
class ItkHeader:
    """What a header says that ITK does not.

    Attributes:
        scale: millimetres of its unit of length.
        deflated: the files of voxels that are compressed by zlib or gzip; empty if they are not.
        start: where the voxels begin in the first of those.
        size: bytes of the voxels.
    """

    scale: float
    deflated: tuple[Path, ...]
    start: int
    size: int

    def check_voxels(self, path: PathLike) -> None:
        """Raise ``ScanError`` if compressed voxels are damaged, which ITK does not notice."""
        if self.deflated:
            check_deflated(path, self.deflated, self.start, self.size)


def check_header(path: PathLike) -> ItkHeader:
    """Check a header, and the sizes and places of the files that it names.

    Raises:
        ScanError: naming the field, if it is no such header, has numbers that cannot be, tells of more voxels
            than there are data or memory, or names files that are missing or lie outside its folder.
    """
    return _check_nrrd(Path(path)) if str(path).lower().endswith(NRRD_SUFFIXES) else _check_meta(Path(path))


def _check_nrrd(path: Path) -> ItkHeader:
    lines, after = _lines(path, b"NRRD", "\n")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if line.startswith("#") or value.startswith("="):  # a comment, or a key of the user's own
            continue
        if not colon:  # ITK writes such a line into its message, whose room is fixed
            raise _wrong(path, "line", line)
        if name.strip().lower() in fields:  # of two, ITK may take either
            raise _wrong(path, f"second {name.strip()}", value.strip())
        fields[name.strip().lower()] = value.strip()
        if name.strip().lower() in _LISTED and value.upper().split()[:1] == ["LIST"]:
            break  # names of files follow
    for name, value in fields.items():
        if name not in _TEXTS and any(len(word) > _WORD for word in value.split()):
            raise _wrong(path, name, value)
    dimension = _number(path, fields, "dimension", 1, 16)
    sizes = _numbers(path, fields, "sizes", dimension)
    size = _one_of(path, fields, "type", _SIZES)
    ratio = _one_of(path, fields, "encoding", _HELD)
    if "space directions" in fields and not {"space", "space dimension"} & set(fields):
        raise ScanError(
            f"{path}: the header has 'space directions' but no 'space' to say where they point; add a line "
            "such as 'space: left-posterior-superior', as it was where the file comes from"
        )
    skipped = max(0, _number(path, fields, "byte skip", -1, 1 << 62, "0"))
    named = fields.get("data file", fields.get("datafile"))
    data = _data(path, sizes, size, ratio, _data_files(path, named, lines), after + skipped)
    return ItkHeader(_nrrd_scale(path, fields), *data)


def _check_meta(path: Path) -> ItkHeader:
    lines, after = _lines(path, b"", "ElementDataFile")
    fields = {}
    for line in lines:
        if pair := re.match(r"\s*(\w+)\s*[=:](.*)", line):
            if pair[1] in fields and pair[1] in _META_NUMBERS:  # of two, ITK may take either
                raise _wrong(path, f"second {pair[1]}", pair[2].strip())
            fields[pair[1]] = pair[2].strip()
    for name in _META_NUMBERS & set(fields):
        value = fields[name]
        if any(len(word) > _WORD for word in value.split()):
            raise _wrong(path, name, value)
    dimension = _number(path, fields, "NDims", 1, 10)
    sizes = _numbers(path, fields, "DimSize", dimension)
    parts = _number(path, fields, "ElementNumberOfChannels", 1, 1 << 20, "1")
    kind = fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY")
    if kind not in _META_SIZES:
        raise _wrong(path, "ElementType", fields.get("ElementType"))
    for name, neutral in (
        ("ElementToIntensityFunctionSlope", 1.0),
        ("ElementToIntensityFunctionOffset", 0.0),
    ):
        if float(fields.get(name, neutral)) != neutral:
            raise ScanError(f"{path}: {name} scales the voxels, which is not supported; store them scaled")
    spacing = [float(word) for word in fields.get("ElementSpacing", "").split()]
    if any(number < 0 for number in spacing):
        raise _wrong(path, "ElementSpacing", fields["ElementSpacing"])
    packed = fields.get("CompressedData", "false").lower() in ("true", "1")
    text = fields.get("BinaryData", "true").lower() in ("false", "0") and not packed
    ratio = DEFLATE if packed else None if text else 1
    named = fields.get("ElementDataFile")
    if named is None:
        raise _wrong(path, "ElementDataFile", None)
    skipped = _number(path, fields, "HeaderSize", -1, 1 << 62, "0")
    files = _data_files(path, None if named.upper() == "LOCAL" else named, lines)
    sizes += [parts] if parts > 1 else []
    data = _data(path, sizes, _META_SIZES[kind], ratio, files, after + max(0, skipped))
    if packed:
        _check_packed_size(path, fields, skipped, files is None)
    return ItkHeader(_unit(path, "DistanceUnits", fields.get("DistanceUnits", "")), *data)


def _check_packed_size(path: Path, fields: dict[str, str], skipped: int, local: bool) -> None:
    """Refuse compressed voxels that ITK would replace by whatever is in memory, without an error."""
    if skipped:
        raise ScanError(
            f"{path}: HeaderSize {skipped} is not possible with compressed voxels; store them uncompressed, "
            "or export the scan again"
        )
    if local and _number(path, fields, "CompressedDataSize", -1, 1 << 62, "0") < 1:
        raise ScanError(
            f"{path}: the header has no CompressedDataSize, the number of bytes of the compressed voxels "
            "after it; add it, or export the scan again"
        )


def _lines(path: Path, magic: bytes, end: str) -> tuple[list[str], int]:
    """Return the lines of a header and where the data after it begin.

    The header ends with an empty line, or for MetaImage with the line that names the data. Files whose data
    lie elsewhere have text to their end.
    """
    with open(path, "rb") as file:
        start = file.read(_MOST)
    if not start.startswith(magic):
        raise ScanError(
            f"{path}: does not begin as a file of this name: damaged, or not of the format that its name "
            "says; copy or export it again"
        )
    lines: list[str] = []
    at = 0
    while at < len(start):
        stop = start.find(b"\n", at)
        stop = len(start) if stop < 0 else stop
        line, at = start[at:stop].rstrip(b"\r").decode("utf-8", "replace"), stop + 1
        if not line and end == "\n":
            return lines, at
        lines.append(line)
        if line.startswith(end) and end != "\n":
            rest = start[at:].decode("utf-8", "replace").splitlines() if "LIST" in line else []
            return [*lines, *rest], at
    if end != "\n" or len(start) == _MOST:
        raise ScanError(
            f"{path}: the header has no end: damaged, or not of the format that its name says; copy or "
            "export it again"
        )
    return lines, at


def _check_pattern(path: Path, words: list[str]) -> None:
    """Refuse what is no pattern of names: ITK prints by it, and a step of 0 ends the process."""
    numbers = words[1:]
    fits = re.fullmatch(r"[^%]*%\d{0,2}d[^%]*", words[0]) and len(numbers) in (3, 4)
    if not fits or not all(re.fullmatch(r"\d{1,9}", n) for n in numbers) or int(numbers[2]) < 1:
        raise _wrong(path, "file of the voxels", " ".join(words))


def _data_files(path: Path, named: str | None, lines: list[str]) -> list[Path] | None:
    """Return the files of the voxels, or None if they follow the header.

    They are one file, a list after the header, or a pattern with the first, last and step of its numbers.
    """
    if named is None:
        return None
    words = named.split()
    if "%" in named:
        _check_pattern(path, words)
    if words and words[0].upper() == "LIST":
        if not re.fullmatch(r"LIST( \d{1,2}D?)?", " ".join(words), re.IGNORECASE):
            raise _wrong(path, "file of the voxels", named)
        at = next(at for at, line in enumerate(lines) if "LIST" in line)
        names = [line.strip() for line in lines[at + 1 :] if line.strip()]
    elif len(words) in (4, 5) and "%" in words[0] and all(w.isdigit() for w in words[1:]):
        first, last, step = (int(word) for word in words[1:4])
        names = [
            re.sub(r"%0?(\d*)d", lambda m, n=number: str(n).zfill(int(m[1] or 1)), words[0])  # type: ignore[misc]
            for number in range(first, min(last, first + 100_000) + 1, max(1, step))
        ]
    else:
        names = [named]
    files, folder = [], os.path.abspath(path.parent)
    for name in names:
        file = path.parent / name
        if os.path.commonpath([folder, os.path.abspath(file)]) != folder:  # links may lead anywhere
            raise ScanError(
                f"{path}: its voxels are in {name}, outside the folder of the header; move that file beside "
                "the header, and name it there without folders"
            )
        if not file.is_file():
            raise ScanError(f"{path}: its voxels are in {name}, which is missing or no file; copy both again")
        files.append(file)
    return files


def _data(
    path: Path, sizes: list[int], size: int, ratio: int | None, files: list[Path] | None, start: int
) -> tuple[tuple[Path, ...], int, int]:
    """Compare sizes with the bytes that there are; return the last three parts of ``ItkHeader``."""
    held = sum(file.stat().st_size for file in ([path] if files is None else files))
    held -= start if files is None else 0
    if ratio is None:  # text: a digit and a space for each number, but for the last
        check_claim(path, sizes, 2, max(held, 0) + 1)
        for file in [path] if files is None else files:
            check_words(path, file, start if files is None else 0, _WORD)
    else:
        check_claim(path, sizes, size, max(held, 0), ratio)
    found = (path,) if files is None else tuple(files)
    begin = start if files is None else 0
    return found if ratio == DEFLATE else (), begin, math.prod(sizes) * size


def _nrrd_scale(path: Path, fields: dict[str, str]) -> float:
    """Return the millimetres of the unit in which NRRD's axes of space are told."""
    name = "space units" if "space units" in fields else "units"
    words = re.findall(r'"([^"]*)"|(\S+)', fields.get(name, ""))
    units = {first or second for first, second in words} - {"", "none", "???"}
    if not units:
        return 1.0
    scales = {_unit(path, name, unit) for unit in units} if name == "space units" else _lengths(units)
    if len(scales) > 1:
        raise ScanError(f"{path}: the axes have several units, {fields[name]}; export it in millimetres")
    return scales.pop() if scales else 1.0


def _lengths(units: set[str]) -> set[float]:
    """Of units of axes, which may be of time or anything, take those of lengths."""
    return {_MM[unit] for unit in units if unit in _MM}


def _unit(path: Path, name: str, unit: str) -> float:
    if unit not in _MM:
        raise ScanError(f"{path}: {name} has the unknown unit {unit!r} of length; export it in mm")
    return _MM[unit]


def _one_of(path: Path, fields: dict[str, str], name: str, known: dict[str, T]) -> T:
    value = fields.get(name, "").lower()
    if value not in known:
        raise _wrong(path, name, fields.get(name))
    return known[value]


def _numbers(path: Path, fields: dict[str, str], name: str, count: int) -> list[int]:
    words = fields.get(name, "").split()
    if len(words) != count or not all(re.fullmatch(r"\d{1,18}", word) and int(word) > 0 for word in words):
        raise _wrong(path, name, fields.get(name))
    return [int(word) for word in words]


def _number(
    path: Path, fields: dict[str, str], name: str, least: int, most: int, missing: str | None = None
) -> int:
    value = fields.get(name, missing)
    if value is None or not re.fullmatch(r"[+-]?\d{1,18}", value) or not least <= int(value) <= most:
        raise _wrong(path, name, value)
    return int(value)


def _wrong(path: Path, name: str, value: str | None) -> ScanError:
    if value is None:
        return ScanError(f"{path}: the header has no {name}; copy or export it again")
    shown = value if len(value) <= _WORD else f"{value[: _WORD // 2]}... ({len(value)} characters)"
    return ScanError(f"{path}: the header's {name} cannot be {shown!r}; copy or export it again")
