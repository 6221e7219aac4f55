"""Odd configs."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path

from trunkline.tasks.command import TrunklineCLI

from .case import OddFile

TOPIC = "Configs and options"
CONFIG = """model:
  class_path: Classification
  init_args:
    backbone: {class_path: ResNet, init_args: {depth: 18}}
    head: {class_path: Classifier, init_args: {num_classes: 3}}
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}
data:
  class_path: ImageClassification
  init_args:
    root: flowers
    batch_size: 2
trainer:
  max_epochs: 1
"""


class Parsed(Exception):
    """The config has been read; nothing is built."""


def read(folder: Path, *options: str) -> dict[str, object]:
    """Return the settings that a command takes from ``config.yaml``, by dotted key."""
    root = logging.getLogger("trunkline")
    level, found = root.level, {}
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

    class Reader(TrunklineCLI):
        def before_instantiate_classes(self) -> None:
            found.update(self.config["fit"].as_flat().__dict__)
            raise Parsed

    try:
        with (
            warnings.catch_warnings(),
            contextlib.suppress(Parsed),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            Reader(args=["fit", "--config", str(folder / "config.yaml"), *options])
    finally:
        root.setLevel(level)
    return found


def config(old: str = "", new: str = "", encoding: str = "utf-8") -> Callable[[Path], None]:
    """Return what writes the config with one thing replaced."""
    if old:
        assert CONFIG.count(old) == 1, old

    def write(folder: Path) -> None:
        text = CONFIG.replace(old, new) if old else new or CONFIG
        (folder / "config.yaml").write_bytes(text.encode(encoding))

    return write


def odd(name: str, oddity: str, write: Callable[[Path], None], means: str, remedy: str) -> OddFile:
    return OddFile(name, TOPIC, oddity, write, read, means, remedy)


def expecting(**values: object) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        found = read(folder)
        for key, value in values.items():
            [given] = [each for name, each in found.items() if name.endswith(f".{key}")]
            assert given == value and type(given) is type(value), (key, given)

    return check


def write_merged(folder: Path) -> None:
    text = CONFIG.replace("max_epochs: 1", "<<: {max_steps: 7, max_epochs: 2}\n  max_epochs: 1")
    text = text.replace("{lr: 0.1}", "&sgd {lr: 0.1}").replace(
        "batch_size: 2", "batch_size: &two 2\n    workers: *two"
    )
    (folder / "config.yaml").write_text(text, encoding="utf-8")


AGAIN = "Correct the line that the message names."
QUOTES = "Put it in quotes."
ODD_FILES = [
    odd(
        "config_key_twice",
        "A key that is there twice in a config",
        config("batch_size: 2", "batch_size: 2\n    batch_size: 64"),
        "YAML would take the last one without a word.",
        "Remove one of the lines.",
    ),
    odd(
        "config_key_twice_inline",
        "A key that is there twice between braces",
        config("{lr: 0.1}", "{lr: 0.1, lr: 0.2}"),
        "YAML would take the last one without a word.",
        "Remove one of them.",
    ),
    odd(
        "config_section_blank",
        "A section of a config without settings",
        config("trainer:\n  max_epochs: 1", "trainer:"),
        "A name with nothing below it is null for YAML.",
        "Remove the line, or put settings below it.",
    ),
    odd(
        "config_head_blank",
        "A part of the model without a value",
        config("head: {class_path: Classifier, init_args: {num_classes: 3}}", "head:"),
        "The model has no head.",
        "Name a class and its settings.",
    ),
    odd(
        "config_class_blank",
        "A class_path without a value",
        config("class_path: Classifier", "class_path: null"),
        "No class is named.",
        "Name one, or remove the part.",
    ),
    odd(
        "config_null_value",
        "null for a number",
        config("batch_size: 2", "batch_size: null"),
        "The setting is a number, and null is none.",
        "Leave the line out: the usual value is used.",
    ),
    odd(
        "config_null_rate",
        "null for the learning rate",
        config("lr: 0.1", "lr: null"),
        "The setting is a number, and null is none.",
        "Give the number.",
    ),
    odd(
        "config_null_callback",
        "null in a list of callbacks",
        config("max_epochs: 1", "callbacks: [null]"),
        "A list of classes holds an empty entry.",
        "Remove it.",
    ),
    odd(
        "config_latin_1",
        "A config in Latin-1",
        config("root: flowers", "root: fleurs d'été", "latin-1"),
        "The file was saved in an encoding of one byte for each letter.",
        "Save it as UTF-8.",
    ),
    odd(
        "config_utf_16",
        "A config in UTF-16",
        config(encoding="utf-16"),
        "Some editors save so by default.",
        "Save it as UTF-8.",
    ),
    OddFile(
        "config_byte_order_mark",
        TOPIC,
        "A config that begins with a byte order mark",
        config(encoding="utf-8-sig"),
        expecting(batch_size=2),
        "The mark is left out.",
    ),
    odd(
        "config_tab",
        "A config that is indented with tabs",
        config("  class_path: Classification", "\tclass_path: Classification"),
        "YAML takes no tabs.",
        "Replace them by spaces.",
    ),
    odd(
        "config_empty",
        "An empty config",
        config(new="# nothing yet\n"),
        "There are no settings.",
        "Choose another file.",
    ),
    odd(
        "config_list",
        "A config that is a list",
        config(new="- model\n- data\n"),
        "A config has settings under names.",
        "Put a colon after the names of the sections, and no dashes before.",
    ),
    odd(
        "config_binary",
        "A config that is no text",
        config(new="PK\x03\x04\x00\x00"),
        "It is another kind of file.",
        "Choose the YAML file.",
    ),
    odd(
        "config_colon",
        "A name with a colon and a space",
        config("root: flowers", "root: flowers: red"),
        "A colon and a space begin a value.",
        QUOTES,
    ),
    odd(
        "config_octal",
        "A folder whose name is a number with a leading zero",
        config("root: flowers", "root: 0123"),
        "YAML 1.1 takes 0123 for the number 83.",
        QUOTES,
    ),
    odd(
        "config_exponent",
        "A folder with the name 1e3",
        config("root: flowers", "root: 1e3"),
        "1e3 is the number 1000.",
        QUOTES,
    ),
    odd(
        "config_no",
        "A folder with the name no",
        config("root: flowers", "root: no"),
        "no is false for YAML 1.1.",
        QUOTES,
    ),
    OddFile(
        "config_date",
        TOPIC,
        "A folder whose name is a date",
        config("root: flowers", "root: 2024-01-01"),
        expecting(root="2024-01-01"),
        "It is taken as text.",
    ),
    odd(
        "config_interpolation",
        "A value that another program would fill in",
        config("root: flowers", "root: ${oc.env:DATA}"),
        "OmegaConf and Hydra replace such values, this package does not.",
        "Write the value, or give it as an option.",
    ),
    odd(
        "config_tag",
        "A tag that YAML does not know",
        config("root: flowers", "root: !include root.yaml"),
        "Tags call code of other programs.",
        "Write the value itself.",
    ),
    odd(
        "config_misspelt",
        "A misspelt setting",
        config("batch_size", "batchsize"),
        "The class has no such setting.",
        AGAIN,
    ),
    odd(
        "config_misspelt_trainer",
        "A misspelt setting of the trainer",
        config("max_epochs", "max_epoch"),
        "Lightning's trainer has no such setting.",
        AGAIN,
    ),
    odd(
        "config_misspelt_class",
        "A misspelt class",
        config("class_path: Classifier", "class_path: Classifer"),
        "No class of that name is known.",
        AGAIN,
    ),
    odd(
        "config_wrong_kind",
        "A class of another kind",
        config("class_path: ResNet", "class_path: Classifier"),
        "A head stands where a backbone is needed.",
        AGAIN,
    ),
    odd(
        "config_words",
        "A word where a number is needed",
        config("batch_size: 2", "batch_size: two"),
        "It is no number.",
        AGAIN,
    ),
    OddFile(
        "config_merge_key",
        TOPIC,
        "Anchors and merge keys",
        write_merged,
        expecting(max_steps=7, max_epochs=1, batch_size=2, workers=2),
        "They work as in YAML 1.1.",
    ),
    OddFile(
        "config_one_batch",
        TOPIC,
        "One batch, as a whole number",
        config("max_epochs: 1", "limit_train_batches: 1\n  limit_val_batches: 1.0"),
        expecting(limit_train_batches=1, limit_val_batches=1.0),
        "1 is one batch, 1.0 is all of them.",
    ),
]
