"""Which files of a folder are slices of a DICOM series, and what is checked of each header.

A DICOM file begins with 128 bytes that mean nothing and the letters DICM (PS3.10, 7.1). Old scanners and some
archives leave them out; such a file is known by its first element.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...shared.bounded import BoundedFile
from .dicom_size import check_unpacked
from .scan import PathLike, ScanError, decoding, failure, warn_once

_MAGIC_AT, _MAGIC = 128, b"DICM"
_FIRST_GROUPS = (0x0002, 0x0008)  # of a file without preamble: its meta data, or the identification
_TAGS: tuple[str, ...] = ("SeriesInstanceUID", "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient")
_TAGS += ("ImagePositionPatient", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
_TAGS += ("SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "SharedFunctionalGroupsSequence")
_TAGS += ("SliceThickness", "SpacingBetweenSlices", "RescaleSlope", "RescaleIntercept", "SOPClassUID")
_TAGS += ("ModalityLUTSequence", "ImagerPixelSpacing")
_NEEDED = ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient")
_NOTES = (".txt", ".md", ".xml", ".json", ".csv", ".tsv", ".pdf", ".html", ".log", ".ini", ".db")
_NOTE_NAMES = ("DICOMDIR", "LICENSE", "README", "VERSION")
_SLANTED = 1e-2  # share by which direction cosines may miss length 1 and right angles
_NAMED = 10  # names in a message
_MOST_FOLDERS = 1000  # that are looked through below a folder


@dataclass
class Slice:
    """One file of a series: its header, its place (LPS, mm), and how far along the stack that is."""

    path: Path
    header: Any
    position: np.ndarray  # [3]
    along: float = 0.0


def is_dicom(file: Path) -> bool:
    """Whether a file is a DICOM file by its first bytes, and no DICOMDIR."""
    if file.name.upper() == "DICOMDIR" or not file.is_file():  # a pipe is no file
        return False
    try:
        with open(file, "rb") as opened:
            start = opened.read(_MAGIC_AT + len(_MAGIC))
    except OSError:
        return False
    return start[_MAGIC_AT:] == _MAGIC or _begins_with_element(start)


def _begins_with_element(start: bytes) -> bool:
    """Whether the first bytes are an element that a file without preamble begins with."""
    if len(start) < 16:
        return False
    for order in ("little", "big"):
        group, element = (int.from_bytes(start[at : at + 2], order) for at in (0, 2))
        if group in _FIRST_GROUPS and element <= 0x0070:
            explicit = start[4:6].isalpha() and start[4:6].isupper()
            implicit = order == "little" and int.from_bytes(start[4:8], "little") <= 64
            return explicit or implicit
    return False


def holds_dicom(path: PathLike) -> bool:
    """Whether a path is a folder with a DICOM file in it (not in its sub-folders)."""
    folder = Path(path)
    try:
        return folder.is_dir() and any(is_dicom(file) for file in sorted(folder.iterdir()))
    except OSError:  # reading it will say why
        return False


def series_below(path: PathLike) -> list[Path]:
    """Return the folders below a folder, at any depth, that hold DICOM files, sorted by name.

    Hidden folders and ``__MACOSX`` are not looked into, nor more than 1,000 folders.
    """
    found: list[Path] = []
    for number, (folder, inner, _) in enumerate(os.walk(path)):
        inner[:] = sorted(name for name in inner if name[:1] != "." and name != "__MACOSX")
        if number and holds_dicom(folder):
            found.append(Path(folder))
        if number >= _MOST_FOLDERS:
            break
    return found


def read_headers(folder: Path) -> list[Slice]:
    """Read the header of each slice in a folder, and say which files are left out.

    Raises:
        ScanError: if there is no slice, a file that is named like the slices is none, or a header lacks what
            tells where the slice lies or contradicts itself.
    """
    slices: list[Slice] = []
    others: list[Path] = []
    without_pixels: dict[Path, str] = {}
    for file in sorted(folder.iterdir()):
        if file.is_dir():
            continue
        if not is_dicom(file):
            others += [] if _is_note(file) else [file]
            continue
        with decoding(file):
            header = _read_header(file)
            if not any(name in header for name in ("Rows", "Columns", "NumberOfFrames")):
                without_pixels[file] = _kind(header)
                continue
            _check_header(file, header)
            slices.append(Slice(file, header, np.array(header.ImagePositionPatient, dtype=np.float64)))
    if not slices:
        raise ScanError(_no_slices(folder, others))
    _check_others(slices, others)
    _check_cut(slices, without_pixels)
    left = [
        *(f"{file.name} (no image)" for file in without_pixels),
        *(file.name for file in others),
        *_below(folder),
    ]
    if left:
        warn_once(folder, f"left out, as no slices of the series: {_few(left)}")
    return slices


def _is_note(file: Path) -> bool:
    """Whether a file is by its name no slice, as anybody would expect: notes, side files of systems."""
    name = file.name
    return (
        name.startswith((".", "Thumbs"))
        or name.upper().startswith(_NOTE_NAMES)
        or name.lower().endswith(_NOTES)
    )


def _read_header(file: Path) -> Any:
    import pydicom

    check_unpacked(file)
    # By force: is_dicom has looked, and files without preamble need it.
    with BoundedFile(file) as opened:
        return pydicom.dcmread(opened, stop_before_pixels=True, specific_tags=list(_TAGS), force=True)


def _kind(header: Any) -> str:
    """Return the class of an object (a CT image, a report), which stands near the beginning of a file."""
    return str(header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID") or "")


def _check_cut(slices: list[Slice], without_pixels: dict[Path, str]) -> None:
    """A file of the kind of the slices without the size of an image is a slice that is cut in its header."""
    kinds = {_kind(one.header) for one in slices} - {""}
    endings = {one.path.suffix.lower() for one in slices}
    for file, kind in without_pixels.items():
        if kind in kinds or (not kind and file.suffix.lower() in endings):
            raise ScanError(
                f"{file}: is a slice without the size of its image, so its header is damaged or cut off; "
                "copy it again, or remove it if it is none"
            )


def _check_others(slices: list[Slice], others: list[Path]) -> None:
    """A file that is named like the slices and is none is a slice that got lost, as when a disk is full."""
    endings = {one.path.suffix.lower() for one in slices}
    for file in others:
        if not file.is_file():
            continue
        try:
            empty = file.stat().st_size == 0
            file.open("rb").close()  # one that may not be read is an error, not left out
        except OSError as error:
            raise failure(file, error) from error
        named = file.suffix.lower() in endings and (file.suffix or _alike(file.name, slices))
        if named or (empty and file.suffix.lower() in endings):
            raise ScanError(
                f"{file}: is {'empty' if empty else 'no DICOM file'}, but named like the slices beside it; "
                "copy it again, or remove it if it is none of them"
            )


def _alike(name: str, slices: list[Slice]) -> bool:
    """Whether a name without suffix has the same letters as that of a slice, digits aside."""

    def letters(text: str) -> str:
        return "".join(letter for letter in text if not letter.isdigit())

    return letters(name) in {letters(one.path.name) for one in slices}


def _below(folder: Path) -> Iterator[str]:
    inner = series_below(folder) if any(entry.is_dir() for entry in folder.iterdir()) else []
    return (f"{found.relative_to(folder)} (a folder of DICOM files)" for found in inner)


def _no_slices(folder: Path, others: list[Path]) -> str:
    if below := series_below(folder):
        named = _few([str(found.relative_to(folder)) for found in below])
        return (
            f"{folder}: is a folder without DICOM slices, but folders below it hold DICOM files (sub-folders "
            f"are not searched): {named}; name the folder of one series"
        )
    also = f"; files that are no DICOM: {_few([file.name for file in others])}" if others else ""
    return (
        f"{folder}: is a folder without DICOM slices; name the folder that holds the files of one series "
        f"(sub-folders are not searched){also}"
    )


def _few(names: list[str]) -> str:
    """Return how many there are and the first of them."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{len(names)} ({', '.join(names[:_NAMED])}{more})"


