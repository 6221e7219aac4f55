"""Runs of the examples: from a directory of their own, without PYTHONPATH, found by the config's folder."""

import json
import sys
from pathlib import Path

import pytest

from trunkline.cli import with_null_overrides, with_resolved_configs
from trunkline.tasks.command import TrunklineCLI

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.workers=0",
]
TINY = [
    *QUIET,
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.log_every_n_steps=1",
    "--data.batch_size=2",
]


class Runs:
    """Commands in this process, in a directory of their own."""

    def __init__(self, monkeypatch, folder):
        self.monkeypatch = monkeypatch
        self.folder = folder

    def __call__(self, *words):
        """Run a command and return the CLI object."""
        words = with_null_overrides(with_resolved_configs(list(words)))
        self.monkeypatch.setattr("sys.argv", ["trunkline", *words])
        return TrunklineCLI()

    def config(self, name):
        return str(EXAMPLES / f"{name}.yaml")

    def fit(self, name, data, *more):
        config = ["--config", self.config(name), f"--data.root={data}"]
        cli = self("fit", *config, f"--trainer.default_root_dir={self.folder / 'run'}", *TINY, *more)
        assert cli.trainer.global_step == 2
        return cli

    def predict(self, pictures, *more):
        """Predict by the checkpoint alone, and return the folder of the results."""
        out = self.folder / "out"
        words = [f"--ckpt_path={self.checkpoint()}", "--trust_checkpoint", f"--data.predict={pictures}"]
        words += [f"--output.folder={out}"]
        self("predict", *words, *QUIET, "--trainer.logger=false", "--output.pictures=false", *more)
        return out

    def checkpoint(self):
        (saved,) = self.folder.rglob("last.ckpt")
        return saved

    def metrics(self):
        (written,) = self.folder.rglob("val/metrics.json")
        return json.loads(written.read_text())["metrics"]


@pytest.fixture
def runs(monkeypatch, tmp_path):
    place = tmp_path / "elsewhere"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if Path(entry) != EXAMPLES])
    yield Runs(monkeypatch, tmp_path)
    forget_examples()


@pytest.fixture
def example(monkeypatch):
    """A function that imports an example by its name."""
    monkeypatch.syspath_prepend(EXAMPLES)
    yield lambda name: __import__(name)
    forget_examples()


@pytest.fixture
def learned():
    """A function that says whether gradients have reached every parameter of a module."""

    def all_moved(cli, module):
        (optimizer,) = cli.trainer.optimizers
        moments = [optimizer.state[parameter]["exp_avg"] for parameter in module.parameters()]
        return len(moments) > 0 and all(moment.any() for moment in moments)

    return all_moved


def forget_examples():
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "").parent == EXAMPLES:
            del sys.modules[name]
