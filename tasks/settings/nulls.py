"""``null`` for settings that need a value: jsonargparse lets it pass, and constructors fail on it later."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

from jsonargparse import Namespace
from jsonargparse._util import import_object

from .sources import SettingError


def check_nulls(settings: Namespace, owners: dict[str, type]) -> None:
    """Refuse ``null`` where the type of a setting does not have it.

    What has no type, and arguments that a class only hands on, may be null.

    Args:
        settings: of one command, as parsed.
        owners: of the sections that name no class: ``{"trainer": Trainer}``.

    Raises:
        SettingError: naming the setting.
    """
    for key, value in vars(settings).items():
        owner = owners.get(key)
        if owner is not None and value is None:
            raise SettingError("it has no value; leave it out, or put settings there", key)
        for place in _nulls(value, owner, key):
            raise SettingError("null is no value for it; leave it out for the usual value", place)


def _nulls(value: Any, owner: Any, place: str) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from _nulls(each, None, place)
    elif isinstance(value, Namespace):
        if "class_path" in value:
            owner, value = import_object(value.class_path), value.get("init_args") or Namespace()
        for name, inside in vars(value).items() if owner is not None else ():
            annotation = _annotation(owner, name)
            if inside is None and not _has_null(annotation):
                yield f"{place}.{name}"
            part = _part(annotation)
            yield from _nulls(inside, part if is_dataclass(part) else None, f"{place}.{name}")


def _annotation(owner: Any, name: str) -> Any:
    """Return the type of an argument, looked for in the base classes too; Any if it is not known."""
    for each in owner.__mro__ if inspect.isclass(owner) else (owner,):
        function = vars(each).get("__init__") if inspect.isclass(each) else each
        if not inspect.isfunction(function):
            continue
        parameter = inspect.signature(function).parameters.get(name)
        if parameter is None:
            continue
        if parameter.default is None:
            return None
        try:
            return typing.get_type_hints(function).get(name, Any)
        except (NameError, TypeError, AttributeError):  # names that exist for type checkers only
            return Any
    return Any


def _has_null(annotation: Any) -> bool:
    if annotation in (None, Any, object, type(None)) or isinstance(annotation, str | typing.TypeVar):
        return True
    if typing.get_origin(annotation) is typing.Annotated:
        return _has_null(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is typing.Literal:
        return None in typing.get_args(annotation)
    unions = (typing.Union, types.UnionType)
    return typing.get_origin(annotation) in unions and any(map(_has_null, typing.get_args(annotation)))


def _part(annotation: Any) -> Any:
    """Return a type without ``| None``."""
    parts = [each for each in typing.get_args(annotation) if each is not type(None)]
    return parts[0] if _has_null(annotation) and len(parts) == 1 else annotation
