"""Parts of checkpoints that killed processes have left, told from those that a living one writes."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger("trunkline")

DAY = 86400  # seconds; a part of another machine that is as old as this is nobody's
_NAME = re.compile(r"\..*\.(?P<host>[\w-]*)\.(?P<process>\d+)\.[0-9a-f]{8}\.part")


def part_of(target: Path) -> Path:
    """Return where a file is written before it gets its name: hidden beside it, with machine and process."""
    return target.with_name(f".{target.name[:64]}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part")


def hold(file: BinaryIO) -> None:
    """Lock a part while it is written; the system lets go of it when the process ends, however it does."""
    with contextlib.suppress(OSError):  # some file systems have no locks: the process in the name counts
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_leftovers(roots: Iterable[Path]) -> None:
    """Delete parts below some folders that no process will finish, and say so.

    Of this machine that is a part whose process is gone, of another machine one that is a day old; and no
    process holds it.

    Args:
        roots: folders of runs.
    """
    for path in [path for root in roots for path in Path(root).rglob(".*.part")]:
        name = _NAME.fullmatch(path.name)
        if name is None:
            continue
        try:
            here = name["host"] == _host() and not _alive(int(name["process"]))
            if (here or time.time() - path.stat().st_mtime > DAY) and not _held(path):
                path.unlink()
                logger.info("deleted %s, which a killed process has left half written", path)
        except OSError:
            continue  # gone meanwhile, or not ours


def _host() -> str:
    return re.sub(r"[^\w-]", "-", os.uname().nodename, flags=re.ASCII)[:64]


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # of another user
    return True


def _held(path: Path) -> bool:
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False
