"""Parts of killed processes are deleted, those of living ones never; and when --save_every is due."""

import os

import pytest

from trunkline.tasks.run.leftovers import hold, part_of, remove_leftovers
from trunkline.tasks.run.saving import SaveEvery


def left_by(process, folder, host=None):
    """A part with the name that another process gives it."""
    path = part_of(folder / "last.ckpt")
    name = path.name.replace(f".{os.getpid()}.", f".{process}.")
    if host is not None:
        name = name.replace(f".{os.uname().nodename}.", f".{host}.")
    path = path.with_name(name)
    path.write_bytes(b"half")
    return path


@pytest.fixture
def gone():
    """The number of a process that has ended."""
    process = os.fork()
    if not process:
        os._exit(0)
    os.waitpid(process, 0)
    return process


def test_only_parts_that_nobody_writes_are_deleted(tmp_path, gone):
    folder = tmp_path / "version_0" / "checkpoints"
    folder.mkdir(parents=True)
    dead, held = left_by(gone, folder), left_by(gone, folder)
    living, elsewhere = left_by(os.getpid(), folder), left_by(gone, folder, "other-machine")
    old, other = left_by(gone, folder, "other-machine"), folder / ".notes.part"
    os.utime(old, (0, 0))
    other.write_text("of somebody else")
    with open(held, "ab") as file:
        hold(file)
        remove_leftovers([tmp_path])
        assert {path.name for path in folder.iterdir()} == {
            path.name for path in (held, living, elsewhere, other)
        }
    remove_leftovers([tmp_path])
    assert not held.exists() and not dead.exists() and not old.exists()


@pytest.mark.parametrize(
    ("value", "steps", "seconds"),
    [(None, 0, 0), (500, 500, 0), ("500", 500, 0), ("30s", 0, 30), ("10m", 0, 600), ("1.5h", 0, 5400)],
)
def test_save_every_is_steps_or_a_time(value, steps, seconds):
    made = SaveEvery.parse(value)
    assert (made.steps, made.seconds) == (steps, seconds)


@pytest.mark.parametrize("value", ["10 minutes", "0", "0s", "-5m", "1.5", "ten", "", "m", True])
def test_other_values_are_errors(value):
    with pytest.raises(ValueError, match=f"--save_every {value}: expected a number of optimiser steps"):
        SaveEvery.parse(value)


def test_time_counts_from_the_last_checkpoint(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    every = SaveEvery.parse("10s")
    every.saved()
    assert not every.due(1)
    now[0] += 10
    assert every.due(2)
    every.saved()
    assert not every.due(3)
