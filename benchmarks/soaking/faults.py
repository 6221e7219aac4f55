"""What is done to a run: one fault in each of its sessions, from a start to the end of the process."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from . import child
from .child import HALF_WRITTEN, PLACES, Armed
from .experiments import DATA

LONGEST = 180  # seconds until a session that should have ended by itself counts as hung
STOPPED = 143


@dataclass
class Run:
    """A run under faults.

    Attributes:
        folder: of the experiment; its parts are ``data``, ``cache`` and those below.
        words: of the command, the same at every start.
        log: what the command prints.
        random: what happens when.
        pace: mean seconds of training in a session.
        step: the highest step that the log of the run has shown.
    """

    folder: Path
    words: list[str]
    log: Path
    random: random.Random
    pace: float = 3.0
    step: int = 0

    @property
    def runs(self) -> Path:
        """Where checkpoints and logs are written."""
        return self.folder / "runs"

    def start(self, armed: Armed | None = None, largest_file: int | None = None) -> ForkServerProcess:
        """Start the command."""
        workers = f"--data.workers={self.random.choice((0, 0, 2))}"
        return child.start([*self.words, workers], self.folder, self.log, armed, largest_file)

    def checkpoints(self, pattern: str = "last*.ckpt") -> list[Path]:
        """Return checkpoints, the newest first."""
        return sorted(self.runs.rglob(pattern), key=lambda path: path.stat().st_mtime_ns, reverse=True)

    def saved(self) -> tuple[int, int]:
        """Return what changes when a checkpoint is written."""
        newest = self.checkpoints()[:1]
        return (len(newest), newest[0].stat().st_mtime_ns) if newest else (0, 0)


@dataclass
class Session:
    """How a session ended.

    Attributes:
        fault: its name.
        status: of the process; negative for a signal.
        seconds: from start to end.
        expected: whether the status is what this fault may lead to.
        killed: whether the whole run was ended by SIGKILL.
        note: what else there is to say.
    """

    fault: str
    status: int
    seconds: float
    expected: bool
    killed: bool
    note: str = ""


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        share: how often it comes, relative to the others.
        act: does it to a run, and returns the status of the process and a note.
        statuses: that the process may end with, besides 0 where it was ready before.
        tasks: in whose runs it can happen; empty for all.
    """

    share: float
    act: Callable[[Run], tuple[int, str]]
    statuses: tuple[int, ...] = (-signal.SIGKILL,)
    tasks: tuple[str, ...] = field(default=())


def session(run: Run, name: str) -> Session:
    """Let one fault happen to a run."""
    begin = time.monotonic()
    fault = FAULTS[name]
    status, note = fault.act(run)
    expected = status == 0 or status in fault.statuses
    return Session(name, status, time.monotonic() - begin, expected, status == -signal.SIGKILL, note)


# -- waiting and killing


def kill(process: ForkServerProcess) -> int:
    """End a run by SIGKILL, its loader processes after it, and return its status."""
    if process.pid is not None and process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    return finish(process)


def finish(process: ForkServerProcess) -> int:
    """Wait for the end of a run, and return its status; what hangs is killed and has the status 124."""
    process.join(LONGEST)
    hung = process.is_alive()
    if hung:
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    child.clear_session(process.pid or 0)
    return 124 if hung else int(process.exitcode or 0)


