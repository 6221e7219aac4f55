"""What differs between the settings of two configs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, by dotted key, with both values.

    Only keys of both count, so that options of a newer version are no change. Where the class differs, its
    arguments are not compared.

    Args:
        before: sections of a config.
        now: the same.
    """
    return dict(_changes(before, now, ""))


def _changes(before: Any, now: Any, place: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        classes = before.get("class_path"), now.get("class_path")
        if _short(classes[0]) != _short(classes[1]):
            yield place, classes
            return
        for key in before:
            if key in now and key not in ("class_path", "_class_path", "_instantiator"):
                inside = place if key == "init_args" else f"{place}.{key}".lstrip(".")
                yield from _changes(before[key], now[key], inside)
    elif _plain(before) != _plain(now):
        yield place, (before, now)


def _short(path: Any) -> Any:
    """Return the name of a class without its module: short and full paths name one class."""
    return path.rpartition(".")[2] if isinstance(path, str) else path


def _plain(value: Any) -> Any:
    """Return a value in which lists and tuples, and numbers of both types, compare equal."""
    if isinstance(value, Mapping):
        inside = {
            key: _plain(each) for key, each in value.items() if key not in ("_class_path", "_instantiator")
        }
        return inside | ({"class_path": _short(value["class_path"])} if "class_path" in value else {})
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
