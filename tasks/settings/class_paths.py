"""Class paths in configs and options: the modules are imported before the parser looks at them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ...data.shared.trusted import class_paths, names_of, transform_paths


def check_class_paths(words: list[str]) -> set[str]:
    """Make the user's modules importable, and import every class that the command names by its path.

    Python looks in the working directory, and in the folders of the configs; both come last, so that they
    hide no installed package.

    Args:
        words: of the command, after the names of shipped configs became files.

    Returns:
        What the words name, as ``data.shared.trusted.names_of`` has it: classes, functions and transforms.

    Raises:
        ValueError: naming the option, the path, and what could not be imported and why.
    """
    configs = [value for option, value in options_of(words) if option in ("config", "c")]
    files = [Path(config) for config in configs if not config.lstrip().startswith("{")]
    folders = list(dict.fromkeys(map(str, (Path.cwd(), *(file.resolve().parent for file in files)))))
    sys.path += [folder for folder in folders if folder not in sys.path]
    named: set[str] = set()
    for config in configs:
        inline = config.lstrip().startswith("{")
        content = _parsed(config if inline else Path(config))
        for option, path in class_paths(content):
            _require_class(f"{option} in {'--config' if inline else config}", path, folders)
        named.update(*map(names_of, _dotted(content)))
    for option, value in options_of(words):
        if _takes_class(option) and _looks_like_class(value):
            _require_class(f"--{option}", value, folders)
            named |= names_of(value)
        elif value[:1] in ("[", "{") and option not in ("config", "c"):
            content = _parsed(value)
            for place, path in class_paths(content, option):
                _require_class(f"--{place}", path, folders)
            named.update(*map(names_of, _dotted(content, option)))
    return named


def _dotted(content: Any, place: str = "") -> Iterator[str]:
    """Yield the class paths and transforms of a config, and any other text that may name a function."""
    yield from (path for _, path in transform_paths(content, place))
    for value in (
        content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    ):
        if isinstance(value, str) and _is_path(value):
            yield value
        yield from _dotted(value)


def _is_path(value: str) -> bool:
    parts = value.split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts)


def _parsed(source: str | Path) -> Any:
    """Return what YAML or JSON holds; None if it cannot be read, for the parser says what is wrong then."""
    try:
        return yaml.safe_load(source if isinstance(source, str) else source.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def options_of(words: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the options of a command with their values, without the dashes."""
    return ((option, value) for option, value in options_of_words(words) if option)


def options_of_words(words: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the option and the value that begin at each word; both empty where a word is no option."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        yield (option.lstrip("-"), value if equals else after) if option.startswith("-") else ("", "")


def _takes_class(option: str) -> bool:
    """Whether the value of an option may be a class; other values may be files, such as ``photo.JPG``."""
    option = option.removesuffix("+")
    named = ("model", "data", "trainer.callbacks", "trainer.logger", "trainer.strategy", "trainer.plugins")
    return option in named or (option.startswith("model.") and not option.endswith("weights"))


def _looks_like_class(value: str) -> bool:
    """Whether a value may be a module and a class in it, such as ``my_heads.RetinaNet``, and not a file."""
    return _is_path(value) and value.rpartition(".")[2][0].isupper()


def _require_class(option: str, path: str, folders: list[str]) -> None:
    module, _, name = path.rpartition(".")
    try:
        found = importlib.import_module(module)
    except Exception as error:  # the user's module may raise anything
        cause = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{option}: {path} cannot be imported, because importing the module {module} fails ({cause}). "
            f"Modules are looked for among the installed packages, then in {', '.join(folders)} (the "
            "working directory and the folder of the config)"
        ) from error
    if not hasattr(found, name):
        raise ValueError(f"{option}: the module {module} ({found.__file__}) has no class {name}")
