"""Files of which only the parts that are asked for are fetched."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

FIRST = 32 << 10  # bytes of a first part: enough for the header of nearly every image
MOST = 4 << 20  # of one part, while a file is read in order
_KEPT = 4  # parts


class RangedFile(io.RawIOBase):
    """A file to read, fetched in parts that grow while reading goes forward.

    Args:
        fetch: returns the bytes from a position to another, fewer if the file ends before.
        size: returns the number of bytes; only asked for if needed.
        first: bytes of the first part, and after each leap.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: Callable[[], int], first: int = FIRST):
        self._fetch = fetch
        self._size = size
        self._known: int | None = None
        self._first = self._step = first
        self._parts: list[tuple[int, bytes]] = []  # the latest last
        self._position = 0

    @property
    def size(self) -> int:
        """Number of bytes."""
        if self._known is None:
            self._known = self._size()
        return self._known

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}
        self._position = max(0, offset + (start[whence] if whence in start else self.size))  # noqa: SIM401, asks the server
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; fewer only at the end of the file."""
        pieces: list[bytes] = []
        left = size if size is not None and size >= 0 else max(0, self.size - self._position)
        while left > 0:
            piece = self._piece(left)
            if not piece:
                break
            pieces.append(piece)
            self._position += len(piece)
            left -= len(piece)
        return b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def _piece(self, left: int) -> bytes:
        """Return some of the next bytes, out of a part that is there or is fetched; empty at the end."""
        here = self._position
        for start, part in reversed(self._parts):
            if start <= here < start + len(part):
                return part[here - start : here - start + left]
        if self._known is not None and here >= self._known:
            return b""
        end = self._parts[-1][0] + len(self._parts[-1][1]) if self._parts else 0
        if self._parts:
            near = end <= here <= end + self._step
            self._step = min(MOST, 2 * self._step) if near else self._first
        stop = min(max(here + self._step, here + min(left, MOST)), self.size if self._parts else 1 << 62)
        part = self._fetch(here, stop) if stop > here else b""
        if 0 < len(part) < stop - here:
            self._known = here + len(part)
        self._parts = [*self._parts[1 - _KEPT :], (here, part)]
        return part[:left]
