"""Configs as the user wrote them: read strictly, and where in them a setting stands."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ...data.shared.limits import MOST_NODES
from .class_paths import options_of, options_of_words

SECTIONS = ("model", "data", "trainer", "output")  # that cannot be empty
STANDARD = "tag:yaml.org,2002:"
MERGE = STANDARD + "merge"
NULL = STANDARD + "null"
# From the longest on: the mark of UTF-32 begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
UTF8 = "save it in the encoding UTF-8"
HINTS = {
    "'\\t'": "; indent with spaces, YAML takes no tabs",
    "mapping values are not allowed": "; put text that contains ': ' in quotes",
}


class SettingError(ValueError):
    """A setting, or the file it stands in, cannot be used.

    Attributes:
        key: dotted, as on the command line without dashes; empty where none is meant.
        problem: what is wrong with it.
    """

    def __init__(self, problem: str, key: str = "") -> None:
        super().__init__(f"{key}: {problem}" if key else problem)
        self.key = key
        self.problem = problem


@dataclass(frozen=True)
class Source:
    """A config, or the value of an option that is written as YAML.

    Attributes:
        name: of the file, or of the option with its dashes.
        key: of the settings in it: empty for a config, ``data.augment`` for the value of that option.
        root: what YAML makes of it.
    """

    name: str
    key: str
    root: yaml.Node

    def find(self, keys: Sequence[str]) -> yaml.Node | None:
        """Return what is set for a key; None if it is not in here. ``init_args`` are looked through."""
        node = self.root
        for key in keys:
            inside = _entry(node, key) or _entry(_entry(node, "init_args"), key)
            if inside is None:
                return None
            node = inside
        return node

    def place(self, node: yaml.Node) -> str:
        """Return where something is, for messages: ``config.yaml, line 3``."""
        return _place(self.name, node)


def _place(name: str, node: yaml.Node) -> str:
    return name if name.startswith("--") else f"{name}, line {node.start_mark.line + 1}"


def _entry(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)


def read_sources(words: list[str]) -> list[Source]:
    """Read the configs of a command, and the options whose values are lists or mappings.

    Args:
        words: of the command, after the names of shipped configs became files.

    Raises:
        SettingError: naming the file and the line of what is not UTF-8, no YAML, no mapping of settings,
            there twice, empty where a value is needed, or would be taken for text (``${...}``).
    """
    sources = []
    for option, value in options_of(words):
        written = value.lstrip()[:1] in ("{", "[")
        if option in ("config", "c") and value:
            root = _settings(value, "--config") if written else _settings(_text(Path(value)), value)
            sources.append(Source("--config" if written else value, "", root))
        elif written:
            root = _node(value, f"--{option}", lenient=True)
            if root is not None:
                sources.append(Source(f"--{option}", option, root))
        elif option.split(".")[0] in SECTIONS and Path(value).suffix in (".yaml", ".yml"):
            if option.endswith(("predict", "folder")) or not Path(value).is_file():
                continue
            root = _settings(_text(Path(value)), value)
            sources.append(Source(value, option, root))
    return sources


def with_names_as_text(words: list[str]) -> list[str]:
    """Write options whose value is a file that YAML takes for something else, ``a: b``, as inline configs."""
    rewritten = list(words)
    for position, (option, value) in enumerate(options_of_words(words)):
        parts = option.split(".")
        if len(parts) < 2 or parts[0] not in SECTIONS or not _is_mistaken(value):
            continue
        nested: object = value
        for part in reversed(parts):
            nested = {part: nested}
        rewritten[position] = f"--config={json.dumps(nested)}"
        if "=" not in words[position]:
            rewritten[position + 1] = ""
    return [word for word, before in zip(rewritten, words, strict=True) if word or not before]


def _is_mistaken(name: str) -> bool:
    try:
        return Path(name).exists() and isinstance(yaml.safe_load(name), dict | list)
    except (OSError, ValueError, yaml.YAMLError):
        return False


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingError(f"{path} cannot be read: {error.strerror}") from error
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            raise SettingError(f"{path} is text in {encoding}; {UTF8}")
    if b"\0" in content:
        raise SettingError(f"{path} is no text file; a config is a YAML file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SettingError(
            f"{path}, line {line}: the byte 0x{content[error.start]:02x} is not UTF-8; {UTF8}"
        ) from error


def _settings(text: str, name: str) -> yaml.MappingNode:
    """Return the node of a config, checked."""
    root = _node(text, name)
    if root is None or root.tag == NULL:
        raise SettingError(f"{name} is empty; a config has the sections model, data and trainer")
    if not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else "text"
        raise SettingError(f"{name} holds {kind}; a config has the sections model:, data: and trainer:")
    for key, value in root.value:
        place = _place(name, key)
        if key.tag not in (STANDARD + "str", MERGE):
            raise SettingError(
                f"{place}: {key.value!r} is no section; put it in quotes if it is meant as text"
            )
        if key.value in SECTIONS and value.tag == NULL:
            raise SettingError(
                f"{place}: nothing is below {key.value}:; remove the line, or put settings there"
            )
    return root


def _node(text: str, name: str, lenient: bool = False) -> yaml.Node | None:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        if lenient:  # the parser takes it for text
            return None
        raise SettingError(_syntax(error, name)) from error
    except RecursionError as error:
        raise SettingError(f"{name}: lists or mappings are nested too deep") from error
    _require_bounded(root, name)
    for node in _checked(root, name, set()):
        if not node.tag.startswith(STANDARD) or "python/" in node.tag:
            tag = node.tag.removeprefix(STANDARD)
            raise SettingError(f"{_place(name, node)}: the tag {tag} is not known; remove it")
        if isinstance(node, yaml.ScalarNode) and node.value.startswith("${"):
            raise SettingError(
                f"{_place(name, node)}: {node.value} is not replaced by anything; write the "
                "value itself, or give it as an option of the command"
            )
    return root


def _require_bounded(root: yaml.Node | None, name: str) -> None:
    """Refuse aliases that repeat so much that what is small in the file is huge when it is read."""
    counts: dict[int, int] = {}  # by node, of all that it becomes; 0 while its parts are counted

    def count(node: yaml.Node) -> int:
        if id(node) not in counts:
            counts[id(node)] = 0
            parts = (
                [each for pair in node.value for each in pair]
                if isinstance(node, yaml.MappingNode)
                else (node.value if isinstance(node, yaml.SequenceNode) else [])
            )
            counts[id(node)] = 1 + sum(map(count, parts))
        elif not counts[id(node)]:
            raise SettingError(f"{_place(name, node)}: an alias repeats what it stands in")
        return counts[id(node)]

    if root is not None and (found := count(root)) > MOST_NODES:
        raise SettingError(
            f"{name}: its aliases (*name) repeat parts until there are {found:,} values; more than "
            f"{MOST_NODES:,} are not read"
        )


def _syntax(error: yaml.YAMLError, name: str) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return f"{name} is no YAML: {' '.join(str(error).split())}"
    mark = error.problem_mark or error.context_mark
    place = f"{name}, line {mark.line + 1}, column {mark.column + 1}" if mark else name
    said = " ".join(filter(None, (error.problem, error.context and f"({error.context})")))
    return f"{place}: {said}" + next((hint for sign, hint in HINTS.items() if sign in said), "")


def _checked(node: yaml.Node | None, name: str, seen: set[int]) -> Iterator[yaml.Node]:
    """Yield a node and all in it, each once; refuse keys that are there twice, and classes without a name."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    yield node
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _checked(value, name, seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[object, int] = {}
        for key, value in node.value:
            yield from _checked(key, name, seen)
            line = key.start_mark.line + 1
            meant = _meant(key)
            if meant in lines and key.tag != MERGE:
                first = f", first in line {lines[meant]}" if lines[meant] != line else ""
                raise SettingError(f"{_place(name, key)}: {key.value} is there twice{first}; remove one")
            lines[meant] = line
            if key.value in ("class_path", "init_args") and value.tag == NULL:
                raise SettingError(
                    f"{_place(name, key)}: {key.value} has no value; give one, or remove the line"
                )
            if key.value == "class_path" and not isinstance(value, yaml.ScalarNode):
                raise SettingError(f"{_place(name, key)}: class_path is the name of one class, as text")
            yield from _checked(value, name, seen)


def _meant(key: yaml.Node) -> object:
    """Return what a key is in Python, so that 1 and 01 are one; its own identity for what is no scalar."""
    if not isinstance(key, yaml.ScalarNode):
        return id(key)
    try:
        value: object = yaml.constructor.SafeConstructor().construct_object(key)
    except (ValueError, yaml.YAMLError):
        return key.value
    return value
