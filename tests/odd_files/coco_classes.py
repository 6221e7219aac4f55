"""COCO files whose classes are not those of other files, or are not used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from trunkline.data.detection import CocoDetection
from trunkline.data.shared.labels import LabelClass
from trunkline.tasks.detection.branch import written_ids

from .case import OddFile
from .coco import NAME, TOPIC, Content, first, lacking, writer

VAL = "val.json"
TRAINED = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def pair(change: Callable[[Content], object]) -> Callable[[Path], None]:
    """Return what writes training data as they should be, and validation data with one thing changed."""

    def write(folder: Path) -> None:
        writer(lambda given: None)(folder)
        given = json.loads((folder / NAME).read_text())
        change(given)
        (folder / VAL).write_text(json.dumps(given))

    return write


def read_pair(folder: Path) -> CocoDetection:
    """Read training and validation data."""
    data = CocoDetection(None, str(folder), str(folder / NAME), str(folder), str(folder / VAL), workers=0)
    data.setup("fit")
    return data


def read_other_ids(folder: Path) -> None:
    data = read_pair(folder)
    truth = data.evaluation_truth("detection", "fit")
    assert truth is not None and truth["categories"] == TRAINED
    assert [row["category_id"] for row in truth["annotations"]] == [2, 1, 2]


def other_ids(given: Content) -> None:
    """Number cat as 8 and dog as 3."""
    ids = {1: 8, 2: 3}
    for record in given["categories"]:
        record["id"] = ids[record["id"]]
    for record in given["annotations"]:
        record["category_id"] = ids[record["category_id"]]


def write_only_dogs(folder: Path) -> None:
    pair(lambda given: None)(folder)
    given = json.loads((folder / NAME).read_text())
    given["annotations"] = [row for row in given["annotations"] if row["category_id"] == 2]
    (folder / NAME).write_text(json.dumps(given))


def predict(folder: Path) -> None:
    """Find the ids to write predictions with, for a model of cats and dogs."""
    data = CocoDetection(predict=str(folder / NAME), predict_images=str(folder))
    data.setup("predict")
    written_ids(TRAINED, [LabelClass(*row[:2]) for row in data.prediction_classes("detection")])


def read_images_alone(folder: Path) -> None:
    data = CocoDetection(predict=str(folder / NAME), predict_images=str(folder))
    data.setup("predict")
    assert data.prediction_classes("detection") == () and list(data.prediction_paths()) == [1]


def images_alone(given: Content) -> None:
    del given["annotations"], given["categories"]


ODD_FILES = [
    OddFile(
        "classes_of_other_ids",
        TOPIC,
        "Validation data that number the categories otherwise",
        pair(other_ids),
        read_other_ids,
        "Labels and ids are matched by the names of the categories, for evaluation too.",
        "Nothing, if equal names are the same classes.",
    ),
    OddFile(
        "classes_of_other_names",
        TOPIC,
        "Validation data with another category",
        pair(first("categories", name="lion")),
        read_pair,
        "It cannot be known whether a lion is a cat.",
        "Use one list of categories in all files.",
    ),
    OddFile(
        "classes_not_trained",
        TOPIC,
        "Validation data with objects of a category that the training data lack",
        write_only_dogs,
        read_pair,
        "Its AP will be 0, and lowers the mean.",
        "Add training data, or take the category out of both files.",
    ),
    OddFile(
        "classes_of_prediction_numbered_otherwise",
        TOPIC,
        "A JSON to predict on that numbers the categories otherwise than the checkpoint",
        writer(other_ids),
        predict,
        "Predictions have the ids of the JSON, by the names of the categories.",
        "Nothing, if equal names are the same classes.",
    ),
    OddFile(
        "classes_of_prediction_unknown",
        TOPIC,
        "A JSON to predict on with other categories than the checkpoint",
        writer(first("categories", name="lion")),
        predict,
        "With the ids of the checkpoint, cats would be lions in the JSON.",
        "Name the categories as in training, or take them out of the JSON.",
    ),
    OddFile(
        "classes_of_prediction_missing",
        TOPIC,
        "A JSON of images alone to predict on",
        writer(images_alone),
        read_images_alone,
        "It is enough; predictions have the ids of the checkpoint.",
    ),
    OddFile(
        "classes_of_prediction_without_id",
        TOPIC,
        "A JSON to predict on with a category without an id",
        writer(lacking("categories", "id")),
        predict,
        "Categories are checked where they are there.",
        "Give every category an id, or take the categories out.",
    ),
]
