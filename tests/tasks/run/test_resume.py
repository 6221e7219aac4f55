"""Going on from a checkpoint by the command: the whole experiment, and what is changed on purpose."""

import json
import logging

import pytest
import torch
from pytorch_lightning.callbacks import LearningRateMonitor

from trunkline.cli import with_null_overrides, with_resolved_configs
from trunkline.tasks.command import TrunklineCLI
from trunkline.tasks.run.changes import changes
from trunkline.tasks.run.checkpoints import CheckpointError
from trunkline.tasks.run.resume import check_changes, run_folders, with_found_checkpoint

QUIET = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


def command(monkeypatch, *words):
    """Run the command in this process and return the CLI object."""
    words = with_null_overrides(with_resolved_configs(list(words)))
    monkeypatch.setattr("sys.argv", ["trunkline", *words])
    return TrunklineCLI()


def begin(monkeypatch, root, folder):
    """Two epochs of three steps, with settings of the trainer that its defaults do not have."""
    return command(
        monkeypatch, "fit", "--config", "classification/resnet50_imagenet", f"--data.root={root}",
        "--data.workers=0", "--data.batch_size=2", "--data.size=32", "--model.backbone.depth=18",
        "--model.backbone.weights=null", "--model.backbone.width=4", "--model.optimizer.lr=0.01",
        "--trainer.accelerator=cpu", "--trainer.max_epochs=2", "--trainer.gradient_clip_val=0.5",
        "--trainer.num_sanity_val_steps=0", f"--trainer.default_root_dir={folder}",
        "--trainer.callbacks+=pytorch_lightning.callbacks.EMAWeightAveraging", *QUIET,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, class_folders):
    """The last checkpoint of a run of two epochs, and its folder."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as monkeypatch:
        begin(monkeypatch, class_folders, folder)
    (last,) = folder.rglob("last.ckpt")
    return last, folder


def test_resume_goes_on_with_the_trainer_of_the_run(monkeypatch, run, tmp_path, caplog):
    caplog.set_level(logging.INFO, "trunkline")
    last, folder = run
    elsewhere = f"--trainer.default_root_dir={tmp_path}"
    cli = command(monkeypatch, "fit", f"--ckpt_path={last}", "--trainer.max_epochs=3", elsewhere)
    trainer = cli.trainer
    assert trainer.current_epoch == 3 and trainer.global_step == 9
    assert trainer.gradient_clip_val == 0.5 and trainer.num_sanity_val_steps == 0
    kinds = [type(callback).__name__ for callback in trainer.callbacks]
    assert "EMAWeightAveraging" in kinds and "ModelCheckpoint" in kinds
    assert "changed from the checkpoint: trainer.max_epochs: 2 -> 3" in caplog.text
    assert f'trainer.default_root_dir: "{folder}" -> "{tmp_path}"' in caplog.text
    assert caplog.text.count("changed from the checkpoint") == 2


def test_resume_of_a_finished_run_says_so(monkeypatch, run, tmp_path, caplog):
    last, _ = run
    cli = command(monkeypatch, "fit", f"--ckpt_path={last}", f"--trainer.default_root_dir={tmp_path}")
    assert cli.trainer.global_step == 6
    assert "nothing is left to train: the run has done 2 of trainer.max_epochs 2" in caplog.text


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--model.optimizer.lr=0.5", "model.optimizer.lr: 0.5 is asked for, the checkpoint has 0.01"),
        ("--model.optimizer=torch.optim.AdamW", 'model.optimizer: "torch.optim.AdamW" is asked for, .*SGD'),
        ("--model.lr_scheduler.gamma=0.5", "lr_scheduler.gamma: 0.5 is asked for, the checkpoint has 0.1"),
        ("--model.optimization.interval=step", 'optimization.interval: "step" is asked for, .* "epoch"'),
        ("--model.backbone.frozen_stages=2", "backbone.frozen_stages: 2 is asked for, the checkpoint has 0"),
        ("--model.backbone.norm=group", 'backbone.norm: "group" is asked for, the checkpoint has "batch"'),
        ("--model.backbone.norm=frozen_batch", 'model.backbone.norm: "frozen_batch" is asked for'),
        ("--model.weights=other.pth", 'model.weights: "other.pth" is asked for, the checkpoint has null'),
    ],
)  # fmt: skip
def test_settings_that_would_have_no_effect_are_refused(monkeypatch, run, tmp_path, option, expected):
    last, _ = run
    root = f"--trainer.default_root_dir={tmp_path}"
    with pytest.raises(CheckpointError, match=expected) as raised:
        command(monkeypatch, "fit", f"--ckpt_path={last}", root, "--trainer.max_epochs=3", option)
    assert not list(tmp_path.iterdir()), "the run folder is made although nothing will run"
    assert "--model.weights FILE in place of --ckpt_path FILE" in str(raised.value)


def test_weights_start_anew_where_a_resume_is_refused(monkeypatch, run, class_folders, tmp_path):
    last, _ = run
    cli = command(
        monkeypatch, "fit", "--config", "classification/resnet50_imagenet", f"--data.root={class_folders}",
        "--data.workers=0", "--data.batch_size=2", "--data.size=32", "--model.backbone.depth=18",
        f"--model.weights={last}", "--model.backbone.width=4", "--model.optimizer=torch.optim.AdamW",
        "--model.optimizer.lr=0.001", "--trainer.accelerator=cpu", "--trainer.max_epochs=1",
        f"--trainer.default_root_dir={tmp_path}", *QUIET,
    )  # fmt: skip
    assert cli.trainer.global_step == 3


def test_other_commands_take_model_and_data_only(monkeypatch, run, tmp_path):
    last, _ = run
    cli = command(
        monkeypatch, "validate", f"--ckpt_path={last}", "--trainer.accelerator=cpu", "--trainer.logger=false",
        f"--trainer.default_root_dir={tmp_path}", *QUIET,
    )  # fmt: skip
    assert cli.trainer.gradient_clip_val is None
    assert not any(isinstance(callback, LearningRateMonitor) for callback in cli.trainer.callbacks)
    metrics = json.loads((tmp_path / "lightning_logs" / "version_0" / "val" / "metrics.json").read_text())
    assert metrics["metrics"]["accuracy"] == cli.model.result.metrics["accuracy"]


@pytest.mark.parametrize("word", ["last", "best"])
def test_words_find_checkpoints_of_the_runs(monkeypatch, run, word):
    last, folder = run
    words = ["validate", "--ckpt_path", word, f"--trainer.default_root_dir={folder}"]
    (best,) = folder.rglob("best.ckpt")
    found = with_found_checkpoint(words)
    assert found == ["validate", "--ckpt_path", str(last if word == "last" else best), words[-1]]
    assert with_found_checkpoint(["fit", f"--ckpt_path={word}", words[-1]])[1] == f"--ckpt_path={found[2]}"


def test_checkpoint_that_a_config_names_is_found_too(run, tmp_path):
    last, folder = run
    config = tmp_path / "config.yaml"
    config.write_text(f"ckpt_path: last\ntrainer:\n  default_root_dir: {folder}\n")
    words = ["fit", f"--config={config}"]
    assert with_found_checkpoint(words) == [*words, f"--ckpt_path={last}"]
    assert with_found_checkpoint([*words, "--config={ckpt_path: null}"])[2:] == ["--config={ckpt_path: null}"]
    assert with_found_checkpoint([*words, "--ckpt_path=a.ckpt"]) == [*words, "--ckpt_path=a.ckpt"]


def test_new_run_does_not_pass_for_a_resumed_one(monkeypatch, tmp_path, class_folders):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="--ckpt_path last: no checkpoint that can be read in runs"):
        command(
            monkeypatch, "fit", "--config", "classification/resnet50_imagenet", "--ckpt_path", "last",
            f"--data.root={class_folders}",
        )  # fmt: skip


def test_folders_of_runs_come_from_options_and_configs(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        "trainer:\n  default_root_dir: out\n"
        "  logger:\n    class_path: CSVLogger\n    init_args: {save_dir: logs}\n"
        "  callbacks:\n    - class_path: ModelCheckpoint\n      init_args: {dirpath: kept}\n"
    )
    named = [str(folder) for folder in run_folders(["fit", "--config", str(config)])]
    assert named == ["out", "logs", "kept"]
    given = run_folders(["fit", f"--config={config}", "--trainer.default_root_dir", "other"])
    assert str(given[0]) == "other"
    inline = json.dumps({"trainer": {"default_root_dir": "inline"}})
    assert [str(folder) for folder in run_folders(["fit", f"--config={inline}"])] == ["inline"]
    assert [str(folder) for folder in run_folders(["fit", "--config", "not there.yaml"])] == ["runs"]


def test_checkpoint_without_trainer_settings_is_told(monkeypatch, run, tmp_path, caplog):
    last, _ = run
    content = torch.load(last, weights_only=True)
    del content["run_settings"]
    older = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    older.parent.mkdir(parents=True)
    torch.save(content, older)
    (tmp_path / "version_0" / "config.yaml").write_text("trainer: {}\n")
    command(
        monkeypatch, "fit", f"--ckpt_path={older}", "--trainer.max_epochs=2", "--trainer.accelerator=cpu",
        f"--trainer.default_root_dir={tmp_path}", *QUIET,
    )  # fmt: skip
    assert "does not hold the trainer settings of its run" in caplog.text
    assert f"add --config {tmp_path / 'version_0' / 'config.yaml'} to go on" in caplog.text


def test_changes_are_found_by_dotted_key():
    before = {
        "model": {
            "class_path": "a.Task",
            "init_args": {"x": 1, "same": [1, 2], "_instantiator": "i", "gone": 1},
        },
        "trainer": {"callbacks": [{"class_path": "p.A", "init_args": {"n": 1}}], "max_epochs": 2},
    }
    now = {
        "model": {
            "class_path": "b.Task",
            "init_args": {"x": 2, "same": (1, 2), "_instantiator": "j", "new": 1},
        },
        "trainer": {"callbacks": [{"class_path": "q.A", "init_args": {"n": 1}}], "max_epochs": 2.0},
    }
    assert changes(before, now) == {"model.x": (1, 2)}
    now["trainer"]["callbacks"][0]["init_args"]["n"] = 2
    now["model"]["class_path"] = "b.Other"
    assert set(changes(before, now)) == {"model", "trainer.callbacks"}


def test_pretrained_weights_may_be_left_out_at_resume(caplog):
    caplog.set_level(logging.INFO, "trunkline")
    check_changes({"model.backbone.weights": ("IMAGENET1K_V1", None)})
    assert not caplog.text
