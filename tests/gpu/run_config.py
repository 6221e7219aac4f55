"""Runs stages of configs on a device without data, for test_configs.py: prints one JSON line for each."""

import json
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
warnings.filterwarnings("ignore")

from fake_cuda.allowed import forbidden  # noqa: E402
from fake_cuda.runs import fit_steps, predict_steps  # noqa: E402
from fake_cuda.tasks import built  # noqa: E402

SIZES = {2: [(128, 160), (96, 128)], 3: [(64, 64, 64), (32, 64, 64)]}


def run(config, stage, precision, words):
    """Return what is wrong: the error, or the waits that are not allowed."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            cli = built(config, Path(folder), [f"--trainer.precision={precision}", *words])
            canvases = SIZES[len(cli.model.backbone.levels[0].stride)]
            steps = (fit_steps if stage == "fit" else predict_steps)(cli, canvases)
        except Exception as error:
            return [f"{type(error).__name__}: {str(error)[:600]}"]
        done = {step.stage for step in steps}
        expected = {"train", "validate"} if stage == "fit" else {"predict"}
        return [f"no step of {name}" for name in expected - done] + list(
            forbidden(steps, len(cli.model.branches))
        )


if __name__ == "__main__":
    for case in json.loads(sys.argv[1]):
        print("RESULT " + json.dumps([case, run(*case)]), flush=True)
