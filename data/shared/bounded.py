"""Files that readers of other libraries may ask for any number of bytes."""

from __future__ import annotations

import io
import os
from os import PathLike


class BoundedFile(io.BufferedReader):
    """A file of which no more is asked than is left of it.

    Python takes memory for all the bytes that are asked for before it reads them, and libraries ask for as
    many as a header says: a damaged file of a few bytes can ask for gigabytes.

    Args:
        path: the file.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        super().__init__(io.FileIO(path))
        self._length = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to ``size`` bytes; all that are left for None and below 0."""
        if size is None or size < 0:
            return super().read()
        return super().read(min(size, max(0, self._length - self.tell())))
