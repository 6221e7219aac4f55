"""What one tar file holds: the name and place of each member, found by its headers."""

from __future__ import annotations

import os
import tarfile
import zlib
from array import array
from typing import Any, NamedTuple

from .common import listing
from .objects import ObjectError
from .ranged import RangedFile

BLOCK = 512  # bytes of a header, and what members are filled up to
_LONGEST_RECORD = 1 << 20  # bytes of a header record, such as one of a long name
_PADDING = 1 << 20  # bytes after the end mark that are looked at
_COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gunzip"), (b"BZh", "bzip2", "bunzip2"), (b"\xfd7zXZ", "xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"), (b"\x04\x22\x4d\x18", "lz4", "unlz4"),
    (b"PK\x03\x04", "zip", "unzip"),
)  # fmt: skip


class Members(NamedTuple):
    """The members of one tar.

    Attributes:
        names: in UTF-8, ``/`` between folders.
        offsets: where the content of each begins.
        sizes: its bytes.
        checksums: CRC-32 of the header before it, which shows later that the shard has not changed.
    """

    names: list[bytes]
    offsets: array[int]
    sizes: array[int]
    checksums: array[int]


class _Headers:
    """The file as tarfile reads it; refuses records that claim to be very long before they are read."""

    def __init__(self, file: RangedFile):
        self._file = file
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int) -> bytes:
        if size > _LONGEST_RECORD:
            raise tarfile.ReadError(f"a header record claims {size:,} bytes")
        return self._file.read(size)


def members_of(path: str, file: RangedFile) -> Members:
    """Look through a tar by its headers.

    Args:
        path: of it, for errors.
        file: its content.

    Raises:
        ObjectError: if it is compressed, damaged, cut off or no tar; if further archives follow its end; if
            it holds links, devices or sparse files; or a name that is absolute or holds ``..``.
    """
    start = file.read(8)
    for beginning, kind, program in _COMPRESSED:
        if start.startswith(beginning):
            raise ObjectError(
                f"{path}: is compressed by {kind}, so that its members cannot be read one by one; unpack it "
                f"by {program} and name the .tar (images are compressed already)"
            )
    file.seek(0)
    found = Members([], array("q"), array("q"), array("L"))
    wrong: list[str] = []
    try:
        _collect(file, found, wrong)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise ObjectError(f"{path}: cannot be read as a tar ({error}); make or download it again") from error
    if wrong:
        raise ObjectError(
            f"{path}: {len(wrong)} members cannot be used:\n{listing(wrong)}\nmake it again by tar "
            "--dereference --hard-dereference -C FOLDER -cf SHARD.tar ."
        )
    return found


def _collect(file: RangedFile, found: Members, wrong: list[str]) -> None:
    source: Any = _Headers(file)
    archive: Any
    with tarfile.open(fileobj=source, mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # it would keep them all
            name = os.path.normpath(member.name) if member.name else ""
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                wrong.append(f"{name}: is {_kind(member)}, not a plain file")
            elif name.startswith(("/", "../")) or name in ("..", "."):
                wrong.append(f"{member.name}: leads outside of the archive")
            elif not 0 <= member.size <= file.size - member.offset_data:
                raise tarfile.ReadError(f"{name} claims {member.size:,} bytes, more than there are")
            else:
                found.names.append(name.encode("utf-8", "surrogateescape"))
                found.offsets.append(member.offset_data)
                found.sizes.append(member.size)
                file.seek(member.offset_data - BLOCK)
                found.checksums.append(zlib.crc32(file.read(BLOCK)))
        _require_end(file, archive.offset)


def _require_end(file: RangedFile, end: int) -> None:
    """Require the end mark: tarfile ends without a word where a header is damaged or missing."""
    file.seek(end)
    mark = file.read(BLOCK)
    if len(mark) < BLOCK:
        raise tarfile.ReadError("it has no end mark, so it is cut off")
    if mark.strip(b"\0"):
        raise tarfile.ReadError(f"the header at byte {end:,} is damaged")
    if file.read(_PADDING).strip(b"\0"):
        raise tarfile.ReadError("another archive follows its end mark; name each as a shard of its own")


def _kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return f"a link to {member.linkname}"
    return "a sparse file" if member.issparse() else "a device or a pipe"
