"""The command ``trunkline``. Nothing heavy is imported before it is needed: ``--help`` answers at once."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"
SUBCOMMANDS = ("fit", "validate", "test", "predict")

HELP = """usage: trunkline COMMAND [OPTIONS]

One ResNet trunk, many branches: train and apply vision models from YAML files.

commands:
  fit        train a model                   trunkline fit --config CONFIG [OVERRIDES]
  validate   evaluate on the validation data trunkline validate --ckpt_path FILE
  test       evaluate on the test data       trunkline test --ckpt_path FILE
  predict    write predictions and pictures  trunkline predict --ckpt_path FILE --data.predict PATH
  configs    list the shipped configs
  sample     write a small synthetic dataset trunkline sample detection|classification|segmentation DIR

CONFIG is a YAML file or the name of a shipped config. A checkpoint brings the settings that it was trained
with, so it needs none. Any value can be overridden, for example
  trunkline fit --config detection/faster_rcnn_r50_fpn_coco --data.root coco --model.backbone.depth 101

  trunkline COMMAND --help                          all options of a command
  trunkline fit --model.help Detection              those of a task; also --data.help CocoDetection
  trunkline fit --config CONFIG --model.head.help FasterRCNN    those of a part of it
  trunkline fit --config CONFIG --print_config      the complete config that a run would use
  trunkline --version                               the version
"""


def main(arguments: list[str] | None = None) -> None:
    """Run one command of the program.

    Args:
        arguments: the words after ``trunkline``; None for those of this process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = words[0] if words else "--help"
    if command in ("-h", "--help", "help"):
        print(HELP)
    elif command == "--version":
        from . import __version__

        print(f"trunkline {__version__}")
    elif command == "configs":
        _list_configs(words[1:])
    elif command == "sample":
        _sample(words[1:])
    elif command in SUBCOMMANDS:
        _run(words)
    else:
        commands = (*SUBCOMMANDS, "configs", "sample")
        sys.exit(f"trunkline: no command {command!r}{_did_you_mean(command, commands)}; see trunkline --help")


def _did_you_mean(word: str, known: object) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


# -- shipped configs


def shipped_configs() -> dict[str, Path]:
    """Return the shipped configs: name (path below ``configs/`` without ``.yaml``) to file, sorted."""
    return {
        path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in sorted(CONFIGS.rglob("*.yaml"))
    }


def resolve_config(name: str) -> str:
    """Return the file that a ``--config`` value means: an existing file, or a shipped config by name."""
    if Path(name).is_file():
        return name
    shipped = shipped_configs()
    if name in shipped:
        return str(shipped[name])
    sys.exit(
        f"trunkline: --config {name!r} is neither a file nor a shipped config{_did_you_mean(name, shipped)}; "
        "`trunkline configs` lists those"
    )


def with_resolved_configs(words: list[str]) -> list[str]:
    """Replace the names of shipped configs behind ``--config`` / ``-c`` by their files."""
    resolved = []
    for position, word in enumerate(words):
        if position and words[position - 1] in ("--config", "-c"):
            word = resolve_config(word)
        elif word.startswith("--config="):
            word = "--config=" + resolve_config(word.removeprefix("--config="))
        resolved.append(word)
    return resolved


def _list_configs(words: list[str]) -> None:
    parser = argparse.ArgumentParser("trunkline configs", description="List the shipped configs.")
    parser.parse_args(words)
    shipped = shipped_configs()
    width = max(map(len, shipped))
    for name, path in shipped.items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        print(f"{name:{width}}  {first.lstrip('# ')}")


# -- synthetic data


def _sample(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "trunkline sample",
        description="Write a small synthetic dataset in a real format, with known answers.",
    )
    parser.add_argument(
        "task",
        choices=["detection", "classification", "segmentation"],
        help="the kind of data: COCO-format boxes, class folders, or pictures with masks",
    )
    parser.add_argument("folder", type=Path, help="where to write; must be empty or not exist")
    parser.add_argument("--train", type=int, default=320, help="training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=64, help="validation images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    options = parser.parse_args(words)

    from .data import synthetic

    write = getattr(synthetic, f"write_{options.task}")
    try:
        write(options.folder, train=options.train, val=options.val, seed=options.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"trunkline sample: {error}")
    print(f"wrote {options.train} training and {options.val} validation images: {options.folder.resolve()}")


# -- training and prediction


def _run(words: list[str]) -> None:
    words = with_null_overrides(with_resolved_configs(words))

    # Lightning 2.6 calls jsonargparse by names that it deprecates: nothing a user could act on.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    from .tasks.command import TrunklineCLI

    # Lightning records the command line, warns where the two differ, and starts the program anew for each
    # further device: by the path that it was started with.
    sys.argv = [sys.argv[0], *words]
    try:
        TrunklineCLI()
    except (ValueError, OSError, FloatingPointError) as error:
        # What this package raises on purpose says all there is to say; anything else needs its traceback.
        if os.environ.get("TRUNKLINE_TRACEBACK") or not _raised_here(error):
            raise
        sys.exit(f"\ntrunkline: error: {error}")


def with_null_overrides(words: list[str]) -> list[str]:
    """Rewrite ``--model.backbone.weights=null`` as a small inline config.

    jsonargparse (4.53) hands nested values on as text, in which null becomes the string "None".
    """
    joined: list[str] = []
    for word in words:
        if word in ("null", "~") and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += "=null"
        else:
            joined.append(word)
    rewritten = []
    for word in joined:
        key, equals, value = word.removeprefix("--").partition("=")
        parts = key.split(".")
        if equals and value in ("null", "~") and parts[0] in ("model", "data") and len(parts) > 2:
            nested: object = None
            for part in reversed(parts):
                nested = {part: nested}
            word = "--config=" + json.dumps(nested)
        rewritten.append(word)
    return rewritten


def _raised_here(error: BaseException) -> bool:
    """Whether the innermost frame of the error is in this package."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").split(".")[0] == "trunkline"
