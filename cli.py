"""The command ``trunkline``. Nothing heavy is imported before it is needed: ``--help`` answers at once."""

from __future__ import annotations

import argparse
import difflib
import errno
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from .data.shared.terminal import guard_log, harmless, show_error

CONFIGS = Path(__file__).parent / "configs"
LIGHTNING = ("pytorch_lightning", "lightning_fabric")
FOLDER_ERRORS = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
ADVICE = "trunkline: "  # as in tasks/run/memory.py
SUBCOMMANDS = ("fit", "validate", "test", "predict")

HELP = """usage: trunkline COMMAND [OPTIONS]

One ResNet trunk, many branches: train and apply vision models from YAML files.

commands:
  fit        train a model                   trunkline fit --config CONFIG [OVERRIDES]
  validate   evaluate on the validation data trunkline validate --ckpt_path FILE
  test       evaluate on the test data       trunkline test --ckpt_path FILE
  predict    write predictions and pictures  trunkline predict --ckpt_path FILE --data.predict PATH
  configs    list the shipped configs
  sample     write a small synthetic dataset trunkline sample detection|classification|segmentation|scans DIR
  plan       write a config for scans        trunkline plan DATASET --output plan.yaml --memory 8

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
    try:
        _main(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except SystemExit as stop:
        if isinstance(stop.code, str):  # a message, which may quote names from files
            stop.code = harmless(stop.code)
        raise
    except BrokenPipeError:  # the reader, such as head, has enough; Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print("\ntrunkline: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception:
        sys.excepthook = show_error
        raise


def _main(words: list[str]) -> None:
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
    elif command == "plan":
        _plan(words[1:])
    elif command in SUBCOMMANDS:
        _run(words)
    else:
        commands = (*SUBCOMMANDS, "configs", "sample", "plan")
        sys.exit(f"trunkline: no command {command!r}{_did_you_mean(command, commands)}; see trunkline --help")


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


# -- shipped configs


def shipped_configs() -> dict[str, Path]:
    """Return the shipped configs: name (path below ``configs/`` without ``.yaml``) to file, sorted."""
    return {
        path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in sorted(CONFIGS.rglob("*.yaml"))
    }


def resolve_config(name: str) -> str:
    """Return what a ``--config`` value means: inline JSON, an existing file, or a shipped config by name."""
    if name.lstrip().startswith("{") or Path(name).is_file():
        return name
    shipped = shipped_configs()
    if name in shipped:
        return str(shipped[name])
    if name and Path(name).is_dir():
        sys.exit(f"trunkline: --config {name} is a folder; give a file in it")
    sys.exit(
        f"trunkline: --config {name!r} is neither a file nor a shipped config{_did_you_mean(name, shipped)}; "
        "`trunkline configs` lists those"
    )


def with_resolved_configs(words: list[str]) -> list[str]:
    """Replace the names of shipped configs after ``--config`` / ``-c`` by their files."""
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
        choices=["detection", "classification", "segmentation", "scans"],
        help="the kind of data: COCO-format boxes, class folders, images with masks, volumes with labels",
    )
    parser.add_argument("folder", type=Path, help="where to write; must be empty or not exist")
    parser.add_argument("--train", type=int, help="training images (default: 320, of scans 24)")
    parser.add_argument("--val", type=int, help="validation images (default: 64, of scans 8)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    options = parser.parse_args(words)

    from .data.synthetic import pictures, scans

    writers: dict[str, Callable[..., object]] = {
        "detection": pictures.write_detection,
        "classification": pictures.write_classification,
        "segmentation": pictures.write_segmentation,
        "scans": scans.write_scans,
    }
    volumes = options.task == "scans"
    train, val = (24, 8) if volumes else (320, 64)
    train, val = (
        usual if given is None else given for given, usual in ((options.train, train), (options.val, val))
    )
    try:
        writers[options.task](options.folder, train=train, val=val, seed=options.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"trunkline sample: {error}")
    what = "volumes" if volumes else "images"
    print(f"wrote {train} training and {val} validation {what}: {options.folder.resolve()}")


# -- plans for scans


def _plan_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "trunkline plan",
        description="Read a dataset of scans and write a config for it by the heuristics of nnU-Net, with a "
        "reason next to each number.",
    )
    parser.add_argument(
        "dataset", type=Path, help="its folder; the options below for finding its cases are data.*"
    )
    parser.add_argument("--output", type=Path, default=Path("plan.yaml"), help="(default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that is there")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB of the device (default: %(default)s)")
    parser.add_argument(
        "--ndim", type=int, choices=[2, 3], help="axes of the network (default: those of the scans)"
    )
    parser.add_argument(
        "--modality", nargs="+", help="ct, mr, pet, us or other; one for all channels or one for each"
    )
    parser.add_argument("--spacing", nargs="+", type=float, metavar="MM", help="of right, anterior, superior")
    parser.add_argument("--workers", type=int, default=4, help="scans read at a time (default: %(default)s)")
    finding = parser.add_argument_group(
        "finding cases", "go into the config as data.NAME; paths are in DATASET"
    )
    finding.add_argument("--images", help="folder of the scans, may contain {split}")
    finding.add_argument("--labels", help="folder of the labels, may contain {split}")
    finding.add_argument("--table", help="a CSV of the cases")
    finding.add_argument("--classes", nargs="+", help="names of the ids 0, 1, 2 and so on; or ID=NAME")
    finding.add_argument("--ignore_id", type=int, help="of voxels to leave out")
    finding.add_argument("--splits", help="file of the folds")
    finding.add_argument("--fold", type=int, help="that validates")
    finding.add_argument("--folds", type=int, help="how many to make")
    finding.add_argument("--patients", help="a CSV with the columns case and patient")
    finding.add_argument(
        "--allow_outside_root", action="store_true", default=None, help="lists may name files outside DATASET"
    )
    return parser


def _plan(words: list[str]) -> None:
    options = _plan_parser().parse_args(words)
    if options.output.exists() and not options.overwrite:
        sys.exit(
            f"trunkline plan: {options.output} is there already; add --overwrite, or name another --output"
        )
    logging.getLogger("trunkline").setLevel(logging.INFO)
    if not logging.getLogger().handlers:
        logging.basicConfig(format="%(message)s")
    guard_log()
    from .evaluation.files import write_atomically
    from .planning import config, table
    from .planning import plan as planning

    names = (
        "images", "labels", "table", "ignore_id", "splits", "fold", "folds", "patients", "allow_outside_root",
    )  # fmt: skip
    try:
        given = {name: getattr(options, name) for name in names} | {
            "classes": _named_classes(options.classes)
        }
        plan = planning.make_plan(
            options.dataset,
            given,
            memory=options.memory,
            ndim=options.ndim,
            modality=options.modality,
            spacing=options.spacing,
            workers=options.workers,
        )
        print(harmless(table.table(plan)))
        write_atomically(options.output, config.config(plan, str(options.output)))
    except (ValueError, OSError) as error:
        sys.exit(f"trunkline plan: {error}")
    print(f"wrote {options.output}: trunkline fit --config {shlex.quote(str(options.output))}")


def _named_classes(words: list[str] | None) -> list[str] | dict[int, str] | None:
    """Turn ``background liver`` into a list and ``0=background 5=liver`` into names by id."""
    if words is None or not all("=" in word for word in words):
        return words
    pairs = [word.split("=", 1) for word in words]
    if not all(key.strip().lstrip("-").isdecimal() for key, _ in pairs):
        raise ValueError(f"--classes {' '.join(words)}: an id is a whole number, as in 0=background 5=liver")
    if len({int(key) for key, _ in pairs}) < len(pairs):
        raise ValueError(f"--classes {' '.join(words)}: an id is there twice; each needs one name")
    return {int(key): name for key, name in pairs}


# -- training and prediction


def _run(words: list[str]) -> None:
    words = with_null_overrides(with_resolved_configs(words))

    # Lightning 2.6 calls jsonargparse by names that it deprecates: nothing a user could act on.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    from .tasks.command import TrunklineCLI

    # Lightning records the command line, warns where the two differ, and starts the program again for each
    # further device: by the path that it was started with.
    sys.argv = [sys.argv[0], *words]
    try:
        TrunklineCLI()
    except Exception as error:
        said = None if os.environ.get("TRUNKLINE_TRACEBACK") else _message(error)
        if said is None:
            raise
        sys.exit(f"\ntrunkline: error: {said}")


def _message(error: Exception) -> str | None:
    """Return what is said about an error in place of its traceback; None where that is needed."""
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    from .tasks.settings.messages import remedy_of

    for note in vars(error).get("__notes__", ()):
        if note.startswith(ADVICE):  # a callback has said what to do
            return note.removeprefix(ADVICE)
    package = _raised_in(error)
    if package == "trunkline" and isinstance(error, ValueError | OSError | FloatingPointError):
        return str(error)  # raised on purpose, it says all there is to say
    on_purpose = isinstance(error, ValueError | RuntimeError | ImportError)
    if isinstance(error, MisconfigurationException) or (package in LIGHTNING and on_purpose):
        return f"the options of the trainer do not fit this run: {error}{remedy_of(str(error))}"
    if isinstance(error, FOLDER_ERRORS) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        return f"{error.filename or 'a file'}: {error.strerror}; choose another folder, or make room for it"
    return None


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
        nested_text = parts[0] in ("model", "data") and len(parts) > 2
        if equals and value in ("null", "~") and (nested_text or parts[0] == "output"):
            nested: object = None
            for part in reversed(parts):
                nested = {part: nested}
            word = "--config=" + json.dumps(nested)
        rewritten.append(word)
    return rewritten


def _raised_in(error: BaseException) -> str:
    """Return the package of the innermost frame of an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", "")).split(".")[0]
