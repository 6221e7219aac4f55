"""Classification from the command line: shipped configs and the real data module, pictures and scans."""

import csv
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from trunkline.cli import shipped_configs, with_null_overrides, with_resolved_configs
from trunkline.tasks.classification.task import Classification
from trunkline.tasks.command import TrunklineCLI

CLASSES = ["blue, dark", "green", "red"]  # a comma, which a table must survive
QUIET = [
    "--data.workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
TINY = [
    *QUIET,
    "--model.backbone.weights=null",
    "--model.backbone.width=8",
    "--model.optimizer.lr=0.001",  # the recipes' rates are for larger batches
    "--data.batch_size=3",
    "--trainer.log_every_n_steps=1",
]
SMALL_SCANS = ["--data.size=[16, 16, 16]", "--trainer.precision=32-true"]


def command(monkeypatch, *words):
    """Run the command in this process and return the CLI object."""
    words = with_null_overrides(with_resolved_configs(list(words)))
    monkeypatch.setattr("sys.argv", ["trunkline", *words])
    return TrunklineCLI()


def write_picture(path, k, seed, side=40):
    pixels = np.random.default_rng(seed).integers(0, 120, (side, side + 8, 3), dtype=np.uint8)
    pixels[..., 2 - k] += 100
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """train/ and val/ with three classes of 4 and 2 pictures."""
    root = tmp_path_factory.mktemp("classes")
    for split, count in (("train", 4), ("val", 2)):
        for k, name in enumerate(CLASSES):
            for i in range(count):
                write_picture(root / split / name / f"{i}.png", k, 10 * k + i + 100 * (split == "val"))
    return root


@pytest.fixture(scope="session")
def archive(folders, tmp_path_factory):
    """The same as a zip, with test/ in place of val/, as CIFAR-10 comes."""
    path = tmp_path_factory.mktemp("zip") / "pictures.zip"
    with zipfile.ZipFile(path, "w") as file:
        for item in sorted(folders.rglob("*.png")):
            name = item.relative_to(folders).as_posix()
            file.write(item, name.replace("val/", "test/", 1))
    return path


@pytest.fixture(scope="session")
def table(folders, tmp_path_factory):
    """A CSV of the same pictures with any number of labels each."""
    path = tmp_path_factory.mktemp("csv") / "labels.csv"
    rows = [["path", "labels", "split"]]
    for item in sorted(folders.rglob("*.png")):
        several = [item.parent.name, *(["even"] if int(item.stem) % 2 == 0 else [])]
        rows.append([str(item), ";".join(several), item.parts[-3]])
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    """A CSV of 6 training and 4 validation volumes of two classes, 4 to 2 in training."""
    root = tmp_path_factory.mktemp("scans")
    rows, rng = [["path", "label", "split"]], np.random.default_rng(0)
    for i in range(10):
        healthy = i % 3 > 0
        volume = rng.normal(size=(10, 14, 12)).astype(np.float32)
        volume[: 5 if healthy else 2] += 2
        np.save(root / f"{i}.npy", volume)
        rows.append([f"{i}.npy", "healthy" if healthy else "ill", "train" if i < 6 else "val"])
    with open(root / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return root / "labels.csv"


def predictions(folder):
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def small(name):
    """Overrides that make a shipped config small enough to run in a test."""
    if name.endswith("scans3d"):
        return [*SMALL_SCANS, "--model.head.num_classes=2"]
    words = ["--data.size=32", "--model.head.num_classes=3"]
    if "imagenet" in name:
        words += [
            "--data.train_size=32",
            "--data.resize=36",
            "--model.backbone.depth=18",
            "--model.channels_last=true",
        ]
        crop = {
            "size": [32, 32],
            "scale": [0.08, 1.0],
            "ratio": [0.75, 1.3333],
            "area_for_downscale": "image",
        }
        words.append(
            f"--data.augment={json.dumps([{'RandomResizedCrop': crop}, {'HorizontalFlip': {'p': 0.5}}])}"
        )
    return words


@pytest.mark.parametrize("name", [name for name in shipped_configs() if name.startswith("classification/")])
def test_config_trains_saves_reloads_and_predicts_the_same(
    monkeypatch, tmp_path, folders, archive, scans, name
):
    scanning = name.endswith("scans3d")
    root = scans if scanning else archive if "cifar" in name else folders
    cli = command(
        monkeypatch, "fit", "--config", name, f"--data.root={root}", *TINY, *small(name),
        "--trainer.max_steps=2", f"--trainer.default_root_dir={tmp_path}",
        *(["--trainer.val_check_interval=2"] if "cifar" in name else ["--trainer.limit_train_batches=2"]),
    )  # fmt: skip
    assert cli.trainer.global_step == 2
    names = ["healthy", "ill"] if scanning else CLASSES
    (saved,) = tmp_path.rglob("last.ckpt")
    stored = torch.load(saved, weights_only=True)
    assert stored["global_step"] == 2, "not the last state"
    state = stored["branches"][""]
    assert [row["name"] for row in state["classes"]] == cli.model.class_names == names
    if scanning:  # 4 healthy and 2 ill training scans
        assert state["class_weights"] == pytest.approx([6 / 8, 6 / 4])
    assert 0 <= cli.trainer.callback_metrics["val/accuracy"] <= 1
    assert list(tmp_path.rglob("best.ckpt")) and list(tmp_path.rglob("val/confusion.png"))
    reloaded = Classification.load_from_checkpoint(saved, map_location="cpu").eval()
    assert reloaded.class_names == names and reloaded.head.class_weights == cli.model.head.class_weights
    generator = torch.Generator().manual_seed(0)
    if scanning:
        image = torch.randn(2, 1, 16, 16, 16, generator=generator)
    else:
        image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([image.shape[2:]] * 2)
    with torch.no_grad():
        expected = cli.model.eval()(image, sizes).probabilities
        assert torch.equal(reloaded(image, sizes).probabilities, expected)
    assert 1e-6 < expected.std() < 0.5  # neither all alike nor all zeros and ones


def fit(monkeypatch, folder, root, *more):
    return command(
        monkeypatch, "fit", "--config", "classification/resnet50_imagenet", f"--data.root={root}", *TINY,
        *small("classification/resnet50_imagenet"), "--trainer.max_epochs=1",
        f"--trainer.default_root_dir={folder}", *more,
    )  # fmt: skip


def test_fit_validate_and_predict_belong_together(monkeypatch, tmp_path, folders, capsys):
    """A checkpoint needs no config; what predict writes, counted, gives what validate prints."""
    cli = fit(monkeypatch, tmp_path / "run", folders)
    (saved,) = tmp_path.rglob("last.ckpt")
    trained = cli.model.result.metrics
    again = [f"--ckpt_path={saved}", *QUIET, f"--trainer.default_root_dir={tmp_path / 'again'}"]
    cli = command(monkeypatch, "validate", *again)
    assert cli.model.result.metrics == trained and cli.model.result.images == 6
    (metrics,) = (tmp_path / "again").rglob("val/metrics.json")
    assert json.loads(metrics.read_text())["metrics"]["accuracy"] == trained["accuracy"]
    paths = [str(path) for path in sorted((folders / "val").rglob("*.png"))]
    out = tmp_path / "out"
    capsys.readouterr()
    command(monkeypatch, "predict", *again, f"--data.predict={json.dumps(paths)}", f"--output.folder={out}")
    assert str((out / "predictions.csv").resolve()) in capsys.readouterr().out
    rows = predictions(out)
    assert [row["path"] for row in rows] == paths and list(rows[0])[3:] == CLASSES
    right = sum(row["label"] == path.split("/")[-2] for row, path in zip(rows, paths, strict=True))
    assert right / 6 == pytest.approx(trained["accuracy"])
    for row in rows:
        shares = {name: float(row[name]) for name in CLASSES}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert row["label"] == max(shares, key=shares.get) and float(row["score"]) == max(shares.values())
    assert Image.open(out / "pictures" / "sheet.jpg").size == (6 * 168 + 8, 168 + 8)


def test_several_labels_from_a_table(monkeypatch, tmp_path, table, folders):
    cli = fit(
        monkeypatch, tmp_path, table, "--model.head.multi_label=true", "--model.head.num_classes=4",
        "--data.allow_outside_root=true", "--trainer.callbacks=null",
        "--model.mixup=0.2", "--model.head.class_weights=[1, 2, 1, 0.5]",
        "--model.head.pool=max", "--model.head.label_smoothing=0.1",
    )  # fmt: skip
    head = cli.model.head
    assert (head.loss, head.pool, head.label_smoothing) == ("binary_cross_entropy", "max", 0.1)
    assert head.class_weights == [1, 2, 1, 0.5]
    assert set(cli.model.class_names) == {*CLASSES, "even"}
    assert {"mAP", "F1", "subset_accuracy"} == cli.model.result.metrics.keys()
    saved = tmp_path / "one.ckpt"
    cli.trainer.save_checkpoint(saved)
    out = tmp_path / "out"
    command(
        monkeypatch, "predict", f"--ckpt_path={saved}", *QUIET, f"--data.predict={folders / 'val' / 'red'}",
        "--data.allow_outside_root=true", f"--output.folder={out}", "--output.min_score=0.3",
        "--output.pictures=false",
        "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}",
    )  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == ["images.json", "predictions.csv"]
    for row in predictions(out):
        chosen = [name for name in cli.model.class_names if float(row[name]) >= 0.3]
        assert row["labels"] == ";".join(chosen)


def test_scans_are_predicted_without_pictures(monkeypatch, tmp_path, scans):
    command(
        monkeypatch, "fit", "--config", "classification/resnet18_scans3d", f"--data.root={scans}", *TINY,
        *SMALL_SCANS, "--trainer.max_epochs=1", f"--trainer.default_root_dir={tmp_path / 'run'}",
    )  # fmt: skip
    (saved,) = tmp_path.rglob("last.ckpt")
    volumes = [str(path) for path in sorted(scans.parent.glob("[6-9].npy"))]
    out = tmp_path / "out"
    command(
        monkeypatch, "predict", f"--ckpt_path={saved}", *QUIET, f"--data.predict={json.dumps(volumes)}",
        f"--output.folder={out}", "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}",
    )  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == ["images.json", "predictions.csv"]
    assert [row["path"] for row in predictions(out)] == volumes


def test_more_classes_than_the_head_is_an_error_that_names_the_option(monkeypatch, tmp_path, folders):
    with pytest.raises(ValueError, match="num_classes is 2, but the data have 3 classes: .*num_classes auto"):
        fit(monkeypatch, tmp_path, folders, "--model.head.num_classes=2")


def test_single_label_data_for_a_head_of_several_labels_is_an_error(monkeypatch, tmp_path, folders):
    with pytest.raises(ValueError, match="--model.head.multi_label false"):
        fit(monkeypatch, tmp_path, folders, "--model.head.multi_label=true")
