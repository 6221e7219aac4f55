"""Signals that ask a run to stop: it goes on to the end of the step, saves, and ends with a stated status."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from typing import Any

import torch
from lightning_fabric.plugins.environments import SLURMEnvironment

logger = logging.getLogger("trunkline")


class StopSignals:
    """Takes SIGTERM, and the signal that SLURM sends before a time limit (SIGUSR1), while a run trains.

    Lightning acts at once: it saves in the middle of a step, and its handler exchanges tensors between
    processes, which may be in the middle of an exchange. Here a signal is only noted. At the next moment
    between two steps the processes agree, so one of them suffices.

    Attributes:
        asked: the signal that has come, or 0.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._process = 0

    def install(self, trainer: Any) -> None:
        """Take the place of Lightning's handlers, which puts the ones of before back in its teardown."""
        connector = trainer._signal_connector
        self.asked = signal.SIGTERM if connector.received_sigterm else 0
        connector.received_sigterm = False
        self._process = os.getpid()
        if threading.current_thread() is not threading.main_thread():
            return
        before = connector._original_handlers

        def note(number: int, frame: Any) -> None:
            if os.getpid() != self._process:
                return  # a loader process, which has inherited this
            launcher = trainer.strategy.launcher
            if launcher is not None and not self.asked:
                launcher.kill(number)  # the processes that this one has started
            self.asked = self.asked or number
            if callable(before.get(number)):
                before[number](number, frame)

        signal.signal(signal.SIGTERM, note)
        requeue = requeue_signal(trainer)
        if before.get(requeue) in (None, signal.SIG_DFL):  # submitit and others have their own
            signal.signal(requeue, note)


def requeue_signal(trainer: Any) -> int:
    """Return the signal by which a queue announces its time limit: SLURM's, else SIGUSR1."""
    environment = trainer._accelerator_connector.cluster_environment
    chosen = environment.requeue_signal if isinstance(environment, SLURMEnvironment) else None
    return int(chosen or signal.SIGUSR1)


def agreed(trainer: Any, asked: int, due: bool) -> tuple[int, bool]:
    """Return whether any process was asked to stop, and whether the first one wants to save.

    All processes call it at the same moment.

    Args:
        trainer: of the run.
        asked: the signal that this process got, or 0.
        due: whether this process wants to save; only the first one counts, whose clock is the run's.
    """
    if trainer.world_size == 1:
        return asked, due
    mine = torch.tensor(2 * asked + (due and trainer.is_global_zero), device=trainer.strategy.root_device)
    highest = int(trainer.strategy.reduce(mine, reduce_op="max"))
    # A process that was asked to stop hides the wish to save of another: stopping saves anyhow.
    return highest // 2, bool(highest % 2)


def requeue(trainer: Any, automatic: bool) -> None:
    """Ask SLURM to start the job again, if its plugin says so (``auto_requeue``, as by default).

    Args:
        trainer: of the run.
        automatic: whether the command goes on by itself when it is started again (``--resume auto``). Without
            it the job is not put back, because it would begin anew.
    """
    environment = trainer._accelerator_connector.cluster_environment
    if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
        return
    if not trainer.is_global_zero:
        return
    if not automatic:
        logger.warning("the job is not put back into the queue: without --resume auto it would begin anew")
        return
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
        said = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if said:
        logger.warning("the job %s cannot be put back into the queue: %s", job, said)
    else:
        logger.info("the job %s is put back into the queue", job)
