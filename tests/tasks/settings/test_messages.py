"""Messages of jsonargparse become one line; those of an unknown shape stay as they are."""

import pytest
from odd_files.configs import config, read

from trunkline.tasks.settings.messages import Known, explained
from trunkline.tasks.settings.sources import SettingError

KNOWN = Known(lambda: ["trainer.max_epochs"], lambda: ["Classifier"], ["Head"])


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model.backbone.dept=50", "--model.backbone.dept: ResNet has no option dept (did you mean"),
        ("--data.num_workers=3", "ImageClassification has no option num_workers (did you mean workers?)"),
        ("--model.optimization.warmup=3", "no option optimization.warmup (did you mean optimization."),
        ("--model.optimizer.lrr=1", "--model.optimizer.lrr: SGD has no option lrr (did you mean lr?)"),
        ("--model.optimizer.lr=abc", "--model.optimizer.lr: expected a number, got 'abc'"),
        ("--trainer.max_epoch=3", "--trainer.max_epoch: there is no such option (did you mean"),
        ("--model.head.loss=x", "expected cross_entropy, binary_cross_entropy or null, got 'x'"),
        ("--model.backbone.norm=foo", "expected batch, frozen_batch, sync_batch, group or instance"),
        ("--model.backbone.strides=[a]", "expected a whole number, a list or null, got 'a'"),
        ("--model.lr_scheduler=StepLR", "model.lr_scheduler.step_size: it needs a value"),
        ("--model.backbone=FCN", "--model.backbone: FCN is a class of another kind than is needed here"),
        ("--trainer.callbacks+=EarlyStoping", "no class EarlyStoping is known (did you mean EarlyStopping?)"),
        ("--trainer.logger=CSVLoger", "no class CSVLoger is known (did you mean CSVLogger?)"),
        ("--trainer.max_epochs=3.5", "--trainer.max_epochs: expected a whole number or null, got '3.5'"),
        ("--trainr.max_epochs=3", "there is no such option (did you mean trainer.max_epochs?)"),
        ("--output.folder=x", "--output.folder: there is no such option"),
        ("--data.augment=[null]", "--data.augment: expected a mapping, got None"),
        ("--data.batch_size=null", "--data.batch_size: null is no value for it"),
        ("--trainer.log_every_n_steps=x", "expected a whole number or null, got 'x'"),
        ("--seed_everything=abc", "--seed_everything: expected true or false or a whole number, got 'abc'"),
        ("stray", "stray belongs to no option"),
        ("--ckpt_path", "argument --ckpt_path: expected one argument"),
        ("--config", "argument -c/--config: expected one argument"),
    ],
)  # fmt: skip
def test_one_line_names_the_option_and_what_is_wrong(tmp_path, option, said):
    config()(tmp_path)
    with pytest.raises(SettingError) as caught:
        read(tmp_path, option)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value) and "Namespace" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("{class_path: Classifier, init_args: {num_classes: 3}}", "{init_args: {num_classes: 3}}", "head"),
        ("{class_path: torch.optim.SGD, init_args: {lr: 0.1}}", "{}", "optimizer"),
    ],
)
def test_a_part_without_a_class_is_told_so(tmp_path, old, new, key):
    config(old, new)(tmp_path)
    with pytest.raises(
        SettingError, match=rf"line \d: model.{key}: it names no class; give one as class_path"
    ):
        read(tmp_path)


def test_data_without_a_class_are_told_so(tmp_path):
    (tmp_path / "config.yaml").write_text("data:\n  root: here\n")
    with pytest.raises(SettingError, match="data: it names no class; give one as class_path"):
        read(tmp_path)


def test_settings_below_the_name_of_a_command_are_told_where_they_belong(tmp_path):
    (tmp_path / "config.yaml").write_text("fit:\n  model: Classification\n")
    with pytest.raises(SettingError, match="settings are not below fit:, move them one level up"):
        read(tmp_path)


def test_a_message_of_an_unknown_shape_is_left_to_the_parser():
    assert explained('Parser key "model":\n  Something new\n  Given value: 3', KNOWN) is None
    assert explained("Several\nlines", KNOWN) is None
    assert str(explained("One line of whatever kind", KNOWN)) == "One line of whatever kind"


def test_the_whole_message_is_there_for_who_wants_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRUNKLINE_TRACEBACK", "1")
    config()(tmp_path)
    with pytest.raises(SystemExit):
        read(tmp_path, "--model.backbone.dept=50")


@pytest.mark.parametrize(
    "option",
    ["trainer.max_epochs", "model.init_args.lr_scheduler", "trainer.callbacks", "data.init_args.predict"],
)
def test_null_stays_allowed_where_the_type_has_it(tmp_path, option):
    config()(tmp_path)
    assert read(tmp_path, f"--{option.replace('.init_args', '')}=null")[option] is None
