"""What the settings in a checkpoint may name, whose file may come from anybody."""

from __future__ import annotations

import json

from ...data.shared.trusted import limit_imports, require_trusted
from .class_paths import check_class_paths

OPTION = "trust_checkpoint"
_REMEDY = (
    "if you trust the file as you trust a program, add --trust_checkpoint, or --config with a config of your "
    "own that names these classes; else do not use it"
)


def trust(words: list[str], extended: list[str]) -> None:
    """Import the classes that a command names, and those of its checkpoint if they are trusted.

    Call it inside ``data.shared.trusted.imports_as_before``: what else the parser imports is limited.

    Args:
        words: of the command, as the user gave them.
        extended: with the settings of the checkpoint in front, as ``with_checkpoint_settings`` returns them.

    Raises:
        UntrustedClassError: naming the classes of the checkpoint that are neither ours nor the user's.
        ValueError: as ``check_class_paths``.
    """
    named = check_class_paths(words)
    stored = extended[1 : 1 + len(extended) - len(words)]
    if stored and f"--{OPTION}" not in words:
        for each in stored:
            settings = json.loads(each.removeprefix("--config="))
            require_trusted(settings, named, "the checkpoint", _REMEDY)
        limit_imports(named)
    check_class_paths(extended)
