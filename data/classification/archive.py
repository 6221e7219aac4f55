"""Files inside a zip, read in place by any number of processes and threads.

``zipfile`` reads the list of members each time an archive is opened, which takes seconds and a Python object
per member for a large one. Here the list is read once, into a few tensors that worker processes share; to
read a member takes one seek. Nothing stays open, so there is no file position to share.

Letters in shapes: I members.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from ..shared.common import PackedNames

_LOCAL_HEADER = 30  # bytes before the name, PKWARE's APPNOTE section 4.3.7
_ENCRYPTED = 0x1


class ArchiveError(ValueError):
    """A zip file is damaged, encrypted, or compressed in a way that cannot be read."""


@dataclass(frozen=True)
class Archive:
    """The list of members of one zip, without folders, hidden files and what macOS adds.

    Attributes:
        path: the zip file.
        names: of the I members, ``/`` between folders, in the order of the archive.
        table: ``[I, 4]`` int64, offset of the local header, compressed size, method and CRC-32 of each.
        folders: names of the folders that the archive lists, without ``/`` at the end.
    """

    path: str
    names: PackedNames
    table: Tensor
    folders: tuple[str, ...]


def read_archive(path: Path) -> Archive:
    """Read the list of members.

    Raises:
        ArchiveError: if the file is no zip, or a member is encrypted or neither stored nor deflated.
    """
    try:
        with zipfile.ZipFile(path) as opened:
            found = [entry for entry in opened.infolist() if not _is_noise(entry.filename)]
    except (zipfile.BadZipFile, OSError) as error:
        raise ArchiveError(f"{path}: cannot be read as a zip ({error}); download or make it again") from error
    members = [entry for entry in found if not entry.is_dir()]
    for entry in members:
        if entry.flag_bits & _ENCRYPTED:
            raise ArchiveError(f"{path}: {entry.filename} is encrypted; unpack the archive")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArchiveError(
                f"{path}: {entry.filename} is compressed by method {entry.compress_type}; make the archive "
                "again with no compression or with deflate"
            )
    rows = [(entry.header_offset, entry.compress_size, entry.compress_type, entry.CRC) for entry in members]
    return Archive(
        str(path),
        PackedNames.pack(entry.filename for entry in members),
        torch.tensor(rows, dtype=torch.int64).reshape(-1, 4),
        tuple(entry.filename.rstrip("/") for entry in found if entry.is_dir()),
    )


def read_member(archive: str, row: Sequence[int]) -> bytes:
    """Return the content of one member.

    Args:
        archive: path of the zip.
        row: the member's row of ``Archive.table``.

    Raises:
        ArchiveError: if the archive has gone or changed, or the member is damaged.
    """
    offset, size, method, checksum = row
    try:
        with open(archive, "rb", buffering=0) as file:
            file.seek(offset)
            header = file.read(_LOCAL_HEADER)
            name_length = int.from_bytes(header[26:28], "little")
            extra_length = int.from_bytes(header[28:30], "little")
            file.seek(offset + _LOCAL_HEADER + name_length + extra_length)
            content = file.read(size)
        if method == zipfile.ZIP_DEFLATED:
            content = zlib.decompress(content, -zlib.MAX_WBITS)
    except (OSError, zlib.error) as error:
        raise ArchiveError(f"{error}; download or make the archive again") from error
    if zlib.crc32(content) != checksum:
        raise ArchiveError("damaged (its CRC-32 differs); download or make the archive again")
    return content


def _is_noise(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return not parts or parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts)
