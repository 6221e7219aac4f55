"""What is checked of a file before a library reads it, and before memory is taken for its voxels."""

from __future__ import annotations

import contextlib
import math
import os
import re
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path

from ...shared.limits import MOST_AFTER, LimitError, check_voxels, unpacked_size
from .scan import PathLike, ScanError, failure

DEFLATE = 1032  # bytes that one byte of gzip data can become, at most (zlib, "Technical Details")
GZIP = b"\x1f\x8b"
_BLOCK = 1 << 20  # bytes read at once
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container
_GIB = 1 << 30
_ZLIB_OR_GZIP = 32 + 15  # told from their first bytes


def check_file(path: PathLike) -> None:
    """Raise ``ScanError`` unless there is a regular file that may be read and is not empty."""
    path = Path(path)
    try:
        if path.is_dir():
            raise ScanError(f"{path}: is a folder without DICOM slices; name a file, or the series' folder")
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for ever
            raise ScanError(f"{path}: is a pipe, socket or device, not a file; remove it or name a file")
        with open(path, "rb") as file:
            if not file.read(1):
                raise ScanError(f"{path}: the file is empty; copy or export it again")
    except OSError as error:
        raise failure(path, error) from error
    if path.name.startswith("._"):
        raise ScanError(
            f"{path}: is a side file that macOS writes beside a file, and no scan; remove it and name "
            f"{path.name[2:]}"
        )


def check_packing(path: PathLike) -> None:
    """Raise ``ScanError`` if a file is gzip data and its name does not end in ``.gz``, or the reverse."""
    named, path = str(path).lower().endswith(".gz"), Path(path)
    with open(path, "rb") as file:
        packed = file.read(len(GZIP)) == GZIP
    if packed and not named:
        raise ScanError(
            f"{path}: is compressed by gzip, unlike its name says; rename it to {path.name}.gz, or unpack it"
        )
    if named and not packed:
        raise ScanError(
            f"{path}: is not compressed by gzip, unlike its name says; rename it to {path.stem} if it is a "
            "whole file, else copy it again"
        )


def check_claim(path: PathLike, sizes: Sequence[int], size: int, held: int, ratio: int = 1) -> None:
    """Raise ``ScanError`` if a header tells of more voxels than there are data, or than fit in memory.

    Args:
        path: the file.
        sizes: voxels along all axes, channels among them.
        size: bytes of a voxel.
        held: bytes that there are of the voxels.
        ratio: bytes that each of those can become; 1 if they are not compressed.

    Raises:
        ScanError: naming the file and both numbers.
    """
    voxels = math.prod(int(number) for number in sizes)
    if voxels * size > held * ratio:
        most = f"{held} bytes" if ratio == 1 else f"{held} bytes of compressed data, too few for them"
        raise ScanError(
            f"{path}: the header tells of {' x '.join(map(str, sizes))} voxels of {size} bytes each, but "
            f"there are {most}: the file is cut off, or its header is damaged; copy or export it again"
        )
    check_memory(path, sizes)


def check_memory(path: PathLike, sizes: Sequence[int]) -> None:
    """Raise ``ScanError`` if a scan has more voxels than are read, or than fit in main memory as float32."""
    try:
        check_voxels(sizes)
    except LimitError as error:
        raise ScanError(f"{path}: {error}") from error
    needed, memory = 4 * math.prod(int(number) for number in sizes), memory_size()
    if memory is not None and needed > memory:
        raise ScanError(
            f"{path}: its {' x '.join(map(str, sizes))} voxels need {needed / _GIB:.1f} GiB as float32 "
            f"numbers, and there are {memory / _GIB:.1f} GiB of memory; crop it, or split it into files"
        )


def check_deflated(path: PathLike, files: Sequence[Path], start: int, least: int) -> None:
    """Raise ``ScanError`` if compressed voxels are damaged or cut off: ITK takes what it gets of them.

    Args:
        path: the file of the header, for the error.
        files: files with zlib or gzip data.
        start: where the data begin in the first of them.
        least: bytes that they must become.
    """
    found, most = 0, least + MOST_AFTER
    for file in files:
        with open(file, "rb") as opened:
            opened.seek(start if file == files[0] else 0)
            try:
                found += unpacked_size(opened, most - found, _ZLIB_OR_GZIP)
            except zlib.error as error:
                raise ScanError(
                    f"{path}: the compressed voxels are damaged ({error}); copy or export it again"
                ) from error
            except EOFError as error:
                raise ScanError(
                    f"{path}: the compressed voxels are cut off; copy or export it again"
                ) from error
        if found > most:
            raise ScanError(
                f"{path}: the header tells of {least} bytes of voxels, but the compressed data hold more "
                f"than {most}; copy or export it again"
            )
    if found < least:
        raise ScanError(
            f"{path}: the header tells of {least} bytes of voxels, but the compressed data hold {found}; "
            "copy or export it again"
        )


def check_words(path: PathLike, file: Path, start: int, most: int) -> None:
    """Raise ``ScanError`` if voxels that are written as text have a number of more characters than ``most``.

    ITK copies each into room of a fixed size.

    Args:
        path: the file of the header, for the error.
        file: the file with the voxels.
        start: where they begin in it.
        most: characters.
    """
    end = b""
    with open(file, "rb") as opened:
        opened.seek(start)
        while block := opened.read(_BLOCK):
            if re.search(rb"\S{%d}" % (most + 1), end + block):
                raise ScanError(
                    f"{path}: the voxels are text, and one has more than {most} characters; export it again"
                )
            end = (end + block)[-most:]


def memory_size() -> int | None:
    """Bytes of main memory that this process may have, or None where that cannot be told."""
    found = []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has none
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in _LIMITS:
        try:
            found.append(int(Path(limit).read_text()))
        except (OSError, ValueError):  # "max"
            continue
    return min((number for number in found if number > 0), default=None)
