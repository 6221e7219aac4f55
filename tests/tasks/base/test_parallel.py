"""Two processes train every task by DDP without unused parameters, and with sharded weights like one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parents[2]
NAMES = ("boxes", "land", "scene", "all", "scans")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What the processes have found, by rank."""
    folder = tmp_path_factory.mktemp("parallel")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("parallel_worker.py")), str(folder)],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("case", [f"{name} {static}" for name in NAMES for static in (False, True)])
def test_no_parameter_is_unused_and_both_processes_hold_the_same_weights(trained, case):
    """With ``static_graph`` and without; in one step a single process has no objects, in another both."""
    one, other = (found[case] for found in trained)
    for found in (one, other):
        assert found["missing"] == [[], [], []]
        assert all(bool(torch.isfinite(value).all()) for value in found["weights"].values())
    same(one["weights"], other["weights"])


@pytest.mark.slow
def test_a_compiled_step_gives_the_same_weights(trained):
    for found in trained:
        same(found["scene compiled"]["weights"], found["scene False"]["weights"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scene", "land"])
def test_sharded_weights_train_like_whole_ones(trained, name):
    for found in trained:
        case = found[f"{name} sharded"]
        same(case["weights"], case["whole"])
