"""Reads a ``dataset.json`` of the Medical Segmentation Decathlon or of nnU-Net.

Sources: Antonelli et al., "The Medical Segmentation Decathlon" (2022); ``dataset_format.md`` of nnU-Net.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

from ...shared.common import listing
from ...shared.labels import LabelClass
from ..formats.files import scan_stem
from .names import by_number
from .types import Case, CasesError, Declared

logger = logging.getLogger("trunkline")

DATASET_FILE = "dataset.json"


class Description(NamedTuple):
    """What a ``dataset.json`` says; the cases by split are None if it lists none."""

    cases: dict[str, list[Case]] | None
    declared: Declared


def read_description(source: Path) -> Description | None:
    """Read a ``dataset.json``; None if there is none, or none of this kind.

    Classes are ``{"0": "background", "1": "liver"}`` or ``{"background": 0, "liver": 1}``. If the value of
    any is a list of ids, or there is a ``regions_class_order``, all but the background are regions; a class
    is named after the region that it is alone, else ``label_1`` and so on. The value of ``ignore`` becomes
    the id that is ignored.

    Raises:
        CasesError: if the file is damaged, an entry has the wrong form, or files that it lists are missing.
    """
    if not source.is_file():
        return None
    try:
        content = json.loads(source.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise CasesError(f"{source}: no readable JSON ({error}); repair or remove it") from error
    if not isinstance(content, dict) or not {"labels", "training", "dataset"} & set(content):
        return None
    rows, regions, ignore_id = _classes(source, content)
    channels = _channels(source, content)
    return Description(_cases(source, content), Declared(rows, regions, ignore_id, channels))


def _classes(
    source: Path, content: dict[str, Any]
) -> tuple[list[LabelClass] | None, dict[str, tuple[int, ...]], int | None]:
    """Return the classes, the regions and the id that is ignored."""
    entries = content.get("labels")
    if entries is None:
        return None, {}, None
    if not isinstance(entries, dict) or not entries:
        raise CasesError(f'{source}, labels: is {entries!r}, not {{"background": 0, "liver": 1, ...}}')
    named = {str(name): _ids(source, name, value) for name, value in _by_name(source, entries).items()}
    ignored = named.pop("ignore", None)
    if ignored is not None and len(ignored) > 1:
        raise CasesError(f"{source}, labels: ignore is {list(ignored)}; it has to be one id")
    ignore_id = None if ignored is None else ignored[0]
    order = content.get("regions_class_order")
    if order is None and all(len(ids) == 1 for ids in named.values()):
        return [LabelClass(ids[0], name) for name, ids in named.items()], {}, ignore_id
    background = [name for name, ids in named.items() if ids == (0,)]
    regions = {name: ids for name, ids in named.items() if name not in background}
    if order is not None and (not isinstance(order, list) or len(order) != len(regions)):
        raise CasesError(
            f"{source}, regions_class_order: is {order!r}; it needs one id for each of the {len(regions)} "
            f"regions ({', '.join(regions)})"
        )
    alone = {ids[0]: name for name, ids in named.items() if len(ids) == 1}
    used = sorted({i for ids in named.values() for i in ids})
    return [LabelClass(i, alone.get(i, f"label_{i}")) for i in used], regions, ignore_id


def _by_name(source: Path, entries: dict[str, Any]) -> dict[str, Any]:
    """Turn ``{"1": "liver"}`` round; ``{"liver": 1}`` stays."""
    if not all(isinstance(value, str) for value in entries.values()):
        return entries
    names = list(entries.values())
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CasesError(f"{source}, labels: {', '.join(twice)} is there twice; each id needs its own name")
    return {name: int(key) if _is_number(key) else key for key, name in entries.items()}


def _is_number(text: str) -> bool:
    return text.strip().lstrip("-").isdecimal()


def _ids(source: Path, name: str, value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    if not ids or any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise CasesError(f"{source}, labels: {name} is {value!r}, not an id or a list of ids")
    return tuple(sorted(set(ids)))


def _channels(source: Path, content: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the channels in the order of their numbers."""
    key = "channel_names" if "channel_names" in content else "modality"
    entries = content.get(key)
    if entries is None:
        return ()
    if isinstance(entries, list):
        entries = dict(enumerate(entries))
    if isinstance(entries, dict) and all(_is_number(str(number)) for number in entries):
        numbered = {int(number): str(name) for number, name in entries.items()}
        if sorted(numbered) == list(range(len(numbered))) and numbered:
            return tuple(numbered[number] for number in range(len(numbered)))
    raise CasesError(f'{source}, {key}: is {entries!r}, not {{"0": "T1", "1": "T2", ...}} numbered from 0')