def _check_header(file: Path, header: Any) -> None:
    if int(header.get("NumberOfFrames") or 1) > 1 or "SharedFunctionalGroupsSequence" in header:
        raise ScanError(
            f"{file}: holds several frames (enhanced DICOM); convert the series to NIfTI, for example by "
            "dcm2niix"
        )
    if missing := [name for name in _NEEDED if header.get(name) is None]:
        detector = "PixelSpacing" in missing and header.get("ImagerPixelSpacing") is not None
        also = " (ImagerPixelSpacing is that of the detector, not of the patient)" if detector else ""
        raise ScanError(
            f"{file}: has no {', '.join(missing)}, so its place in the world is not known{also}; remove the "
            "file if it is no slice of the scan, or export the series again"
        )
    _check_pixels(file, header)
    numbers = [*header.PixelSpacing, *header.ImageOrientationPatient, *header.ImagePositionPatient]
    if len(numbers) != 11 or not np.isfinite(np.array(numbers, dtype=np.float64)).all():
        raise ScanError(
            f"{file}: spacing, orientation and position are not 2, 6 and 3 finite numbers; repair it"
        )
    if min(header.PixelSpacing) < 0:
        raise ScanError(f"{file}: PixelSpacing {listed(header.PixelSpacing)} is below 0; repair it")
    axes = np.array(header.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > _SLANTED:
        raise ScanError(
            f"{file}: ImageOrientationPatient {listed(header.ImageOrientationPatient)} is not two directions "
            "of length 1 at a right angle; repair it, or export the series again"
        )


def _check_pixels(file: Path, header: Any) -> None:
    kind = str(header.get("PhotometricInterpretation") or "MONOCHROME2")
    if int(header.get("SamplesPerPixel") or 1) != 1 or not kind.startswith("MONOCHROME"):
        raise ScanError(f"{file}: is in colours; a scan is grey (screenshots do not belong to the series)")
    if "ModalityLUTSequence" in header:
        raise ScanError(f"{file}: its values are looked up in a table (Modality LUT); convert it by dcm2niix")
    for name, least in (("RescaleSlope", 0.0), ("RescaleIntercept", None)):
        value = header.get(name)
        if value is not None and (not math.isfinite(float(value)) or float(value) == least):
            raise ScanError(f"{file}: {name} {value} cannot scale its voxels; repair it, or export it again")
    stored, high = header.get("BitsStored"), header.get("HighBit")
    if stored is None or high is None or int(stored) >= int(header.get("BitsAllocated") or 16):
        return
    if int(high) != int(stored) - 1:
        raise ScanError(
            f"{file}: BitsStored {stored} and HighBit {high} contradict each other; convert the series to "
            "NIfTI, for example by dcm2niix"
        )


def listed(numbers: Any) -> str:
    """Return numbers as text, separated by spaces."""
    return " ".join(f"{float(number):g}" for number in numbers)
