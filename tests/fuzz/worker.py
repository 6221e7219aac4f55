"""One process of a campaign: gives inputs to one target until its time is over.

In the folder of the process ``state`` says how many inputs there were and how many of them were read;
``found`` has input and text of each kind of finding; ``input`` holds the input that is being read, for the
parent to see if this process ends.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import resource
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from .target import MIB, Finding, Target, peak_memory

STATE = struct.Struct("<QQ")  # inputs, and those of them that were read as valid files
_ROOM = 256 * MIB  # of addresses beside those that inputs may take: stacks of threads, arenas
_KINDS = 40  # of findings that are kept


class Worker:
    """Counts inputs and keeps findings.

    Args:
        target: to give them to.
        folder: of this process.
        seconds: when to stop.
        known: kinds of findings that have been seen.
    """

    def __init__(self, target: Target, folder: Path, seconds: float, known: set[str]) -> None:
        self.target, self.folder, self.known = target, folder, known
        self.inputs = folder / "input"
        self.inputs.mkdir(parents=True, exist_ok=True)
        (folder / "found").mkdir(exist_ok=True)
        target.prepare(self.inputs)
        self.outcomes: Counter[str] = Counter()
        self.seconds, self.end = seconds, 0.0
        with open(folder / "state", "w+b") as file:
            file.truncate(STATE.size)
            self.state = mmap.mmap(file.fileno(), STATE.size)
        for seed in target.seeds():  # what is loaded on first use is no memory of an input
            target.check(seed, self.inputs)
        self.base = peak_memory()
        self.count = self.read = 0

    def begin(self) -> None:
        """Let the time begin, and refuse memory beyond that of the target from now on."""
        self.end = time.monotonic() + self.seconds
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = used + self.target.memory * MIB + _ROOM
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def one(self, data: bytes) -> None:
        """Give one input to the target."""
        data = bytes(data[: self.target.largest])
        try:
            outcome = self.target.check(data, self.inputs)
            if (grown := peak_memory() - self.base) > self.target.memory * MIB:
                self.base += grown
                raise Finding("memory", f"took {grown // MIB} MiB, {self.target.memory} are the limit")
        except Finding as finding:
            outcome = finding.kind
            self.keep(data, finding)
        self.count += 1
        self.read += not outcome
        self.outcomes[outcome] += 1
        self.state[:] = STATE.pack(self.count, self.read)

    def keep(self, data: bytes, finding: Finding) -> None:
        """Write a finding of a new kind, or a shorter input of a known one."""
        name = hashlib.sha256(finding.kind.encode()).hexdigest()[:12]
        path = self.folder / "found" / name
        if path.exists():
            if len(data) < path.stat().st_size:
                path.write_bytes(data)
        elif finding.kind not in self.known and len(self.known) < _KINDS:
            self.known.add(finding.kind)
            path.write_bytes(data)
            text = json.dumps({"target": self.target.name, "kind": finding.kind, "text": str(finding)})
            path.with_suffix(".json").write_text(text)
            print(f"{self.target.name}: {finding.kind}\n  {finding}\n  {path}", flush=True)

    def finish(self) -> None:
        """Write what came out."""
        (self.folder / "outcomes.json").write_text(json.dumps(self.outcomes))

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self.end


def inputs_at_random(worker: Worker, seed: int) -> None:
    """Mutate seeds and findings, without knowing what code they reach."""
    rng, target = random.Random(seed), worker.target
    pool = [*target.seeds(), *(path.read_bytes() for path in target.corpus())]
    while not worker.over:
        for _ in range(20):
            data = target.mutate(rng.choice(pool), rng)
            worker.one(data if rng.random() < 0.7 else target.mutate(data, rng))


def inputs_of_hypothesis(worker: Worker, seed: int) -> None:
    """Draw inputs by strategies."""
    import hypothesis

    from .strategies import inputs

    settings = hypothesis.settings(
        max_examples=2000,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    while not worker.over:
        drawn = hypothesis.given(inputs(worker.target))(
            lambda data: None if worker.over else worker.one(data)
        )
        hypothesis.seed(seed)(settings(drawn))()
        seed += 1


def inputs_of_atheris(worker: Worker, seed: int) -> None:
    """Keep inputs that reach new code, and mutate these (libFuzzer)."""
    import atheris

    target, folder = worker.target, worker.folder / "reached"
    folder.mkdir(exist_ok=True)
    for number, data in enumerate([*target.seeds(), *(path.read_bytes() for path in target.corpus())]):
        (folder / f"seed{number}").write_bytes(data)

    def mutate(data: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        changed = target.mutate(data, rng) if rng.random() < 0.8 else atheris.Mutate(data, most)
        return changed[:most]

    def one(data: bytes) -> None:
        if worker.over:
            worker.finish()
            os._exit(0)  # libFuzzer has no other end
        worker.one(data)

    options = [
        "-timeout=3600",
        "-rss_limit_mb=0",
        "-malloc_limit_mb=0",
        "-detect_leaks=0",
        "-verbosity=0",
        f"-max_len={target.largest}",
        f"-seed={seed}",
        f"-artifact_prefix={worker.folder}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(folder)], one, custom_mutator=mutate)
    atheris.Fuzz()


ENGINES: dict[str, Callable[[Worker, int], None]] = {
    "random": inputs_at_random,
    "hypothesis": inputs_of_hypothesis,
    "atheris": inputs_of_atheris,
}


def work(target: Target, folder: Path, seconds: float, engine: str, seed: int, known: set[str]) -> None:
    """Give inputs to a target; see ``Worker``.

    Args:
        target: to give them to.
        folder: of this process.
        seconds: to work.
        engine: one of ``ENGINES``.
        seed: of the random numbers.
        known: kinds of findings that have been seen.
    """
    worker = Worker(target, folder, seconds, known)
    worker.begin()
    ENGINES[engine](worker, seed)
    worker.finish()
