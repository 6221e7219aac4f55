"""How large a DICOM file becomes when it is unpacked, found out before that is done."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from ...shared.bounded import BoundedFile
from ...shared.limits import MOST_UNPACKED, unpacked_size
from .scan import ScanError

_JPEG, _CODESTREAM = b"\xff\xd8", b"\xff\x4f\xff\x51"  # of JPEG and JPEG-LS; of JPEG 2000
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers that begin a frame, with its size
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length


def check_unpacked(file: Path) -> None:
    """Raise ``ScanError`` if a file that is deflated as a whole becomes too large: pydicom unpacks all of it.

    Only files that say so are looked into.
    """
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    with BoundedFile(file) as opened:
        read_preamble(opened, force=True)
        meta = read_dataset(opened, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        try:
            size = unpacked_size(opened, MOST_UNPACKED)
        except (zlib.error, EOFError) as error:
            raise ScanError(
                f"{file}: the compressed data are damaged ({error}); copy or export it again"
            ) from error
    if size > MOST_UNPACKED:
        raise ScanError(
            f"{file}: unpacks to more than {MOST_UNPACKED:,} bytes, and such a slice is not read; export the "
            "series without deflating the files"
        )


def check_coded_size(path: Path, dataset: Any) -> None:
    """Raise ``ScanError`` if compressed pixels are of another size than the header says, which GDCM takes."""
    from pydicom.encaps import generate_fragments

    fragment = next(iter(generate_fragments(_after_table(dataset.PixelData))), b"")
    size = coded_size(fragment)
    if size is not None and size != (int(dataset.Columns), int(dataset.Rows)):
        raise ScanError(
            f"{path}: the compressed pixels are {size[0]} x {size[1]}, but the header tells of "
            f"{dataset.Columns} x {dataset.Rows} pixels; copy or export it again"
        )


def _after_table(pixels: bytes) -> bytes:
    """Return encapsulated pixels without the table of offsets, which is the first item (PS3.5, A.4)."""
    length = int.from_bytes(pixels[4:8], "little")
    return pixels[8 + length :]


def coded_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height from the header of JPEG, JPEG-LS or JPEG 2000 data; None if it has none."""
    if (at := data[:4096].find(_CODESTREAM)) >= 0:  # in a JP2 file it comes after boxes
        numbers = [int.from_bytes(data[at + 8 + 4 * n : at + 12 + 4 * n], "big") for n in range(4)]
        return numbers[0] - numbers[2], numbers[1] - numbers[3]
    if not data.startswith(_JPEG):
        return None
    at = 2
    while at + 9 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF:
            return None
        if marker in _FRAMES:
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        at += (
            1
            if marker == 0xFF
            else 2
            if marker in _ALONE
            else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        )
    return None
