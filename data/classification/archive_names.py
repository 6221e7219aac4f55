"""Names of the members of a zip, and what a file is that is no zip."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from ..shared.common import listing
from .names import is_hidden

_UTF8 = 0x800  # the flag of names in UTF-8
_BEGINNINGS = (
    (b"7z\xbc\xaf\x27\x1c", "it is a 7z archive: unpack it"),
    (b"Rar!", "it is a RAR archive: unpack it"),
    (b"\x1f\x8b", "it is compressed by gzip, as .tar.gz is: unpack it"),
    (b"BZh", "it is compressed by bzip2: unpack it"),
    (b"\xfd7zXZ", "it is compressed by xz: unpack it"),
    (b"version https://git-lfs", "it is a pointer of Git LFS: fetch the file by git lfs pull"),
    (b"PK\x03\x04", "it begins as a zip, and its end is missing or damaged: download or make it again"),
)
_TAR = slice(257, 262)
_START = 512  # bytes that tell the kind of a file


class ArchiveError(ValueError):
    """A zip file is damaged, encrypted, or compressed in a way that cannot be read."""


def member_name(entry: zipfile.ZipInfo) -> tuple[str, bool]:
    """Return the name of a member as unpacking makes it, and whether its letters are certain.

    Names of folders end in ``/``. Macs write UTF-8 without the flag that says so, which zipfile takes for the
    code page 437. For anything else that page is a guess: letters may be wrong, names stay different.
    """
    name, certain = entry.filename, True
    if not entry.flag_bits & _UTF8 and not name.isascii():
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            certain = False
    name = name.replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return "/".join(parts) + ("/" if name.endswith("/") and parts else ""), certain


def hidden_member(name: str) -> bool:
    """Whether a member, or a folder that holds it, is hidden or made by a system such as macOS."""
    return any(is_hidden(part) for part in name.split("/") if part)


def require_plain_names(path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Raise an ArchiveError for names that lead outside of the archive: absolute ones, and ``..``."""
    names = (entry.filename.replace("\\", "/") for entry in entries)
    outside = [name for name in names if name.startswith("/") or name[1:3] == ":/" or ".." in name.split("/")]
    if outside:
        raise ArchiveError(
            f"{path}: names of members that lead outside of the archive:\n{listing(outside)}\n"
            "make the archive again with names relative to its folder"
        )


def not_a_zip(path: Path, error: Exception) -> str:
    """Say what a file is that cannot be read as a zip with this error, and what to do."""
    if isinstance(error, NotImplementedError):
        return "make it again by a program that writes the usual version"
    try:
        with open(path, "rb") as file:
            start = file.read(_START)
    except OSError:
        return "check its permissions"
    if not start:
        return "it is empty: download or make it again"
    for beginning, text in _BEGINNINGS:
        if start.startswith(beginning):
            return text
    if start[_TAR] == b"ustar":
        return "it is a tar archive: unpack it"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page, not the archive: download it again"
    return "download or make it again"
