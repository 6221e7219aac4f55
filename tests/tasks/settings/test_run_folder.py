"""The trainer gets what was written, and a run overwrites nothing."""

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from odd_files.configs import config, read

from trunkline.tasks.settings.run_folder import SaveRunConfig, check_counts, new_run_folder
from trunkline.tasks.settings.sources import SettingError

BATCHES = [f"limit_{name}_batches" for name in ("train", "val", "test", "predict")]
COUNTED = [*BATCHES, "overfit_batches", "val_check_interval"]


@pytest.mark.parametrize("value", [1, 1.0, 3, 0.5])
def test_one_batch_is_not_all_of_them(tmp_path, value):
    """As an option, in YAML, and in the JSON of a checkpoint's settings."""
    inline = json.dumps({"trainer": dict.fromkeys(COUNTED, value)})
    config("max_epochs: 1", "\n  ".join(f"{name}: {value}" for name in COUNTED))(tmp_path)
    in_yaml = read(tmp_path)
    config()(tmp_path)
    for found in (
        in_yaml,
        read(tmp_path, f"--config={inline}"),
        read(tmp_path, *(f"--trainer.{n}={value}" for n in COUNTED)),
    ):
        for name in COUNTED:
            given = found[f"trainer.{name}"]
            assert given == value and type(given) is type(value), name


def test_a_run_without_a_logger_has_a_new_folder(tmp_path):
    settings = {"default_root_dir": str(tmp_path), "logger": False}
    assert new_run_folder(settings) == str(tmp_path / "lightning_logs" / "version_0")
    (tmp_path / "lightning_logs" / "version_0").mkdir(parents=True)
    assert new_run_folder(settings) == str(tmp_path / "lightning_logs" / "version_1")
    for other in (
        {"logger": True},
        {"logger": None},
        {"fast_dev_run": True},
        {"default_root_dir": "s3://bucket"},
    ):
        assert new_run_folder(settings | other) is None


def test_a_config_of_the_user_is_not_overwritten(tmp_path):
    """A logger may have no folder of its own, and write into the one that the user works in."""
    (tmp_path / "config.yaml").write_text("mine")
    (tmp_path / "config_1.yaml").write_text("mine too")

    class Parser:
        def save(self, settings, path, overwrite, **_):
            assert not overwrite
            (tmp_path / "saved").write_text(path)

    trainer = SimpleNamespace(
        log_dir=str(tmp_path), is_global_zero=True, strategy=SimpleNamespace(broadcast=lambda value: value)
    )
    SaveRunConfig(Parser(), {}).setup(trainer, None, "fit")
    assert (tmp_path / "saved").read_text() == str(tmp_path / "config_2.yaml")
    assert (tmp_path / "config.yaml").read_text() == "mine"


@pytest.mark.parametrize("name", ["accumulate_grad_batches", "check_val_every_n_epoch"])
def test_counts_below_one_are_refused(name):
    check_counts({name: 1})
    check_counts({name: None})
    with pytest.raises(SettingError, match=f"trainer.{name}: expected a whole number from 1 on, got 0"):
        check_counts({name: 0})


def claimed(folder, **settings):
    """What two runs get that begin at the same moment: both have looked for a number before either writes."""
    from pytorch_lightning import Trainer

    from trunkline.tasks.settings.run_folder import claim_folders

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    runs = []
    for _ in range(2):
        own = new_run_folder({"default_root_dir": str(folder), **settings})
        task = SimpleNamespace(run_folder=None if own is None else Path(own))
        runs.append((Trainer(default_root_dir=own or folder, **quiet, **settings), task))
    for trainer, task in runs:
        claim_folders(trainer, task)
    return runs


@pytest.mark.parametrize("logger", [True, False])
def test_two_runs_that_begin_at_once_get_folders_of_their_own(tmp_path, logger):
    runs = claimed(tmp_path, logger=logger)
    folders = [Path(trainer.log_dir if logger else task.run_folder) for trainer, task in runs]
    assert folders == [tmp_path / "lightning_logs" / f"version_{number}" for number in (0, 1)]
    assert all(folder.is_dir() for folder in folders)
    assert logger or [trainer.default_root_dir for trainer, _ in runs] == [str(each) for each in folders]


def test_a_folder_that_cannot_be_written_to_is_said_before_the_run(tmp_path, monkeypatch):
    def read_only(self, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SettingError, match=r"trainer.logger: .*cannot be written to .*default_root_dir"):
        claimed(tmp_path / "file", logger=True)
    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(SettingError, match="Read-only file system"):
        claimed(tmp_path, logger=False)
