"""Paths of settings, with ``~`` for the home folder."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with ``~`` or ``~user`` at its begin replaced by the home folder.

    A name that only begins with ``~`` and is no user's stays as it is, where ``Path.expanduser`` fails.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111
