"""What went wrong with loader processes, and what to do: torch says neither."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import sys
import traceback
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue

_KILLED = re.compile(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (?:is killed by signal: ([^.]+)|exited)")
_EXIT_CODE = re.compile(r"exit code (\d+)")
_SHARED_MEMORY = (
    "insufficient shared memory", "unable to open shared memory object", "unable to write to file </torch",
    "unable to resize file </torch", "unable to mmap", "/dev/shm",
)  # fmt: skip
_DESCRIPTORS = ("Too many open files", "received 0 items of ancdata", "(24)")
# With what status a process ends that cannot hand over a batch: by words of the message that this needs, and
# words that torch has for the cause.
_STATUS = {86: "open files", 87: "/dev/shm"}
_CAUSES = {86: _DESCRIPTORS[0], 87: _SHARED_MEMORY[0]}
_FEWER = "lower --data.workers{now} (0 loads in the main process)"
_ENDING = 5  # seconds
MOST_DESCRIPTORS = 65_536


class LoaderProcessError(OSError):
    """Loader processes ended, or cannot hand over their batches."""


def loader_problem(
    error: BaseException, workers: int | None = None, processes: Sequence[BaseProcess] = ()
) -> str | None:
    """Return what an error of the loader processes means and what to do; None for any other error.

    Args:
        error: of torch's loader, or of what reads files in its processes.
        workers: how many loader processes there are, if that is known.
        processes: the loader processes, if they are at hand: of one that is killed, torch may say no more
            than that a connection was reset.
    """
    for _ in processes:
        try:
            return _problem(error, workers, processes)
        except RuntimeError as ending:  # torch's handler of the signal that a process has gone, at any moment
            error = ending
    return _problem(error, workers, processes)


def _problem(error: BaseException, workers: int | None, processes: Sequence[BaseProcess]) -> str | None:
    text, now = str(error), "" if workers is None else f" (now {workers})"
    fewer = _FEWER.format(now=now)
    told: BaseException | None = error
    while told is not None:
        if isinstance(told, OSError) and told.errno in (errno.EMFILE, errno.ENFILE):
            return _descriptors(fewer)
        told = told.__cause__ or told.__context__
    if processes and isinstance(error, ConnectionError | EOFError):
        # A process that is killed is not gone at once, and its status comes after its pipes have closed.
        gone = wait([each.sentinel for each in processes], timeout=_ENDING)
        for each in processes:
            if each.sentinel in gone:
                each.join(_ENDING)
    codes = {each.exitcode for each in processes} | {int(code) for code in _EXIT_CODE.findall(text)}
    text += "".join(f" {words}" for code, words in _CAUSES.items() if code in codes)
    ended = {each.pid: code for each in processes if (code := each.exitcode) is not None and code < 0}
    for pid, code in ended.items():
        text = f"DataLoader worker (pid {pid}) is killed by signal: {signal.strsignal(-code)}. {text}"
    if not ended and codes.isdisjoint(_CAUSES) and not isinstance(error, RuntimeError | OSError):
        return None
    killed = _KILLED.search(text)
    if any(words in text for words in _DESCRIPTORS[:2]) or (
        _DESCRIPTORS[2] in text and any(words in text for words in _SHARED_MEMORY)
    ):
        return _descriptors(fewer)
    if any(words in text for words in _SHARED_MEMORY) or (killed and "Bus error" in (killed[2] or "")):
        return (
            "the shared memory (/dev/shm), through which loader processes hand over batches, is full; "
            f"{fewer} or --data.batch_size, or make it larger: docker run --shm-size 8g, or --ipc host; in "
            "Kubernetes an emptyDir of medium Memory at /dev/shm"
        )
    if killed is None:
        return None
    what = f"the loader process {killed[1]} "
    if "Segmentation fault" in (killed[2] or ""):
        return (
            f"{what}crashed (segmentation fault), most probably on a damaged file; "
            "--data.check_images decode and --data.workers 0 tell which"
        )
    how = "was killed" if killed[2] is None else f"was killed (signal: {killed[2].strip()})"
    return (
        f"{what}{how}, as the system does if the main memory is full (dmesg tells); {fewer} or "
        "--data.batch_size, or give the run more memory"
    )


def _descriptors(fewer: str) -> str:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (
        f"the limit of open files of a process ({limit}) is reached; raise it with `ulimit -n 65536` before "
        f"the command (docker run --ulimit nofile=65536), or {fewer}"
    )


def report_lost_batches() -> None:
    """Let a loader process end if a batch cannot be handed over; call it in that process.

    Python prints the error and drops the batch, for which the run would then wait without end.
    """
    Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]


def _end(error: BaseException, lost: object) -> None:
    traceback.print_exception(error)
    problem = loader_problem(error) or ""
    status = next((code for code, words in _STATUS.items() if words in problem), 1)
    sys.stderr.flush()
    os._exit(status)


def raise_descriptor_limit() -> None:
    """Let this process and its loader processes open as many files as the system allows, up to 65,536."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):  # not allowed here; the message comes if it is reached
            return
