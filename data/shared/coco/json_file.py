"""Read a JSON file of annotations, or say in one sentence why it cannot be read."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from ..storage import Location, size_of
from .fields import AnnotationError, first_few, shown

logger = logging.getLogger("trunkline")

_LARGE = 50  # megabytes: what takes seconds is announced
_NO_JSON = {  # by the first bytes of a file
    b"version https://git-lfs": "is the pointer of a file in Git LFS; get the file itself by git lfs pull",
    b"\x1f\x8b": "is compressed by gzip; unpack it",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"<": "is HTML or XML, perhaps an error page in place of a download; get the JSON file",
}


def read_json(source: Location, change: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Parse a JSON file in UTF-8, UTF-16 or UTF-32, with a byte order mark or without.

    Args:
        source: the file.
        change: what to make of each object while parsing, as an ``object_hook`` of ``json``.

    Raises:
        AnnotationError: if the file is missing, is no JSON, has one key twice in an object, or a number too
            long to be one.
    """
    if not source.is_file():
        raise AnnotationError(f"{source}: no such annotation file; check root and the annotation path")
    if (megabytes := size_of(source) / 2**20) > _LARGE:
        logger.info("reading %s (%.0f MB)", source, megabytes)
    content = source.read_bytes()

    def finished(pairs: list[tuple[str, Any]]) -> Any:
        record = dict(pairs)
        if len(record) < len(pairs):
            twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
            name = f" (the one with id {shown(record['id'])})" if "id" in record else ""
            raise AnnotationError(
                f"{source}: an object{name} has the key {first_few([shown(key) for key in twice])} more than "
                "once, and only one of the values can count; correct it"
            )
        return record if change is None else change(record)

    try:
        return json.loads(content, object_pairs_hook=finished)
    except AnnotationError:
        raise
    except RecursionError as error:
        raise AnnotationError(f"{source}: lists or objects are nested too deep; export it again") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AnnotationError(f"{source}: {_reason(content, error)}") from error
    except ValueError as error:  # Python's limit for the digits of an integer
        raise AnnotationError(
            f"{source}: holds a number of thousands of digits; correct it, or export the file again"
        ) from error


def _reason(content: bytes, error: ValueError) -> str:
    if not content.strip():
        return "the file is empty; export it again"
    for start, reason in _NO_JSON.items():
        if content.startswith(start):
            return f"not readable as JSON: it {reason}"
    return f"not readable as JSON ({error}); export it again"
