"""``--resume auto``: the newest checkpoint of this experiment, or a new run."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .checkpoints import CheckpointError, read_checkpoint, require_whole
from .experiment import KEY as EXPERIMENT
from .experiment import differing, finished, steps_of
from .state import KEY as BETWEEN

logger = logging.getLogger("trunkline")

AUTO = "auto"

Candidate = tuple[Path, dict[str, Any]]


def resumed_from(resume: str, roots: Iterable[Path], settings: Mapping[str, Any]) -> Path | None:
    """Return the checkpoint that ``--resume`` means; None to begin a new run.

    Args:
        resume: ``auto``, or a file.
        roots: folders of runs.
        settings: of the experiment, as the command gives them.

    Raises:
        CheckpointError: if a file is named that cannot be read, or is of another experiment.
        SystemExit: (status 0) if the experiment is finished, which is said.
    """
    if resume != AUTO:
        return _named(resume, settings)
    roots = list(dict.fromkeys(Path(root) for root in roots))
    found = _Search(settings).newest(roots)
    if found is None:
        logger.info("--resume auto: no checkpoint of this experiment in %s: a new run begins", _joined(roots))
        return None
    path, checkpoint = found
    done = finished(checkpoint, settings) if BETWEEN in checkpoint else None
    if done is not None:
        logger.info("--resume auto: this experiment is finished: %s (%s)", done, path)
        sys.exit(0)
    logger.info("--resume auto: %s (step %s)", path, steps_of(checkpoint))
    return path


def _joined(roots: Iterable[Path]) -> str:
    return ", ".join(map(str, roots))


def _named(path: str, settings: Mapping[str, Any]) -> Path:
    if not Path(path).is_file():
        raise CheckpointError(f"--resume {path}: no such file; give auto, or a .ckpt that fit has written")
    checkpoint = read_checkpoint(path, "--resume")
    keys = differing(checkpoint, settings) if EXPERIMENT in checkpoint else ["its command"]
    if keys:
        raise CheckpointError(
            f"--resume {path} belongs to another experiment, which differs in {', '.join(keys)}; to go on "
            "from it with changed settings give it by --ckpt_path"
        )
    return Path(path)


class _Search:
    """A search through checkpoints, the newest first; says what is left aside, once per folder."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._told: set[Path] = set()

    def newest(self, roots: Iterable[Path]) -> Candidate | None:
        files = {file.resolve() for root in roots for file in root.rglob("*.ckpt") if file.is_file()}
        ordered = sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name), reverse=True)
        now = time.time_ns()
        ahead = [file for file in ordered if file.stat().st_mtime_ns > now]
        # Where the clock was set back, times do not say what is newer; steps do.
        groups = [[file] for file in ahead] + [ordered[len(ahead) :]]
        found = [each for each in map(self._newest_of, groups) if each is not None]
        return max(found, key=lambda each: (BETWEEN in each[1], steps_of(each[1])), default=None)

    def _newest_of(self, files: Iterable[Path]) -> Candidate | None:
        within: Candidate | None = None
        for file in files:
            checkpoint = self._of_this_experiment(file)
            if checkpoint is None:
                continue
            if BETWEEN in checkpoint:
                return file, checkpoint
            within = within or (file, checkpoint)
        # In the first epoch it is as good, and exact, to begin anew.
        if within is None or within[1].get("epoch", 0) == 0:
            return None
        logger.warning(
            "%s was written within a step: the run goes on from it, but not exactly as it would have",
            within[0],
        )
        return within

    def _of_this_experiment(self, file: Path) -> dict[str, Any] | None:
        try:
            checkpoint = read_checkpoint(str(file), "checkpoint")
            if EXPERIMENT not in checkpoint:
                self._tell(file, "does not say which experiment it belongs to")
                return None
            keys = differing(checkpoint, self._settings)
            if keys:
                listed = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
                self._tell(file, f"belongs to another experiment, which differs in {listed}")
                return None
            require_whole(file, "checkpoint")
        except CheckpointError as error:
            logger.warning("%s; an older one is taken", error)
            return None
        return checkpoint

    def _tell(self, file: Path, what: str) -> None:
        if file.parent not in self._told:
            self._told.add(file.parent)
            logger.info("--resume auto: %s %s: it is left alone", file, what)
