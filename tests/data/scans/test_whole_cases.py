"""The data module for scans: whole cases to evaluate and to predict on, checks and caches."""

import logging
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_lightning.loops.progress import _BatchProgress

from scan_cases import SHAPES, SMALL, fitted, indexed, labels, save, write
from trunkline.data.scans.cases.cases import CasesError
from trunkline.data.scans.module import ScanSegmentation
from trunkline.data.shared import loading
from trunkline.data.shared.loading import ImageRequest
from trunkline.data.shared.locate import DataNotFoundError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("scans"))


@pytest.mark.parametrize("workers", [0, 2])
def test_every_validation_case_comes_once_with_its_truth_on_the_grid_of_the_file(
    tmp_path, workers, monkeypatch
):
    monkeypatch.setattr(loading.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
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
            global_rank=rank,
            world_size=world_size,
            overfit_batches=0,
            num_devices=world_size,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
            fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=_BatchProgress())),
        )
        shown += [case.case.name for case in made.val_dataloader()]
        drawn += [request.seed for batch in made.train_dataloader().sampler for request in batch]
    assert sorted(shown) == [f"case{n}" for n in range(1, 6)]
    assert len(set(drawn)) == len(drawn) == 8 * world_size


def test_ranks_without_a_case_get_one_that_another_has(tmp_path):
    """Without any they would block the others."""
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
    assert (
        names(made) == ["case3", "case4"]
        and "there are no test cases: the val data take their place" in caplog.text
    )
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
    assert sum(made.label_counts("volumes")) == sum(int(np.prod(shape)) for shape in SHAPES["train"]) - 1


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
    assert [path.name for path in made.prediction_paths().values()] == [f"new{n}.nii.gz" for n in range(4)]
    assert [case.name for case in made.splits["predict"].cases] == [f"new{n}" for n in range(4)]
    assert [entry.id for entry in made.label_classes("volumes")] == [0, 1, 4] and made.image_layout() == (
        1,
        3,
    )
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
    assert made.label_classes("volumes") == () and made.image_layout() == (2, 3)
    assert fitted(None, "predict", predict=[tmp_path / "a.nii"], patch=[4, 4]).image_layout() == (2, 2)
    caplog.set_level(logging.INFO, logger="trunkline")
    made = fitted(tmp_path / "gone", "predict", predict=[str(tmp_path / "a.nii")])
    assert made.label_classes("volumes") == () and "predicting without the training data" in caplog.text
    broken = fitted(None, "predict", predict=[str(tmp_path / "0.nii")])
    assert next(iter(broken.predict_dataloader())).error
    with pytest.raises(CasesError, match="none of the 1 cases can be read"):
        broken.image_layout()
    with pytest.raises(DataNotFoundError, match="nothing to predict on: set data.predict"):
        fitted(None, "predict")
    with pytest.raises(FileNotFoundError, match="no such file"):
        fitted(None, "predict", predict=str(tmp_path / "gone"))
