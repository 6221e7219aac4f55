"""Shipped configs on CUDA tensors without data: all on the device, in the right types, without waits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trunkline.cli import shipped_configs

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from fake_cuda import stub  # noqa: E402

CHANNELS_LAST = ["--model.channels_last=true"]
CONTIGUOUS = ["--model.channels_last=false"]
QUICK = [
    ["classification/resnet20_cifar10", "fit", "16-mixed", CHANNELS_LAST],
    ["detection/faster_rcnn_r18_fpn_demo", "fit", "bf16-mixed", CHANNELS_LAST],
    ["detection/faster_rcnn_r18_fpn_demo", "predict", "bf16-true", CONTIGUOUS],
]


def problems(cases):
    """Run cases in one process with the stub of the CUDA runtime; return what is wrong, by case."""
    try:
        environment = stub.environment()
    except stub.NoStub as error:
        pytest.skip(f"needs the stub of the CUDA runtime: {error}")
    command = [sys.executable, str(ROOT / "tests" / "gpu" / "run_config.py"), json.dumps(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    found = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(found) == len(cases), done.stderr[-3000:]
    return [f"{' '.join(map(str, case))}: {what}" for case, wrong in found for what in wrong]


def test_quick_configs_run_on_the_device_without_waits():
    assert problems(QUICK) == []


@pytest.mark.slow
@pytest.mark.parametrize("config", shipped_configs())
def test_every_config_runs_on_the_device_without_waits(config):
    cases = [
        [config, "fit", "bf16-mixed", CHANNELS_LAST],
        [config, "fit", "16-mixed", CONTIGUOUS],
        [config, "predict", "32-true", CHANNELS_LAST],
        [config, "predict", "bf16-true", CONTIGUOUS],
    ]
    assert problems(cases) == []
