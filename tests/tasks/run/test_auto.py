"""``--resume auto``: the newest complete checkpoint of this experiment, or a new run."""

import logging
import os
import shutil
import sys

import pytest
import torch

from trunkline.cli import with_null_overrides, with_resolved_configs
from trunkline.tasks.command import TrunklineCLI
from trunkline.tasks.run.checkpoints import CheckpointError
from trunkline.tasks.settings.sources import SettingError

pytestmark = pytest.mark.slow


def command(monkeypatch, root, folder, *words):
    """Two epochs of three steps of a tiny classifier."""
    words = with_null_overrides(with_resolved_configs([
        "fit", "--config", "classification/resnet50_imagenet", f"--data.root={root}",
        "--data.workers=0", "--data.batch_size=2", "--data.size=32", "--model.backbone.depth=18",
        "--model.backbone.weights=null", "--model.backbone.width=4", "--model.optimizer.lr=0.01",
        "--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.max_epochs=2",
        "--trainer.num_sanity_val_steps=0",
        "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
        f"--trainer.default_root_dir={folder}", "--trainer.callbacks=null", *words,
    ]))  # fmt: skip
    monkeypatch.setattr("sys.argv", ["trunkline", *words])
    return TrunklineCLI()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, class_folders):
    """The folder of a run that is done."""
    folder = tmp_path_factory.mktemp("runs") / "runs"
    with pytest.MonkeyPatch.context() as monkeypatch:
        command(monkeypatch, class_folders, folder, "--resume", "auto")
    return folder


@pytest.fixture
def runs(finished, tmp_path):
    """A copy of that folder, in the same place as seen by the command."""
    return shutil.copytree(finished, tmp_path / "runs")


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.INFO, "trunkline")
    return caplog


def last_of(runs):
    return runs / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"


def test_new_run_of_a_new_experiment_and_end_of_a_finished_one(monkeypatch, class_folders, finished, told):
    assert torch.load(last_of(finished), weights_only=True)["global_step"] == 6
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, class_folders, finished, "--resume", "auto")
    assert ended.value.code == 0
    assert "--resume auto: this experiment is finished: 2 epochs of 2 are done" in told.text


def test_longer_run_goes_on_and_other_processes_take_the_same_file(monkeypatch, class_folders, runs, told):
    cli = command(monkeypatch, class_folders, runs, "--resume=auto", "--trainer.max_epochs=3")
    assert cli.trainer.global_step == 9 and cli.trainer.ckpt_path == str(last_of(runs))
    assert f"--resume auto: {last_of(runs)} (step 6)" in told.text
    assert sys.argv[-1] == f"--resume={last_of(runs)}" and "--resume=auto" not in sys.argv
    with pytest.raises(SystemExit):  # of the checkpoint that the resumed run has written
        command(monkeypatch, class_folders, runs, "--resume=auto", "--trainer.max_epochs=3")


def test_another_experiment_is_named_and_left_alone(monkeypatch, class_folders, runs, told):
    words = "--model.optimizer.momentum=0.5", "--data.batch_size=3", "--trainer.max_epochs=1"
    cli = command(monkeypatch, class_folders, runs, "--resume=auto", *words)
    assert cli.trainer.ckpt_path is None and cli.trainer.global_step == 2
    assert f"{last_of(runs)} belongs to another experiment, which differs in " in told.text
    for key in ("model.optimizer.momentum", "data.batch_size", "trainer.max_epochs"):
        assert key in told.text, "the checkpoint is beyond the end of this run"
    assert f"no checkpoint of this experiment in {runs}: a new run begins" in told.text


def test_what_a_message_advises_after_a_fault_goes_on(monkeypatch, class_folders, runs, told):
    words = "--data.on_bad_image=skip", "--data.on_changed_data=accept", "--model.skip_nonfinite_steps=5"
    cli = command(monkeypatch, class_folders, runs, "--resume=auto", "--trainer.max_epochs=3", *words)
    assert cli.trainer.ckpt_path == str(last_of(runs)) and "another experiment" not in told.text
    assert cli.datamodule.on_bad_image == "skip" and cli.model.skip_nonfinite_steps == 5


def test_times_in_the_future_do_not_hide_what_was_written_since(monkeypatch, class_folders, runs, told):
    """The clock was set back: the older checkpoint has the later time."""
    early = last_of(runs).with_name("early.ckpt")
    content = torch.load(last_of(runs), weights_only=True)
    torch.save(content | {"global_step": 3}, early)
    os.utime(early, (4_000_000_000,) * 2)
    command(monkeypatch, class_folders, runs, "--resume=auto", "--trainer.max_epochs=3")
    assert f"--resume auto: {last_of(runs)} (step 6)" in told.text
    os.utime(last_of(runs), (4_000_000_000,) * 2)
    with pytest.raises(SystemExit):
        command(monkeypatch, class_folders, runs, "--resume=auto", "--trainer.max_epochs=3")
    assert "finished: 3 epochs of 3 are done" in told.text


def test_truncated_and_damaged_files_are_named_and_skipped(monkeypatch, class_folders, runs, told):
    cut, damaged = (last_of(runs).with_name(f"{name}.ckpt") for name in ("cut", "damaged"))
    content = last_of(runs).read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    middle = len(content) // 2
    damaged.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    for number, path in enumerate((cut, damaged)):
        os.utime(path, (4_000_000_000 + number,) * 2)
    with pytest.raises(SystemExit):
        command(monkeypatch, class_folders, runs, "--resume=auto")
    assert f"checkpoint {cut} cannot be read as a checkpoint (it is cut short or damaged)" in told.text
    assert f"checkpoint {damaged} cannot be read as a checkpoint (it is damaged" in told.text


def test_bad_values_are_errors(monkeypatch, class_folders, tmp_path, runs):
    def fails(error, message, *words):
        with pytest.raises(error, match=message):
            command(monkeypatch, class_folders, tmp_path / "none", *words)
        assert not (tmp_path / "none").exists()

    last = last_of(runs)
    fails(CheckpointError, "--resume sometimes: no such file; give auto", "--resume=sometimes")
    fails(SettingError, "leave out --ckpt_path", "--resume=auto", f"--ckpt_path={last}")
    fails(CheckpointError, "differs in data.batch_size", f"--resume={last}", "--data.batch_size=1")
    fails(ValueError, "--save_every 10 minutes: expected a number", "--save_every=10 minutes")
    with pytest.raises(ValueError, match="--save_every needs a checkpoint to write"):
        command(
            monkeypatch, class_folders, tmp_path, "--save_every=1", "--trainer.enable_checkpointing=false"
        )
