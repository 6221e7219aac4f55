"""Evaluation against odd files: the same metrics as by pycocotools alone on the file itself."""

import contextlib
import copy
import io
import json
import logging

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from trunkline.data.detection.index import read_coco
from trunkline.evaluation.detection.evaluator import CocoEvaluator

SIDE = 120


def odd_file(seed, images=12):
    """Boxes that overshoot, crowds, other areas than the box's, areas of 0, objects of no area."""
    rng = np.random.default_rng(seed)
    records = []
    for image in range(images):
        for _ in range(int(rng.integers(0, 7))):
            x, y = rng.uniform(-0.9, SIDE - 30, 2)
            width, height = rng.uniform(5, 100, 2)
            kind = rng.integers(6)
            box = [x, y, min(width, SIDE + 0.9 - x), min(height, SIDE + 0.9 - y)]
            if kind == 0:
                box = [-0.8, -0.8, SIDE + 1.6, SIDE + 1.6]
            record = {"image_id": image, "category_id": int(rng.choice([3, 5, 9])), "bbox": box}
            record["area"] = float(box[2] * box[3] * rng.uniform(0.1, 1)) if kind != 1 else 0
            record["iscrowd"] = int(kind == 2)
            records.append(record)
    for number, record in enumerate(records, start=1):
        record["id"] = number
    shots = [{"id": n, "file_name": f"{n}.png", "width": SIDE, "height": SIDE} for n in range(images)]
    names = [{"id": number, "name": str(number)} for number in (3, 5, 9, 11)]  # nothing is an 11
    return {"images": shots, "annotations": records, "categories": names}


def detections(content, seed):
    """Boxes near the objects, inside their images as those of a model are, and false ones of every class."""
    rng = np.random.default_rng(seed)
    found = []
    for record in content["annotations"]:
        x, y, width, height = record["bbox"]
        corners = np.array([x, y, x + width, y + height]) + rng.normal(0, 1.5, 4)
        found.append((record["image_id"], record["category_id"], corners, rng.uniform(0.3, 1)))
    for image in range(len(content["images"])):
        low = rng.uniform(0, 80, 2)
        found.append((image, int(rng.choice([3, 5, 9, 11])), np.array([*low, *low + 30]), rng.uniform()))
    return [(image, label, np.clip(box, 0, SIDE), score) for image, label, box, score in found]


def by_pycocotools(path, found):
    """The 12 metrics, as the demo of pycocotools computes them from files."""
    rows = [
        {
            "image_id": image,
            "category_id": label,
            "bbox": [*box[:2], *(box[2:] - box[:2])],
            "score": float(score),
        }
        for image, label, box, score in found
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        run = COCOeval(truth, truth.loadRes(copy.deepcopy(rows)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return np.where(run.stats == -1, np.nan, run.stats)


def by_trunkline(path, found, **options):
    evaluator = CocoEvaluator(read_coco(path, path.parent, **options).as_coco())
    for image in json.loads(path.read_text())["images"]:
        mine = [row for row in found if row[0] == image["id"]]
        boxes = np.array([row[2] for row in mine]).reshape(-1, 4)
        evaluator.add(
            image["id"], boxes, [row[3] for row in mine], np.array([row[1] for row in mine], np.int64)
        )
    return np.array(list(evaluator.compute().metrics.values()))


def write(tmp_path, content):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("on_bad_box", ["error", "clip", "drop"])
@pytest.mark.parametrize("seed", range(3))
def test_boxes_that_overshoot_are_evaluated_as_they_are(tmp_path, seed, on_bad_box):
    content = odd_file(seed)
    path, found = write(tmp_path, content), detections(content, seed)
    expected = by_pycocotools(path, found)
    np.testing.assert_allclose(by_trunkline(path, found, on_bad_box=on_bad_box), expected, atol=1e-9)
    assert 0.1 < expected[0] < 0.95


def test_an_object_smaller_than_its_overshoot_by_hand(tmp_path):
    """Half of the box is outside: a detection of what is inside has an IoU of one half, not one."""
    content = odd_file(0, images=1)
    content["annotations"] = [
        {"id": 1, "image_id": 0, "category_id": 3, "bbox": [SIDE - 1, 50, 2, 20], "area": 40, "iscrowd": 0}
    ]
    path = write(tmp_path, content)
    found = [(0, 3, np.array([SIDE - 1, 50, SIDE, 70.0]), 0.9)]
    assert by_trunkline(path, found)[:3].tolist() == pytest.approx([0.1, 1, 0])  # AP, AP50, AP75
    np.testing.assert_allclose(by_trunkline(path, found), by_pycocotools(path, found), atol=1e-9)
    assert read_coco(path, tmp_path).boxes.tolist() == [[SIDE - 1, 50, SIDE, 70]]  # what is learned


@pytest.mark.parametrize("on_bad_box", ["clip", "drop"])
def test_boxes_that_training_leaves_out_are_evaluated(tmp_path, on_bad_box, caplog):
    content = odd_file(1)
    bad = [[20, 20, 0, 30], [10, 10, 15, -4], [100, 100, 60, 60], [-30, 5, 50, 50], [500, 5, 9, 9]]
    for place, box in enumerate(bad):
        content["annotations"].insert(
            5 * place, {"image_id": 2, "category_id": 3, "bbox": box, "area": 90, "iscrowd": 0}
        )
    for number, record in enumerate(content["annotations"], start=1):
        record["id"] = number
    path, found = write(tmp_path, content), detections(content, 7)
    found += [(2, 3, np.array([100.0, 100, 120, 120]), 0.99), (2, 3, np.array([0.0, 5, 20, 55]), 0.98)]
    found = [row for row in found if (row[2][2:] > row[2][:2]).all()]
    index = read_coco(path, tmp_path, on_bad_box=on_bad_box)
    assert len(index.boxes) == len(content["annotations"]) - (5 if on_bad_box == "drop" else 3)
    assert index.dropped == {"no area": 2, "outside": 3 if on_bad_box == "drop" else 1}
    truth = index.as_coco()["annotations"]
    assert [row["id"] for row in truth] == list(range(1, len(content["annotations"]) + 1))
    wanted = by_pycocotools(path, found)
    np.testing.assert_allclose(by_trunkline(path, found, on_bad_box=on_bad_box), wanted, atol=1e-9)


def test_the_field_ignore_has_no_effect_and_that_is_said(tmp_path, caplog):
    content = odd_file(2)
    for record in content["annotations"][::3]:
        record["ignore"] = 1
    path, found = write(tmp_path, content), detections(content, 2)
    with caplog.at_level(logging.WARNING, "trunkline"):
        metrics = by_trunkline(path, found)
    np.testing.assert_allclose(metrics, by_pycocotools(path, found), atol=1e-9)
    assert '"ignore", which neither training nor the COCO metrics read; set iscrowd to 1' in caplog.text
