"""What a stranger's checkpoint may name: classes of ours and of libraries, and nothing that runs its code."""

import copy
import logging
import sys
from pathlib import Path

import pytest
import torch
from jsonargparse import _common
from pytorch_lightning.callbacks import ModelCheckpoint

from trunkline.backbones.cifar import CifarResNet
from trunkline.cli import with_null_overrides
from trunkline.data.segmentation import ImageSegmentation
from trunkline.data.shared.trusted import UntrustedClassError, imports_as_before, is_trusted, names_of
from trunkline.tasks.classification import Classification
from trunkline.tasks.command import TrunklineCLI
from trunkline.tasks.run.checkpoints import CheckpointError
from trunkline.tasks.run.kept_files import check_kept_files
from trunkline.tasks.run.resume import stored_settings, with_checkpoint_settings
from trunkline.tasks.settings.trust import trust

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "classification.ckpt"


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module in the working directory that makes a folder when it is imported, and classes in it."""
    (tmp_path / "evil_parts.py").write_text(
        "import os\n\nfrom trunkline.backbones.cifar import CifarResNet\n\n"
        f"os.mkdir({str(tmp_path / 'made')!r})\n\n\nclass Trunk(CifarResNet):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path / "made"
    sys.modules.pop("evil_parts", None)


@pytest.fixture
def changed(tmp_path):
    """A function that writes a checkpoint of a run with some settings replaced, and returns its path."""
    content = torch.load(CHECKPOINT, weights_only=True)

    def write(change):
        new = copy.deepcopy(content)
        change(new)
        torch.save(new, tmp_path / "a.ckpt")
        return str(tmp_path / "a.ckpt")

    return write


def command(monkeypatch, *words):
    words = with_null_overrides([str(word) for word in words])
    monkeypatch.setattr("sys.argv", ["trunkline", *words])
    return TrunklineCLI()


def trunk(path):
    return lambda content: content["hyper_parameters"]["backbone"].update(class_path=path)


def begin(*words):
    """What the command does with the classes that are named, before anything is built."""
    words = [str(word) for word in words]
    with imports_as_before():
        trust(words, with_checkpoint_settings(words))


def refused(evil, path, named, words=("predict", "fit")):
    for word in words:
        with pytest.raises(UntrustedClassError) as raised:
            begin(word, f"--ckpt_path={path}")
        assert all(each in str(raised.value) for each in (named, "--trust_checkpoint", "--config"))
    assert not evil.exists()


@pytest.mark.parametrize(
    "path",
    [
        "evil_parts.Trunk",
        "os.system",
        "subprocess.Popen",
        "builtins.exec",
        "torch.hub.load",
        "trunkline.cli.main",
    ],
)
def test_a_checkpoint_names_no_class_of_elsewhere(evil, changed, path):
    refused(evil, changed(trunk(path)), f"model.init_args.backbone.class_path: {path}")


def test_nor_a_task_a_data_module_a_transform_or_a_callback(evil, changed):
    task = changed(lambda content: content["hyper_parameters"].update(_class_path="evil_parts.Task"))
    refused(evil, task, "model.class_path: evil_parts.Task")
    key = "datamodule_hyper_parameters"
    data = changed(lambda content: content[key].update(_class_path="evil_parts.Data"))
    refused(evil, data, "data.class_path: evil_parts.Data")
    nested = [{"OneOf": {"transforms": [{"evil_parts.Fog": {}}]}}]
    haze = changed(lambda content: content[key].update(augment=nested))
    refused(evil, haze, "data.init_args.augment[0].OneOf.transforms[0]: evil_parts.Fog")
    for name in ("evil_parts.Callback", "pytorch_lightning.callbacks.LambdaCallback"):
        settings = {"trainer": {"callbacks": [{"class_path": name, "init_args": {}}]}}
        path = changed(lambda content, settings=settings: content.update(run_settings=settings))
        refused(evil, path, f"trainer.callbacks[0].class_path: {name}", ["fit"])
    loggers = {"trainer": {"logger": {"class_path": "pytorch_lightning.loggers.WandbLogger"}}}
    path = changed(lambda content: content.update(run_settings=loggers))
    refused(evil, path, "trainer.logger.class_path: pytorch_lightning.loggers.WandbLogger", ["fit"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "function", ["os.system", "evil_parts.Trunk", "torch.optim.os.system", "torch.hub.load"]
)
def test_text_that_names_a_function_imports_nothing(monkeypatch, evil, changed, function):
    """A head, a neck or an optimiser may be any function by its path; these are no ``class_path``."""
    path = changed(lambda content: content["hyper_parameters"].update(optimizer=function))
    with pytest.raises((SystemExit, ValueError)):
        command(monkeypatch, "predict", f"--ckpt_path={path}", "--data.predict=x.png")
    assert not evil.exists()


def test_what_the_user_names_is_imported(evil, changed, tmp_path):
    path = f"--ckpt_path={changed(trunk('evil_parts.Trunk'))}"
    (tmp_path / "own.yaml").write_text("model: {init_args: {backbone: {class_path: evil_parts.Trunk}}}\n")
    for words in (["--trust_checkpoint"], ["--config", "own.yaml"], ["--model.backbone=evil_parts.Trunk"]):
        begin("predict", path, *words)
        assert evil.is_dir()
        evil.rmdir()
        sys.modules.pop("evil_parts")


@pytest.mark.slow
def test_a_command_runs_with_what_the_user_trusts(monkeypatch, evil, changed, class_folders, tmp_path):
    path = changed(trunk("evil_parts.Trunk"))
    words = ["validate", f"--ckpt_path={path}", f"--data.root={class_folders}", "--trainer.accelerator=cpu"]
    words += ["--trainer.logger=false", "--data.workers=0", f"--trainer.default_root_dir={tmp_path}"]
    before = dict(_common.parsing_settings)
    cli = command(monkeypatch, *words, "--trust_checkpoint", "--trainer.limit_val_batches=1")
    assert type(cli.model.trunk).__name__ == "Trunk" and evil.is_dir()
    assert _common.parsing_settings == before  # other parsers of the process are as they were


def test_python_takes_classes_that_the_program_has_imported(monkeypatch, evil, changed):
    path = changed(trunk("evil_parts.Trunk"))
    with pytest.raises(UntrustedClassError, match="(?s)evil_parts.Trunk.*weights_only=False") as raised:
        Classification.load_from_checkpoint(path)
    assert not evil.exists() and "import their modules before" in str(raised.value)
    sys.path.append(str(evil.parent))
    import evil_parts

    assert type(Classification.load_from_checkpoint(path).trunk) is evil_parts.Trunk
    plain = changed(lambda content: None)
    assert type(Classification.load_from_checkpoint(plain).trunk) is CifarResNet


def test_a_data_module_from_a_checkpoint_imports_nothing_either(evil, changed):
    stored = {
        "_class_path": "trunkline.data.segmentation.ImageSegmentation",
        "augment": [{"evil_parts.Fog": {}}],
    }
    path = changed(lambda content: content.update(datamodule_hyper_parameters=stored))
    with pytest.raises(UntrustedClassError, match=r"augment\[0\]: evil_parts\.Fog"):
        ImageSegmentation.load_from_checkpoint(path)
    assert not evil.exists()


def test_what_counts_as_named():
    assert is_trusted("torch.optim.SGD") and is_trusted("trunkline.heads.UNet")
    assert is_trusted("pytorch_lightning.callbacks.ModelCheckpoint")
    for path in ("torch.load", "torch.hub.load", "os.system", "trunkline.cli.main", "torchx.nn.Linear"):
        assert not is_trusted(path)
    assert is_trusted("my_lab.losses.Dice", names_of("my_lab.heads.RetinaNet"))
    logger = "pytorch_lightning.loggers.WandbLogger"  # naming a class of a library trusts that class alone
    assert is_trusted(logger, names_of(logger))
    assert not is_trusted("pytorch_lightning.loggers.MLFlowLogger", names_of(logger))


def test_consent_and_options_of_the_command_are_not_taken_from_a_checkpoint(changed):
    def change(content):
        content["datamodule_hyper_parameters"]["allow_outside_root"] = True
        content["run_settings"] = {"ckpt_path": "b.ckpt", "weights_only": False, "trainer": {"max_epochs": 1}}

    settings = stored_settings(torch.load(changed(change), weights_only=True))
    assert set(settings) == {"model", "data", "trainer"}
    assert "allow_outside_root" not in settings["data"]["init_args"]


@pytest.mark.parametrize(
    "path", ["/runs/a/../../home", "/home/me/thesis.tex", "s3://bucket/x.ckpt", "/runs/a/../b.ckpt", 5]
)
@pytest.mark.parametrize("place", ["best_k_models", "kth_best_model_path", "best_model_path"])
def test_files_to_delete_are_checkpoints_of_the_run(path, place):
    state = {"best_k_models": {}, "best_model_path": "/runs/a/best.ckpt", "dirpath": "/runs/a"}
    check_kept_files(state, "/runs/a")
    state[place] = {path: 1.0} if place == "best_k_models" else path
    with pytest.raises(CheckpointError, match="which is no checkpoint of a run"):
        check_kept_files(state, "/runs/a")
    check_kept_files({"best_model_path": "s3://bucket/run/best.ckpt"}, "s3://bucket/run")


def test_lightning_would_delete_them(tmp_path):
    """The reason of the check: a file outside of the run's folder counts as one inside."""
    callback = ModelCheckpoint(tmp_path / "run")
    trainer = type("Trainer", (), {"ckpt_path": None})()
    assert callback._should_remove_checkpoint(
        trainer, f"{tmp_path}/run/../thesis", f"{tmp_path}/run/new.ckpt"
    )


def test_limits_of_imports_end_with_the_command():
    logging.getLogger("trunkline").debug("as before")
    before = dict(_common.parsing_settings)
    with imports_as_before():
        _common.parsing_settings["import_paths_enforced"] = True
    assert _common.parsing_settings == before
