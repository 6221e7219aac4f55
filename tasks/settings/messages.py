"""What the parser says, in one line: jsonargparse lists all that it tried, and dumps the configuration."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jsonargparse import ArgumentParser

from .sources import SettingError

KEY = re.compile(r'Parser key "([\w.]+)":')
TYPES = re.compile(
    r"Expected (?:an? )?(?:<class '(?P<type>[\w.]+)'>|typing\.Literal\[(?P<literals>[^\]]*)\])"
)
UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (\w+)\s*$", re.MULTILINE)
REFUSED = re.compile(r"Option '([\w.]+)' is not accepted|unrecognized arguments: --([\w.]+)")
GIVEN = re.compile(r"Given value type: <class '([\w.]+)'>\s*Given value: (.*)")
GOT = re.compile(r"\. Got value: (.*)")
CLASS_PATH = re.compile(r"class_path[ =]'([\w.]+)'")
NO_CLASS = "it names no class; give one as class_path"
NAMES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "NoneType": "null",
}
MOST = 80  # characters of a value that a message repeats


@dataclass(frozen=True)
class Known:
    """What could have been meant.

    Attributes:
        options: of the command, dotted, without dashes.
        classes: names that configs may use without a module.
        bases: those that stand for any class of a kind.
    """

    options: Callable[[], Iterable[str]]
    classes: Callable[[], Iterable[str]]
    bases: Sequence[str]


def explained(message: str, known: Known) -> SettingError | None:
    """Return the error of one line for a message of jsonargparse 4.53; None for one of an unknown shape.

    Args:
        message: as the parser of the command gives it to its ``error``.
        known: for suggestions.
    """
    keys, said = _innermost(message)
    key = ".".join(keys)
    if not keys:
        return _of_the_command(message, known)
    refused = REFUSED.search(said)
    if refused is not None:
        return _refused(key, refused, said, known)
    required = re.search(
        r"the following arguments are required: ([\w., ]+?)(?:\. Got|\s*$)", said, re.MULTILINE
    )
    if required is not None:
        if _class_in(said, required.start()).rpartition(".")[2] in known.bases:
            return SettingError(NO_CLASS, key)
        return SettingError("it needs a value", f"{key}.{required[1].split(',')[0]}")
    types = _types(said)
    unknown = UNKNOWN_CLASS.search(said)
    if unknown is not None and not (types and unknown[1][:1].islower()):
        return _no_class(key, unknown[1], known)
    if types:
        return SettingError(f"expected {_or(types)}, got {_value(said)}", key)
    if re.search(r"Not a valid subclass of (\w+)|Expected an import path or a subclass spec", said):
        return SettingError(f"expected a class, by class_path, got {_value(said)}", key)
    unloaded = re.search(r"Unable to load config ['\"](.*?)['\"]", said)
    if unloaded is not None:
        return SettingError(f"no file {unloaded[1]}", key)
    return None


def _innermost(message: str) -> tuple[list[str], str]:
    """Return the keys from the outermost to the innermost, and the lines that belong to the innermost."""
    keys: list[str] = []
    lines: list[str] = []
    depth = -1
    for line in filter(str.strip, message.splitlines()):
        indent = len(line) - len(line.lstrip(" "))
        found = KEY.search(line)
        if found is not None and indent > depth and not _is_over(lines):
            keys.append(found[1])
            lines, depth = [line[found.end() :]], indent
        elif indent > depth or (depth == 0 and not _is_over(lines)):
            lines.append(line)
        elif keys:
            break
    return keys, "\n".join(lines)


def _is_over(lines: list[str]) -> bool:
    return any(line.lstrip().startswith("Given value:") for line in lines)


def _of_the_command(message: str, known: Known) -> SettingError | None:
    if "\n" in message.strip():
        return None
    option = re.search(r"does not accept option '([\w.]+)'|unrecognized arguments: (--)?([\w.]+)", message)
    if option is not None:
        key = option[1] or option[3]
        if not option[1] and not option[2]:
            return SettingError(f"{key} belongs to no option; values with spaces need quotes")
        options = list(known.options())
        hint = "; another command has it" if key in options else _close(key, options)
        if key.split(".")[0] in ("fit", "validate", "test", "predict"):
            hint = f"; settings are not below {key.split('.')[0]}:, move them one level up"
        return SettingError(f"there is no such option{hint}", key)
    missing = re.search(r"the following arguments are required: (?:\w+\.)?(model|data)\b", message)
    if missing is not None:
        return SettingError(
            f"there is no {missing[1]}; give --config, or --{missing[1]} and the name of a class"
        )
    return SettingError(message.strip())


def _refused(key: str, refused: re.Match[str], said: str, known: Known) -> SettingError:
    name = refused[1] or refused[2]
    path = _class_in(said, refused.start())
    of = path.rpartition(".")[2]
    if of in known.bases:
        return SettingError(NO_CLASS, key)
    if not path:
        return SettingError("there is no such option", f"{key}.{name}")
    return SettingError(f"{of} has no option {name}{_close(name, options_of_class(path))}", f"{key}.{name}")


def _class_in(said: str, end: int) -> str:
    """Return the path of the class that is meant: the last before a place in the text, else the next."""
    before, after = CLASS_PATH.findall(said[:end]), CLASS_PATH.findall(said[end:])
    return before[-1] if before else after[0] if after else ""


def options_of_class(path: str) -> list[str]:
    """Return the names of the settings of a class, dotted where they have parts; empty if unknown."""
    module, _, name = path.rpartition(".")
    parser = ArgumentParser(exit_on_error=False)
    try:
        found = getattr(__import__(module, fromlist=[name]), name)
        parser.add_class_arguments(found, fail_untyped=False)
        return list(parser.get_defaults().keys())
    except Exception:  # a suggestion is not worth an error
        return []


def _no_class(key: str, name: str, known: Known) -> SettingError:
    classes = set(known.classes())
    if name in classes:
        return SettingError(f"{name} is a class of another kind than is needed here", key)
    return SettingError(
        f"no class {name} is known{_close(name, classes)}; a class of your own needs its module before it, "
        f"as in my_module.{name}",
        key,
    )


def _types(said: str) -> list[str]:
    found: list[str] = []
    for match in TYPES.finditer(said):
        if match["literals"] is not None:
            found += [each.strip().strip("'\"") for each in match["literals"].split(",")]
        elif match["type"] in NAMES:
            found.append(NAMES[match["type"]])
    # What takes null takes it for the whole value; a null among others is what is wrong.
    nulls = ["null"] if "null" in found and "Got value: None" not in said else []
    return [each for each in dict.fromkeys(found) if each != "null"] + nulls


def _value(said: str) -> str:
    """Return what was given, as text; with a hint where YAML has made something else of text."""
    got, given = GOT.search(said), GIVEN.search(said)
    if given is not None and (got is None or given.start() < got.start()):
        kind, value = given[1], given[2].split(". Got value: ")[0].strip()
    else:
        kind, value = "", got[1].strip() if got is not None else "something else"
    text = value if len(value) <= MOST else value[: MOST - 3] + "..."
    if "<class 'str'>" in said and (kind in ("int", "float", "bool") or not kind):
        return f"{text}; put it in quotes"
    is_text = kind == "str" or (not kind and not re.match(r"[-\d.\[{]|None|True|False", text))
    return repr(text) if is_text else text


def _or(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _close(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def remedy_of(said: str) -> str:
    """Return what to do about an error of Lightning that does not say so."""
    if "has no logger" in said:
        return (
            " Leave trainer.logger out, or take these callbacks out of the config; "
            "--trainer.callbacks null takes out all"
        )
    return ""
