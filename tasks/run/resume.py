"""What a checkpoint says of its run, before what the user gives; and what of the two contradicts."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.callbacks import ModelCheckpoint

from ...compat import upgrade_settings
from ...data.shared.home import expanded
from .changes import changes
from .checkpoints import read_checkpoint
from .found import newest_checkpoint
from .kept_files import check_kept_files
from .restored import check_restored, contradiction, names_of

logger = logging.getLogger("trunkline")

RUNS = "runs"  # where runs are written unless trainer.default_root_dir says otherwise
FOUND = ("last", "best")  # words for checkpoints that are looked for
CONSENTS = ("allow_outside_root",)  # that the user gives, and no file
RUN_SECTIONS = ("trainer", "seed_everything", "save_every")  # of a config, beside model and data
LIGHTNINGS = ("hpc", "null")  # words that Lightning understands by itself

# Settings whose state is in the checkpoint, so that others would have no effect, or not fit.
KEPT = ("model.optimizer", "model.lr_scheduler", "model.optimization")
KEPT_NAMES = ("norm", "frozen_stages")
WEIGHTS = ("model.weights", "model.backbone.weights")


def with_found_checkpoint(words: list[str]) -> list[str]:
    """Replace ``--ckpt_path last`` and ``best`` by the file that is meant, in the folders of the runs.

    A ``ckpt_path`` that only a config names becomes an option.

    Raises:
        CheckpointError: if there is none.
    """
    given = _given(words, "ckpt_path")
    if not given:
        stated = [each["ckpt_path"] for each in map(_content_of, _configs(words)) if "ckpt_path" in each]
        given = [each for each in stated[-1:] if isinstance(each, str)]
        words = [*words, *(f"--ckpt_path={each}" for each in given)]
    if not given or given[-1] not in FOUND:
        return words
    return _replaced(words, "ckpt_path", str(newest_checkpoint(run_folders(words), given[-1])))


def with_checkpoint_settings(words: list[str]) -> list[str]:
    """Put the settings of ``--ckpt_path`` in front of everything that the user gave.

    So a checkpoint can be applied without naming its config, and every explicit setting still counts. ``fit``
    goes on with the trainer of the run too; other commands take only model and data.

    Args:
        words: of a command, after :func:`with_found_checkpoint`.

    Raises:
        CheckpointError: if the file cannot be read.
        FileNotFoundError: if it is not there.
    """
    given = _given(words, "ckpt_path")
    if not given or given[-1] in LIGHTNINGS or given[-1].startswith("registry:"):
        return words
    path = given[-1]
    if not Path(path).is_file():
        raise FileNotFoundError(f"--ckpt_path {path}: no such file; give a .ckpt that fit has written")
    settings = stored_settings(read_checkpoint(path, "--ckpt_path"))
    if words[0] == "fit" and "trainer" not in settings:
        _say_what_is_missing(path)
    if words[0] != "fit":
        settings = {key: settings[key] for key in ("model", "data") if key in settings}
    return [words[0], f"--config={json.dumps(settings)}", *words[1:]] if settings else words


def stored_settings(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the sections of a config that a checkpoint holds: model, data, trainer and seed_everything."""
    settings = {}
    upgrade_settings(checkpoint)
    for key, stored in (("model", "hyper_parameters"), ("data", "datamodule_hyper_parameters")):
        arguments = {
            k: v for k, v in checkpoint.get(stored, {}).items() if not k.startswith("_") and k not in CONSENTS
        }
        if "_class_path" in checkpoint.get(stored, {}):
            settings[key] = {"class_path": checkpoint[stored]["_class_path"], "init_args": arguments}
    run = checkpoint.get("run_settings", {})
    return settings | {key: run[key] for key in RUN_SECTIONS if key in run}


def run_folders(words: list[str]) -> list[Path]:
    """Return the folders in which the runs of a command lie: its ``trainer.default_root_dir``, or ``runs``.

    Folders that the config names for loggers and checkpoints are added.
    """
    root, others = RUNS, []
    for config in _configs(words):
        trainer = _content_of(config).get("trainer")
        trainer = trainer if isinstance(trainer, dict) else {}
        root = trainer.get("default_root_dir") or root
        for part in _parts(trainer.get("logger")) + _parts(trainer.get("callbacks")):
            arguments = part.get("init_args") or {}
            others += [arguments.get(name) for name in ("save_dir", "dirpath")]
    root = (_given(words, "trainer.default_root_dir") or [root])[-1]
    return [expanded(each) for each in (root, *others) if isinstance(each, str) and each]


def _configs(words: list[str]) -> list[str]:
    return _given(words, "config") + _given(words, "c")


def _content_of(config: str) -> dict[str, Any]:
    """Return what a config holds; nothing if it cannot be read, which the parser says later."""
    try:
        text = config if config.lstrip().startswith("{") else Path(config).read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _parts(value: Any) -> list[dict[str, Any]]:
    return [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, dict)]


def _given(words: list[str], option: str) -> list[str]:
    """Return the values of an option, in order."""
    dashed = f"-{option}" if len(option) == 1 else f"--{option}"
    found = []
    for position, word in enumerate(words):
        if word == dashed and position + 1 < len(words):
            found.append(words[position + 1])
        elif word.startswith(f"{dashed}="):
            found.append(word.partition("=")[2])
    return found


