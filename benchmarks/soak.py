"""A run under faults ends where a quiet one ends: weights, optimiser, average, metrics, to the last bit.

    python benchmarks/soak.py detection --minutes 20 --kills 100
    python benchmarks/soak.py scans --minutes 20 --kills 100 --folder /tmp/soak

A small experiment is trained in one go. Then the same command is started again and again, and each time
something happens to it at a random moment: it is killed (SIGKILL) in a step, in validation, while it starts,
while it writes a checkpoint; it is asked to stop (SIGTERM); a loader process is killed; the disk is full; the
newest checkpoint is cut short or deleted; an image is gone. After the given time nothing more happens to it,
and it runs to its end. The script ends with status 1 if anything differs from the quiet run, if a session
ended in a way that its fault does not explain, or if there were too few kills.

Commands run in processes that are forked from one that has imported the package (``soaking/child.py``), so
that a restart costs seconds. What happens is fixed by ``--seed``; the moments depend on the machine.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

from soaking import child, compare, experiments
from soaking.faults import FAULTS, Run, Session, session

from common import write_result

RESULTS = Path(__file__).parent / "results"
QUIET, FAULTY = "quiet", "under_faults"


def main() -> None:
    options = arguments()
    folder = options.folder or Path(tempfile.mkdtemp(prefix=f"soak_{options.task}_"))
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    with open(folder / "soak.log", "w", buffering=1) as log:
        tell(
            log, f"{options.task}: {options.epochs} epochs of {experiments.STEPS} steps, seed {options.seed}"
        )
        quiet, run = (prepared(options, folder / name) for name in (QUIET, FAULTY))
        quiet_seconds = run_quietly(quiet, log)
        sessions, seconds = soak(options, run, log)
        found, compared = compare.compared(quiet.folder, run.folder)
        found += unexplained(sessions)
        result = summary(options, run, sessions, found, compared)
        result |= {"seconds": {"quiet": round(quiet_seconds), "under_faults": round(seconds)}}
        for line in verdict(result):
            tell(log, line)
    write_result(options.output / f"soak_{options.task}.json", result)
    shutil.copyfile(folder / "soak.log", options.output / f"soak_{options.task}.log")
    print(f"{folder}: {time.monotonic() - begin:.0f} s in all")
    if options.folder is None and result["equal"]:
        shutil.rmtree(folder)
    sys.exit(not (result["equal"] and result["kills"] >= options.kills))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=experiments.TASKS)
    parser.add_argument("--minutes", type=float, default=20, help="of faults (default: %(default)s)")
    parser.add_argument(
        "--kills", type=int, default=100, help="of the whole run, at least (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=80, help="of 20 steps each (default: %(default)s)")
    parser.add_argument("--save_every", default="5", help="steps or time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="for both runs; a temporary one if not given")
    parser.add_argument("--output", type=Path, default=RESULTS, help="for the result and the log")
    return parser.parse_args()


def prepared(options: argparse.Namespace, folder: Path) -> Run:
    """Write data and config of a run, and return it."""
    shutil.rmtree(folder, ignore_errors=True)
    experiments.write(options.task, folder, options.epochs)
    words = ["fit", "--config", experiments.CONFIG, "--resume", "auto", f"--save_every={options.save_every}"]
    return Run(folder, words, folder / "output.txt", random.Random(options.seed))


def tell(log: TextIO, line: str) -> None:
    print(line, flush=True)
    log.write(line + "\n")


def run_quietly(quiet: Run, log: TextIO) -> float:
    """Let a run go to its end in one go."""
    begin = time.monotonic()
    process = child.start(quiet.words, quiet.folder, quiet.log)
    process.join()
    if process.exitcode:
        sys.exit(f"the quiet run has failed:\n{quiet.log.read_text()[-3000:]}")
    seconds = time.monotonic() - begin
    tell(log, f"quiet run: {seconds:.0f} s")
    return seconds


def soak(options: argparse.Namespace, run: Run, log: TextIO) -> tuple[list[Session], float]:
    """Start a run until it has ended, with a fault in each session as long as the time lasts."""
    names = [name for name, fault in FAULTS.items() if not fault.tasks or options.task in fault.tasks]
    shares = [FAULTS[name].share for name in names]
    total, sessions = options.epochs * experiments.STEPS, []
    begin = time.monotonic()
    while not sessions or sessions[-1].status != 0:
        passed = time.monotonic() - begin
        kills = sum(each.killed for each in sessions)
        if passed < 60 * options.minutes or kills < options.kills:
            set_pace(run, passed / (60 * options.minutes), reached(run) / total, kills < options.kills)
            each = session(run, run.random.choices(names, shares)[0])
        else:
            each = quiet_session(run)
        sessions.append(each)
        tell(
            log,
            f"{time.monotonic() - begin:7.1f} s  {len(sessions):4}  step {reached(run):5}  "
            f"status {each.status:4}  {each.fault}{': ' if each.note else ''}{each.note}"
            + ("" if each.expected else "  UNEXPECTED"),
        )
        if len(sessions) > 3 and not any(one.expected for one in sessions[-4:]):
            break  # it does not start any more
    return sessions, time.monotonic() - begin


def quiet_session(run: Run) -> Session:
    begin = time.monotonic()
    process = run.start()
    process.join()
    status = int(process.exitcode or 0)
    return Session("none", status, time.monotonic() - begin, status == 0, False)


def set_pace(run: Run, passed: float, done: float, more: bool) -> None:
    """Let sessions be longer where the run is behind its time, and shorter where it is ahead.

    Args:
        run: changed.
        passed: share of the time.
        done: share of the steps.
        more: whether more kills are needed.
    """
    run.pace *= 0.8 if done > passed else 1.25
    if more and done > 0.95:
        run.pace = 0.1
    run.pace = min(max(run.pace, 0.1), 8.0)


def reached(run: Run) -> int:
    """Return the highest step that the newest log of the run shows, or that it has reached before."""
    logs = sorted(run.runs.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime_ns)[-1:]
    values, _ = compare.logged(logs[0].parent) if logs else ({}, 0)
    run.step = max([run.step, *(step + 1 for step, _ in values)])
    return run.step


def unexplained(sessions: list[Session]) -> list[str]:
    return [
        f"session {number}, {each.fault}: status {each.status} {each.note}"
        for number, each in enumerate(sessions, 1)
        if not each.expected or each.note.isupper()
    ]


def summary(
    options: argparse.Namespace, run: Run, sessions: list[Session], found: list[str], compared: int
) -> dict[str, Any]:
    """Return what is written as the result."""
    last = compare.last_checkpoint(run.folder) or {}
    return {
        "task": options.task,
        "arguments": {
            name: getattr(options, name) for name in ("minutes", "kills", "epochs", "save_every", "seed")
        },
        "steps": last.get("global_step"),
        "equal": not found,
        "differences": len(found),
        "first_differences": found[:20],
        "logged_values_compared": compared,
        "starts": len(sessions),
        "kills": sum(each.killed for each in sessions),
        "faults": dict(sorted(Counter(each.fault for each in sessions).items())),
        "statuses": dict(sorted(Counter(str(each.status) for each in sessions).items())),
        "steps_redone": compare.steps_redone(run.folder),
        "unfinished_files_left": len(list(run.runs.rglob("*.part"))),
    }


def verdict(result: dict[str, Any]) -> list[str]:
    """Say in words what a result shows."""
    lines = [
        f"{result['starts']} starts, {result['kills']} kills of the whole run, "
        f"{result['steps_redone']} of {result['steps']} steps done again",
        *(f"  {count:4}  {fault}" for fault, count in result["faults"].items()),
    ]
    if result["equal"]:
        compared = result["logged_values_compared"]
        return [*lines, f"EQUAL to the last bit: the last checkpoint, and {compared} logged values"]
    return [
        *lines,
        f"DIFFERENT: {result['differences']}",
        *(f"  {each}" for each in result["first_differences"]),
    ]


if __name__ == "__main__":
    main()
