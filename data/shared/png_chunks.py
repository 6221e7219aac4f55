"""Whether a PNG can name an orientation, found from its beginning and its end.

Pillow decodes a whole PNG to find that out. Chunks with an orientation stand before the pixels or after them.
"""

from __future__ import annotations

import zlib
from typing import Any

MARKS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
_BEGIN, _END = 32 << 10, 64 << 10  # bytes of the file
_LAST = b"\0\0\0\0IEND\xaeB`\x82"


def may_be_turned(content: bytes) -> bool:
    """Whether the bytes of a PNG may hold an orientation."""
    return any(mark in content for mark in MARKS)


def file_may_be_turned(file: Any, size: int) -> bool:
    """Return the same of a file of which only parts are read, if these show that the rest holds pixels only.

    Args:
        file: to read and seek in.
        size: its number of bytes.
    """
    file.seek(0)
    if size > _BEGIN + _END:
        begin = file.read(_BEGIN)
        if may_be_turned(begin):
            return True
        file.seek(size - _END)
        if _reaches_pixels(begin) and _ends_in_pixels(file.read(_END)):
            return False
        file.seek(0)
    return may_be_turned(file.read(size))


def _reaches_pixels(begin: bytes) -> bool:
    """Whether the chunks at the beginning of a PNG go on to the first of pixels."""
    position = 8
    while position + 8 <= len(begin):
        if begin[position + 4 : position + 8] == b"IDAT":
            return True
        position += 12 + int.from_bytes(begin[position : position + 4], "big")
    return False


def _ends_in_pixels(end: bytes) -> bool:
    """Whether the last chunk but the end mark is one of pixels, with its checksum, so none hides there."""
    body = end.removesuffix(_LAST)
    position = body.rfind(b"IDAT")
    while len(body) < len(end) and position >= 4:
        length = int.from_bytes(body[position - 4 : position], "big")
        stored = int.from_bytes(body[-4:], "big")
        if position + 4 + length + 4 == len(body) and zlib.crc32(body[position:-4]) == stored:
            return True
        position = body.rfind(b"IDAT", 0, position)
    return False
