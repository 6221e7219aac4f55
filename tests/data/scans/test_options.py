"""The data module for scans: its arguments, from Python, from YAML, and under a trainer."""

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentError, ArgumentParser

from scan_cases import RAW, SMALL, fitted, names_of, save, write
from trunkline.data.scans.cases.cases import CasesError
from trunkline.data.scans.module import ScanSegmentation
from trunkline.data.scans.prepare.intensity import Intensity
from trunkline.data.scans.prepare.prepare import Preparation
from trunkline.data.shared.augment.checks import AugmentationError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("scans"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "data.batch_size is 0"),
        ({"steps_per_epoch": 0}, "data.steps_per_epoch is 0"),
        ({"foreground": 1.5}, "data.foreground is 1.5"),
        ({"foreground": float("nan")}, "data.foreground is nan"),
        ({"workers": -1}, "data.workers is -1"),
        ({"patch": [3]}, r"data.patch is \[3\]"),
        ({"slice_axis": 1}, "data.slice_axis is 1"),
        ({"missing": "ignore"}, "data.missing is 'ignore'; it is error or skip"),
        ({"cache": "ram"}, "data.cache is 'ram'; it is disk, memory or none"),
        ({"cache_folder": "x"}, "data.cache_folder has no effect with data.cache memory"),
        ({"augment": [{"RandFlop": None}]}, "did you mean RandFlip"),
    ],
)
def test_wrong_arguments_are_errors_at_once(options, words):
    with pytest.raises(ValueError, match=words):
        ScanSegmentation("nowhere", **SMALL | options)
    assert issubclass(AugmentationError, ValueError)


def test_training_needs_data_and_a_patch(folder):
    with pytest.raises(ValueError, match="data.patch is not set"):
        ScanSegmentation(str(folder), **SMALL | {"patch": None}).prepare_data()
    with pytest.raises(CasesError, match="data.root is not set"):
        fitted(None)


