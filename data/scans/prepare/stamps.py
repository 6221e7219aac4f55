"""What tells one state of the files of a scan from another: paths, sizes and times."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import Any

from ..cases.types import CasesError

_MOST_HEADER = 2**16  # bytes


def stamp(path: str) -> list[Any]:
    """Return path, size and time of change of a file, of its parts, or of the files in a folder."""
    path = os.path.abspath(path)
    try:
        stats = [(file, os.stat(file)) for file in _parts(path)]
    except OSError as error:
        raise CasesError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return [path, [[file, stat.st_size, stat.st_mtime_ns] for file, stat in stats]]


def _parts(path: str) -> list[str]:
    if os.path.isdir(path):
        os.scandir(path).close()  # says why, where os.walk is silent
        return sorted(os.path.join(at, file) for at, _, files in os.walk(path) for file in files)
    if not path.lower().endswith((".mhd", ".nhdr")):
        return [path]
    # The voxels lie in files next to it, of its name or named in the header.
    parts = {path, *map(str, Path(path).parent.glob(f"{glob.escape(Path(path).stem)}.*"))}
    with open(path, "rb") as file:
        header = file.read(_MOST_HEADER).decode("latin-1")
    names = [re.split(r"=|data ?file:", line)[-1].strip() for line in header.splitlines()]
    beside = [os.path.join(os.path.dirname(path), name) for name in names if name and "\0" not in name]
    return sorted(parts | {part for part in beside if os.path.isfile(part)})
