"""Files inside a zip, read in place by any number of processes and threads.

``zipfile`` reads the list of members each time an archive is opened, which takes seconds and a Python object
per member for a large one. Here the list is read once, into a few tensors that worker processes share; to
read a member takes one seek. Nothing stays open, so there is no file position to share.

Letters in shapes: I members.
"""

from __future__ import annotations

import logging
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..shared.common import PackedNames, listing, number_of
from .archive_names import ArchiveError, hidden_member, member_name, not_a_zip, require_plain_names
from .names import require_file

logger = logging.getLogger("trunkline")

MEMBER_LIMIT = 1 << 30  # bytes of one member, unpacked
_LOCAL_HEADER = 30  # bytes before the name, PKWARE's APPNOTE section 4.3.7
_ENCRYPTED = 0x1
_LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Archive:
    """The list of members of one zip, without folders, hidden files and what macOS adds.

    Attributes:
        path: the zip file.
        names: of the I members, ``/`` between folders, in the order of the archive.
        table: ``[I, 5]`` int64, offset of the local header, compressed size, method, CRC-32 and unpacked size
            of each, as the archive claims.
        folders: names of the folders that the archive lists, without ``/`` at the end.
        hidden: names of the files that are left out because they are hidden.
    """

    path: str
    names: PackedNames
    table: Tensor
    folders: tuple[str, ...]
    hidden: tuple[str, ...] = ()


def read_archive(path: Path) -> Archive:
    """Read the list of members.

    Names become what unpacking makes of them: ``\\`` of Windows is taken for ``/``, and names of macOS that
    are UTF-8 without saying so are read as such.

    Raises:
        ArchiveError: if the file is no zip, cut off, or of a later version; if a member is encrypted, neither
            stored nor deflated, there twice, or has a name that leads outside of the archive.
    """
    require_file(path)
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as opened:
            entries = opened.infolist()
    # zipfile raises all of these for lists of members that are damaged, or of a later version.
    except (
        zipfile.BadZipFile,
        OSError,
        NotImplementedError,
        ValueError,
        OverflowError,
        struct.error,
    ) as error:
        raise ArchiveError(f"{path}: cannot be read as a zip ({error}); {not_a_zip(path, error)}") from error
    require_plain_names(path, entries)
    named: list[tuple[str, zipfile.ZipInfo]] = []
    uncertain: list[str] = []
    for entry in entries:
        name, certain = member_name(entry)
        named.append((name, entry))
        if not certain and not hidden_member(name):
            uncertain.append(name)
    if uncertain:
        logger.warning(
            "%s: %s of unknown encoding, whose letters may be wrong, such as %s; make the archive again with "
            "names in UTF-8",
            path,
            number_of(len(uncertain), "name"),
            uncertain[0],
        )
    visible = [(name, entry) for name, entry in named if name and not hidden_member(name)]
    members = [(name.rstrip("/"), entry) for name, entry in visible if not name.endswith("/")]
    _require_readable(path, size, members)
    rows = [
        (e.header_offset, e.compress_size, e.compress_type, e.CRC, min(e.file_size, _LARGEST))
        for _, e in members
    ]
    return Archive(
        str(path),
        PackedNames.pack(name for name, _ in members),
        torch.tensor(rows, dtype=torch.int64).reshape(-1, 5),
        tuple(name.rstrip("/") for name, _ in visible if name.endswith("/")),
        tuple(name for name, _ in named if name and hidden_member(name) and not name.endswith("/")),
    )


def read_member(archive: str, row: Sequence[int]) -> bytes:
    """Return the content of one member.

    Args:
        archive: path of the zip.
        row: the member's row of ``Archive.table``.

    Raises:
        ArchiveError: if the archive has gone or changed, or the member is damaged, is larger than
            ``MEMBER_LIMIT``, or unpacks to another size than it claims.
    """
    offset, size, method, checksum, unpacked = row
    if unpacked > MEMBER_LIMIT:
        raise ArchiveError(
            f"claims {unpacked:,} bytes, members may have {MEMBER_LIMIT:,}; unpack it, if the size is right"
        )
    try:
        with open(archive, "rb", buffering=0) as file:
            file.seek(offset)
            header = file.read(_LOCAL_HEADER)
            name_length = int.from_bytes(header[26:28], "little")
            extra_length = int.from_bytes(header[28:30], "little")
            file.seek(offset + _LOCAL_HEADER + name_length + extra_length)
            content = file.read(size)
        if method == zipfile.ZIP_DEFLATED:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, unpacked + 1)
    except (OSError, zlib.error) as error:
        raise ArchiveError(f"{error}; download or make the archive again") from error
    if len(content) > unpacked:
        raise ArchiveError(
            f"unpacks to more than the {unpacked:,} bytes that it claims; make the archive again"
        )
    if zlib.crc32(content) != checksum:
        raise ArchiveError("damaged (its CRC-32 differs); download or make the archive again")
    return content


def _require_readable(path: Path, size: int, members: Sequence[tuple[str, zipfile.ZipInfo]]) -> None:
    """Refuse members that are encrypted, compressed in other ways, there twice, or not all there."""
    for name, entry in members:
        if entry.flag_bits & _ENCRYPTED:
            raise ArchiveError(f"{path}: {name} is encrypted; unpack the archive")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArchiveError(
                f"{path}: {name} is compressed by method {entry.compress_type}; make the archive "
                "again with no compression or with deflate"
            )
        if not 0 <= entry.header_offset <= size - _LOCAL_HEADER - entry.compress_size:
            raise ArchiveError(
                f"{path}: {name} claims {entry.compress_size:,} bytes at {entry.header_offset:,}, more than "
                f"the archive has ({size:,}); download or make it again"
            )
    if len({name for name, _ in members}) < len(members):
        twice = [f"{name} ({n} times)" for name, n in Counter(name for name, _ in members).items() if n > 1]
        raise ArchiveError(
            f"{path}: members of the same name, of which unpacking would keep one:\n{listing(twice)}\n"
            "make the archive again"
        )