def until(
    process: ForkServerProcess, reached: Callable[[], bool], seconds: float, every: float = 0.01
) -> bool:
    """Wait until something is true, the process has ended or the time is over; return whether it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.is_alive():
        if reached():
            return True
        time.sleep(every)
    return False


def trains(run: Run, process: ForkServerProcess) -> bool:
    """Wait until a run has written its first checkpoint since it was started."""
    before = run.saved()
    return until(process, lambda: run.saved() != before, LONGEST, 0.05)


def train_a_while(run: Run, process: ForkServerProcess) -> None:
    if trains(run, process):
        process.join(run.random.expovariate(1 / run.pace))


# -- the faults


def _random_moment(run: Run) -> tuple[int, str]:
    process = run.start()
    train_a_while(run, process)
    return kill(process), ""


def _starting(run: Run) -> tuple[int, str]:
    process = run.start()
    process.join(run.random.uniform(0, 6))
    return kill(process), ""


def _writing(run: Run) -> tuple[int, str]:
    """Kill when a file appears that becomes a checkpoint."""
    old = set(run.runs.rglob("*.part"))

    def is_written() -> bool:
        return any(set(folder.glob(".*.part")) - old for folder in newest_folders(run))

    process = run.start()
    if run.random.random() < 0.5:
        train_a_while(run, process)
    seen = until(process, is_written, LONGEST, 0.0005)
    process.join(run.random.uniform(0, 0.004))
    status = kill(process)
    left = len(set(run.runs.rglob("*.part")) - old)
    return status, f"{left} unfinished file left" if seen and left else ""


def newest_folders(run: Run) -> list[Path]:
    """Return the folders of checkpoints of the newest runs."""
    versions = list(run.runs.glob("*/version_*"))
    versions.sort(key=lambda path: int(path.name.rpartition("_")[2]))
    return [version / "checkpoints" for version in versions[-2:]]


def _at_a_place(run: Run) -> tuple[int, str]:
    place = run.random.choice([*PLACES, HALF_WRITTEN])
    armed = Armed(place, run.random.choice((1, 1, 2, 3)))
    process = run.start(armed)
    before = time.monotonic()
    while process.is_alive() and time.monotonic() - before < 30:
        process.join(0.5)
    return kill(process), f"{place}, time {armed.count}"


def _after_a_pause(run: Run) -> tuple[int, str]:
    process = run.start()
    train_a_while(run, process)
    for _ in range(2):
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGSTOP)
            time.sleep(run.random.uniform(0, 0.5))
            os.kill(process.pid or 0, signal.SIGCONT)
            process.join(run.random.uniform(0, 0.5))
    return kill(process), ""


def _asked_to_stop(run: Run) -> tuple[int, str]:
    process = run.start()
    train_a_while(run, process)
    begin = time.monotonic()
    if process.is_alive():
        os.kill(process.pid or 0, signal.SIGTERM)
    return finish(process), f"ended {time.monotonic() - begin:.1f} s later"


def _all_asked_to_stop_and_killed(run: Run) -> tuple[int, str]:
    """Ask all processes of the run to stop, as queues do, and kill it when it may be saving."""
    process = run.start()
    train_a_while(run, process)
    if process.is_alive():
        os.killpg(process.pid or 0, signal.SIGTERM)
    process.join(run.random.uniform(0, 0.3))
    return kill(process), ""


def _loader_process(run: Run) -> tuple[int, str]:
    process = child.start([*run.words, "--data.workers=2"], run.folder, run.log)
    train_a_while(run, process)
    loaders = child.children(process.pid or 0)
    if not loaders or not process.is_alive():
        return kill(process), "no loader process was there"
    os.kill(run.random.choice(loaders), signal.SIGKILL)
    begin = time.monotonic()
    return finish(process), f"the run ended {time.monotonic() - begin:.1f} s later"


def _full_disk(run: Run) -> tuple[int, str]:
    """Let no file become as large as a checkpoint."""
    newest = run.checkpoints()[:1]
    if not newest:
        return _random_moment(run)
    before = newest[0].read_bytes()
    process = run.start(largest_file=int(0.9 * len(before)))
    process.join(60)
    status = kill(process)
    return status, "" if newest[0].read_bytes() == before else "ANOTHER CHECKPOINT IS IN ITS PLACE"


def _cut_short(run: Run) -> tuple[int, str]:
    newest = run.checkpoints()[:1]
    for path in newest:
        os.truncate(path, run.random.randrange(path.stat().st_size))
    return _random_moment(run)[0], ", ".join(str(path.relative_to(run.folder)) for path in newest)


def _deleted(run: Run) -> tuple[int, str]:
    newest = run.checkpoints()[:1]
    for path in newest:
        path.unlink()
    return _random_moment(run)[0], ", ".join(str(path.relative_to(run.folder)) for path in newest)


def _clock(run: Run) -> tuple[int, str]:
    """Let the newest checkpoint be of another time, as after the clock was set."""
    hours = run.random.choice((-1, 1))
    for path in run.checkpoints()[:1]:
        when = path.stat().st_mtime_ns + hours * 3_600_000_000_000
        os.utime(path, ns=(when, when))
    return _random_moment(run)[0], f"{hours:+} h"


def _no_cache(run: Run) -> tuple[int, str]:
    """Remove prepared scans, and kill the run while it prepares them anew, or later."""
    shutil.rmtree(run.folder / "cache", ignore_errors=True)
    return (_starting if run.random.random() < 0.6 else _random_moment)(run)


@contextmanager
def _hidden(path: Path) -> Iterator[None]:
    away = path.with_name(path.name + ".away")
    path.rename(away)
    try:
        yield
    finally:
        away.rename(path)


def _image_gone(run: Run) -> tuple[int, str]:
    """Let an image be away for a while: the run ends with an error, and goes on when it is back."""
    images = sorted(path for path in (run.folder / DATA).rglob("*") if path.suffix in (".jpg", ".png", ".gz"))
    image = run.random.choice(images)
    at_once = run.random.random() < 0.3
    process = None if at_once else run.start()
    if process is not None:
        train_a_while(run, process)
    with _hidden(image):
        process = run.start() if process is None else process
        process.join(15)
        status = kill(process)
    return status, f"{image.name} {'from the start' if at_once else 'in training'}"


FAULTS = {
    "SIGKILL at a random moment": Fault(30, _random_moment),
    "SIGKILL while it starts": Fault(12, _starting),
    "SIGKILL while a checkpoint is written": Fault(14, _writing),
    "SIGKILL at a chosen place": Fault(22, _at_a_place),
    "SIGSTOP, SIGCONT, SIGKILL": Fault(5, _after_a_pause),
    "SIGTERM": Fault(5, _asked_to_stop, (STOPPED,)),
    "SIGTERM to all its processes, SIGKILL": Fault(5, _all_asked_to_stop_and_killed, (-9, STOPPED)),
    "SIGKILL of a loader process": Fault(4, _loader_process, (1, -9)),
    "full disk": Fault(3, _full_disk, (1,)),
    "newest checkpoint cut short, SIGKILL": Fault(2, _cut_short),
    "newest checkpoint deleted, SIGKILL": Fault(1, _deleted),
    "time of the newest checkpoint changed, SIGKILL": Fault(2, _clock),
    "prepared scans removed, SIGKILL": Fault(6, _no_cache, tasks=("scans",)),
    "an image is gone for a while": Fault(3, _image_gone, (1, -9)),
}
