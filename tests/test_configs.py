"""Every shipped config trains, saves, reloads and predicts the same; any depth is one number away."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from trunkline.cli import shipped_configs, with_null_overrides, with_resolved_configs
from trunkline.tasks.command import TrunklineCLI
from trunkline.tasks.detection.task import Detection

TINY = [
    "--model.backbone.weights=null",
    "--data.batch_size=2",
    "--data.workers=0",
    "--data.short_side=64",
    "--data.long_side=96",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.limit_val_batches=1",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.log_every_n_steps=1",
]


# Their widths would only cost time and disk here; that they are the published ones is tested with the trunks.
# Frozen norms without pretrained weights let the activations grow until every box is without area.
NARROW = {
    "x101": ["--model.backbone.width=16"],
    "wrn50": ["--model.backbone.width=16"],
    "detectron2": ["--model.backbone.norm=batch"],
}


def command(monkeypatch, words):
    """Run the command in this process and return the CLI object."""
    words = with_null_overrides(with_resolved_configs(words))
    monkeypatch.setattr("sys.argv", ["trunkline", *words])
    return TrunklineCLI()


def fit(monkeypatch, name, data, folder, *more):
    overrides = [f"--data.root={data}", f"--trainer.default_root_dir={folder}", *TINY, *more]
    return command(monkeypatch, ["fit", "--config", name, *overrides])


@pytest.mark.parametrize("name", [name for name in shipped_configs() if name.startswith("detection/")])
def test_config_trains_saves_reloads_and_predicts_the_same(monkeypatch, tmp_path, shapes, name):
    narrow = [word for part, words in NARROW.items() if part in name for word in words]
    cli = fit(monkeypatch, name, shapes, tmp_path, "--trainer.max_steps=2", *narrow)
    assert cli.trainer.global_step == 2
    (saved,) = tmp_path.rglob("last.ckpt")
    checkpoint = torch.load(saved, weights_only=True)
    assert checkpoint["global_step"] == 2, "not the last state"
    stored = checkpoint["branches"][""]["classes"]
    assert [row["name"] for row in stored] == [c.name for c in cli.datamodule.label_classes("detection")]
    reloaded = Detection.load_from_checkpoint(saved, map_location="cpu").eval()
    assert reloaded.branch.classes == cli.model.branch.classes == stored
    model = cli.model.eval()
    image = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    sizes = torch.tensor([[64, 96], [50, 64]])
    for task in (model, reloaded):  # an untrained head scores too low to detect anything: show all it has
        task.head.roi.options = type(task.head.roi.options)(
            **{**vars(task.head.roi.options), "score_threshold": 0.0}
        )
    with torch.no_grad():
        expected, found = model(image, sizes), reloaded(image, sizes)
    assert expected.count.sum() > 0
    for field, value in vars(expected).items():
        assert torch.equal(getattr(found, field), value), field


@pytest.mark.parametrize("name", [name for name in shipped_configs() if "demo" not in name])
def test_config_says_what_a_gpu_runs(name):
    settings = yaml.safe_load(shipped_configs()[name].read_text(encoding="utf-8"))
    model, precision = settings["model"]["init_args"], settings["trainer"]["precision"]
    trunk = model["backbone"]["init_args"]
    volumes, copied = trunk.get("ndim") == 3, trunk.get("norm") in ("group", "instance")
    assert precision == ("32-true" if "cifar" in name else "bf16-mixed")
    assert model.get("channels_last", False) == (not volumes and not copied and "cifar" not in name)
    assert model.get("matmul_precision") == "high" or volumes


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_any_depth_trains_a_step_by_one_number(monkeypatch, tmp_path, shapes, depth):
    cli = fit(
        monkeypatch,
        "detection/faster_rcnn_r18_fpn_demo",
        shapes,
        tmp_path,
        "--trainer.max_steps=1",
        "--trainer.limit_val_batches=0",
        f"--model.backbone.depth={depth}",
        "--trainer.callbacks=null",
        "--trainer.logger=false",
        "--trainer.enable_checkpointing=false",
    )
    assert cli.trainer.global_step == 1
    blocks = sum(len(getattr(cli.model.trunk, f"layer{i}")) for i in range(1, 5))
    assert blocks == {18: 8, 34: 16, 50: 16, 101: 33, 152: 50}[depth]


def test_fit_validate_and_predict_belong_together(monkeypatch, tmp_path, shapes, capsys):
    """What predict writes, evaluated, gives what validate prints; files and overlays are where it says."""
    name = "detection/faster_rcnn_r18_fpn_demo"
    cli = fit(monkeypatch, name, shapes, tmp_path / "run", "--trainer.max_steps=6", "--trainer.max_epochs=-1")
    (saved,) = tmp_path.rglob("last.ckpt")
    common = [f"--ckpt_path={saved}", "--model.backbone.weights=torchvision", "--data.workers=0"]
    common.append("--model.head.roi.score_threshold=0.001")  # six steps teach little: show all there is
    sizes = [
        "--data.short_side=64",
        "--data.long_side=96",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
    ]
    quiet = ["--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={tmp_path / 'run2'}"]
    # weights=torchvision would need the network: a checkpoint brings all weights, so nothing is fetched
    cli = command(
        monkeypatch, ["validate", "--config", name, f"--data.root={shapes}", *common, *sizes, *quiet]
    )
    expected = cli.model.result
    out = tmp_path / "out"
    capsys.readouterr()
    command(
        monkeypatch,
        ["predict", "--config", name, f"--data.predict={shapes}/annotations/instances_val.json"]
        + [f"--data.root={shapes}", *common, *sizes, *quiet]
        + [f"--output.folder={out}", "--output.min_score=0.0"],
    )
    text = capsys.readouterr().out
    assert str(out / "predictions.json") in text and str(out / "pictures") in text
    truth = json.loads((shapes / "annotations" / "instances_val.json").read_text())
    results = json.loads((out / "predictions.json").read_text())
    assert {row["category_id"] for row in results} <= {row["id"] for row in truth["categories"]}
    overlays = list((out / "pictures").iterdir())
    assert len(overlays) == len(truth["images"])
    for (
        path
    ) in overlays:  # images of 128 or 160 pixels are enlarged by a whole factor, to leave room for labels
        record = next(
            row for row in truth["images"] if path.stem.startswith(Path(row["file_name"]).stem + "_")
        )
        assert Image.open(path).size == (3 * record["width"], 3 * record["height"])
    coco = COCO(str(shapes / "annotations" / "instances_val.json"))
    evaluation = COCOeval(coco, coco.loadRes(str(out / "predictions.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(expected.metrics["AP"], abs=1e-6)
    assert (
        evaluation.stats[8] == pytest.approx(expected.metrics["AR100"], abs=1e-6) and evaluation.stats[8] > 0
    )


def test_a_checkpoint_is_applied_without_its_config_and_explicit_settings_win(monkeypatch, tmp_path, shapes):
    """Model and data settings come from the checkpoint; what stands on the command line overrides them."""
    fit(monkeypatch, "detection/faster_rcnn_r18_fpn_demo", shapes, tmp_path, "--trainer.max_steps=1")
    (saved,) = tmp_path.rglob("last.ckpt")
    words = ["predict", f"--ckpt_path={saved}", f"--data.predict={shapes}/images/val", "--data.batch_size=3"]
    words += ["--model.head.roi.score_threshold=0.0", "--model.head.roi.detections_per_image=7"]
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    cli = command(
        monkeypatch, [*words, *quiet, f"--output.folder={tmp_path / 'out'}", "--output.pictures=false"]
    )
    assert cli.datamodule.short_sides == [64] and cli.datamodule.batch_size == 3
    assert cli.model.head.num_classes == 3
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    images = json.loads((tmp_path / "out" / "images.json").read_text())
    assert len(results) == 7 * len(images) and len(images) == 6
    assert not (tmp_path / "out" / "pictures").exists()
    assert cli.model.class_names == ["circle", "rectangle", "triangle"]


def test_weights_of_the_whole_model_spare_the_trunk_its_own(monkeypatch, tmp_path, shapes):
    """The trunk's file does not even exist: what brings the whole detector brings the trunk."""
    name, limits = "detection/faster_rcnn_r18_fpn_demo", ["--trainer.max_steps=1"]
    first = fit(monkeypatch, name, shapes, tmp_path / "a", *limits)
    weights = tmp_path / "whole.pt"
    torch.save(first.model.state_dict(), weights)
    again = ["--model.backbone.weights=nowhere.pt", f"--model.weights={weights}", "--trainer.max_steps=0"]
    words = [word for word in TINY if "backbone.weights" not in word]
    where = [f"--data.root={shapes}", f"--trainer.default_root_dir={tmp_path / 'b'}"]
    second = command(monkeypatch, ["fit", "--config", name, *where, *words, *again])
    for key, value in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[key], value), key


def test_a_checkpoint_of_another_depth_is_named(monkeypatch, tmp_path, shapes):
    fit(monkeypatch, "detection/faster_rcnn_r18_fpn_demo", shapes, tmp_path, "--trainer.max_steps=1")
    (saved,) = tmp_path.rglob("last.ckpt")
    words = ["validate", f"--ckpt_path={saved}", "--model.backbone.depth=34", "--trainer.accelerator=cpu"]
    with pytest.raises(ValueError, match=r"(?s)the checkpoint fits Detection .* is it of another depth\?"):
        command(monkeypatch, [*words, "--trainer.logger=false"])
