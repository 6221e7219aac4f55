"""The data module for scans: patches and whole cases from files, caches, splits, prediction, a trainer."""

import logging
import pickle
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentError, ArgumentParser
from PIL import Image

from trunkline.data.scans.cases.cases import CasesError
from trunkline.data.scans.module import ScanSegmentation
from trunkline.data.scans.prepare.intensity import Intensity
from trunkline.data.scans.prepare.prepare import Preparation
from trunkline.data.shared import common
from trunkline.data.shared.augment import AugmentationError
from trunkline.data.shared.loading import ImageRequest

RAW = Preparation(intensity=[Intensity(scale="none")])
SHAPES = {"train": [(12, 14, 10), (13, 12, 11), (8, 12, 14)], "val": [(9, 10, 11), (10, 9, 8)]}
SMALL = {"patch": [6, 7, 8], "workers": 0, "preparation": RAW, "augment": [], "cache": "memory", "seed": 0}


def indexed(shape, case):
    i, j, k = np.indices(shape)
    return (case * 1e6 + i * 1e4 + j * 1e2 + k).astype(np.float32)


def labels(shape, case):
    values = np.zeros(shape, dtype=np.uint8)
    values[2:5, 3:6, 2:7] = 1
    values[6, 7, 4 + case % 3] = 4
    return values


def save(path, values, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


def write(root, affine=None, shapes=SHAPES):
    number = 0
    for split, sizes in shapes.items():
        for shape in sizes:
            save(root / f"images/{split}/case{number}.nii.gz", indexed(shape, number), affine)
            save(root / f"labels/{split}/case{number}.nii.gz", labels(shape, number), affine)
            number += 1
    (root / "classes.csv").write_text("id,name\n0,background\n1,organ\n4,lesion\n")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("scans"))


def fitted(root, stage="fit", **options):
    made = ScanSegmentation(None if root is None else str(root), **SMALL | options)
    made.setup(stage)
    return made


def expected(values):
    """Return the label that the file has where a voxel of such a value lies."""
    case, rest = divmod(int(values), 10**6)
    i, j, k = rest // 10**4, rest // 100 % 100, rest % 100
    shape = [shape for sizes in SHAPES.values() for shape in sizes][case]
    return {0: 0, 1: 1, 4: 2}[int(labels(shape, case)[i, j, k])]


# -- training


