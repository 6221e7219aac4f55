"""COCO metrics against pycocotools used by itself, and against numbers worked out by hand."""

import contextlib
import copy
import io
import json
import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from trunkline.evaluation.detection.evaluator import CocoEvaluator

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
BACKENDS = ["faster", "pycocotools"]


def reference(truth, predictions, category_ids=None):
    """Run pycocotools as its own demo does: loadRes, evaluate, accumulate, summarize. Ids start at 1."""
    truth = copy.deepcopy(truth)
    truth["images"] = [image for image in truth["images"] if image["id"] in predictions]
    for index, item in enumerate(truth["annotations"], start=1):
        item["id"] = index
    results = []
    for image_id, rows in predictions.items():
        for box, score, category in zip(*rows, strict=True):
            x1, y1, x2, y2 = map(float, box)
            row = {"image_id": image_id, "category_id": int(category), "score": float(score)}
            results.append(row | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(results), "bbox")
        if category_ids is not None:
            run.params.catIds = category_ids
        run.evaluate()
        run.accumulate()
        run.summarize()
    return np.where(run.stats == -1, np.nan, run.stats), printed.getvalue()


def evaluator(truth, predictions, backend="faster"):
    result = CocoEvaluator(truth, backend)
    for image_id, rows in predictions.items():
        result.add(image_id, *rows)
    return result


