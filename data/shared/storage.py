"""Where files lie: on the disk, at an address (``s3://bucket/name``), or in tar shards.

Paths of settings are made by :func:`located`. What is no path on this machine becomes an :class:`Address`,
which has those methods of ``Path`` that reading a dataset needs. Paths of single files stay text, joined by
:func:`joined`; ``io`` opens them.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from .home import expanded
from .objects import WEB, Info, ObjectError, files_below, info_of, read_object, scheme_of
from .ranged import RangedFile
from .shards import list_of, open_member, place_in_shards, read_member, shards_exist

_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)


def is_stored(path: str | os.PathLike[str] | Address) -> bool:
    """Whether a path is an address, or leads into tar shards: nothing that ``open`` could open."""
    text = str(path)
    return ("://" in text and bool(scheme_of(text))) or place_in_shards(text) is not None


def read_stored(path: str) -> bytes:
    """Return the bytes of a file at an address or in shards.

    Raises:
        ObjectError: if it is missing, may not be read, or is no file.
        StorageError: if it could not be read for now.
    """
    place = place_in_shards(path)
    return read_object(_plain(path)) if place is None else read_member(place)


def open_stored(path: str) -> RangedFile:
    """Return a file at an address or in shards, of which only what is read is fetched; errors as above."""
    place = place_in_shards(path)
    if place is not None:
        return open_member(place)
    address = _plain(path)

    def size() -> int:
        found = info_of(address)
        if found is None or found.folder:
            raise ObjectError(f"{path}: {'is a folder' if found else 'no such file'}; check the address")
        return found.size

    return RangedFile(lambda start, end: read_object(address, start, end), size)


def joined(folder: str, name: str) -> str:
    """Join a folder and the name of a file, as ``os.path.join`` does for paths.

    A name that is an address stands for itself, as an absolute path does.
    """
    return name if "://" in name and scheme_of(name) else os.path.join(folder, name)


class Address:
    """A file or folder at an address or in tar shards, with methods as those of ``Path``.

    It is no ``Path``, and nothing that takes one opens it by mistake: it has to be read by these methods.

    Args:
        text: ``s3://bucket/folder``; or shards, ``train-*.tar`` or ``s3://bucket/train-{000..099}.tar``,
            optionally followed by a place inside them.
    """

    def __init__(self, text: str):
        scheme = scheme_of(text)
        rest = text[len(scheme) + 3 :] if scheme else text
        self._text = (f"{scheme}://" if scheme else "") + (rest.rstrip("/") or rest[:1])

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Address({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other)

    def __hash__(self) -> int:
        return hash(self._text)

    def __truediv__(self, other: Any) -> Location:
        name = str(other)
        if scheme_of(name) or os.path.isabs(name):
            return located(name)
        return self if name in (".", "") else Address(posixpath.join(self._text, name.removeprefix("./")))

    def __rtruediv__(self, other: Any) -> Location:
        return located(joined(str(other), self._text))

    @property
    def name(self) -> str:
        """The last part."""
        return posixpath.basename(self._text)

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return posixpath.splitext(self.name)[0]

    @property
    def suffix(self) -> str:
        """The end of the last part, from its last dot."""
        return posixpath.splitext(self.name)[1]

    @property
    def parent(self) -> Location:
        """The folder around it; of the topmost itself."""
        above = posixpath.dirname(self._text)
        return self if above.endswith(":") or not above else located(above)

    @property
    def parents(self) -> Sequence[Location]:
        """The folders around it, the nearest first."""
        found: list[Location] = []
        here: Location = self
        while (above := here.parent) != here:
            found.append(above)
            here = above
        return found

    def with_suffix(self, suffix: str) -> Address:
        """Return it with another suffix."""
        return Address(posixpath.splitext(self._text)[0] + suffix)

    def absolute(self) -> Address:
        """Return it so that the working directory does not matter."""
        return self if scheme_of(self._text) else Address(os.path.abspath(self._text))

    def exists(self) -> bool:
        """Whether there is such a file or folder.

        Raises:
            StorageError: if it cannot be found out.
        """
        return self._info() is not None

    def is_file(self) -> bool:
        """Whether it is a file."""
        found = self._info()
        return found is not None and not found.folder

    def is_dir(self) -> bool:
        """Whether it is a folder; shards are a folder of their members."""
        found = self._info()
        return found is not None and found.folder

    def size(self) -> int:
        """Return the number of bytes."""
        found = self._info()
        return 0 if found is None else found.size

    def read_bytes(self) -> bytes:
        """Return the content; errors as ``read_stored``."""
        return read_stored(self._text)

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the content as text."""
        return self.read_bytes().decode(encoding)

    def files(self, inside: bool = True) -> list[str]:
        """Return the names of the files below it, with ``/`` between folders, sorted.

        Args:
            inside: whether to list those of the folders inside too.

        Raises:
            StorageError: if it is no folder, or cannot be listed.
        """
        place = place_in_shards(self._text)
        if place is None:
            return sorted(files_below(_plain(self._text), inside))
        return [name for name in list_of(place.shards).below(place.inside) if inside or "/" not in name]

    def _info(self) -> Info | None:
        place = place_in_shards(self._text)
        if place is None:
            return info_of(_plain(self._text))
        if not place.inside:
            return Info(-1, True, "") if shards_exist(place.shards) else None
        if not shards_exist(place.shards):
            return None
        members = list_of(place.shards)
        position = members.position(place.inside)
        if position is not None:
            return Info(members.where(position)[2], False, "")
        return Info(-1, True, "") if next(members.below(place.inside), None) is not None else None