def _cases(source: Path, content: dict[str, Any]) -> dict[str, list[Case]] | None:
    """Return the cases that the file lists, in the form of either kind."""
    problems: list[str] = []
    found: dict[str, list[Case]] = {}
    if isinstance(content.get("dataset"), dict):
        entries = content["dataset"].items()
        found["train"] = [_listed(source.parent, f"dataset, {k}", v, problems, k) for k, v in entries]
    elif content.get("training"):
        for split, key in (("train", "training"), ("val", "validation"), ("test", "test")):
            entries = content.get(key) or []
            if not isinstance(entries, list):
                raise CasesError(f"{source}, {key}: is no list")
            places = [f"{key}[{number}]" for number in range(len(entries))]
            found[split] = []
            for place, entry in zip(places, entries, strict=True):
                wrong: list[str] = []
                case = _listed(source.parent, place, entry, wrong, labelled=split != "test")
                if wrong and split == "test":
                    logger.warning("%s: left out of the cases to test with: %s", source, "; ".join(wrong))
                else:
                    found[split].append(case)
                    problems += wrong
    else:
        return None
    names = [case.name for each in found.values() for case in each]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    problems += [f"{name} is listed twice" for name in twice]
    if problems:
        raise CasesError(
            f"{source}: wrong entries:\n{listing(problems)}\nrepair the file or add what is missing"
        )
    return {split: each for split, each in found.items() if each}


def _listed(
    folder: Path, place: str, entry: Any, problems: list[str], name: str | None = None, labelled: bool = True
) -> Case:
    """Read ``{image, label}``, ``{images, label}`` or, without labels, the path of an image."""
    record = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(record, dict):
        problems.append(f"{place}: is {entry!r}, not {{image, label}}")
        return Case("", (), None, "")
    written = record.get("images", record.get("image"))
    written = written if isinstance(written, list) else [written]
    label = record.get("label")
    if not written or not all(isinstance(path, str) for path in written):
        problems.append(f"{place}: image is {written!r}, not a path")
        return Case("", (), None, "")
    if labelled and not isinstance(label, str):
        problems.append(f"{place}: no label")
    images = [found for path in written for found in _existing(folder / path, place, problems)]
    path = folder / label if isinstance(label, str) else None
    if path is not None and not path.exists():
        problems.append(f"{place}: {path} does not exist")
    name = scan_stem(folder / written[0]) if name is None else name
    return Case(name, tuple(map(str, images)), None if path is None else str(path), name)


def _existing(path: Path, place: str, problems: list[str]) -> list[Path]:
    """Return the file, or the files ``_0000`` and so on that nnU-Net's first version has in its place."""
    if path.exists():
        return [path]
    stem = scan_stem(path)
    near = sorted(path.parent.glob(f"{stem}_[0-9][0-9][0-9][0-9]{path.name.removeprefix(stem)}"))
    numbered = by_number(near).get(stem, {})
    if not numbered or sorted(numbered) != list(range(len(numbered))):
        problems.append(f"{place}: {path} does not exist")
        return []
    return [numbered[number] for number in range(len(numbered))]
