"""A run that is killed at any place ends, to the last bit, where one ends that nothing has disturbed.

The command runs in processes of its own, which kill themselves by SIGKILL at a chosen place. The same command
goes on. The oracle is the run in one go: its last checkpoint with all that is in it, and each logged value.
"""

import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))

from soaking import child, compare, experiments
from soaking.child import HALF_WRITTEN, Armed

EPOCHS = 2
EVERY = 3  # steps from one checkpoint to the next
WORDS = ["fit", "--config", experiments.CONFIG, "--resume", "auto", "--save_every", str(EVERY)]

# One after the other, each in a process that goes on from the one before.
EACH_TASK = [
    Armed("after the optimiser's step", 5),
    Armed(HALF_WRITTEN, 2),
    Armed("in validation", 1),
]
OTHERS = [
    Armed("before a checkpoint", 1),  # no checkpoint is there: it begins anew
    Armed("after a checkpoint", 1),
    Armed("in training_step", 2),
    Armed("after backward", 5),
    Armed("before the log is written", 2),
    Armed("before a checkpoint is synchronised", 2),
    Armed("before a checkpoint gets its name", 1),
    Armed("after a checkpoint has got its name", 1),
    Armed("after the callbacks of a step", 3),
    Armed("at the end of validation", 1),
    Armed("before a checkpoint", 3),
    Armed("after the callbacks of an epoch", 1),
    Armed("after a checkpoint", 1),
]


def run(folder, *options, armed=None):
    """Run the command in a folder to its end, and return its status."""
    process = child.start([*WORDS, *options], folder, folder / "output.txt", armed)
    process.join(240)
    alive = process.is_alive()
    if alive:
        process.kill()
    child.clear_session(process.pid)
    assert not alive, "it hangs"
    return process.exitcode


def output(folder):
    return (folder / "output.txt").read_text()[-3000:]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """Return the folder of a quiet run of a task; trained once."""
    made = {}

    def of(task):
        if task not in made:
            made[task] = tmp_path_factory.mktemp(f"{task}_quiet")
            experiments.write(task, made[task], EPOCHS)
            assert run(made[task]) == 0, output(made[task])
        return made[task]

    return of


def killed(folder, task, places):
    """Kill a run at one place after the other, and let it end."""
    experiments.write(task, folder, EPOCHS)
    for number, place in enumerate(places):
        workers = f"--data.workers={2 * (number % 2)}"
        assert run(folder, workers, armed=place) == -signal.SIGKILL, f"{place}: {output(folder)}"
    assert run(folder) == 0, output(folder)


@pytest.mark.slow
@pytest.mark.parametrize("task", experiments.TASKS)
def test_killed_run_ends_as_the_quiet_one(quiet, task, tmp_path):
    killed(tmp_path, task, EACH_TASK)
    found, compared = compare.compared(quiet(task), tmp_path)
    assert found == [] and compared > 200
    again = compare.steps_redone(tmp_path)
    assert again <= len(EACH_TASK) * EVERY, "it has not gone on from its newest checkpoint"


@pytest.mark.slow
def test_no_place_is_unsafe(quiet, tmp_path):
    killed(tmp_path, "classification", OTHERS)
    found, _ = compare.compared(quiet("classification"), tmp_path)
    assert found == []


@pytest.mark.slow
def test_comparison_finds_a_run_that_is_not_exact(quiet, tmp_path):
    """The oracle can fail: an epoch more, and other random numbers."""
    experiments.write("classification", tmp_path, EPOCHS)
    assert run(tmp_path, "--seed_everything=1") == 0, output(tmp_path)
    found, _ = compare.compared(quiet("classification"), tmp_path)
    assert any(line.startswith("state_dict.") for line in found)
    assert any(line.startswith("logged train/loss") for line in found)
