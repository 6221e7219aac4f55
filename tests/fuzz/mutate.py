"""Mutations that keep the form of a file, so that an input comes past the first check of its reader."""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import random
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from .target import Mutate

ODD_NUMBERS = (
    "0", "-1", "1", "2", "255", "256", "65535", "65536", "2147483647", "2147483648", "4294967295",
    "-2147483648", "9223372036854775807", "9223372036854775808", "18446744073709551615", "1e308", "1e400",
    "-1e400", "nan", "inf", "-inf", "NaN", "Infinity", "1e-320", "0.5", "1.0", "-0", "01", "+1", "0x10",
    "1_000", "1e3", "9" * 400, "9" * 5000, "٣", "²", "1,5", "1 2",
)  # fmt: skip
ODD_WORDS = (
    "", " ", "null", "true", "None", "~", "a" * 300, "é", "\u0301", "\u2028", "\x85", "\x00", "\x1b[31m",
    "\r", "\n", "\t", '"', "'", "..", "../../etc/passwd", "/", "\\", "C:\\a", ".", "*", "&a", "*a", "<<",
    "!!python/name:os.system", "${x}", "%s", "%d", "{}", "[", "]", "{", "}", ":", ": ", ",", ";", "#",
    "|", ">", "- ", "%05d", "LIST", "LOCAL", "\ufeff", "\U0001f600", "http://x/y", "file\nname", "con",
    "-", "--", "$(x)", "(", ")",
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), float("-inf"),
    2**31, 2**32, 2**53, 2**63, 2**64, -(2**63), 10**400, 255, 65535, "", " ", "0", "nan", "a", "\ud800",
    "\x00", "\n", "a" * 300, "../x", "/etc/passwd", [], [[]], [None], [0, 0], [1, 2, 3, 4], [1e308] * 4,
    [float("nan")] * 4, {}, {"": None}, {"id": 1}, {"counts": [6], "size": [2, 3]},
    {"counts": "06", "size": [2, 3]}, {"size": [65536, 65535]}, [[[]]], "\u2028", "é" * 60,
)  # fmt: skip
_ODD_BYTES = (
    b"\0", b"\xff", b"\x7f", b"\x80", b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3\x28",
    b"\xed\xa0\x80",
)  # fmt: skip
_TOKEN = re.compile(r"[+-]?[0-9][0-9.eE+-]*|[A-Za-z_]+|[^\sA-Za-z0-9]")
_SIZES = ("<B", "<H", ">H", "<I", ">I", "<Q", ">Q", "<f", ">f", "<d", ">d")
_INTEGERS = (
    0, 1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 348, 540, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1,
    2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
_REALS = (0.0, -1.0, 1e-45, 1e38, float("nan"), float("inf"), float("-inf"), 352.0, 1e300)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change a few bytes, or cut, repeat, insert and move some."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, kind = rng.randrange(len(content) + 1), rng.randrange(8)
        length = rng.choice((1, 2, 4, 8, 32, 200))
        if kind == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif kind in (1, 2):
            content[at : at + struct.calcsize(size)] = (
                _number(size, rng) if (size := rng.choice(_SIZES)) else b""
            )
        elif kind == 3:
            del content[at : at + length]
        elif kind == 4:
            content[at:at] = content[at : at + length]
        elif kind == 5:
            content[at:at] = rng.choice(_ODD_BYTES) * rng.choice((1, 1, 8))
        elif kind == 6:
            start = rng.randrange(len(content) + 1)
            content[at : at + length] = content[start : start + length]
        elif rng.random() < 0.2:
            del content[at:]
    return bytes(content)


def _number(size: str, rng: random.Random) -> bytes:
    if size[1] in "fd":
        value = rng.choice(_REALS)
        return struct.pack(
            size, value if size[1] == "d" or abs(value) < 3e38 or value != value else float("inf")
        )
    return struct.pack(size, rng.choice(_INTEGERS) % 256 ** struct.calcsize(size))


def mutate_text(data: bytes, rng: random.Random) -> bytes:
    """Replace words and numbers by odd ones; cut, repeat and exchange lines."""
    text = data.decode("utf-8", "surrogateescape")
    for _ in range(rng.choice((1, 1, 2, 4))):
        kind = rng.randrange(6)
        tokens = list(_TOKEN.finditer(text)) if kind < 4 else []
        if tokens:
            token = rng.choice(tokens)
            if rng.random() < 0.25:
                other = rng.choice(tokens)[0]
            else:
                odd = ODD_NUMBERS if token[0][-1].isdigit() and rng.random() < 0.8 else ODD_WORDS
                other = rng.choice(odd)
            text = text[: token.start()] + other + text[token.end() :]
        else:
            lines = text.split("\n")
            at, other_line = rng.randrange(len(lines)), rng.choice(lines)
            change = rng.randrange(4)
            if change == 0:
                del lines[at]
            elif change == 1:
                lines.insert(at, other_line)
            elif change == 2:
                lines[at] = other_line
            else:
                lines[at] = rng.choice((" ", "  ", "\t", "")) + lines[at].strip()
            text = "\n".join(lines)
    encoded = (
        text.encode("utf-8", "surrogateescape") if rng.random() < 0.97 else text.encode("utf-16", "replace")
    )
    return encoded if rng.random() < 0.9 else mutate_bytes(encoded, rng)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Change values, keys and lists of a JSON file; now and then its text."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_text(data, rng)
    if rng.random() < 0.15:
        return mutate_text(data, rng)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        content = _changed(content, rng)
    try:
        return json.dumps(content, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except ValueError:  # a number of thousands of digits
        return mutate_text(data, rng)


def _changed(content: Any, rng: random.Random) -> Any:
    places = list(_places(content))
    if not places or rng.random() < 0.02:
        return copy.deepcopy(rng.choice(ODD_VALUES))
    holder, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind < 3:
        holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    elif kind == 3:
        del holder[key]
    elif isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
    else:
        other_holder, other = rng.choice(places)
        holder[rng.choice((key, str(other), rng.choice(ODD_WORDS)))] = copy.deepcopy(other_holder[other])
    return content


def _places(content: Any, depth: int = 0) -> Any:
    if depth > 20:
        return
    keys = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        yield content, key
        yield from _places(content[key], depth + 1)


def one_of(*changes: Mutate) -> Mutate:
    """Return what makes one of some mutations."""
    return lambda data, rng: rng.choice(changes)(data, rng)


def unpacked(change: Mutate) -> Mutate:
    """Return what mutates the content of gzip data."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        try:
            content = gzip.decompress(data) if rng.random() < 0.9 else None
        except (OSError, EOFError, zlib.error):
            content = None
        if content is None:
            return mutate_bytes(data, rng)
        return gzip.compress(change(content, rng), 1, mtime=0)

    return mutate


def fields_of(formats: Callable[[bytes], Sequence[tuple[int, str]]]) -> Mutate:
    """Return what sets fields of a binary header, whose offsets and struct formats a function tells."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        content, fields = bytearray(data), formats(data)
        for _ in range(rng.choice((1, 1, 2, 3))):
            if not fields:
                return mutate_bytes(data, rng)
            offset, size = rng.choice(fields)
            content[offset : offset + struct.calcsize(size)] = _number(size, rng)
        return bytes(content)

    return mutate


def mutate_png(data: bytes, rng: random.Random) -> bytes:
    """Change, repeat, drop and move chunks of a PNG; their checksums stay right."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = min(int.from_bytes(data[at : at + 4], "big"), len(data))
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks or data[:4] != b"\x89PNG":
        return mutate_bytes(data, rng)
    number, kind = rng.randrange(len(chunks)), rng.randrange(6)
    name, body = chunks[number]
    if kind < 3:
        if name == b"IDAT" and rng.random() < 0.7:
            with contextlib.suppress(zlib.error):
                body = zlib.compress(mutate_bytes(zlib.decompressobj().decompress(body, 1 << 16), rng))
        chunks[number] = name, mutate_bytes(body, rng)
    elif kind == 3:
        del chunks[number]
    elif kind == 4:
        chunks.insert(rng.randrange(len(chunks) + 1), chunks[number])
    else:
        names = (
            b"tEXt",
            b"zTXt",
            b"iTXt",
            b"eXIf",
            b"iCCP",
            b"acTL",
            b"fcTL",
            b"fdAT",
            b"tRNS",
            b"PLTE",
            b"gAMA",
        )
        chunks.insert(number, (rng.choice(names), mutate_bytes(body[:64], rng)))
    return data[:8] + b"".join(png_chunk(name, body) for name, body in chunks)


def png_chunk(name: bytes, body: bytes) -> bytes:
    """Return a chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
