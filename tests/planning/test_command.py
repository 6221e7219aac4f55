"""The command ``trunkline plan``: a config that trains as it is."""

import itertools
import os

import numpy as np
import pytest
import yaml

from trunkline.cli import main
from trunkline.data.scans.formats.files import write_labels, write_scan
from trunkline.data.scans.formats.scan import Grid


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two training and two validation scans of CT, 16 x 18 x 12 voxels, with a bright organ."""
    root = tmp_path_factory.mktemp("plan") / "organs"
    rng = np.random.default_rng(0)
    for split, number in itertools.product(("train", "val"), range(2)):
        ids = np.zeros((16, 18, 12), np.uint8)
        ids[4:10, 5:12, 3:9] = 5
        voxels = np.where(ids, 100, -1000) + rng.integers(-20, 20, ids.shape)
        image = root / "images" / split / f"{split}_{number}.nii.gz"
        write_scan(image, voxels.astype(np.int16), Grid(ids.shape, np.diag([1.0, 1.0, 2.0, 1.0])))
        write_labels(root / "labels" / split / image.name, ids, like=image)
    return root


CLASSES = ["--classes", "0=background", "5=organ"]


def test_a_plan_trains_as_it_is(root, tmp_path, monkeypatch, capsys):
    """The dataset by a relative path, which the config names from wherever it is run."""
    from trunkline.tasks.command import TrunklineCLI

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(root.parent)
    output = tmp_path / "folder" / "plan.yaml"
    main(["plan", "organs", "--output", str(output), "--workers", "2", *CLASSES])
    printed = capsys.readouterr().out
    assert f"wrote {output}: trunkline fit --config {output}" in printed
    assert "16 .. 16 .. 16" in printed and "organ" in printed and "99.5 %" in printed
    assert os.listdir(output.parent) == ["plan.yaml"]  # nothing unfinished
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load(output.read_text())
    data = content["data"]["init_args"]
    assert data["root"] == str(root) and data["classes"] == {0: "background", 5: "organ"}
    assert 70 < data["preparation"]["intensity"][0]["clip"][0] < 90  # guessed to be CT
    few = ["--trainer.max_epochs=1", "--data.steps_per_epoch=2", "--model.lr_scheduler.total_iters=2"]
    quiet = [
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--data.workers=0",
    ]
    here = [
        "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",  # the plan is for a GPU
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.log_every_n_steps=1",
    ]
    checked = ["--trainer.check_val_every_n_epoch=1"]
    monkeypatch.setattr(
        "sys.argv", ["trunkline", "fit", "--config", str(output), *few, *quiet, *here, *checked]
    )
    cli = TrunklineCLI()
    assert cli.trainer.global_step == 2 and list(tmp_path.rglob("best.ckpt"))
    assert cli.model.backbone.levels[-1].stride == (4, 4, 2) and cli.datamodule.patch == (16, 20, 12)
    assert 0 <= float(cli.trainer.callback_metrics["val/mean_Dice"]) <= 1


def test_options_for_finding_cases_go_into_the_config(root, tmp_path):
    table_file = tmp_path / "cases.csv"
    rows = [
        f"{root}/images/{s}/{s}_{n}.nii.gz,{root}/labels/{s}/{s}_{n}.nii.gz"
        for s in ("train", "val")
        for n in range(2)
    ]
    table_file.write_text("\n".join(["image,label", *rows]))
    output = tmp_path / "plan.yaml"
    words = [
        "--table",
        str(table_file),
        "--splits",
        str(tmp_path / "splits.json"),
        "--folds",
        "2",
        "--fold",
        "1",
    ]
    main(
        [
            "plan",
            str(tmp_path),
            "--output",
            str(output),
            "--allow_outside_root",
            *words,
            *CLASSES,
            "--modality",
            "mr",
            "--memory",
            "2",
        ]
    )
    data = yaml.safe_load(output.read_text())["data"]["init_args"]
    assert (data["fold"], data["folds"], data["table"]) == (1, 2, str(table_file))
    assert data["preparation"]["intensity"] == [{"scale": "zscore"}]
    assert "2 GiB" in output.read_text() or "of the 2 that were named" in output.read_text()


def test_a_config_that_is_there_is_kept(root, tmp_path):
    output = tmp_path / "plan.yaml"
    output.write_text("mine")
    words = ["plan", str(root), "--output", str(output), *CLASSES]
    with pytest.raises(SystemExit, match="is there already; add --overwrite"):
        main(words)
    assert output.read_text() == "mine"
    with pytest.raises(SystemExit, match="trunkline plan: .*nowhere is no folder"):
        main(["plan", str(root / "nowhere"), "--output", str(output), "--overwrite"])
    assert output.read_text() == "mine"
    main([*words, "--overwrite"])
    assert output.read_text().startswith("# Residual-encoder U-Net")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classes", "0=background"], "there is 1 class; 2 to 255 can be learned"),
        (["--classes", "0=background", "x=organ"], "an id is a whole number, as in 0=background"),
        (["--classes", "0=background", "0=organ"], "an id is there twice"),
        (["--classes", "background", "organ"], r"(?s)4 cases of 4 cannot be read.*ids that are no class: 5"),
        ([*CLASSES, "--memory", "-1"], "--memory is -1.0; give the memory of the device in GiB"),
    ],
)
def test_errors_say_what_to_do(root, tmp_path, words, message):
    with pytest.raises(SystemExit, match=message):
        main(["plan", str(root), "--output", str(tmp_path / "plan.yaml"), *words])
    assert not (tmp_path / "plan.yaml").exists()
