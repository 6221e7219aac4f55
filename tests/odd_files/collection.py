"""All odd files, by the order of the page."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from .case import OddFile

FOLDER = Path(__file__).parent
NOT_LISTS = ("case", "collection", "page")

TOPICS = (
    "Boxes and COCO JSON",
    "Pictures",
    "Masks",
    "Folders, names and archives",
    "Scans: files",
    "Scans: datasets",
    "Weights and trunks",
    "Configs and options",
    "Runs and checkpoints",
    "Predictions and drawings",
)


def collection() -> list[OddFile]:
    """Return the odd files of all modules of this folder, each of which has a list ``ODD_FILES``.

    Raises:
        ValueError: for a name that is there twice, or a topic that is not in ``TOPICS``.
    """
    package = __package__ or "odd_files"
    found: list[OddFile] = []
    for module in sorted(info.name for info in pkgutil.iter_modules([str(FOLDER)])):
        if module not in NOT_LISTS:
            found += importlib.import_module(f"{package}.{module}").ODD_FILES
    names = [each.name for each in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"odd files of one name: {', '.join(twice)}")
    for each in found:
        if each.topic not in TOPICS:
            raise ValueError(f"{each.name}: no topic {each.topic!r}; there are {', '.join(TOPICS)}")
    return sorted(found, key=lambda each: TOPICS.index(each.topic))