@pytest.mark.parametrize("cache", ["disk", "memory", "none"])
def test_patches_hold_the_voxels_and_labels_of_the_files(folder, tmp_path, cache):
    options = {"cache_folder": str(tmp_path / "kept")} if cache == "disk" else {}
    made = fitted(folder, cache=cache, steps_per_epoch=6, batch_size=3, **options)
    assert [entry.name for entry in made.classes] == ["background", "organ", "lesion"]
    assert made.channels == ("image",) and made.regions == {} and made.image_layout() == (1, 3)
    loader = made.train_dataloader()
    assert len(loader) == 6
    for batch in loader:
        assert batch.image.shape == (3, 1, 6, 7, 8) and batch.image.dtype == torch.float32 and len(batch) == 3
        assert batch.mask.dtype == torch.uint8 and batch.image_sizes.tolist() == [[6, 7, 8]] * 3
        for image, mask, case in zip(batch.image, batch.mask, batch.image_ids.tolist(), strict=True):
            assert (image // 1e6 == case).all()
            for place in np.ndindex(6, 7, 8):
                if sum(place) % 5 == 0:
                    assert int(mask[place]) == expected(image[0][place])
    assert bool(options) == any(tmp_path.rglob("*.npy"))


def test_counts_of_voxels_are_those_of_the_training_labels(folder):
    made = ScanSegmentation(str(folder), **SMALL)
    for ask in (made.pixel_counts, made.image_layout, made.train_dataloader, made.predict_dataloader):
        with pytest.raises(RuntimeError, match="setup"):
            ask()
    made.setup()
    counts = made.pixel_counts()
    total = sum(int(np.prod(shape)) for shape in SHAPES["train"])
    assert counts.tolist() == [total - 3 * 45 - 3, 3 * 45, 3] and counts.dtype == torch.int64


def test_the_share_of_foreground_is_kept(folder):
    def shares(foreground):
        made = fitted(folder, foreground=foreground, patch=[1, 1, 1], batch_size=20, steps_per_epoch=10)
        return torch.cat([batch.mask.flatten() for batch in made.train_dataloader()])

    assert (shares(1.0) != 0).all() and {1, 2} == set(shares(1.0).tolist())
    assert 90 <= int((shares(0.5) != 0).sum()) <= 125  # the others find 3 % by chance
    assert int((shares(0.0) != 0).sum()) < 20


def test_seed_and_epoch_decide_and_workers_do_not(folder, monkeypatch):
    monkeypatch.setattr(common.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    loaders = [
        fitted(folder, augment=None, workers=workers, steps_per_epoch=3, seed=5).train_dataloader()
        for workers in (0, 2)
    ]
    assert [loader.num_workers for loader in loaders] == [0, 2]
    shown = []
    for epoch in range(2):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        both = [list(loader) for loader in loaders]
        for one, other in zip(*both, strict=True):
            for name, value in vars(one).items():
                assert torch.equal(value, getattr(other, name)), name
        shown.append(torch.stack([batch.image for batch in both[0]]))
    assert not torch.equal(*shown)
    other = fitted(folder, augment=None, steps_per_epoch=3, seed=6).train_dataloader()
    assert not torch.equal(torch.stack([batch.image for batch in other]), shown[0])


def test_augmentation_is_that_of_the_arguments(folder):
    flip = [{"RandFlip": {"prob": 1.0, "spatial_axis": 1}}]
    plain, turned = (fitted(folder, augment=a, steps_per_epoch=2).train_dataloader() for a in ([], flip))
    for one, other in zip(plain, turned, strict=True):
        assert torch.equal(one.image.flip(3), other.image) and torch.equal(one.mask.flip(2), other.mask)
    made = fitted(folder, augment=None)
    assert len(made._augmentation.steps) == 12


def test_preparation_reaches_patches_and_cases(folder):
    made = fitted(folder, preparation=Preparation(spacing=[2.0, 1.0, 1.0]), patch=[3, 4, 4])
    (batch, *_) = made.train_dataloader()
    assert abs(float(batch.image.mean())) < 3 and float(batch.image.max()) < 10
    case = next(iter(made.val_dataloader()))
    assert case.image.shape == (1, 4, 10, 11) or case.image.shape == (1, 5, 10, 11)
    assert case.truth.shape == (9, 10, 11)


def test_slices_lie_across_the_coarsest_axis(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="trunkline")
    root = write(tmp_path, affine=np.diag([1.0, 4.0, 1.0, 1.0]))
    made = fitted(root, patch=[5, 6], steps_per_epoch=4)
    assert made.slice_axis == 1 and made.image_layout() == (1, 2) and "axis 1" in caplog.text
    for batch in made.train_dataloader():
        assert batch.image.shape == (2, 1, 5, 6) and batch.mask.shape == (2, 5, 6)
        j = batch.image // 100 % 100
        assert (j == j[:, :, :1, :1]).all()
    made = fitted(root, patch=[5, 6], slice_axis=0)
    i = next(iter(made.train_dataloader())).image // 10**4 % 100
    assert made.slice_axis == 0 and (i == i[:, :, :1, :1]).all()
    assert next(iter(made.val_dataloader())).image.ndim == 4


def test_small_scans_are_padded_and_counted_in_the_log(folder, caplog):
    made = fitted(folder, patch=[10, 4, 4], steps_per_epoch=10)
    assert "1 of 3 training scans are smaller than the patch of 10x4x4 voxels" in caplog.text
    for batch in made.train_dataloader():
        for mask, case in zip(batch.mask, batch.image_ids.tolist(), strict=True):
            assert (mask[[0, 9]] == 255).all() == (case == 2) and (mask[1:9] != 255).all()


def pictures(root):
    for split in ("train", "val"):
        for n in range(2):
            for kind in ("images", "labels"):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
            grey = np.add.outer(np.arange(20) * 10, np.arange(24)).astype(np.uint8)
            Image.fromarray(grey).save(root / f"images/{split}/{split}{n}.png")
            Image.fromarray((grey > 100).astype(np.uint8)).save(root / f"labels/{split}/{split}{n}.png")
    return root


def test_pictures_are_scans_of_two_axes(tmp_path):
    root = pictures(tmp_path)
    made = fitted(root, classes=["background", "bright"], patch=[8, 9], steps_per_epoch=3)
    assert made.image_layout() == (1, 2) and made.slice_axis is None
    for batch in made.train_dataloader():
        assert batch.image.shape == (2, 1, 8, 9) and torch.equal(batch.mask, (batch.image[:, 0] > 100).byte())
    case = next(iter(made.val_dataloader()))
    assert case.image.shape == (1, 20, 24) and np.array_equal(case.truth, case.image[0] > 100)
    for options in ({"patch": [8, 8, 8]}, {"patch": [8, 8], "slice_axis": 1}):
        with pytest.raises(ValueError, match=r"data.patch is \[8, 8.*train0.png has 2 axes"):
            fitted(root, classes=["background", "bright"], **options)


# -- whole cases


@pytest.mark.parametrize("workers", [0, 2])
def test_every_validation_case_comes_once_with_its_truth_on_the_grid_of_the_file(
    tmp_path, workers, monkeypatch
):
    monkeypatch.setattr(common.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    flipped = np.array([[0, -1.0, 0, 5], [2.0, 0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1]])
    made = fitted(write(tmp_path, affine=flipped), "validate", workers=workers)
    loader = made.val_dataloader()
    assert loader.num_workers == min(workers, 1)
    cases = list(loader)
    assert [case.image_ids.tolist() for case in cases] == [[0], [1]] and [len(case) for case in cases] == [
        1,
        1,
    ]
    for n, case in enumerate(cases):
        shape = SHAPES["val"][n]
        assert case.case.name == f"case{3 + n}" and case.error is None
        assert case.truth.shape == shape and case.truth.dtype == np.uint8
        assert np.array_equal(case.truth, np.choose(labels(shape, 3 + n), [0, 1, 0, 0, 2]))
        # RAS: the file's second axis runs to the left, its first one forward.
        raw = indexed(shape, 3 + n)
        assert np.array_equal(case.image[0], raw[:, ::-1].swapaxes(0, 1))
        assert tuple(case.placement.grid.shape) == shape
        assert np.array_equal(case.placement.turn(case.truth), case.truth[:, ::-1].swapaxes(0, 1))
        assert case.to("cuda") is case


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_cases_and_draw_other_patches(tmp_path, world_size):
    root = write(tmp_path, shapes={"train": [(8, 8, 8)], "val": [(8, 8, 12)] * 5})
    made = fitted(root, steps_per_epoch=4)
    shown, drawn = [], []
    for rank in range(world_size):
        made.trainer = SimpleNamespace(
            global_rank=rank, world_size=world_size, overfit_batches=0, num_devices=world_size
        )
        shown += [case.case.name for case in made.val_dataloader()]
        drawn += [request.seed for batch in made.train_dataloader().sampler for request in batch]
    assert sorted(shown) == [f"case{n}" for n in range(1, 6)]
    assert len(set(drawn)) == len(drawn) == 8 * world_size


def test_ranks_without_a_case_get_one_that_another_has(tmp_path):
    """Without any they would leave the others waiting for ever."""
    root = write(tmp_path, shapes={"train": [(8, 8, 8)], "val": [(8, 8, 12)] * 2})
    made = fitted(root)
    shown = []
    for rank in range(3):
        made.trainer = SimpleNamespace(global_rank=rank, world_size=3, overfit_batches=0, num_devices=3)
        shown.append([case.case.name for case in made.val_dataloader()])
    assert shown == [["case1"], ["case2"], ["case1"]]


def test_memory_mapped_scans_go_to_other_processes_by_name(folder, tmp_path):
    made = fitted(folder, cache="disk", cache_folder=str(tmp_path))
    case = made.val_dataloader().dataset[[ImageRequest(0)]][0]
    sent = pickle.dumps(case)
    assert isinstance(case.image, np.memmap) and len(sent) < case.image.nbytes + case.truth.nbytes
    back = pickle.loads(sent)
    assert isinstance(back.image, np.memmap) and np.array_equal(back.image, case.image)
    assert np.array_equal(back.truth, case.truth) and back.case == case.case
    (first, _) = fitted(folder, cache="disk", cache_folder=str(tmp_path), workers=1).val_dataloader()
    assert np.array_equal(first.image, case.image)


def test_without_labelled_test_cases_the_validation_cases_take_their_place(tmp_path, caplog):
    root = write(tmp_path)
    names = lambda made: [case.case.name for case in made.test_dataloader()]  # noqa: E731
    made = fitted(root, "test")
    assert names(made) == ["case3", "case4"] and "there are no test cases: the validation" in caplog.text
    save(root / "images/test/new0.nii.gz", indexed((8, 8, 8), 0))
    made = fitted(root, "test")
    assert names(made) == ["case3", "case4"] and "none of 1 test cases has labels: the val" in caplog.text
    caplog.clear()
    rows = [f"images/{s}/case{n}.nii.gz,labels/{s}/case{n}.nii.gz,{s}" for s, n in [("train", 0), ("val", 3)]]
    rows += ["images/test/new0.nii.gz,,test", "images/val/case4.nii.gz,labels/val/case4.nii.gz,test"]
    (root / "cases.csv").write_text("\n".join(["image,label,split", *rows]))
    made = fitted(root, "test", table="cases.csv")
    assert names(made) == ["case4"] and "1 of 2 test cases have no labels and are left out" in caplog.text


def test_a_split_without_cases_is_an_error(tmp_path):
    root = write(tmp_path, shapes={"test": [(8, 8, 12)] * 2})
    assert len(fitted(root, "test").test_dataloader()) == 2
    for stage, split in (("fit", "train"), ("validate", "val")):
        with pytest.raises(CasesError, match=rf"there are no {split} cases \(there are test\)"):
            fitted(root, stage)


# -- checks and caches


def test_damaged_data_are_found_before_training(tmp_path):
    root = write(tmp_path)
    bad = labels(SHAPES["train"][1], 1)
    bad[0, 0, 0] = 9
    save(root / "labels/train/case1.nii.gz", bad)
    save(root / "labels/val/case3.nii.gz", np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(CasesError) as raised:
        ScanSegmentation(str(root), **SMALL).prepare_data()
    assert "case1.nii.gz" in str(raised.value) and "case3" in str(raised.value)
    made = ScanSegmentation(str(root), **SMALL | {"ignore_id": 9})
    save(root / "labels/val/case3.nii.gz", labels(SHAPES["val"][0], 3))
    made.prepare_data()
    made.setup()
    assert int(made.pixel_counts().sum()) == sum(int(np.prod(shape)) for shape in SHAPES["train"]) - 1


def test_cases_are_prepared_once_and_on_disk_before_setup(folder, tmp_path, monkeypatch):
    from trunkline.data.scans.prepare import cache

    prepared = []
    original = cache.prepare_case
    monkeypatch.setattr(
        cache, "prepare_case", lambda case, *rest: prepared.append(case.name) or original(case, *rest)
    )
    options = SMALL | {"cache": "disk", "cache_folder": str(tmp_path)}
    made = ScanSegmentation(str(folder), **options)
    made.prepare_data()
    assert sorted(prepared) == [f"case{n}" for n in range(5)]
    made.setup()
    again = ScanSegmentation(str(folder), **options)
    again.prepare_data()
    again.setup()
    list(again.val_dataloader())
    next(iter(again.train_dataloader()))
    assert len(prepared) == 5
    held = ScanSegmentation(str(folder), **SMALL)
    held.prepare_data()
    assert len(prepared) == 5
    held.setup()
    assert len(prepared) == 10


# -- prediction


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_case_is_reported_and_the_others_are_delivered(folder, tmp_path, workers):
    for n, shape in enumerate(SHAPES["train"]):
        save(tmp_path / f"new{n}.nii.gz", indexed(shape, n))
    (tmp_path / "new1.nii.gz").write_bytes(b"nothing")
    save(tmp_path / "new3.nii.gz", np.zeros((5, 5, 5, 2), np.float32))
    made = fitted(folder, "predict", predict=str(tmp_path), workers=workers)
    assert [path.name for path in made.predict_paths.values()] == [f"new{n}.nii.gz" for n in range(4)]
    assert [case.name for case in made.predict_cases] == [f"new{n}" for n in range(4)]
    assert [entry.id for entry in made.classes] == [0, 1, 4] and made.image_layout() == (1, 3)
    cases = list(made.predict_dataloader())
    assert [case.image_ids.item() for case in cases] == [0, 1, 2, 3] and all(
        case.truth is None for case in cases
    )
    assert "new1.nii.gz" in cases[1].error and cases[1].image is None and cases[1].placement is None
    assert "new3.nii.gz: 2 channels, but the training data have 1" in cases[3].error
    for n in (0, 2):
        assert cases[n].error is None and np.array_equal(cases[n].image[0], indexed(SHAPES["train"][n], n))


def test_prediction_needs_no_training_data(tmp_path, caplog):
    save(tmp_path / "a.nii", np.zeros((5, 6, 7, 2), np.float32))
    (tmp_path / "0.nii").write_bytes(b"nothing")
    made = fitted(None, "predict", predict=[str(tmp_path)], patch=None)
    assert made.classes == () and made.image_layout() == (2, 3)
    assert fitted(None, "predict", predict=[tmp_path / "a.nii"], patch=[4, 4]).image_layout() == (2, 2)
    caplog.set_level(logging.INFO, logger="trunkline")
    made = fitted(tmp_path / "gone", "predict", predict=[str(tmp_path / "a.nii")])
    assert made.classes == () and "predicting without the training data" in caplog.text
    broken = fitted(None, "predict", predict=[str(tmp_path / "0.nii")])
    assert next(iter(broken.predict_dataloader())).error
    with pytest.raises(CasesError, match="none of the 1 cases can be read"):
        broken.image_layout()
    with pytest.raises(CasesError, match="nothing to predict on: set data.predict"):
        fitted(None, "predict")
    with pytest.raises(FileNotFoundError, match="no such file"):
        fitted(None, "predict", predict=str(tmp_path / "gone"))


# -- arguments


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
    assert [entry.name for entry in made.classes] == ["nothing", "something"]
    assert int(made.pixel_counts().sum()) == 4 * (8 * 8 * 12 - 1)
    table = [
        f"mr/train/case{n}.nii.gz,truth/train/case{n}.nii.gz,{'val' if n else 'train'}" for n in range(6)
    ]
    (root / "cases.csv").write_text("\n".join(["image,label,split", *table]))
    made = fitted(root, table="cases.csv", classes=["a", "b", "c", "d", "e"])
    assert len(list(made.val_dataloader())) == 5 and len(made.classes) == 5


def test_the_seed_makes_the_folds(tmp_path):
    found = set()
    for seed in (0, 1, None):
        root = write(tmp_path / str(seed), shapes={"train": [(8, 8, 12)] * 6})
        fitted(root, seed=seed, folds=2)
        found.add((root / "splits.json").read_text())
    assert len(found) == 2  # null is 0


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
    assert [entry.name for entry in made.classes] == ["nothing", "organ", "lesion"]
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
    assert fitted(folder, "predict", predict="a.nii").predict_paths == {0: Path("a.nii")}
