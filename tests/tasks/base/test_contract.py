"""What a task needs of a data module and does not find is an error that names it, before the first batch."""

import pytest
import pytorch_lightning as pl
import torch
from memory_tasks import HEADS, Everything, multi, parts, single, trainer
from torch.utils.data import DataLoader
from volume_tasks import oracle

from trunkline.data.shared.module import DataContractError, TrunklineData
from trunkline.heads import FCN, Classifier
from trunkline.heads.segmentation import CrossEntropy

TASKS = {**{name: (lambda name=name: single(name)) for name in HEADS}, "all": multi, "scans": oracle}
STAGES = ["fit", "validate", "test", "predict"]


class Unread(torch.utils.data.Dataset):
    """Batches that nobody may ask for."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        pytest.fail("a batch was read")


def loader(self=None):
    return DataLoader(Unread(), batch_size=None)


class Plain(pl.LightningDataModule):
    """A data module that knows nothing of tasks."""

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


def without(method, **attributes):
    """Data as a test has them, whose class does not implement one method and whose batches are not read."""
    loaders = ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader")
    given = {method: getattr(TrunklineData, method), **dict.fromkeys(loaders, loader), **attributes}
    return type("Halfway", (Everything,), given)


def run(stage, task, data, folder):
    getattr(trainer(folder), stage)(task, data)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", TASKS)
def test_a_plain_data_module_is_refused_by_every_task(tmp_path, name, stage):
    task = TASKS[name]()
    with pytest.raises(DataContractError) as caught:
        run(stage, task, Plain(), tmp_path)
    said = str(caught.value)
    assert said.startswith(f"Plain is no TrunklineData, so {type(task).__name__} cannot ask it")
    for word in ("trunkline.data.shared.TrunklineData", "label_classes", "evaluation_truth"):
        assert word in said
    assert "prediction_paths" in said


@pytest.mark.parametrize("method", ["image_layout", "label_classes"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", [*HEADS, "all"])
def test_what_every_task_needs_is_named(tmp_path, name, stage, method):
    data = without(method)("" if name == "all" else name)
    with pytest.raises(DataContractError, match=rf"Halfway has no {method}\(.*TrunklineData"):
        run(stage, TASKS[name](), data, tmp_path)


@pytest.mark.parametrize("name", ["boxes", "all"])
@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_boxes_need_the_truth(tmp_path, name, stage):
    data = without("evaluation_truth")("" if name == "all" else name)
    with pytest.raises(DataContractError, match=r"Halfway has no evaluation_truth\(kind, stage, head\)"):
        run(stage, TASKS[name](), data, tmp_path)


@pytest.mark.parametrize("name", ["land", "scene"])
def test_masks_and_classes_bring_their_truth_in_the_batches(tmp_path, name):
    kind = type("Without", (Everything,), {"evaluation_truth": TrunklineData.evaluation_truth})
    logged = trainer(tmp_path).validate(TASKS[name](), kind(name), verbose=False)[0]
    assert len(logged) > 3


BALANCED = {
    "land": lambda levels: FCN(levels, 3, channels=4, loss=CrossEntropy(class_weights="balanced")),
    "scene": lambda levels: Classifier(levels, 3, class_weights="balanced"),
}


@pytest.mark.parametrize("name", BALANCED)
def test_balanced_weights_need_the_counts(tmp_path, name):
    task = single(name, head=BALANCED[name])
    with pytest.raises(DataContractError, match=r"Halfway has no label_counts\(kind, head\)"):
        run("fit", task, without("label_counts")(name), tmp_path)


@pytest.mark.parametrize("name", [*HEADS, "all"])
def test_writing_predictions_needs_their_files(tmp_path, name):
    task, runner = TASKS[name](), trainer(tmp_path)
    runner.callbacks.append(task.prediction_writer(tmp_path / "out", False, 0.5))
    with pytest.raises(DataContractError, match=r"Halfway has no prediction_paths\(\)"):
        runner.predict(task, without("prediction_paths")("" if name == "all" else name))


def test_values_of_the_wrong_kind_are_named(tmp_path):
    data = Everything("scene")
    data.label_kinds = "classification"
    with pytest.raises(DataContractError, match="label_kinds of Everything is the text 'classif.* tuple"):
        run("fit", TASKS["scene"](), data, tmp_path)
    names = type("Odd", (Everything,), {"label_classes": lambda self, kind, head="": ["day", "night"]})
    with pytest.raises(DataContractError, match=r"label_classes\(\) of Odd .*LabelClass"):
        run("fit", TASKS["scene"](), names("scene"), tmp_path)


@pytest.mark.parametrize(
    ("paths", "words"), [([], "returned a list"), ({}, "has no file for the image id 0")]
)
def test_paths_that_do_not_fit_the_images_are_named(tmp_path, paths, words):
    odd = type("Odd", (Everything,), {"prediction_paths": lambda self: paths})
    task, runner = TASKS["scene"](), trainer(tmp_path)
    runner.callbacks.append(task.prediction_writer(tmp_path / "out", False, 0.5))
    with pytest.raises(DataContractError, match=rf"prediction_paths\(\) of .*{words}"):
        runner.predict(task, odd("scene"))


def test_segmentation_of_scans_needs_their_settings(tmp_path):
    attributes = {
        "label_kinds": ("volumes",),
        "image_layout": lambda self: (1, 3),
        "label_classes": lambda self, kind, head="": [],
    }
    data = without("volume_settings", **attributes)("land")
    data.label_kinds = ("volumes",)
    for stage in STAGES:
        with pytest.raises(DataContractError, match=r"Halfway has no volume_settings\(\)"):
            run(stage, oracle(), data, tmp_path)


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_labels_of_another_kind_are_named_with_both_ways_out(tmp_path, stage):
    with pytest.raises(ValueError, match=r"FasterRCNN, which learns boxes; Everything has classes of whole"):
        run(stage, single("boxes"), Everything("scene"), tmp_path)


def test_no_truth_for_boxes_is_an_error_and_not_silence(tmp_path):
    empty = type("Empty", (Everything,), {"evaluation_truth": lambda self, kind, stage, head="": None})
    with pytest.raises(ValueError, match=r"has no ground truth; the method evaluation_truth\(\"detection\""):
        trainer(tmp_path).validate(single("boxes"), empty("boxes"))


def test_boxes_from_loaders_without_a_data_module_are_an_error_too(tmp_path):
    batches = DataLoader(Everything("boxes").batches, batch_size=None)
    with pytest.raises(ValueError, match="CocoEvaluator has no ground truth; the method evaluation_truth"):
        trainer(tmp_path).validate(single("boxes"), dataloaders=batches)
    with pytest.raises(ValueError, match="CocoEvaluator has no ground truth"):
        trainer(tmp_path).fit(single("boxes"), batches, batches)
    trainer(tmp_path).fit(single("boxes"), batches)  # training alone needs none


@pytest.mark.parametrize(("name", "metric"), [("land", "mIoU"), ("scene", "accuracy")])
def test_loaders_without_a_data_module_do_where_batches_hold_the_truth(tmp_path, name, metric):
    task, data = single(name), Everything(name)
    expected = trainer(tmp_path).validate(task, data, verbose=False)[0]
    other = single(name)
    other.load_state_dict(task.state_dict())
    batches = DataLoader(data.batches, batch_size=None)
    logged = trainer(tmp_path).validate(other, dataloaders=batches, verbose=False)[0]
    assert logged[f"val/{metric}"] == expected[f"val/{metric}"]
    assert other.class_names[0] == "class 0"


def test_the_parts_of_a_task_are_those_that_it_was_given():
    task = single("boxes", **parts())
    assert list(task.branches) == [""] and task.branch.head is task.head
    with pytest.raises(ValueError, match="the task has the branches"):
        multi().branch  # noqa: B018
