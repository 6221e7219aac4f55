"""Images in tar shards: a list of members that says where each lies, so that any can be read by itself.

The shards are looked through once, and the list is kept on disk (``shard_list``). Reading a member takes one
request for its bytes. Letters in shapes: M members, N bytes.
"""

from __future__ import annotations

import glob
import os
import re
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from .common import in_threads_singly, listing, number_of
from .objects import LARGEST, Info, ObjectError, StorageError, info_of, matching, read_object, scheme_of
from .ranged import RangedFile
from .shard_list import ShardList, kept_list
from .shard_members import BLOCK, Members, members_of

THREADS = 8  # shards that are looked through at once
_PATTERN = re.compile(r"(.*?\.tar)(?:/(.*))?", re.IGNORECASE | re.DOTALL)
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_WILD = re.compile(r"[*?\[]")
_MOST_BRACES = 1_000_000


class Place(NamedTuple):
    """A place in shards.

    Attributes:
        shards: their paths or addresses, with ``*`` or braces.
        inside: a member, or a folder of members; empty for all.
    """

    shards: str
    inside: str


def place_in_shards(path: str) -> Place | None:
    """Return what a path means if it leads into tar files, such as ``train-*.tar/a.jpg``; else None.

    A folder on the disk may have such a name too.
    """
    if ".tar" not in path and ".TAR" not in path:
        return None
    found = _PATTERN.fullmatch(path)
    if found is None or (not scheme_of(path) and os.path.isdir(found[1])):
        return None
    inside = os.path.normpath(found[2]) if found[2] else "."
    return Place(found[1], "" if inside == "." else inside)


def shards_exist(shards: str) -> bool:
    """Whether there are such shards."""
    return bool(_found(shards))


@lru_cache(maxsize=64)
def list_of(shards: str) -> ShardList:
    """Return the list of the members of shards; made, or read from the cache, once in a process.

    Raises:
        ObjectError: if there are none; if one is compressed, damaged, cut off or no tar; if it holds links,
            or names that lead outside of it; or if two members have the same name.
        StorageError: if a server does not answer, or the list cannot be kept.
    """
    found = _found(shards)
    if not found:
        raise ObjectError(f"{shards}: no such tar files; check the name, and quote it in a shell")
    return kept_list(shards, found, lambda: _look_through(found))


def read_member(place: Place) -> bytes:
    """Return the bytes of one member.

    Raises:
        ObjectError: if there is no such member, or the shard has changed since it was looked through.
        StorageError: if a server does not answer.
    """
    members = list_of(place.shards)
    position = members.position(place.inside)
    if position is None:
        raise ObjectError(f"{place.shards}/{place.inside}: no such member{_like(members)}")
    shard, offset, size = members.where(position)
    if size > LARGEST:
        raise ObjectError(
            f"{place.shards}/{place.inside}: has more than {LARGEST:,} bytes; cut it into smaller files"
        )
    content = read_part(shard, offset - BLOCK, offset + size)
    if len(content) < BLOCK + size or zlib.crc32(content[:BLOCK]) != members.checksum(position):
        raise ObjectError(
            f"{shard}: has changed since it was looked through (at the member {place.inside}); start again, "
            "and leave shards alone while they are used"
        )
    return content[BLOCK:]


def open_member(place: Place) -> RangedFile:
    """Return one member as a file of which only what is read is fetched; errors as ``read_member``."""
    members = list_of(place.shards)
    position = members.position(place.inside)
    if position is None:
        raise ObjectError(f"{place.shards}/{place.inside}: no such member{_like(members)}")
    shard, offset, size = members.where(position)
    return RangedFile(
        lambda start, end: read_part(shard, offset + start, offset + min(end, size)), lambda: size
    )


def member_size(place: Place) -> int:
    """Return the number of bytes of a member, out of the list; -1 if there is none."""
    members = list_of(place.shards)
    position = members.position(place.inside)
    return -1 if position is None else members.where(position)[2]


def read_part(path: str, start: int, end: int) -> bytes:
    """Return bytes of a shard on the disk or at an address."""
    if scheme_of(path):
        return read_object(path, start, end)
    try:
        with open(path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), end - start, start)
    except FileNotFoundError as error:
        raise ObjectError(f"{path}: no such file; it was there when the run began") from error
    except PermissionError as error:
        raise ObjectError(f"{path}: may not be read; check the permissions of the file") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error}); check the disk") from error


def with_braces(text: str) -> Iterator[str]:
    """Yield what braces mean: ``{000..099}`` numbers of as many digits, ``{a,b}`` alternatives.

    Raises:
        ObjectError: for more than a million.
    """
    start = text.find("{")
    end = text.find("}", start)
    if start < 0 or end < 0:
        yield text
        return
    within = text[start + 1 : end]
    if numbers := _RANGE.fullmatch(within):
        low, high = int(numbers[1][:12]), int(numbers[2][:12])
        if high - low > _MOST_BRACES:
            raise ObjectError(f"{text}: means {high - low + 1:,} shards; check the numbers")
        parts: list[str] = [str(n).zfill(len(numbers[1])) for n in range(low, high + 1)]
    else:
        parts = within.split(",")
    for part in parts:
        yield from (f"{text[:start]}{part}{rest}" for rest in with_braces(text[end + 1 :]))


def _found(shards: str) -> dict[str, Info]:
    """Return the shards that a text means, in order.

    Raises:
        ObjectError: if braces name some that are there and some that are not.
    """
    if not scheme_of(shards) and os.path.isfile(shards):  # a name with brackets in it, for example
        return {shards: _local_info(shards)}
    named = list(with_braces(shards))
    found: dict[str, Info] = {}
    missing: list[str] = []
    for name in named:
        if _WILD.search(name):
            more = matching(name) if scheme_of(name) else {f: _local_info(f) for f in sorted(glob.glob(name))}
        else:
            info = info_of(name) if scheme_of(name) else _local_info(name) if os.path.isfile(name) else None
            more = {} if info is None else {name: info}
        if not more:
            missing.append(name)
        found |= {name: info for name, info in more.items() if not info.folder}
    if found and missing:
        raise ObjectError(
            f"{shards}: {len(missing)} of {number_of(len(named), 'shard')} are missing:\n{listing(missing)}"
        )
    return found


def _local_info(path: str) -> Info:
    found = os.stat(path)
    return Info(found.st_size, False, str(found.st_mtime_ns))


def _look_through(found: dict[str, Info]) -> list[Members]:
    def members(shard: str) -> Members:
        file = RangedFile(lambda start, end: read_part(shard, start, end), lambda: found[shard].size)
        return members_of(shard, file)

    return in_threads_singly(members, list(found), "looking through shards", THREADS, show_from=2)


def _like(members: ShardList) -> str:
    few = [members.name(n) for n in range(min(2, len(members)))]
    return f"; members have names such as {' and '.join(few)}" if few else "; there are no members"
