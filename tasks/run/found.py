"""Checkpoints are found again: the newest, and the best of the newest run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .checkpoints import CheckpointError, read_checkpoint

logger = logging.getLogger("trunkline")


def newest_checkpoint(roots: Iterable[Path], name: str) -> Path:
    """Return the newest checkpoint of the runs below some folders.

    A file that cannot be read is named in a warning, and the next one is taken.

    Args:
        roots: folders of runs.
        name: ``last`` for the newest of all; ``best`` for the best of the newest run, by what its newest
            checkpoint says.

    Raises:
        CheckpointError: if there is none, naming the folders.
    """
    roots = list(dict.fromkeys(Path(root) for root in roots))
    files = {file.resolve() for root in roots for file in root.rglob("*.ckpt") if file.is_file()}
    for file in sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name), reverse=True):
        try:
            checkpoint = read_checkpoint(str(file), "checkpoint")
        except CheckpointError as error:
            logger.warning("%s; an older one is taken", error)
            continue
        chosen = file if name == "last" else _best_of(checkpoint, file)
        logger.info("--ckpt_path %s: %s (step %s)", name, chosen, checkpoint.get("global_step", "unknown"))
        return chosen
    raise CheckpointError(
        f"--ckpt_path {name}: no checkpoint that can be read in {', '.join(map(str, roots))}, nor in the "
        "folders in there; give the path of a .ckpt, or leave --ckpt_path out to begin a new run"
    )


def _best_of(checkpoint: dict[str, Any], file: Path) -> Path:
    """Return the best checkpoint of the run of another one.

    Raises:
        CheckpointError: if that run kept none, or it is gone.
    """
    states = [state for state in checkpoint.get("callbacks", {}).values() if isinstance(state, dict)]
    # Without a metric the "best" of a ModelCheckpoint is only its newest.
    states.sort(key=lambda state: state.get("best_model_score") is None)
    paths = [state["best_model_path"] for state in states if state.get("best_model_path")]
    for state in states:
        if state.get("best_model_path"):
            for place in _places(state, file):
                if place.is_file():
                    return place
    raise CheckpointError(
        f"--ckpt_path best: the newest run ({file}) has no best checkpoint"
        + (f"; {paths[0]} is not there" if paths else "")
        + "; give the path of a .ckpt"
    )


def _places(state: dict[str, Any], file: Path) -> list[Path]:
    """Return where the best checkpoint of a ``ModelCheckpoint`` may lie, by its state in another one.

    The folder of the runs may have been moved, and a path from the folder that a command was started in may
    lead to another run: what counts is the way from the one checkpoint to the other.
    """
    best, folder = str(state["best_model_path"]), str(state.get("dirpath") or "")
    places = []
    if folder and os.path.isabs(best) == os.path.isabs(folder):
        places.append(Path(os.path.normpath(file.parent / os.path.relpath(best, folder))))
    if os.path.isabs(best) or (folder and Path(folder).resolve() == file.parent):
        places.append(Path(best))
    return [*places, file.parent / Path(best).name]
