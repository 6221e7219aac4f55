"""Precision and recall from arrays against pycocotools, curve by curve, where many boxes contend."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from trunkline.evaluation.detection import coco_arrays
from trunkline.evaluation.detection.coco_arrays import DetectionRows, Objects, precision_and_recall

IMAGES, CLASSES = 6, 3


def boxes_on_a_grid(rng, number, places, side):
    """Boxes x y width height on few whole numbers: many equal boxes, equal IoUs and IoUs of exactly 0.5."""
    corners = rng.integers(0, places, (number, 2))
    return np.concatenate([corners, rng.integers(1, side, (number, 2))], axis=1) * 8.0


def crowded_case(seed, objects=150, detections=500, places=5, side=6, crowd=0.15):
    """Few images and classes, so that up to a hundred detections and more contend for the same objects."""
    rng = np.random.default_rng(seed)
    boxes = boxes_on_a_grid(rng, objects, places, side)
    areas = np.where(
        rng.random(objects) < 0.5, boxes[:, 2] * boxes[:, 3], rng.choice([1024.0, 9216.0], objects)
    )
    where = rng.integers(0, IMAGES - 1, objects), rng.integers(0, CLASSES, objects)  # the last image is empty
    truth = Objects(*where, boxes, areas, rng.random(objects) < crowd)
    where = rng.integers(0, IMAGES, detections), rng.integers(0, CLASSES, detections)
    scores = rng.integers(0, 8, detections) / 8  # many ties
    return truth, DetectionRows(*where, boxes_on_a_grid(rng, detections, places, side), scores)


def by_pycocotools(truth, predicted, classes=CLASSES):
    shared = {
        "images": [{"id": image} for image in range(IMAGES)],
        "categories": [{"id": index} for index in range(classes)],
    }
    names = ("image_id", "category_id", "bbox", "area", "iscrowd")
    rows = zip(*(column.tolist() for column in truth), strict=True)
    objects = [dict(zip(names, row, strict=True), id=index) for index, row in enumerate(rows, start=1)]
    names = ("image_id", "category_id", "bbox", "score")
    rows = zip(*(column.tolist() for column in predicted), strict=True)
    detections = [
        dict(zip(names, row, strict=True), id=index, iscrowd=0) for index, row in enumerate(rows, 1)
    ]
    for row in detections:
        row["area"] = row["bbox"][2] * row["bbox"][3]
    sides = []
    with contextlib.redirect_stdout(io.StringIO()):
        for annotations in (objects, detections):
            sides.append(COCO())
            sides[-1].dataset = {**shared, "annotations": annotations}
            sides[-1].createIndex()
        run = COCOeval(*sides, "bbox")
        run.evaluate()
        run.accumulate()
    return run.eval["precision"][..., -1], run.eval["recall"]


def agree(truth, predicted, classes=CLASSES):
    precision, recall = precision_and_recall(truth, predicted, classes)
    expected, expected_recall = by_pycocotools(truth, predicted, classes)
    np.testing.assert_allclose(precision, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(recall, expected_recall, rtol=0, atol=1e-12)
    return precision


@pytest.mark.parametrize("seed", range(6))
def test_curves_equal_pycocotools_where_boxes_and_scores_are_equal_by_the_dozen(seed):
    precision = agree(*crowded_case(seed))
    assert 0.05 < precision[0, :, :, 0].mean() < 0.95


@pytest.mark.parametrize(
    "sizes",
    [
        {"detections": 3000},  # far more than 100 per image and class
        {"objects": 2},
        {"objects": 600, "detections": 40},
        {"crowd": 1.0},  # nothing to find
        {"crowd": 0.0},
        {"places": 40},  # few overlaps
    ],
    ids=str,
)
def test_curves_equal_pycocotools_at_the_extremes(sizes):
    agree(*crowded_case(7, **sizes))


def none_of(columns):
    return type(columns)(*(column[:0] for column in columns))


def test_nothing_found_or_nothing_to_find_equals_pycocotools():
    truth, predicted = crowded_case(8)
    assert (agree(none_of(truth), predicted) == -1).all()
    assert (agree(truth, none_of(predicted))[:, :, :, 0] == 0).all()
    assert (agree(none_of(truth), none_of(predicted)) == -1).all()


def test_a_class_without_objects_is_undefined():
    precision = agree(*crowded_case(9), classes=CLASSES + 2)
    assert (precision[:, :, CLASSES:] == -1).all()


def test_pairs_looked_at_in_parts_give_the_same(monkeypatch):
    truth, predicted = crowded_case(10)
    expected = precision_and_recall(truth, predicted, CLASSES)
    for at_once in (1, 7, 100):
        monkeypatch.setattr(coco_arrays, "_PAIRS_AT_ONCE", at_once)
        for one, other in zip(precision_and_recall(truth, predicted, CLASSES), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_inputs_are_left_alone():
    truth, predicted = crowded_case(11)
    before = [column.copy() for column in (*truth, *predicted)]
    precision_and_recall(truth, predicted, CLASSES)
    for one, other in zip((*truth, *predicted), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_object_is_found_once_and_a_crowd_by_all():
    """Three equal detections: on one object, precision 1 and then two false ones; on a crowd, none counts."""
    box = np.array([[0.0, 0.0, 40.0, 40.0]])
    zero, three = np.zeros(1, dtype=np.int64), np.zeros(3, dtype=np.int64)
    predicted = DetectionRows(three, three, np.repeat(box, 3, axis=0), np.array([0.9, 0.8, 0.7]))
    alone = Objects(zero, zero, box, np.array([1600.0]), np.array([False]))
    precision, recall = precision_and_recall(alone, predicted, 1)
    assert (precision[..., 0, 0] == pytest.approx(1.0)) and (recall[:, 0, 0] == 1).all()
    assert (recall[:, 0, 1] == -1).all()  # 1,600 square pixels are not small
    far = np.array([[200.0, 0.0, 40.0, 40.0]])
    both = Objects(
        np.zeros(2, dtype=np.int64),
        np.zeros(2, dtype=np.int64),
        np.concatenate([box, far]),
        np.array([1600.0, 1600.0]),
        np.array([True, False]),
    )
    last = DetectionRows(
        *(np.append(old, new, axis=0) for old, new in zip(predicted, (zero, zero, far, [0.1]), strict=True))
    )
    precision, _ = precision_and_recall(both, last, 1)
    assert precision[..., 0, 0] == pytest.approx(1.0)  # as if the three on the crowd were not there