def one_image(boxes, crowd=(), categories=((1, "thing"),)):
    """Ground truth of one image, id 0, with boxes xyxy of category 1."""
    return {
        "images": [{"id": 0}],
        "categories": [{"id": number, "name": name} for number, name in categories],
        "annotations": [
            {"image_id": 0, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(i in crowd)}
            for i, (x1, y1, x2, y2) in enumerate(boxes)
        ],
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_metrics_equal_pycocotools(real_like, backend):
    truth, predictions = real_like
    expected, _ = reference(truth, predictions)
    result = evaluator(truth, predictions, backend).compute()
    assert list(result.metrics) == NAMES
    assert result.images == 40
    np.testing.assert_allclose(list(result.metrics.values()), expected, rtol=0, atol=1e-6)
    assert expected.min() > 0.05 and expected.max() < 0.95  # every metric says something


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_per_class_equal_pycocotools_on_that_class_alone(real_like, backend):
    truth, predictions = real_like
    result = evaluator(truth, predictions, backend).compute()
    assert [row.category_id for row in result.per_class] == sorted(item["id"] for item in truth["categories"])
    for row in result.per_class:
        expected, _ = reference(truth, predictions, [row.category_id])
        np.testing.assert_allclose([row.ap, row.ap50], expected[:2], rtol=0, atol=1e-6)
        objects = [item for item in truth["annotations"] if item["category_id"] == row.category_id]
        assert row.objects == sum(not item["iscrowd"] for item in objects)
    assert math.isnan(next(row.ap for row in result.per_class if row.name == "never seen"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_added_images_count(real_like, backend):
    truth, predictions = real_like
    part = dict(list(predictions.items())[5:20])
    expected, _ = reference(truth, part)
    result = evaluator(truth, part, backend).compute()
    assert result.images == 15
    seen = [item for item in truth["annotations"] if item["image_id"] in part and not item["iscrowd"]]
    assert sum(row.objects for row in result.per_class) == len(seen) < len(truth["annotations"]) / 2
    np.testing.assert_allclose(list(result.metrics.values()), expected, rtol=0, atol=1e-6)
    assert result.metrics["AP"] != evaluator(truth, predictions, backend).compute().metrics["AP"]


def test_order_of_images_does_not_matter(real_like):
    truth, predictions = real_like
    backward = dict(reversed(predictions.items()))
    one, other = evaluator(truth, predictions).compute(), evaluator(truth, backward).compute()
    assert one.metrics == other.metrics


def test_summary_is_what_pycocotools_prints(real_like, capsys):
    truth, predictions = real_like
    _, printed = reference(truth, predictions)
    for backend in BACKENDS:
        lines = evaluator(truth, predictions, backend).compute().summary().splitlines()
        assert lines == printed.splitlines()[-12:]
    assert capsys.readouterr().out == ""  # the libraries keep quiet


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_objects_by_hand(backend):
    """Two objects of 50 x 50 pixels, found at IoU 1 (score 0.9) and 0.62 (0.7); a false one between (0.8).

    At IoU 0.50, 0.55 and 0.60 the precisions down the ranking are 1, 1/2, 2/3 at recalls 1/2, 1/2, 1: the
    curve is 1 up to recall 0.50 (51 of the 101 points) and 2/3 beyond (50 points). At the seven thresholds
    above, it is 1 up to 0.50 and 0 beyond.
    """
    truth = one_image([(0, 0, 50, 50), (100, 0, 150, 50)])
    boxes = [(100, 0, 150, 31), (300, 300, 350, 350), (0, 0, 50, 50)]  # 50 x 31 inside 50 x 50: IoU 0.62
    result = evaluator(truth, {0: (boxes, [0.7, 0.8, 0.9], [1, 1, 1])}, backend).compute()
    low, high = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert result.metrics["AP50"] == pytest.approx(low, abs=1e-12)
    assert result.metrics["AP75"] == pytest.approx(high, abs=1e-12)
    assert result.metrics["AP"] == pytest.approx((3 * low + 7 * high) / 10, abs=1e-12)
    assert result.metrics["AR1"] == pytest.approx(0.5)
    assert result.metrics["AR100"] == pytest.approx((3 * 1 + 7 * 0.5) / 10)
    assert result.metrics["APm"] == pytest.approx(result.metrics["AP"])  # 2,500 pixels lie in 32²..96²
    assert math.isnan(result.metrics["APs"]) and math.isnan(result.metrics["ARl"])
    assert result.per_class == ((1, "thing", 2, result.metrics["AP"], result.metrics["AP50"]),)


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_annotation_with_id_zero_is_matched(backend):
    """Both libraries take the id 0 for "unmatched": unless ids are replaced, a perfect answer scores 0."""
    truth = one_image([(0, 0, 50, 50)])
    truth["annotations"][0]["id"] = 0
    result = evaluator(truth, {0: ([(0, 0, 50, 50)], [0.5], [1])}, backend).compute()
    assert result.metrics["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_detections_on_a_crowd_are_neither_right_nor_wrong(backend):
    truth = one_image([(0, 0, 50, 50), (100, 100, 300, 300)], crowd={1})
    inside = [(110, 110, 150, 150), (200, 200, 290, 290), (120, 200, 180, 260)]
    rows = ([*inside, (0, 0, 50, 50)], [0.9, 0.8, 0.7, 0.6], [1] * 4)
    result = evaluator(truth, {0: rows}, backend).compute()
    assert result.metrics["AP"] == pytest.approx(1.0)
    assert result.per_class[0].objects == 1
    for item in truth["annotations"]:
        item["iscrowd"] = 0
    assert evaluator(truth, {0: rows}, backend).compute().metrics["AP"] < 0.3


@pytest.mark.parametrize("backend", BACKENDS)
def test_undefined_metrics_are_nan(backend):
    truth = one_image([], categories=((1, "thing"), (5, "other")))
    result = evaluator(truth, {0: ([(0, 0, 9, 9)], [0.5], [5])}, backend).compute()
    assert all(math.isnan(value) for value in result.metrics.values())
    for row in result.per_class:
        assert row.objects == 0 and math.isnan(row.ap) and math.isnan(row.ap50)
    assert "= nan" in result.summary() and "nan" in result.class_table()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_detection_at_all_is_zero(backend):
    result = evaluator(one_image([(0, 0, 50, 50)]), {0: ([], [], [])}, backend).compute()
    assert result.metrics["AP"] == 0 and result.metrics["AR100"] == 0


def test_missing_area_is_that_of_the_box():
    truth, rows = one_image([(0, 0, 20, 20)]), {0: ([(0, 0, 20, 20)], [0.5], [1])}
    assert evaluator(truth, rows).compute().metrics["APs"] == pytest.approx(1.0)
    truth["annotations"][0]["area"] = 40.0**2
    assert math.isnan(evaluator(truth, rows).compute().metrics["APs"])


def test_class_table_is_aligned_and_in_order_of_ids():
    truth = one_image([(0, 0, 50, 50)], categories=((20, "a rather long name"), (1, "thing")))
    result = evaluator(truth, {0: ([(0, 0, 50, 50)], [0.5], [1])}).compute()
    assert result.class_table() == "\n".join(
        [
            "id  class               objects     AP   AP50",
            " 1  thing                     1  1.000  1.000",
            "20  a rather long name        0    nan    nan",
        ]
    )


def test_results_are_coco_results_of_plain_numbers():
    added = CocoEvaluator(one_image([(0, 0, 50, 50)]))
    # 0.1 as float32 is not 0.1: the number must come through as it was, unrounded.
    added.add(0, torch.tensor([[0.1, 2, 10.5, 30]]), torch.tensor([0.1]), torch.tensor([1]))
    wide = float(np.float64(np.float32(10.5)) - np.float64(np.float32(0.1)))
    expected = [
        {
            "image_id": 0,
            "category_id": 1,
            "bbox": [float(np.float32(0.1)), 2.0, wide, 28.0],
            "score": float(np.float32(0.1)),
        }
    ]
    assert added.results() == expected
    assert json.loads(json.dumps(added.results())) == expected
    added.compute()
    assert added.results() == expected  # computing changes nothing


def test_lists_and_read_only_arrays_are_taken_exactly(recwarn):
    boxes = np.array([[0.1, 0.2, 0.7, 0.9]])
    boxes.flags.writeable = False
    for given in (boxes, boxes.tolist()):
        added = CocoEvaluator(one_image([]))
        added.add(0, given, [0.7], [1])
        row = added.results()[0]
        assert row["score"] == 0.7 and row["bbox"] == [0.1, 0.2, 0.7 - 0.1, 0.9 - 0.2]
    assert not recwarn.list


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_floating_type_is_taken_exactly(kind):
    boxes, scores = torch.tensor([[1.5, 2, 10, 30]], dtype=kind), torch.tensor([0.3], dtype=kind)
    added = CocoEvaluator(one_image([]))
    added.add(0, boxes.requires_grad_(), scores, torch.tensor([1], dtype=torch.int32))
    assert added.results()[0]["bbox"] == [1.5, 2.0, 8.5, 28.0]
    assert added.results()[0]["score"] == float(scores[0])


def test_add_batch_equals_add(real_like):
    truth, predictions = real_like
    batched = CocoEvaluator(truth)
    items = list(predictions.items())
    for start in range(0, len(items), 8):
        part = items[start : start + 8]
        counts = [len(rows[1]) for _, rows in part]
        boxes = torch.full((len(part), max(counts), 4), math.nan)  # padding rows must not be looked at
        scores = torch.full((len(part), max(counts)), math.nan)
        categories = torch.full((len(part), max(counts)), -1)
        for index, (_, rows) in enumerate(part):
            boxes[index, : counts[index]] = torch.from_numpy(rows[0])
            scores[index, : counts[index]] = torch.from_numpy(rows[1])
            categories[index, : counts[index]] = torch.from_numpy(rows[2])
        image_ids = torch.tensor([image_id for image_id, _ in part])
        batched.add_batch(image_ids, boxes, scores, categories, torch.tensor(counts))
    single = evaluator(truth, predictions)
    assert len(batched) == len(single) == 40
    assert batched.results() == single.results()


def test_reset_forgets_detections_and_keeps_the_ground_truth(real_like):
    truth, predictions = real_like
    used = evaluator(truth, dict(list(predictions.items())[:10]))
    used.reset()
    assert len(used) == 0 and used.results() == []
    for image_id, rows in predictions.items():
        used.add(image_id, *rows)
    assert used.compute().metrics == evaluator(truth, predictions).compute().metrics


def test_ground_truth_is_left_alone(real_like):
    truth, predictions = real_like
    before = copy.deepcopy(truth)
    for backend in BACKENDS:
        evaluator(truth, predictions, backend).compute()
    assert truth == before


BOX = [(0, 0, 5, 5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, BOX, [0.5], [1]), "image id 4 is not in the ground truth"),
        ((0, BOX, [0.5], [3]), "image id 0: category id 3 is not in the ground truth; its ids are 1"),
        ((0, BOX, [0.5, 0.6], [1, 1]), r"image id 0: boxes must be \[n, 4\]"),
        ((0, BOX, [0.5], [1, 1]), "image id 0: boxes must be"),
        ((0, [(1, 2, 3)], [0.5], [1]), "image id 0: boxes must be"),
        ((0, [BOX], [[0.5]], [[1]]), "image id 0: boxes must be"),
        ((0, BOX, [0.5], [1.0]), "category ids must be integers"),
        ((0, BOX * 2, [0.5, math.nan], [1, 1]), "image id 0: detection 1 .* is not finite"),
        ((0, [(0, 0, math.inf, 1)], [0.5], [1]), "detection 0 .* is not finite"),
        ((0, [(0, 0, 5, 5), (9, 0, 5, 5)], [0.5, 0.5], [1, 1]), "detection 1 .* x2 < x1"),
    ],
)
def test_detections_that_cannot_be_right_are_errors(arguments, message):
    empty = CocoEvaluator(one_image([(0, 0, 5, 5)]))
    with pytest.raises(ValueError, match=message):
        empty.add(*arguments)
    assert len(empty) == 0


def test_batches_that_cannot_be_right_are_errors():
    empty = CocoEvaluator(one_image([]))
    rows = (torch.zeros(1, 3, 4), torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"image id 0: count 4 does not lie in 0\.\.3"):
        empty.add_batch([0], *rows, [4])
    with pytest.raises(ValueError, match="2 image ids and 1 counts"):
        empty.add_batch([0, 1], *rows, [1])


def test_image_added_twice_is_an_error():
    added = evaluator(one_image([(0, 0, 5, 5)]), {0: (BOX, [0.5], [1])})
    with pytest.raises(ValueError, match="image id 0 was added before"):
        added.add(0, BOX, [0.5], [1])


def test_computing_without_images_is_an_error():
    with pytest.raises(ValueError, match="no image was added"):
        CocoEvaluator(one_image([])).compute()


def test_ground_truth_that_cannot_be_right_is_an_error():
    with pytest.raises(ValueError, match="'fast' is unknown; choose one of faster, pycocotools"):
        CocoEvaluator(one_image([]), backend="fast")
    truth = one_image([(0, 0, 5, 5)])
    with pytest.raises(ValueError, match="ids repeat in 'images'"):
        CocoEvaluator(truth | {"images": [{"id": 0}, {"id": 0}]})
    with pytest.raises(ValueError, match="ids repeat in 'categories'"):
        CocoEvaluator(truth | {"categories": truth["categories"] * 2})
    with pytest.raises(ValueError, match="annotation number 0 names image id 0 and category id 1"):
        CocoEvaluator(truth | {"images": [{"id": 8}]})
