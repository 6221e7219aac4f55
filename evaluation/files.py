"""Files that are either complete or not there."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LONGEST_START = 200  # bytes of a name that its temporary file repeats


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write a whole file so that no reader ever sees half of it.

    The content goes to a hidden file in the same folder, reaches the disk, and then takes the name ``path``
    in one step. If anything fails, an older file of that name stays as it was and nothing else is left.

    Args:
        path: the file to write; missing parent folders are created.
        content: text (written as UTF-8, line ends as they are; what has no form in UTF-8, as in file names of
            other encodings, as ``\\udcXX``) or bytes.

    Returns:
        ``path`` as a ``Path``.

    Raises:
        OSError: if the folder cannot be written; it says what to do.
        TypeError: if ``content`` is neither text nor bytes.
    """
    path = Path(path)
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else memoryview(content)
    try:
        return _write(path, data)
    except OSError as error:
        raise type(error)(f"{shown(path)}: cannot be written ({error}); {_remedy(error)}") from error


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path as text that can be printed, whatever bytes are in it."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room on the disk, or choose another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "allow writing there, or choose another folder"
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return (
            "a folder has the name of a file, or a file that of a folder: remove it, or choose another folder"
        )
    return "make room on the disk and look at its permissions, or choose another folder"


def _write(path: Path, data: bytes | memoryview) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files are readable only by the owner, and os.replace would keep that.
    name = os.fsdecode(os.fsencode(path.name)[:LONGEST_START])  # the rest has to fit into 255 bytes too
    temporary = path.with_name(f".{name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def write_csv(path: str | os.PathLike[str], header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Path:
    """Write a table atomically, as comma-separated values with line feeds.

    Args:
        path: the file to write; missing parent folders are created.
        header: names of the columns.
        rows: the cells, in each row as many as there are columns.

    Returns:
        ``path`` as a ``Path``.

    Raises:
        OSError: if the folder cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return write_atomically(path, text.getvalue())


def write_json(path: str | os.PathLike[str], value: Any, indent: int | None = None) -> Path:
    """Write strict JSON atomically.

    JSON has no NaN and no infinity, so a NaN (a metric that is not defined, such as the AP of a class without
    objects) and an infinite number are written as ``null``; NumPy numbers and arrays become plain numbers and
    lists.

    Args:
        path: the file to write; missing parent folders are created.
        value: dicts, lists, tuples, text, numbers, booleans, ``None``, NumPy numbers and arrays.
        indent: spaces per level; ``None`` writes one line.

    Returns:
        ``path`` as a ``Path``.

    Raises:
        OSError: if the folder cannot be written.
        TypeError: if something inside has no form in JSON.
    """
    try:
        text = json.dumps(value, indent=indent, allow_nan=False)
    except (TypeError, ValueError):
        # Only now walk through everything: results of half a million plain rows never need it.
        text = json.dumps(_plain(value), indent=indent, allow_nan=False)
    return write_atomically(path, text + "\n")


def _plain(value: Any) -> Any:
    """Replace NaN and infinity by ``None`` and NumPy values by Python's, all the way down."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
