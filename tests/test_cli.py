"""The command: help, shipped configs, samples, and the errors a person meets first."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trunkline import __version__
from trunkline.cli import main, resolve_config, shipped_configs, with_resolved_configs


def test_help_lists_every_command(capsys):
    main(["--help"])
    text = capsys.readouterr().out
    for command in ("fit", "validate", "test", "predict", "configs", "sample"):
        assert f"\n  {command} " in text


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out.strip() == f"trunkline {__version__}"


def test_unknown_command_suggests_the_nearest():
    with pytest.raises(SystemExit, match="did you mean 'predict'"):
        main(["pedict"])


def test_configs_lists_each_with_its_first_comment_line(capsys):
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(shipped_configs()) >= 3
    assert any(line.startswith("detection/faster_rcnn_r50_fpn_coco ") and "COCO" in line for line in lines)


def test_a_config_is_a_file_or_a_shipped_name(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("{}")
    assert resolve_config(str(own)) == str(own)
    assert Path(resolve_config("detection/faster_rcnn_r18_fpn_demo")).is_file()
    with pytest.raises(SystemExit, match="did you mean 'detection/faster_rcnn_r18_fpn_demo'"):
        resolve_config("detection/faster_rcnn_r18_fpn_dem")


def test_config_names_are_resolved_wherever_they_stand():
    name = "detection/faster_rcnn_r50_fpn_coco"
    file = resolve_config(name)
    assert with_resolved_configs(["fit", "--config", name]) == ["fit", "--config", file]
    assert with_resolved_configs(["fit", f"--config={name}", "--x", name]) == [
        "fit",
        f"--config={file}",
        "--x",
        name,
    ]
    assert with_resolved_configs(["fit", "-c", name]) == ["fit", "-c", file]


def test_sample_writes_class_folders(tmp_path):
    main(["sample", "classification", str(tmp_path / "d"), "--train", "6", "--val", "3"])
    found = sorted(
        path.relative_to(tmp_path / "d").parts[:2] for path in (tmp_path / "d").rglob("*.[jp][pn]g")
    )
    names = ("circle", "rectangle", "triangle")
    assert found == [("train", n) for n in names for _ in range(2)] + [("val", n) for n in names]


def test_sample_writes_pictures_with_masks(tmp_path):
    main(["sample", "segmentation", str(tmp_path / "d"), "--train", "3", "--val", "2", "--seed", "4"])
    for split, number in (("train", 3), ("val", 2)):
        images, masks = (sorted((tmp_path / "d" / kind / split).iterdir()) for kind in ("images", "masks"))
        assert [path.stem for path in images] == [path.stem for path in masks] and len(masks) == number
    assert (tmp_path / "d/classes.csv").read_text().startswith("id,name,r,g,b\n0,background,0,0,0\n")


def test_sample_writes_a_dataset_and_refuses_to_overwrite(tmp_path, capsys):
    main(["sample", "detection", str(tmp_path / "d"), "--train", "3", "--val", "2"])
    assert str(tmp_path / "d") in capsys.readouterr().out
    for split, number in (("train", 3), ("val", 2)):
        content = json.loads((tmp_path / "d" / "annotations" / f"instances_{split}.json").read_text())
        assert len(content["images"]) == number == len(list((tmp_path / "d" / "images" / split).iterdir()))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose")
    with pytest.raises(SystemExit, match="mine"):
        main(["sample", "detection", str(tmp_path / "mine"), "--train", "1", "--val", "1"])
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "do not lose"


@pytest.fixture()
def run(monkeypatch, capsys):
    """Run the command in this process; return its exit status and what it printed."""

    def run(*words):
        monkeypatch.setattr("sys.argv", ["trunkline"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(list(words))
        return stopped.value.code, capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("override", "named"),
    [
        (
            ["--model.backbone.dept", "50"],
            "--model.backbone.dept: ResNet has no option dept (did you mean depth?)",
        ),
        (["--model.head.rpn.nms_treshold", "0.5"], "(did you mean rpn.nms_threshold?)"),
        (
            ["--data.batch_sise", "2"],
            "--data.batch_sise: CocoDetection has no option batch_sise (did you mean",
        ),
        (["--model.backbone.depth", "deep"], "--model.backbone.depth: expected a whole number, got 'deep'"),
        (
            ["--trainer.max_epoch_s", "2"],
            "--trainer.max_epoch_s: there is no such option (did you mean trainer.",
        ),
    ],
)
def test_a_misspelt_key_or_wrong_type_is_an_error_that_names_it(run, override, named):
    code, printed = run("fit", "--config", "detection/faster_rcnn_r18_fpn_demo", *override)
    assert code.startswith("\ntrunkline: error: ") and named in code
    assert code.count("\n") == 1 and printed.err == ""


def test_print_config_is_complete_and_reads_back(run, tmp_path):
    name = "detection/faster_rcnn_r18_fpn_demo"
    code, first = run("fit", "--config", name, "--model.backbone.depth=34", "--print_config")
    assert code in (0, None), first.err
    for key in ("depth: 34", "smooth_l1_beta", "nms_threshold", "canvases", "warmup_steps", "max_epochs"):
        assert key in first.out, key
    (tmp_path / "printed.yaml").write_text(first.out)
    _, again = run("fit", "--config", str(tmp_path / "printed.yaml"), "--print_config")
    assert again.out == first.out, again.err


def test_a_wrong_checkpoint_is_named(run, tmp_path):
    code, _ = run("predict", "--ckpt_path", "nowhere.ckpt", "--data.predict", str(tmp_path))
    assert "--ckpt_path nowhere.ckpt: no such file" in str(code)
    (tmp_path / "page.ckpt").write_text("<html>404</html>")
    code, _ = run("validate", f"--ckpt_path={tmp_path / 'page.ckpt'}")
    assert "page.ckpt cannot be read as a checkpoint" in str(code) and "\n  File" not in str(code)


@pytest.mark.slow
def test_the_installed_command_trains_on_several_devices(shapes, tmp_path):
    """Lightning starts the program anew for each further device, by the path that it was started with."""
    program = Path(sys.executable).with_name("trunkline")
    words = ["fit", "--config", "detection/faster_rcnn_r18_fpn_demo", f"--data.root={shapes}"]
    words += [
        "--trainer.accelerator=cpu",
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--data.workers=0",
    ]
    words += ["--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--data.batch_size=1"]
    words += ["--data.short_side=64", "--data.long_side=96", f"--trainer.default_root_dir={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [program, *words], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "MEMBER: 2/2" in done.stdout + done.stderr
    assert list(tmp_path.rglob("last.ckpt"))


@pytest.mark.parametrize("words", [["--model.backbone.weights=null"], ["--model.backbone.weights", "null"]])
def test_null_reaches_a_nested_value(run, words):
    """jsonargparse alone makes the string "None" of it."""
    _, printed = run("fit", "--config", "detection/faster_rcnn_r50_fpn_coco", *words, "--print_config")
    assert "IMAGENET1K_V1" not in printed.out and "weights: None" not in printed.out
    assert printed.out.count("weights: null") == 2, printed.out  # the trunk's and the task's


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (["--model.weights=nowhere.pt"], "nowhere.pt: no such file"),
        (["--model.head.roi.levels=9"], "roi.levels is 9, but the trunk"),
        (["--data.root=nowhere"], "nowhere"),
        (["--data.augment=[{Flip: {}}]"], "no transform 'Flip'"),
        (["--model.head.num_classes=2"], "Set --model.head.num_classes auto (or 3)"),
        (["--model.backbone.in_channels=1"], "the images have 3 channels, the trunk takes 1"),
    ],
)
def test_bad_values_end_in_one_clear_message(run, shapes, tmp_path, override, said):
    where = [f"--data.root={shapes}", f"--trainer.default_root_dir={tmp_path}", "--data.workers=0"]
    code, _ = run("fit", "--config", "detection/faster_rcnn_r18_fpn_demo", *where, *override)
    assert code.startswith("\ntrunkline: error: ") and said in code
    assert "Namespace(" not in code


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "trunkline", "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == f"trunkline {__version__}", done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trainer.accelerator=gpus"], "invalid accelerator name"),
        (["--trainer.strategy=foo"], "invalid strategy name"),
        (["--trainer.max_epochs=-2"], "`max_epochs` must be a non-negative integer or -1"),
        (["--trainer.limit_train_batches=1.5"], "invalid value 1.5 for limit_train_batches"),
        (
            ["--trainer.accumulate_grad_batches=0"],
            "trainer.accumulate_grad_batches: expected a whole number from 1",
        ),
        (
            ["--trainer.logger=false", "--trainer.callbacks+=LearningRateMonitor"],
            "Leave trainer.logger out, or",
        ),
        (["--trainer.logger=WandbLogger"], "needs a package more: Requirement 'wandb"),
        (["--seed_everything=-1"], "-1 is not in bounds"),
        (["--trainer.default_root_dir={file}"], "(Not a directory), so nothing o"),
    ],
)
def test_errors_of_the_trainers_options_are_messages(run, shapes, tmp_path, words, said):
    (tmp_path / "file").write_text("")
    where = [f"--data.root={shapes}", f"--trainer.default_root_dir={tmp_path}", "--data.workers=0"]
    words = [word.format(file=tmp_path / "file") for word in words]
    small = ["--data.short_side=64", "--data.long_side=96", "--trainer.max_steps=1"]
    code, _ = run("fit", "--config", "detection/faster_rcnn_r18_fpn_demo", *where, *small, *words)
    assert code.startswith("\ntrunkline: error: ") and said in code and "Namespace(" not in code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", "{folder}"], "is a folder; give a file in it"),
        (["--config"], "-c/--config: expected one argument"),
        (["--ckpt_path"], "--ckpt_path: expected one argument"),
        (["--output.foldr=x"], "--output.foldr: there is no such option (did you mean output.folder?)"),
        (["--output.folder=null"], "output.folder: null is no value for it"),
    ],
)
def test_half_an_option_is_told(run, tmp_path, words, said):
    name = ["--config", "detection/faster_rcnn_r18_fpn_demo"]
    code, _ = run("predict", *name, *(word.format(folder=tmp_path) for word in words))
    assert said in code


def test_an_interruption_needs_no_traceback(run, monkeypatch):
    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr("trunkline.cli._run", interrupted)
    code, printed = run("fit")
    assert code == 130 and printed.err == "\ntrunkline: interrupted\n"


def test_a_reader_that_has_enough_is_no_error():
    """As in ``trunkline configs | head -1``: the pipe is closed before anything is written."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "trunkline", "configs"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 141 and done.stderr == ""
