"""Names of files in lists and annotations: they stay inside the folder that they are relative to.

A list, CSV or JSON may come from anybody, and what it names is opened. What the user names in the config or
by options is the user's choice, and no matter here. Names are judged as text, before anything looks whether
there is such a file; links inside the folders are followed.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from .coco.fields import AnnotationError, shown
from .common import LISTED, PackedNames, listing
from .storage import Location

REMEDY = (
    "correct the names, or set data.allow_outside_root to true if these lists may name any file that you can "
    "read"
)
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")
_PLAIN = re.compile(r"[^/\\~:\0.][^\\:\0]*")  # what cannot lead out of a folder, unless it holds ..
# The root of the data, and whether files outside are allowed.
_scope: ContextVar[tuple[str | None, bool]] = ContextVar("files_of", default=(None, False))


@contextmanager
def files_of(root: str | os.PathLike[str] | None, allow_outside: bool | None) -> Iterator[None]:
    """Say what lists that are read inside may name.

    Args:
        root: of the data: files below it may be named, beside those in the folder that names are relative to.
        allow_outside: whether all others may be too; None leaves that as it is.
    """
    allowed = _scope.get()[1] if allow_outside is None else allow_outside
    token = _scope.set((None if root is None else str(root), allowed))
    try:
        yield
    finally:
        _scope.reset(token)


def outside(name: str, folder: str | os.PathLike[str] | Location) -> str:
    """Return why a name in a file is refused; empty if it is not.

    Args:
        name: as written.
        folder: that it is relative to.
    """
    if _PLAIN.fullmatch(name) and ".." not in name:
        return ""
    if "\0" in name:
        return "holds a null character"
    root, allowed = _scope.get()
    if allowed:
        return ""
    if "://" in name or name.lower().startswith("file:"):
        return "is an address"
    turned = name.replace("\\", "/")
    if _DRIVE.match(name) or name.startswith("\\") or (turned != name and ".." in turned.split("/")):
        return "is a path of Windows that leads elsewhere"
    if name.split("/")[0].startswith("~") and "/" in name:
        return "begins at a home folder"
    bases = [_normal(str(folder)), *([] if root is None else [_normal(root)])]
    path = _normal(posixpath.join(str(folder), name))
    if any(path == base or path.startswith(base.rstrip("/") + "/") for base in bases):
        return ""
    return f"leads out of {folder}" + ("" if root is None else f" and of data.root, {root}")


def _normal(path: str) -> str:
    """Return a path or address without ``.`` and ``..``; a path from the root of the disk on."""
    scheme, found, rest = path.partition("://")
    if found:
        return f"{scheme}://{posixpath.normpath('/' + rest)}"
    return os.path.abspath(os.path.expanduser(path) if path.startswith("~") else path)


def require_inside(
    names: Sequence[str] | PackedNames,
    folder: str | os.PathLike[str] | Location,
    source: str | os.PathLike[str] | Location,
    record: Callable[[int], str] = "image number {}".format,
) -> None:
    """Refuse the names that a file gives if one leads out of the folder.

    Args:
        names: as written.
        folder: that they are relative to.
        source: the file, for the error.
        record: returns what to call the record of a name, by its position.

    Raises:
        AnnotationError: listing the first of them.
    """
    found = ((n, outside(name, folder)) for n, name in enumerate(names))
    problems = [f"{record(n)}: {shown(names[n])} {why}" for n, why in found if why]
    if problems:
        raise AnnotationError(
            f"{source}: names of files that lead elsewhere ({len(problems)} in all)\n"
            f"{listing(problems[:LISTED], len(problems))}\n{REMEDY}"
        )
