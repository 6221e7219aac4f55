"""The harness itself: it finds a wait, a tensor of the host and a constant that a forward pass moves."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from fake_cuda import stub  # noqa: E402

PROGRAM = """
import json, sys
sys.path.insert(0, "benchmarks")
import torch
from torch import nn
from fake_cuda.runs import fake_device, require_device, require_gradients

def lazy(x, state):  # the constant is moved where it is first needed
    if state["constant"].device != x.device:
        state["constant"] = state["constant"].to(x.device)
    return x * state["constant"]

CASES = {
    "clean": lambda x, s: (x.relu() * 2).sum(),
    "item": lambda x, s: x * x.sum().item(),
    "nonzero": lambda x, s: x.nonzero(),
    "mask": lambda x, s: x[x > 0],
    "tolist": lambda x, s: x.sum(1).tolist(),
    "to host": lambda x, s: x.cpu(),
    "equal": lambda x, s: torch.equal(x, x),
    "bool": lambda x, s: bool((x > 0).all()),
    "event": lambda x, s: torch.cuda.Event().synchronize(),
    "lazy": lazy,
    "host tensor": lambda x, s: x + s["constant"],
    "type": lambda x, s: torch.mm(x, x.half()),
}
found = {}
for name, function in CASES.items():
    state = {"constant": torch.ones(4)}
    with fake_device() as recorder:
        x = torch.zeros(4, 4, device="cuda")
        recorder.clear()
        try:
            function(x, state)
            found[name] = [wait.split(" @ ")[0] for wait in recorder.waits]
        except Exception as error:
            found[name] = type(error).__name__ + ": " + str(error)
layers = nn.ModuleDict({"used": nn.Linear(4, 4), "unused": nn.Linear(4, 4)})
with fake_device():
    for name, check in (("stays", require_device), ("no gradient", require_gradients)):
        try:
            check(layers)
        except AssertionError as error:
            found[name] = str(error)
        layers.to("cuda")
        require_device(layers)
        layers["used"](torch.zeros(1, 4, device="cuda")).sum().backward()
print("RESULT " + json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    try:
        environment = stub.environment()
    except stub.NoStub as error:
        pytest.skip(f"needs the stub of the CUDA runtime: {error}")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0][7:])


@pytest.mark.parametrize(
    ("case", "waits"),
    [
        ("clean", []),
        ("item", ["item"]),
        ("nonzero", ["shape from data (nonzero)"]),
        ("mask", ["shape from data (index)"]),
        ("tolist", ["tolist"]),
        ("to host", ["copy to host"]),
        ("equal", ["equal"]),
        ("bool", ["item"]),
        ("event", ["synchronise"]),
        ("lazy", ["copy to device"]),
    ],
)
def test_waits_of_the_host_are_found(found, case, waits):
    assert found[case] == waits


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("host tensor", "device"),
        ("type", "dtype"),
        ("stays", "used.weight stayed on cpu"),
        ("no gradient", "no gradient: unused.weight, unused.bias"),
    ],
)
def test_tensors_of_another_device_or_type_are_errors(found, case, message):
    assert message in found[case]
