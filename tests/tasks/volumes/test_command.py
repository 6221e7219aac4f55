"""Segmentation of scans by the command: what fit, validate and predict write, and what they refuse."""

import csv
import json

import nibabel
import numpy as np
import pytest
import torch
from volume_tasks import QUIET, TINY, command, oracle

from trunkline.data.scans.batches import EvaluationCase
from trunkline.data.scans.cases.cases import Case
from trunkline.data.scans.formats.files import read_scan
from trunkline.data.scans.prepare.prepare import prepare
from trunkline.tasks.volumes.task import VolumeSegmentation


def test_fit_writes_metrics_and_a_checkpoint_that_knows_its_classes(trained):
    state = torch.load(trained[0], weights_only=True)["branches"][""]
    assert [row["id"] for row in state["classes"]] == [0, 1, 2, 3]
    assert state["patch"] == [48, 48, 24] and len(state["regions"]) == 3
    folder = trained[0].parent.parent / "val"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["metrics"]) == {"mean_Dice"}  # distances take long: validate measures them
    rows = list(csv.DictReader((folder / "cases.csv").open()))
    assert len(rows) == 2 * 3


def test_validate_measures_distances_and_draws_every_case(monkeypatch, tmp_path, trained, scans, capsys):
    cli = command(
        monkeypatch, "validate", "--ckpt_path", trained[0], "--trainer.default_root_dir", tmp_path, *QUIET
    )
    assert {"mean_Dice", "mean_HD95_mm", "mean_surface_Dice"} <= set(cli.model.result.metrics)
    names = {path.name.removesuffix(".nii.gz") for path in (scans / "images" / "val").iterdir()}
    assert {path.stem for path in tmp_path.rglob("val/pictures/*.jpg")} == names
    assert "surface Dice" in capsys.readouterr().out


def test_predict_writes_label_volumes_on_the_scans_grids(monkeypatch, tmp_path, trained, scans):
    cli = command(
        monkeypatch,
        "predict",
        "--ckpt_path",
        trained[0],
        "--data.predict",
        scans / "images" / "val",
        "--output.folder",
        tmp_path / "out",
        "--trainer.logger=false",
        *QUIET,
    )
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    for path in sorted((scans / "images" / "val").iterdir()):
        scan, labels = nibabel.load(path), nibabel.load(tmp_path / "out" / "labels" / path.name)
        assert labels.shape == scan.shape and labels.get_data_dtype() == scan.get_data_dtype()
        np.testing.assert_array_equal(labels.affine, scan.affine)
        prepared = prepare(read_scan(path), cli.datamodule.preparation)
        expected = cli.model.segment(prepared.image, prepared.placement)
        np.testing.assert_array_equal(np.asarray(labels.dataobj), expected)
        each = abs(np.linalg.det(scan.affine[:3, :3])) / 1000
        mine = {row["region"]: row for row in rows if row["case"] == path.name.removesuffix(".nii.gz")}
        for k, name in enumerate(cli.model.branch.class_names):
            if k:
                assert float(mine[name]["ml"]) == pytest.approx((expected == k).sum() * each, abs=1e-3)
    assert len(list((tmp_path / "out" / "pictures").glob("*.jpg"))) == 2
    listed = json.loads((tmp_path / "out" / "images.json").read_text())
    inputs = sorted((scans / "images" / "val").iterdir())
    assert listed == [{"id": number, "file_name": str(path)} for number, path in enumerate(inputs)]
    assert not (tmp_path / "out" / "failed.csv").exists()


def test_a_broken_scan_is_reported_and_the_others_are_done(monkeypatch, tmp_path, trained, scans):
    (tmp_path / "in").mkdir()
    good = sorted((scans / "images" / "val").iterdir())[0]
    (tmp_path / "in" / "good.nii.gz").write_bytes(good.read_bytes())
    (tmp_path / "in" / "bad.nii.gz").write_bytes(good.read_bytes()[:2000])
    with pytest.raises(ValueError, match="1 of 2 images could not be predicted on") as caught:
        command(
            monkeypatch,
            "predict",
            "--ckpt_path",
            trained[0],
            "--data.predict",
            tmp_path / "in",
            "--output.folder",
            tmp_path / "out",
            "--output.pictures=false",
            "--trainer.logger=false",
            *QUIET,
        )
    assert "bad.nii.gz" in str(caught.value)
    assert [path.name for path in (tmp_path / "out" / "labels").iterdir()] == ["good.nii.gz"]
    (row,) = csv.DictReader((tmp_path / "out" / "failed.csv").open())
    assert row["file_name"].endswith("bad.nii.gz") and "bad.nii.gz" in row["error"]
    assert not (tmp_path / "out" / "pictures").exists()