def _replaced(words: list[str], option: str, value: str) -> list[str]:
    """Return the words with the value of an option that is there replaced."""
    new = list(words)
    for position, word in enumerate(words):
        if position and words[position - 1] == f"--{option}":
            new[position] = value
        elif word.startswith(f"--{option}="):
            new[position] = f"--{option}={value}"
    return new


def _say_what_is_missing(path: str) -> None:
    beside = Path(path).resolve().parent.parent / "config.yaml"
    hint = f"--config {beside}" if beside.is_file() else "the --config of the run"
    logger.warning(
        "%s does not hold the trainer settings of its run (written by an older version, or in Python): "
        "epochs, precision, gradient clipping and callbacks are those of this command; add %s to go on with "
        "those of the run",
        path,
        hint,
    )


# -- what a task stores, and compares


def run_state(trainer: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint holds to go on from it, beside what Lightning stores.

    Args:
        trainer: of the run.
        settings: the sections ``trainer`` and ``seed_everything`` of the config; empty for a run that was
            started in Python.
    """
    state: dict[str, Any] = {"run_settings": dict(settings)} if settings else {}
    if len(trainer.optimizers) == 1:
        schedulers = [each.scheduler for each in trainer.lr_scheduler_configs]
        state["optimization_classes"] = names_of(trainer.optimizers[0], schedulers)
    return state


def check_resume(task: Any, settings: Mapping[str, Any], checkpoint: dict[str, Any]) -> None:
    """Compare a run with the checkpoint that it is about to go on from.

    Args:
        task: with its trainer; nothing has been restored yet.
        settings: as in :func:`run_state`.
        checkpoint: what will be restored. Its best checkpoints are made to count in a new folder too.

    Raises:
        CheckpointError: if settings contradict it.
    """
    trainer = task.trainer
    check_changes(_changed(task, trainer.datamodule, settings, checkpoint))
    (optimizer,), schedulers = task.configure_optimizers()
    check_restored(checkpoint, optimizer, [each["scheduler"] for each in schedulers])
    _keep_best(trainer, checkpoint)
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {}).get("current", {})
    epochs, steps = progress.get("processed", 0), checkpoint.get("global_step", 0)
    for option, done, limit in (
        ("max_epochs", epochs, trainer.max_epochs),
        ("max_steps", steps, trainer.max_steps),
    ):
        if limit is not None and 0 <= limit <= done:
            logger.warning(
                "nothing is left to train: the run has done %s of trainer.%s %s; raise --trainer.%s",
                done, option, limit, option,
            )  # fmt: skip


def refuse_before_start(task: Any, data: Any, settings: Mapping[str, Any], path: str) -> None:
    """Refuse settings that contradict a checkpoint before the logger makes a folder for the run.

    Args:
        task: not attached to a trainer yet.
        data: the data module.
        settings: as in :func:`run_state`.
        path: of the checkpoint, an existing file.

    Raises:
        CheckpointError: as :func:`check_changes`.
    """
    refuse_changes(_changed(task, data, settings, read_checkpoint(path, "--ckpt_path")))


def _changed(
    task: Any, data: Any, settings: Mapping[str, Any], checkpoint: dict[str, Any]
) -> dict[str, tuple[Any, Any]]:
    before, now = stored_settings(checkpoint), dict(settings)
    for key, module in (("model", task), ("data", data)):
        hparams = {} if module is None else dict(module.hparams)
        if "_class_path" in hparams:
            now[key] = {"class_path": hparams["_class_path"], "init_args": hparams}
    return changes(before, now)


def _keep_best(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Let a run in a new folder know the best result of before.

    Lightning forgets it where the folder differs, so that any first result would become the new best.
    """
    for each in trainer.checkpoint_callbacks:
        state = checkpoint.get("callbacks", {}).get(each.state_key)
        if isinstance(each, ModelCheckpoint) and state:
            check_kept_files(state, str(each.dirpath))
            state["dirpath"] = each.dirpath


# -- what has changed


def check_changes(changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse changes of a resumed run that would have no effect; say the others.

    Args:
        changed: as :func:`changes` returns it.

    Raises:
        CheckpointError: naming each key with both values.
    """
    refuse_changes(changed)
    for key, (before, now) in changed.items():
        if key not in WEIGHTS:
            logger.info("changed from the checkpoint: %s: %s -> %s", key, _told(before), _told(now))


def refuse_changes(changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse changes of a resumed run that would have no effect.

    Args:
        changed: as :func:`changes` returns it.

    Raises:
        CheckpointError: naming each key with both values.
    """
    refused = []
    for key, (before, now) in changed.items():
        inside = key.split(".")
        kept = key.startswith(KEPT) or (inside[0] == "model" and inside[-1] in KEPT_NAMES)
        if kept or (key in WEIGHTS and now is not None):
            refused.append(f"{key}: {_told(now)} is asked for, the checkpoint has {_told(before)}")
    if refused:
        raise contradiction(refused)


def _told(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 120 else text[:117] + "..."
