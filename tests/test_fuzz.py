"""Fuzzing: what was found once is not found again. ``make fuzz`` looks for more."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fuzz import campaign
from fuzz.groups import NAMES, group_of
from fuzz.strategies import inputs
from fuzz.target import CORPUS as FOLDER
from fuzz.target import MIB, Finding, Target
from hypothesis import given, settings

EXAMPLES = 3  # of each target; make fuzz tries as many as there is time for
ROOM = 512 * MIB  # for the stacks of threads that other tests have started
CORPUS = [(name, path) for name in NAMES for path in sorted((FOLDER / name).glob("*"))]


@contextmanager
def limited(target: Target) -> Iterator[None]:
    """Refuse memory beyond that of a target."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + target.memory * MIB + ROOM, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, most))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Target], Path]:
    made: dict[str, Path] = {}

    def folder(target: Target) -> Path:
        if target.name not in made:
            made[target.name] = tmp_path_factory.mktemp(target.name)
            target.prepare(made[target.name])
        return made[target.name]

    return folder


@pytest.mark.parametrize(("name", "path"), CORPUS, ids=[f"{name}-{path.name}" for name, path in CORPUS])
def test_what_was_found_is_refused_or_read(name: str, path: Path, folders: Callable[[Target], Path]) -> None:
    target = group_of(name)
    with limited(target):
        target.check(path.read_bytes(), folders(target))


def test_the_corpus_is_of_targets() -> None:
    assert CORPUS and {path.name for path in FOLDER.iterdir()} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_target_reads_its_seeds_and_mutations_of_them(name: str, folders: Callable[[Target], Path]) -> None:
    """Errors that are not of the package, or do not name the file, are a ``Finding``."""
    target = group_of(name)
    outcomes = [target.check(seed, folders(target)) for seed in target.seeds()]
    assert "" in outcomes, "no seed is a valid file, so mutations of them reach little"

    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
    @given(inputs(target))
    def mutated(data: bytes) -> None:
        target.check(data[: target.largest], folders(target))

    mutated()


def fake(read: Callable[[Path], object], folder: bool = False) -> Target:
    return Target("fake", "a.txt", read, (ValueError,), lambda: [b"a"], lambda data, rng: data, folder=folder)


def raising(error: Callable[[Path], BaseException]) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        raise error(path)

    return read


def lacking(path: Path) -> None:
    try:
        raise MemoryError
    except MemoryError as error:
        raise ValueError(f"{path}: damaged") from error


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (raising(lambda path: KeyError(str(path))), "KeyError"),
        (raising(lambda path: ValueError("damaged")), "unnamed ValueError"),
        (raising(lambda path: ValueError(f"{path.parent}: damaged")), "unnamed ValueError"),
        (lacking, "memory ValueError"),
    ],
)
def test_a_fault_is_found(read: Callable[[Path], object], kind: str, tmp_path: Path) -> None:
    with pytest.raises(Finding) as finding:
        fake(read).check(b"a", tmp_path)
    assert finding.value.kind.startswith(kind)


def test_documented_errors_are_none(tmp_path: Path) -> None:
    assert fake(raising(lambda path: ValueError(f"{path}: damaged"))).check(b"a", tmp_path) == "ValueError"
    assert fake(raising(lambda path: ValueError(f"{path.parent}: no")), folder=True).check(b"a", tmp_path)
    assert fake(lambda path: path.read_bytes()).check(b"a", tmp_path) == ""


def test_mutations_are_repeatable_and_various() -> None:
    target = group_of("coco_boxes")
    seed = target.seeds()[0]
    assert target.mutate(seed, random.Random(1)) == target.mutate(seed, random.Random(1))
    assert len({target.mutate(seed, random.Random(number)) for number in range(50)}) > 30


def turning(path: Path) -> None:
    if path.read_bytes() == b"b":
        while True:
            pass


def killed(path: Path) -> None:
    if path.read_bytes() == b"b":
        os.kill(os.getpid(), signal.SIGKILL)


def greedy(path: Path) -> None:
    if path.read_bytes() == b"b":
        bytearray(b"x") * (64 * MIB)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("read", "kind"), [(turning, "hang"), (killed, "ended with status -9"), (greedy, "memory")]
)
def test_a_campaign_finds_what_ends_or_stops_a_process(
    read: Callable[[Path], object], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target(
        "fake", "a", read, (), lambda: [b"a"], lambda data, rng: rng.choice([b"a", b"a", b"b"]), memory=32
    )
    monkeypatch.setattr(campaign, "group_of", lambda name: target)
    monkeypatch.setattr(campaign, "SECONDS", 0.5)
    outcome, begun = campaign.Outcome(), time.monotonic()
    campaign.run("fake", "random", 1.5, 0, outcome, tmp_path)
    assert [found for found in outcome.found if found.startswith(kind)], outcome.found
    path = next(path for found, path in outcome.found.items() if found.startswith(kind))
    assert Path(path).read_bytes() == b"b"
    assert sum(outcome.inputs.values()) > 0 and time.monotonic() - begun < 100


@pytest.mark.slow
def test_a_campaign_counts_its_inputs(tmp_path: Path) -> None:
    outcome = campaign.Outcome()
    for engine in ("random", "hypothesis"):
        campaign.run("class_list", engine, 1.5, 0, outcome, tmp_path)
    assert outcome.found == {} and min(outcome.inputs.values()) > 10 and outcome.read > 0