def test_a_scan_that_is_no_input_of_the_network_is_reported_without_the_training_data_too(
    monkeypatch, tmp_path, trained, scans
):
    (tmp_path / "in").mkdir()
    good = sorted((scans / "images" / "val").iterdir())[0]
    (tmp_path / "in" / "good.nii.gz").write_bytes(good.read_bytes())
    image = nibabel.load(good)
    two = np.stack([np.asarray(image.dataobj)] * 2, axis=-1)
    nibabel.save(nibabel.Nifti1Image(two, image.affine), tmp_path / "in" / "a.nii.gz")  # the first
    with pytest.raises(
        ValueError, match="1 of 2 images(.|\n)*a.nii.gz: has 2 channels, but the network takes 1"
    ):
        command(
            monkeypatch,
            "predict",
            "--ckpt_path",
            trained[0],
            "--data.root",
            tmp_path / "gone",
            "--data.predict",
            tmp_path / "in",
            "--output.folder",
            tmp_path / "out",
            "--trainer.logger=false",
            *QUIET,
        )
    assert [path.name for path in (tmp_path / "out" / "labels").iterdir()] == ["good.nii.gz"]
    picture = EvaluationCase(
        np.zeros((1, 4, 5), np.float32), None, Case("p", ("p.png",), None, "p"), None, np.array([0])
    )
    (prediction,) = oracle().predict_step(picture, 0)
    assert prediction["image_id"] == 0 and "p.png: is a 2D image" in prediction["error"]


@pytest.mark.parametrize("option", ["data.patch", "model.inference.window"])
def test_sizes_of_which_instance_norms_see_one_voxel_are_refused(monkeypatch, tmp_path, scans, option):
    with pytest.raises(ValueError, match=rf"{option.removeprefix('model.')} is \[8, 8, 4\].* single voxel"):
        command(
            monkeypatch,
            "fit",
            "--config",
            "scans/unet_3d_demo",
            "--data.root",
            scans,
            f"--{option}=[8,8,4]",
            "--trainer.default_root_dir",
            tmp_path,
            *TINY,
            *QUIET,
        )


@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_names_of_unknown_classes_are_found_before_any_scan(monkeypatch, tmp_path, trained, scans, stage):
    monkeypatch.setattr(VolumeSegmentation, "segment", lambda *_: pytest.fail("a scan was segmented"))
    monkeypatch.setattr(VolumeSegmentation, "training_step", lambda *_: pytest.fail("a step was made"))
    given = {
        "fit": ["--config", "scans/unet_3d_demo", "--data.root", scans],
        "predict": ["--ckpt_path", trained[0], "--data.predict", scans / "images" / "val"],
    }
    with pytest.raises(ValueError, match="keep_largest names .'lung'.; the classes are .'liver'"):
        command(
            monkeypatch,
            stage,
            *given[stage],
            "--model.inference.keep_largest=[lung]",
            "--trainer.logger=false",
            "--trainer.default_root_dir",
            tmp_path,
            *(TINY if stage == "fit" else []),
            *QUIET,
        )


def test_tasks_and_data_of_other_kinds_are_told_apart(monkeypatch, tmp_path, scans, masked_shapes):
    scans_config = ["fit", "--config", "scans/unet_3d_demo", "--trainer.default_root_dir", tmp_path, *QUIET]
    with pytest.raises(ValueError, match="ImageSegmentation"):
        command(
            monkeypatch,
            *scans_config,
            "--data",
            "ImageSegmentation",
            "--data.root",
            masked_shapes,
            "--data.workers=0",
            "--data.augment=[]",
            "--model.backbone.ndim=2",
            "--model.backbone.strides=null",
            "--model.backbone.in_channels=3",
        )
    with pytest.raises(ValueError, match="VolumeSegmentation"):
        command(
            monkeypatch,
            "fit",
            "--config",
            "segmentation/fcn_r18_demo",
            "--data",
            "ScanSegmentation",
            "--data.root",
            scans,
            "--data.patch=[16,16]",
            "--data.augment=[]",
            "--data.cache=memory",
            "--data.workers=0",
            "--model.backbone.in_channels=1",
            "--trainer.default_root_dir",
            tmp_path,
            *QUIET,
        )
