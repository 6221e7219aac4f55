"""Shipped configs of segmentation and of several heads, through the command: they train, save and predict."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from trunkline.cli import shipped_configs, with_null_overrides, with_resolved_configs
from trunkline.data.shared.augment.transforms import MaskAugmentation
from trunkline.tasks.command import TrunklineCLI
from trunkline.tasks.multitask.task import MultiTask
from trunkline.tasks.segmentation.task import SemanticSegmentation

TINY = [
    "--model.backbone.weights=null",
    "--data.batch_size=2",
    "--data.workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.limit_val_batches=2",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.log_every_n_steps=1",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
]
CROP = '[{"RandomCrop": {"height": 65, "width": 65, "pad_if_needed": true}}]'
SHAPES = ["--data.ignore=[]", "--model.head.num_classes=4", "--data.augment", CROP]


def command(monkeypatch, words):
    """Run the command in this process and return the CLI object."""
    words = with_null_overrides(with_resolved_configs(words))
    monkeypatch.setattr("sys.argv", ["trunkline", *words])
    return TrunklineCLI()


def fit(monkeypatch, name, data, folder, *more):
    words = [f"--data.root={data}", f"--trainer.default_root_dir={folder}", *TINY, *more]
    return command(monkeypatch, ["fit", "--config", name, *words])


def outlined(root):
    """Give the objects of a COCO folder outlines: their boxes."""
    for path in (root / "annotations").iterdir():
        content = json.loads(path.read_text())
        for row in content["annotations"]:
            x, y, width, height = row["bbox"]
            row["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        path.write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("name", [name for name in shipped_configs() if name.startswith("segmentation/")])
def test_config_trains_saves_reloads_and_predicts_the_same(
    monkeypatch, tmp_path, masked_shapes, shapes_with_masks, name
):
    words = list(SHAPES)
    data = masked_shapes
    if "voc_coco" in name:
        data = outlined(shapes_with_masks)
        words += ["--data.categories=[circle,rectangle,triangle]", "--data.min_pixels=1"]
        words += ["--data.eval_short_side=65", "--model.backbone.width=16"]
    if "deeplabv3" in name:
        words += ["--model.head.channels=16"]
    cli = fit(monkeypatch, name, data, tmp_path, *words)
    assert cli.trainer.global_step == 2
    (saved,) = tmp_path.rglob("last.ckpt")
    checkpoint = torch.load(saved, weights_only=True)
    assert checkpoint["global_step"] == cli.trainer.global_step > 0
    names = [row["name"] for row in checkpoint["branches"][""]["classes"]]
    assert names == ["background", "circle", "rectangle", "triangle"]
    reloaded = SemanticSegmentation.load_from_checkpoint(saved, map_location="cpu").eval()
    assert reloaded.branch.classes == cli.model.branch.classes
    image = torch.randint(0, 256, (2, 3, 65, 97), dtype=torch.uint8)
    sizes = torch.tensor([[65, 97], [50, 64]])
    with torch.no_grad():
        expected, found = cli.model.eval()(image, sizes).mask, reloaded(image, sizes).mask
    assert torch.equal(expected, found) and found.shape == (2, 65, 97)
    assert (found[1, 50:] == 255).all() and (found[1, :50, :64] < 4).all()


def test_fit_validate_and_predict_belong_together(monkeypatch, tmp_path, masked_shapes, capsys):
    """The masks that predict writes, compared pixel by pixel, give what validate prints."""
    fit(monkeypatch, "segmentation/fcn_r18_demo", masked_shapes, tmp_path / "run", *SHAPES)
    (saved,) = tmp_path.rglob("last.ckpt")
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    expected = command(monkeypatch, ["validate", f"--ckpt_path={saved}", *quiet]).model.result
    out, pictures = tmp_path / "out", masked_shapes / "images" / "val"
    command(
        monkeypatch,
        ["predict", f"--ckpt_path={saved}", f"--data.predict={pictures}", f"--output.folder={out}", *quiet],
    )
    text = capsys.readouterr().out
    assert str(out / "masks") in text and str(out / "pictures") in text
    counts = np.zeros((4, 4), dtype=np.int64)
    for path in sorted((masked_shapes / "masks" / "val").iterdir()):
        truth, found = (np.asarray(Image.open(p)) for p in (path, out / "masks" / path.name))
        assert truth.shape == found.shape
        known = truth != 255
        np.add.at(counts, (truth[known], found[known]), 1)
    assert (counts == expected.confusion).all() and counts.sum() > 0
    with open(out / "classes.csv", newline="") as file:
        written = list(csv.DictReader(file))
    with open(masked_shapes / "classes.csv", newline="") as file:
        assert written == list(csv.DictReader(file))
    assert len(list((out / "pictures").iterdir())) == 4


def test_nothing_is_warned_of_that_a_user_cannot_act_on(monkeypatch, tmp_path, masked_shapes, recwarn):
    """Neither that a run without validation has none, nor where else the checkpoint came from."""
    data = tmp_path / "data"  # other tests share the fixture
    shutil.copytree(masked_shapes, data)
    shutil.rmtree(data / "images" / "val")
    words = [*SHAPES, "--trainer.callbacks=[]"]  # Lightning's own way to save
    fit(monkeypatch, "segmentation/fcn_r18_demo", data, tmp_path / "run", *words)
    (saved,) = tmp_path.rglob("last.ckpt")
    words = [f"--data.predict={data / 'images' / 'train'}", f"--output.folder={tmp_path / 'out'}"]
    words += ["--trainer.default_root_dir", str(tmp_path / "other"), "--trainer.enable_progress_bar=false"]
    command(monkeypatch, ["predict", f"--ckpt_path={saved}", "--trainer.accelerator=cpu", *words])
    texts = [str(warning.message) for warning in recwarn]
    assert not [text for text in texts if "across ranks is zero" in text or "dirpath has changed" in text]


def test_a_loss_and_inference_can_be_chosen_in_words(monkeypatch, tmp_path, masked_shapes):
    words = ["--model.head.loss=Tversky", "--model.head.loss.alpha=0.2"]
    words += ["--model.inference.window=64", "--model.inference.scales=[0.5, 1.0]"]
    cli = fit(monkeypatch, "segmentation/fcn_r18_demo", masked_shapes, tmp_path, *SHAPES, *words)
    assert type(cli.model.head.loss).__name__ == "Tversky" and cli.model.head.loss.alpha == 0.2
    assert cli.model.inference.window == 64 and cli.model.inference.scales == (0.5, 1.0)
    (saved,) = tmp_path.rglob("last.ckpt")
    reloaded = SemanticSegmentation.load_from_checkpoint(saved, map_location="cpu")
    assert reloaded.head.loss.alpha == 0.2 and reloaded.inference == cli.model.inference


def test_the_auxiliary_classifier_learns_at_its_own_rate(monkeypatch, tmp_path, shapes_with_masks):
    name = "segmentation/fcn_r50_voc_coco"
    words = [*SHAPES, "--data.categories=[circle,rectangle,triangle]", "--data.min_pixels=1"]
    words += ["--model.backbone.depth=18", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=0"]
    words += ["--trainer.callbacks=null", "--trainer.logger=false"]
    cli = fit(monkeypatch, name, outlined(shapes_with_masks), tmp_path, *words)
    (optimizer,) = cli.trainer.optimizers
    rates = {group["name"]: group["initial_lr"] for group in optimizer.param_groups}
    assert rates == {"trunk": 0.02, "branches": 0.02, "head.aux_classifier": 0.2}


@pytest.mark.parametrize("name", [name for name in shipped_configs() if name.startswith("multitask/")])
def test_several_heads_train_save_reload_and_predict_the_same(monkeypatch, tmp_path, shapes_with_masks, name):
    words = ["--data.short_side=64", "--data.long_side=96", "--model.backbone.depth=18"]
    words += ["--model.heads.boxes.num_classes=3", "--model.heads.stuff.num_classes=4"]
    words += ["--model.neck.channels=16", "--model.backbone.frozen_stages=0", "--model.backbone.norm=batch"]
    cli = fit(monkeypatch, name, shapes_with_masks, tmp_path, *words)
    assert cli.trainer.global_step == 2
    assert cli.model.head.loss_weights == {"boxes": 1.0, "stuff": 0.5}
    assert {"val/boxes/AP", "val/stuff/mIoU"} <= set(cli.trainer.callback_metrics)
    (saved,) = tmp_path.rglob("last.ckpt")
    assert torch.load(saved, weights_only=True)["global_step"] == cli.trainer.global_step > 0
    assert MultiTask.load_from_checkpoint(saved, map_location="cpu").branches["stuff"].classes
    out, pictures = tmp_path / "out", shapes_with_masks / "images" / "val"
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    command(
        monkeypatch,
        ["predict", f"--ckpt_path={saved}", f"--data.predict={pictures}", f"--output.folder={out}", *quiet],
    )
    assert len(list((out / "pictures").iterdir())) == len(list((out / "stuff" / "masks").iterdir())) == 6
    assert (out / "boxes" / "predictions.json").is_file()


@pytest.mark.parametrize("name", [name for name in shipped_configs() if name.startswith("segmentation/")])
def test_the_augmentation_of_a_config_gives_crops_of_one_size_with_known_labels(name):
    settings = yaml.safe_load(shipped_configs()[name].read_text())["data"]["init_args"]["augment"]
    augmentation, rng = MaskAugmentation(settings), np.random.default_rng(0)
    (crop,) = (entry["RandomCrop"] for entry in settings if "RandomCrop" in entry)
    image = rng.integers(0, 256, (270, 300, 3), dtype=np.uint8)
    mask = rng.integers(1, 4, (270, 300), dtype=np.uint8)
    for seed in range(6):
        picture, labels = augmentation(image, mask, seed)
        assert picture.shape == (crop["height"], crop["width"], 3)
        assert labels.shape == picture.shape[:2] and set(np.unique(labels)) <= {1, 2, 3, 255}
