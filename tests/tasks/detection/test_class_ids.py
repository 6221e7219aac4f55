"""Data that number the classes of a checkpoint otherwise: evaluated and predicted by the names."""

import json
import math
import shutil

import pytest
import pytorch_lightning as pl
import torch

from trunkline.backbones import FPN, ResNet
from trunkline.data.detection.module import CocoDetection
from trunkline.data.shared.labels.classes import LabelClass
from trunkline.heads import FasterRCNN
from trunkline.heads.detection import RoIOptions
from trunkline.tasks.detection.branch import written_ids
from trunkline.tasks.detection.task import Detection

OTHERWISE = {1: 30, 3: 10, 7: 20}  # circle, rectangle, triangle: in another order too
VAL = "annotations/instances_val.json"


def detector():
    return Detection(
        backbone=ResNet(depth=18, norm="frozen_batch"),
        neck=lambda trunk: FPN(trunk, channels=16),
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.0),  # a step changes nothing
        head=lambda levels: FasterRCNN(levels, 3, roi=RoIOptions(score_threshold=0.0)),
    )


def trainer(folder):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    few = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1.0, "num_sanity_val_steps": 0}
    return pl.Trainer(default_root_dir=folder, accelerator="cpu", logger=False, **quiet, **few)


def data_module(folder, **arguments):
    return CocoDetection(str(folder), batch_size=4, workers=0, short_side=64, long_side=96, **arguments)


def metrics(folder, task, data, checkpoint=None):
    """Validate; the losses of sampled boxes need a seed."""
    pl.seed_everything(1)
    found = trainer(folder).validate(task, data, ckpt_path=checkpoint, verbose=False)[0]
    return {name: value for name, value in found.items() if not math.isnan(value)}


def renumber(path, ids=OTHERWISE):
    content = json.loads(path.read_text())
    for record in content["categories"]:
        record["id"] = ids[record["id"]]
    for record in content["annotations"]:
        record["category_id"] = ids[record["category_id"]]
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """A checkpoint, and what it says of the validation data."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    task = detector()
    torch.nn.init.normal_(task.head.roi.classifier.weight, std=0.3)  # so that something is found
    run = trainer(folder)
    run.fit(task, data_module(shapes))
    run.save_checkpoint(folder / "one.ckpt")
    return folder / "one.ckpt", metrics(folder, detector(), data_module(shapes), folder / "one.ckpt")


@pytest.fixture
def other(shapes, tmp_path):
    """The same data with other ids."""
    folder = tmp_path / "other"
    shutil.copytree(shapes, folder)
    for path in folder.glob("annotations/*.json"):
        renumber(path)
    return folder


@pytest.mark.parametrize("known_before", [False, True])
def test_other_ids_are_evaluated_by_name(trained, other, tmp_path, known_before, caplog):
    checkpoint, expected = trained
    data, task = data_module(other), detector()
    if known_before:  # a model that was read in Python knows its classes before the data come
        trainer(tmp_path).validate(task, data_module(other), ckpt_path=checkpoint, verbose=False)
        found = metrics(tmp_path, task, data)
    else:
        found = metrics(tmp_path, task, data, checkpoint)
    assert "they are matched by name" in caplog.text
    assert found == expected and 0 < expected["val/AP"] < 1
    assert [row["id"] for row in task.branch.classes] == [1, 3, 7]
    assert [row.name for row in data.label_classes("detection")] == ["circle", "rectangle", "triangle"]


def test_files_of_one_run_that_number_otherwise_are_matched_too(shapes, trained, tmp_path, caplog):
    folder = tmp_path / "mixed"
    shutil.copytree(shapes, folder)
    renumber(folder / VAL)
    data = data_module(folder)
    data.setup("fit")
    assert "the val annotations number the categories otherwise" in caplog.text
    straight = data_module(shapes)
    straight.setup("fit")
    for split in ("train", "val"):
        assert torch.equal(data.splits[split].labels, straight.splits[split].labels)
        assert data.splits[split].as_coco() == straight.splits[split].as_coco()


def test_other_names_are_still_an_error(trained, other, tmp_path):
    path = other / VAL
    path.write_text(path.read_text().replace('"triangle"', '"pyramid"'))
    with pytest.raises(ValueError, match=r"(?s)trained on the classes .*triangle.*pyramid"):
        trainer(tmp_path).validate(detector(), data_module(other), ckpt_path=trained[0])


def test_predictions_have_the_ids_of_the_json(shapes, other, trained, tmp_path):
    checkpoint, _ = trained
    rows = []
    for folder in (shapes, other):
        data = data_module(folder, predict=str(folder / VAL))
        batches = trainer(tmp_path).predict(detector(), data, ckpt_path=checkpoint)
        rows.append([each for batch in batches for each in batch])
    assert sum(len(each["scores"]) for each in rows[0]) > 0
    for one, two in zip(*rows, strict=True):
        assert torch.equal(one["boxes"], two["boxes"]) and one["image_id"] == two["image_id"]
        assert [OTHERWISE[number] for number in one["category_ids"].tolist()] == two["category_ids"].tolist()


def test_a_json_of_images_alone_keeps_the_ids_of_the_checkpoint(shapes, trained, tmp_path):
    content = json.loads((shapes / VAL).read_text())
    path = tmp_path / "images.json"
    path.write_text(json.dumps({"images": content["images"]}))
    data = data_module(shapes, predict=str(path), predict_images=str(shapes / "images/val"))
    batches = trainer(tmp_path).predict(detector(), data, ckpt_path=trained[0])
    found = {number for batch in batches for each in batch for number in each["category_ids"].tolist()}
    assert found and found <= {1, 3, 7}


OWN = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ([], [1, 2]),
        ([(1, "cat"), (2, "dog"), (3, "bird")], [1, 2]),
        ([(2, "cat"), (1, "dog")], [2, 1]),
        ([(0, "cat"), (5, "dog"), (1, "bird")], [0, 5]),
        ([(7, "cat")], [7, 2]),  # the dog keeps its id, which no other has
        ([(1, "cat"), (2, "dog"), (3, "cat")], [1, 2]),
    ],
)
def test_ids_to_write(given, ids):
    assert written_ids(OWN, [LabelClass(*row) for row in given]) == ids


def test_classes_that_the_json_lacks_are_named(caplog):
    written_ids(OWN, [LabelClass(7, "cat")])
    assert "it lacks 'dog' (id 2), which keep the ids of the checkpoint" in caplog.text


@pytest.mark.parametrize(
    "given",
    [
        [(1, "object")],  # it would be written as a cat
        [(2, "cat"), (3, "bird")],  # no id is left for the dog
        [(0, "cat"), (5, "cat"), (2, "dog")],
        [(7, "CAT"), (8, "DOG")],  # no name is there, so that the ids of the checkpoint would mean nothing
    ],
)
def test_ids_that_names_do_not_tell_are_refused(given):
    with pytest.raises(ValueError, match="do not say which is which: .*same name in the JSON"):
        written_ids(OWN, [LabelClass(*row) for row in given])
