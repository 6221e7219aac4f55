"""The command line in a process of its own, forked from one that has imported everything.

Starting Python and importing torch takes ten seconds, forking takes none: so a hundred restarts are cheap.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import multiprocessing
import os
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["soaking.child", "trunkline.tasks.command", "albumentations", "monai.transforms"]
)

FAILED_TO_START = 70

# Places of a run where a process can kill itself: the function, and whether it has run before.
PLACES = {
    "in training_step": ("trunkline.tasks.base.task:Task.training_step", False),
    "after training_step": ("trunkline.tasks.base.task:Task.training_step", True),
    "after backward": ("trunkline.tasks.base.task:Task.on_after_backward", False),
    "before the optimiser's step": ("trunkline.tasks.base.task:Task.optimizer_step", False),
    "after the optimiser's step": ("trunkline.tasks.base.task:Task.optimizer_step", True),
    "after the callbacks of a step": (
        "trunkline.tasks.base.task:Task.on_train_batch_end", False,
    ),
    "before the log is written": ("pytorch_lightning.loggers.csv_logs:CSVLogger.save", False),
    "in validation": ("trunkline.tasks.base.task:Task.validation_step", False),
    "at the end of validation": ("trunkline.tasks.base.task:Task.on_validation_epoch_end", True),
    "after the callbacks of an epoch": (
        "trunkline.tasks.base.task:Task.on_train_epoch_end", False,
    ),
    "before a checkpoint": ("trunkline.tasks.run.checkpoints:AtomicCheckpointIO.save_checkpoint", False),
    "after a checkpoint": ("trunkline.tasks.run.checkpoints:AtomicCheckpointIO.save_checkpoint", True),
    "before a checkpoint is synchronised": ("os:fsync", False),
    "before a checkpoint gets its name": ("os:replace", False),
    "after a checkpoint has got its name": ("os:replace", True),
}  # fmt: skip
HALF_WRITTEN = "in the middle of a checkpoint"
IN_STEPS = tuple(PLACES)[:7]
IN_EVALUATIONS = ("in validation", "at the end of validation", "after the callbacks of an epoch")


@dataclass(frozen=True)
class Armed:
    """A place where the process shall kill itself by SIGKILL.

    Attributes:
        place: a key of ``PLACES``, or ``HALF_WRITTEN``.
        count: at which of the times that the place is reached, from 1 on.
    """

    place: str
    count: int = 1


def start(
    words: list[str],
    folder: Path,
    log: Path,
    armed: Armed | None = None,
    largest_file: int | None = None,
) -> ForkServerProcess:
    """Fork a process that runs ``trunkline WORDS``; it leads a session of its own.

    Args:
        words: of the command.
        folder: where it is started.
        log: gets what it prints, after what is there.
        armed: where it kills itself.
        largest_file: bytes; writing more to a file fails, as on a full disk.
    """
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")  # for the process that the first start makes
    process = CONTEXT.Process(target=_begin, args=(words, folder, log, armed, largest_file))
    process.start()
    return process


def _begin(words: list[str], folder: Path, log: Path, armed: Armed | None, largest_file: int | None) -> None:
    status = FAILED_TO_START
    try:
        os.setsid()
        _redirect(log)
        os.chdir(folder)
        status = _run(words, armed, largest_file)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _redirect(log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, file), (2, file)):
        os.dup2(source, target)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)


def _run(words: list[str], armed: Armed | None, largest_file: int | None) -> int:
    from trunkline.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    for name in [name for name in os.environ if name.startswith("PL_")]:
        del os.environ[name]
    # A new process has other random numbers than the parent; equal ones would hide what is not seeded.
    noise = int.from_bytes(os.urandom(4), "little")
    random.seed(noise)
    np.random.seed(noise)
    torch.manual_seed(noise)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if armed is not None:
        arm(armed)
    status = 0
    try:
        main(words)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    gc.collect()  # ends loader processes
    atexit._run_exitfuncs()
    return status


def arm(armed: Armed) -> None:
    """Replace a function of this process by one that kills it."""
    left = armed.count

    def reached() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if armed.place == HALF_WRITTEN:
        _write_half(reached)
        return
    place, after = PLACES[armed.place]
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner: Any = import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    of_files = module == "os"
    original = getattr(owner, name)

    def replaced(*arguments: Any, **options: Any) -> Any:
        counts = not of_files or _is_checkpoint(*arguments)
        if counts and not after:
            reached()
        result = original(*arguments, **options)
        if counts and after:
            reached()
        return result

    setattr(owner, name, replaced)


def _is_checkpoint(*arguments: Any) -> bool:
    """Whether a call of ``os.replace`` or ``os.fsync`` is about a checkpoint."""
    file = arguments[-1]
    name = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else os.fspath(file)
    return ".ckpt" in os.path.basename(name)


def _write_half(reached: Callable[[], None]) -> None:
    """Let ``torch.save`` write half of a checkpoint before the kill."""
    original = torch.save

    def save(content: Any, file: Any, *arguments: Any, **options: Any) -> None:
        whole = io.BytesIO()
        original(content, whole, *arguments, **options)
        data = whole.getbuffer()
        file.write(data[: len(data) // 2])
        file.flush()
        reached()
        file.write(data[len(data) // 2 :])

    torch.save = save


def children(pid: int) -> list[int]:
    """Return the processes that a process has started: of a run, its loader processes."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(word) for word in task.read_text().split()]
        except OSError:
            continue
    return found


def clear_session(pid: int) -> None:
    """Kill what a killed child has left: its loader processes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