Location: TypeAlias = Path | Address


def located(path: str | os.PathLike[str] | Address) -> Location:
    """Return a path of the settings: an ``Address``, or a ``Path`` with ``~`` replaced by the home folder.

    Raises:
        ObjectError: for a compressed tar, whose members cannot be read one by one.
    """
    text = str(path)
    if _COMPRESSED.search(text) and (scheme_of(text) or not os.path.isdir(text)):
        raise ObjectError(
            f"{text}: members of a compressed tar cannot be read one by one; unpack it (gunzip, unxz, "
            "unzstd) and name the .tar: images are compressed already"
        )
    if scheme_of(text) or place_in_shards(text) is not None:
        return Address(text if scheme_of(text) else os.path.expanduser(text))
    return expanded(text)


def on_this_machine(path: str | os.PathLike[str], what: str) -> Path:
    """Return a path of the settings that has to be one on a disk.

    Args:
        path: as the user wrote it.
        what: is read from there, for the error.

    Raises:
        ObjectError: for an address.
    """
    if scheme_of(os.fspath(path)):
        raise ObjectError(
            f"{path}: {what} cannot be read from an address; copy them to a disk, or mount the storage "
            "(s3fs-fuse, gcsfuse, rclone mount)"
        )
    return expanded(path)


def stored(path: Location) -> Address | None:
    """Return a location as an ``Address`` if it is one, else None."""
    text = str(path)
    return Address(text) if is_stored(text) else None


def unlisted(path: Location) -> bool:
    """Whether a folder cannot be asked for: web servers may have files without showing their folders."""
    return scheme_of(str(path)) in WEB


def size_of(path: Location) -> int:
    """Return the number of bytes of a file; -1 if a server does not tell."""
    address = stored(path)
    return os.stat(str(path)).st_size if address is None else address.size()


def _plain(address: str) -> str:
    """Return an address without ``.`` and ``..`` in it, which object storage does not know."""
    scheme = scheme_of(address)
    rest = address[len(scheme) + 3 :]
    if not {".", ".."} & set(rest.split("/")):
        return address
    return f"{scheme}://{posixpath.normpath(rest)}"