def test_arguments_that_find_the_data_are_handed_on(tmp_path):
    root = write(tmp_path, shapes={"train": [(8, 8, 12)] * 6})
    (root / "images").rename(root / "mr")
    (root / "labels").rename(root / "truth")
    (root / "classes.csv").unlink()
    rows = [f"case{n},p{n // 2}" for n in range(6)]
    (root / "who.csv").write_text("\n".join(["case,patient", *rows]))
    options = {
        "patients": "who.csv", "images": "mr/{split}", "labels": "truth/{split}",
        "classes": {0: "nothing", 1: "something"}, "ignore_id": 4,
        "folds": 3, "splits": "mine.json",
    }  # fmt: skip
    val = []
    for fold in range(3):
        made = fitted(root, fold=fold, **options)
        names = [case.case.name for case in made.val_dataloader()]
        assert len(names) == 2 and len({int(name[4:]) // 2 for name in names}) == 1
        val += names
    assert sorted(val) == [f"case{n}" for n in range(6)] and (root / "mine.json").exists()
    assert names_of(made) == ["nothing", "something"]
    assert sum(made.label_counts("volumes")) == 4 * (8 * 8 * 12 - 1)
    table = [
        f"mr/train/case{n}.nii.gz,truth/train/case{n}.nii.gz,{'val' if n else 'train'}" for n in range(6)
    ]
    (root / "cases.csv").write_text("\n".join(["image,label,split", *table]))
    made = fitted(root, table="cases.csv", classes=["a", "b", "c", "d", "e"])
    assert len(list(made.val_dataloader())) == 5 and len(made.label_classes("volumes")) == 5


def test_the_seed_makes_the_folds(tmp_path):
    found = set()
    for seed in (0, 1, None):
        root = write(tmp_path / str(seed), shapes={"train": [(8, 8, 12)] * 6})
        fitted(root, seed=seed, folds=2)
        found.add((root / "splits.json").read_text())
    assert len(found) == 2  # null is 0


def test_cases_without_labels_are_an_error_unless_they_are_to_be_skipped(tmp_path, caplog):
    root = write(tmp_path)
    (root / "labels/train/case1.nii.gz").unlink()
    with pytest.raises(CasesError, match="1 case of 3 without labels.*\n  case1: no case1"):
        fitted(root)
    made = ScanSegmentation(str(root), **SMALL | {"missing": "skip"})
    made.prepare_data()
    made.setup()
    assert [case.name for case in made.splits["train"].cases] == ["case0", "case2"]
    assert "1 of 3 train cases have no labels and are left out (case1)" in caplog.text


def test_tasks_are_told_how_scans_are_prepared(folder):
    preparation = Preparation(spacing=(1, 1, 2.5), intensity=[Intensity(scale="unit", clip=(0, 9))])
    made = ScanSegmentation(str(folder), **SMALL | {"preparation": preparation})
    settings = made.volume_settings()
    assert settings.patch == (6, 7, 8) and settings.slice_axis is None and settings.regions == {}
    assert settings.preparation["spacing"] == [1, 1, 2.5]
    assert settings.preparation["intensity"][0]["clip"] == [0, 9]
    assert settings.preparation == made.hparams.preparation != fitted(folder).volume_settings().preparation
    assert made.label_kinds == ("volumes",) and made.label_classes("volumes") == ()
    assert ScanSegmentation(str(folder), **SMALL | {"patch": None}).volume_settings().patch == ()


# -- the command line and a trainer


def parsed(text):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ScanSegmentation, "data")
    path = "trunkline.data.scans.module.ScanSegmentation"
    return parser, parser.parse_string(f"data: {{class_path: {path}, init_args: {{{text}}}}}")


def test_yaml_is_understood(folder):
    text = f"""root: {folder}, patch: [6, 7, 8], cache: memory, workers: 0,
        classes: {{0: nothing, 1: organ, 4: lesion}},
        preparation: {{spacing: [1, 1, 2], intensity: [{{scale: unit, clip: [0, 200]}}]}},
        augment: [{{RandFlip: {{prob: 1.0, spatial_axis: 0}}}}, {{RandGaussianNoise: null}}]"""
    parser, config = parsed(text)
    made = parser.instantiate(config).data
    assert made.preparation == Preparation(
        spacing=[1, 1, 2], intensity=[Intensity(scale="unit", clip=[0, 200])]
    )
    made.setup()
    assert names_of(made) == ["nothing", "organ", "lesion"]
    batch = next(iter(made.train_dataloader()))
    assert float(batch.image.min()) >= 0 and float(batch.image.max()) <= 1.5
    assert parser.instantiate(parsed("classes: [a, b]")[1]).data.hparams.classes == ["a", "b"]
    for wrong in ("preparation: {spacings: [1, 1, 1]}", "cache: ram", "patches: [1, 1, 1]"):
        with pytest.raises(ArgumentError):
            parsed(wrong)


class Recorder(pl.LightningModule):
    """Trains nothing and writes down what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.names, self.errors = [], [], []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, float(batch.image.double().sum())))
        return self.weight.sum() * 0

    def validation_step(self, batch, batch_idx):
        assert isinstance(batch.image, np.ndarray) and isinstance(batch.truth, np.ndarray)
        self.names.append(batch.case.name)

    def test_step(self, batch, batch_idx):
        self.names.append(batch.case.name)

    def predict_step(self, batch, batch_idx):
        self.errors.append(batch.error)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def quiet(tmp_path, **options):
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, num_sanity_val_steps=0, **silent | options
    )


def test_a_trainer_fits_validates_tests_and_predicts(folder, tmp_path):
    save(tmp_path / "in/a.nii", np.zeros((9, 9, 9), np.float32))
    (tmp_path / "in/b.nii").write_bytes(b"nothing")
    options = SMALL | {"steps_per_epoch": 3, "predict": str(tmp_path / "in"), "cache": "disk"}
    data = ScanSegmentation(folder, cache_folder=tmp_path / "kept", **options)
    model, trainer = Recorder(), quiet(tmp_path, max_epochs=2)
    trainer.fit(model, data)
    assert [epoch for epoch, _ in model.seen] == [0] * 3 + [1] * 3
    assert len({total for _, total in model.seen}) == 6 and model.names == ["case3", "case4"] * 2
    trainer.validate(model, data, verbose=False)
    trainer.test(model, data, verbose=False)
    assert model.names == ["case3", "case4"] * 4
    trainer.predict(model, data)
    assert model.errors[0] is None and "b.nii" in model.errors[1]
    # Checkpoints hold plain values, which make the module again.
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    kept = torch.load(tmp_path / "a.ckpt", weights_only=True)["datamodule_hyper_parameters"]
    assert kept["root"] == str(folder) and kept["preparation"]["intensity"][0]["scale"] == "none"
    again = ScanSegmentation.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert again.preparation == RAW and again.patch == (6, 7, 8) and again.hparams.steps_per_epoch == 3


def test_overfitting_shows_the_same_patches_every_epoch(folder, tmp_path):
    model = Recorder()
    data = ScanSegmentation(str(folder), **SMALL | {"steps_per_epoch": 5})
    quiet(tmp_path, max_epochs=2, overfit_batches=2, enable_checkpointing=False).fit(model, data)
    totals = [total for _, total in model.seen]
    assert len(totals) == 4 and totals[:2] == totals[2:] and totals[0] != totals[1]


def test_the_working_directory_counts_for_prediction(folder, tmp_path, monkeypatch):
    save(tmp_path / "a.nii", np.zeros((9, 9, 9), np.float32))
    monkeypatch.chdir(tmp_path)
    assert fitted(folder, "predict", predict="a.nii").prediction_paths() == {0: Path("a.nii")}
