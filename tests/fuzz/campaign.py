"""Give many inputs to every reader, and tell what came out that must not: ``make fuzz``.

    python tests/fuzz/campaign.py --seconds 600
    python tests/fuzz/campaign.py --seconds 60 --target coco_masks nifti --engine atheris
    python tests/fuzz/campaign.py --replay tests/fuzz/corpus/zip/cut zip      # one input, one target

Each target gets its share of the time in processes of its own, one after the other: by atheris (libFuzzer),
by hypothesis, as far as these are installed, and by plain random mutation. It ends with status 1 and the
path of an input for each kind of finding.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz.groups import GROUPS, NAMES, group_of
from fuzz.target import SECONDS, Finding
from fuzz.worker import work

_INSTRUMENTED = (
    "trunkline.data",
    "trunkline.tasks.settings",
    "trunkline.tasks.run",
    "trunkline.backbones.weights",
)
# One thread in each process, and no more memory set apart for those that readers start.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
_POLL = 0.5  # seconds
_STILL = 120  # seconds without progress on the clock, for inputs that wait rather than compute
_SHARES = {"atheris": 0.5, "random": 0.35, "hypothesis": 0.15}
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Outcome:
    """What a target was given, and what came out.

    Attributes:
        inputs: how many by engine.
        read: how many were read as valid files.
        seconds: of the clock.
        found: kind of a finding to the path of an input.
        errors: documented types to how often they came.
    """

    inputs: Counter[str] = field(default_factory=Counter)
    read: int = 0
    seconds: float = 0.0
    found: dict[str, str] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)


class Process:
    """A worker, its folder in memory, and a look at whether it goes on.

    Args:
        target: name.
        engine: name.
        seconds: to work.
        seed: of its random numbers.
        known: kinds of findings that need not be kept again.
    """

    def __init__(self, target: str, engine: str, seconds: float, seed: int, known: set[str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{target}-", dir=_memory()))
        self.pid = os.fork()
        if self.pid == 0:
            self._work(target, engine, seconds, seed, known)

    def _work(self, target: str, engine: str, seconds: float, seed: int, known: set[str]) -> None:
        """Do the work of the child, which never returns."""
        try:
            output = os.open(self.folder / "output", os.O_WRONLY | os.O_CREAT)
            os.dup2(output, 1)
            os.dup2(output, 2)
            work(group_of(target), self.folder, seconds, engine, seed, known)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def wait(self) -> str:
        """Return why the process ended before its time: an empty text if it did not."""
        before, at, used = -1, time.monotonic(), 0.0
        while True:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                return "" if status == 0 else f"ended with status {os.waitstatus_to_exitcode(status)}"
            time.sleep(_POLL)
            count, _ = self.counts()
            now, spent = time.monotonic(), self._spent()
            if count != before:
                before, at, used = count, now, spent
            elif spent - used > SECONDS or now - at > _STILL:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return f"hang of more than {SECONDS} s"

    def counts(self) -> tuple[int, int]:
        """Return how many inputs there were, and how many of them were read."""
        path = self.folder / "state"
        data = path.read_bytes() if path.exists() else b""
        return (int.from_bytes(data[:8], "little"), int.from_bytes(data[8:16], "little"))

    def said(self) -> str:
        """Return the end of what the process wrote."""
        return (self.folder / "output").read_text(errors="replace")[-2000:]

    def _spent(self) -> float:
        """Return the seconds of processor time of the process."""
        try:
            words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(words[11]) + int(words[12])) / _TICKS


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def run(target: str, engine: str, seconds: float, seed: int, outcome: Outcome, keep: Path) -> None:
    """Give inputs to a target for some seconds, however often its process ends before."""
    end = time.monotonic() + seconds
    begun = time.monotonic()
    while (left := end - time.monotonic()) > 1 or not outcome.inputs[engine]:
        process = Process(target, engine, max(left, 1.0), seed, set(outcome.found))
        why = process.wait()
        count, read = process.counts()
        outcome.inputs[engine] += count
        outcome.read += read
        outcomes = process.folder / "outcomes.json"
        outcome.errors.update(json.loads(outcomes.read_text()) if outcomes.exists() else {})
        for report in sorted((process.folder / "found").glob("*.json")):
            _keep(
                json.loads(report.read_text())["kind"],
                report.read_text(),
                report.with_suffix(""),
                target,
                outcome,
                keep,
            )
        if why and not count:
            raise SystemExit(f"{target}: the worker {why}\n{process.said()}")
        if why:
            text = process.said()
            file = process.folder / "input" / group_of(target).file
            _keep(why, json.dumps({"target": target, "kind": why, "text": text}), file, target, outcome, keep)
        shutil.rmtree(process.folder, ignore_errors=True)
        seed += 1000
        if not why:
            break
    outcome.seconds += time.monotonic() - begun


def _keep(kind: str, text: str, file: Path, target: str, outcome: Outcome, keep: Path) -> None:
    if kind in outcome.found or not file.exists():
        return
    folder = keep / target
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{len(outcome.found):03d}"
    shutil.copyfile(file, path)
    path.with_suffix(".json").write_text(text)
    outcome.found[kind] = str(path)
    print(f"FINDING {target}: {kind}\n  {path}", flush=True)


def replay(path: Path, name: str) -> int:
    """Give one file to a target."""
    target = group_of(name)
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        target.prepare(Path(folder))
        try:
            print(target.check(path.read_bytes(), Path(folder)) or "read")
        except Finding as finding:
            print(f"FINDING {finding.kind}\n{finding}")
            return 1
    return 0


def engines(chosen: str | None) -> dict[str, float]:
    """Return the share of the time of each engine that is installed."""
    shares = {chosen: 1.0} if chosen else dict(_SHARES)
    for name in ("atheris", "hypothesis"):
        if name in shares and importlib.util.find_spec(name) is None:
            del shares[name]
    return {name: share / sum(shares.values()) for name, share in shares.items()}


def load(names: Sequence[str], shares: dict[str, float]) -> None:
    """Import what targets and engines need, once: processes are forked from this one."""
    groups = [group for group, members in GROUPS.items() if set(members) & set(names)]
    if "hypothesis" in shares:
        importlib.import_module("fuzz.strategies")
    watched = contextlib.nullcontext()
    if "atheris" in shares:
        import atheris

        watched = atheris.instrument_imports(include=list(_INSTRUMENTED))
    with watched:
        for group in groups:
            importlib.import_module(f"fuzz.{group}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600, help="for all targets together")
    parser.add_argument("--target", nargs="*", choices=NAMES, help="all of them if not given")
    parser.add_argument("--engine", choices=list(_SHARES), help="all that are installed if not given")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 10**6)
    parser.add_argument("--nice", type=int, default=10, help="0 to 19: how far other work goes first")
    parser.add_argument(
        "--found", type=Path, default=Path("fuzz-found"), help="folder for inputs of findings"
    )
    parser.add_argument("--results", type=Path, help="JSON file to add the counts to")
    parser.add_argument("--replay", nargs=2, metavar=("FILE", "TARGET"), help="give one file to one target")
    options = parser.parse_args()
    if options.replay:
        return replay(Path(options.replay[0]), options.replay[1])
    os.nice(options.nice)
    targets, shares = options.target or NAMES, engines(options.engine)
    load(targets, shares)
    found = 0
    for name in targets:
        outcome = Outcome()
        for engine, share in shares.items():
            run(name, engine, options.seconds / len(targets) * share, options.seed, outcome, options.found)
        found += len(outcome.found)
        inputs = sum(outcome.inputs.values())
        print(
            f"{name}: {inputs:,} inputs in {outcome.seconds:.0f} s, {outcome.read:,} read, "
            f"{len(outcome.found)} findings",
            flush=True,
        )
        if options.results:
            from fuzz.results import add

            add(options.results, name, outcome)
    if found:
        print(f"{found} findings; their inputs are in {options.found}, which --replay FILE TARGET repeats")
    return int(bool(found))


if __name__ == "__main__":
    if _ENVIRONMENT.items() - os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | _ENVIRONMENT)
    sys.exit(main())
