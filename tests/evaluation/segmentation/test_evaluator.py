"""Metrics of segmentations against slow loops, torchmetrics and counts by hand."""

import json
import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MulticlassPrecision,
)

from trunkline.evaluation.base import class_table
from trunkline.evaluation.files import write_json
from trunkline.evaluation.segmentation.evaluator import SegmentationEvaluator

NAMES = ["ant", "bee", "cat"]
METRICS = ["mIoU", "pixel_accuracy", "mean_class_accuracy", "mean_Dice", "frequency_weighted_IoU"]


def evaluated(predicted, truth, names=NAMES, **options):
    evaluator = SegmentationEvaluator(names, **options)
    evaluator.add(torch.tensor(predicted), torch.tensor(truth))
    return evaluator.compute()


def columns(result):
    return {name: [row.metrics[name] for row in result.per_class] for name in result.per_class[0].metrics}


def masks(seed, shape=(9, 11), classes=5, kind=torch.uint8):
    """A truth with ignored pixels and a prediction that is right for about half of it."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, classes, shape, generator=generator)
    guesses = torch.randint(0, classes, shape, generator=generator)
    predicted = torch.where(torch.rand(shape, generator=generator) < 0.5, truth, guesses)
    truth[torch.rand(shape, generator=generator) < 0.2] = 255
    return predicted.to(kind), truth.to(kind)


def test_metrics_of_eight_pixels_by_hand():
    """Ants: 2 of 3 right, one taken for a bee; bees: 1 of 2, one taken for an ant; cats: 1 of 1."""
    result = evaluated([[0, 0, 1, 1], [0, 2, 0, 1]], [[0, 0, 0, 1], [1, 2, 255, 255]])
    assert result.confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert list(result.metrics) == METRICS
    found = columns(result)
    assert found["IoU"] == pytest.approx([2 / 4, 1 / 3, 1.0])
    assert found["Dice"] == pytest.approx([4 / 6, 2 / 4, 1.0])
    assert found["accuracy"] == pytest.approx([2 / 3, 1 / 2, 1.0])
    assert found["precision"] == pytest.approx([2 / 3, 1 / 2, 1.0])
    assert [(row.name, row.pixels) for row in result.per_class] == [("ant", 3), ("bee", 2), ("cat", 1)]
    assert result.metrics == pytest.approx(
        {
            "mIoU": (1 / 2 + 1 / 3 + 1) / 3,
            "pixel_accuracy": 4 / 6,
            "mean_class_accuracy": (2 / 3 + 1 / 2 + 1) / 3,
            "mean_Dice": (2 / 3 + 1 / 2 + 1) / 3,
            "frequency_weighted_IoU": (3 * 1 / 2 + 2 * 1 / 3 + 1) / 6,
        }
    )


def test_a_class_that_is_nowhere_is_left_out():
    result = evaluated([0, 0, 1], [0, 1, 1])
    assert result.per_class[2].pixels == 0
    assert all(math.isnan(value) for value in result.per_class[2].metrics.values())
    assert result.metrics["mIoU"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert result.metrics["mean_Dice"] == pytest.approx(2 / 3)
    assert result.metrics["mean_class_accuracy"] == pytest.approx((1 + 1 / 2) / 2)


def test_a_class_that_is_predicted_alone_counts_nothing():
    result = evaluated([0, 0, 2], [0, 1, 1])
    cat = result.per_class[2].metrics
    assert cat["IoU"] == cat["Dice"] == cat["precision"] == 0 and math.isnan(cat["accuracy"])
    assert result.per_class[1].metrics["IoU"] == 0 and math.isnan(result.per_class[1].metrics["precision"])
    assert result.metrics["mIoU"] == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert result.metrics["mean_class_accuracy"] == pytest.approx(1 / 2)
    assert result.metrics["frequency_weighted_IoU"] == pytest.approx(1 / 3 * 1 / 2)


@pytest.mark.parametrize("truth", [None, [255, 255, 255], []])
def test_no_pixels_are_no_metrics(truth):
    evaluator = SegmentationEvaluator(NAMES)
    if truth is not None:
        evaluator.add(torch.zeros(len(truth), dtype=torch.uint8), torch.tensor(truth, dtype=torch.uint8))
    result = evaluator.compute()
    assert result.images == len(evaluator) == (truth is not None)
    assert all(math.isnan(value) for value in result.metrics.values())
    assert all(math.isnan(value) for row in result.per_class for value in row.metrics.values())
    assert not result.confusion.any()


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.int32])
@pytest.mark.parametrize("shape", [(9, 11), (3, 4, 5), (40,)])
def test_metrics_equal_a_slow_loop(shape, kind):
    evaluator = SegmentationEvaluator(list("abcde"))
    inside, either, truths, founds = ([0] * 5 for _ in range(4))
    right = every = 0
    for seed in range(3):
        predicted, truth = masks(seed, shape, kind=kind)
        evaluator.add(predicted, truth)
        for guess, label in zip(predicted.flatten().tolist(), truth.flatten().tolist(), strict=True):
            if label == 255:
                continue
            every, right = every + 1, right + (guess == label)
            truths[label] += 1
            founds[guess] += 1
            for k in range(5):
                inside[k] += guess == label == k
                either[k] += k in (guess, label)
    result = evaluator.compute()
    assert result.images == 3
    iou = [inside[k] / either[k] for k in range(5)]
    dice = [2 * inside[k] / (truths[k] + founds[k]) for k in range(5)]
    accuracy = [inside[k] / truths[k] for k in range(5)]
    found = columns(result)
    assert found["IoU"] == pytest.approx(iou) and found["Dice"] == pytest.approx(dice)
    assert found["accuracy"] == pytest.approx(accuracy)
    assert found["precision"] == pytest.approx([inside[k] / founds[k] for k in range(5)])
    weighted = sum(truths[k] * iou[k] for k in range(5)) / every
    expected = [sum(iou) / 5, right / every, sum(accuracy) / 5, sum(dice) / 5, weighted]
    assert result.metrics == pytest.approx(dict(zip(METRICS, expected, strict=True)))


def test_metrics_equal_torchmetrics():
    evaluator = SegmentationEvaluator(list("abcde"))
    peers = {
        ("mIoU", "IoU"): MulticlassJaccardIndex,
        ("mean_class_accuracy", "accuracy"): MulticlassAccuracy,
        ("mean_Dice", "Dice"): MulticlassF1Score,
        (None, "precision"): MulticlassPrecision,
    }
    options = {"ignore_index": 255, "validate_args": False}
    means = {key: peer(5, average="macro", **options) for key, peer in peers.items()}
    each = {key: peer(5, average="none", **options) for key, peer in peers.items()}
    weighted = MulticlassJaccardIndex(5, average="weighted", **options)
    pixels = MulticlassAccuracy(5, average="micro", **options)
    for seed in range(4):
        predicted, truth = masks(seed, kind=torch.int64)
        evaluator.add(predicted, truth)
        for metric in (*means.values(), *each.values(), weighted, pixels):
            metric.update(predicted, truth)
    result = evaluator.compute()
    for mean, column in peers:
        assert columns(result)[column] == pytest.approx(each[mean, column].compute().tolist(), rel=1e-5)
        if mean:
            assert result.metrics[mean] == pytest.approx(means[mean, column].compute().item(), rel=1e-5)
    assert result.metrics["frequency_weighted_IoU"] == pytest.approx(weighted.compute().item(), rel=1e-5)
    assert result.metrics["pixel_accuracy"] == pytest.approx(pixels.compute().item(), rel=1e-5)


def test_predictions_on_ignored_pixels_play_no_part():
    predicted, truth = masks(0)
    other = torch.where(truth == 255, 200, predicted)
    assert (
        evaluated(predicted.tolist(), truth.tolist(), list("abcde")).confusion
        == evaluated(other.tolist(), truth.tolist(), list("abcde")).confusion
    ).all()


def test_another_value_can_be_the_one_to_ignore():
    result = evaluated([0, 1, 1, 2], [0, 1, -1, 0], ignore_index=-1)
    assert result.confusion.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    result = evaluated([0, 1, 1, 2], [0, 1, 1, 0], ignore_index=0)
    assert result.confusion.tolist() == [[0, 0, 0], [0, 2, 0], [0, 0, 0]]


@pytest.mark.parametrize("wrong", [3, 254, -1, 256])
def test_numbers_outside_the_classes_are_found(wrong):
    good, bad = torch.tensor([0, 1, 2, 0]), torch.tensor([0, wrong, 2, wrong])
    evaluator = SegmentationEvaluator(NAMES)
    evaluator.add(good, bad)
    for use in (evaluator.counts, evaluator.rows, evaluator.compute):
        with pytest.raises(
            ValueError, match=r"2 pixels of the truth .* outside 0\.\.2 that is not 255 either"
        ):
            use()
    evaluator.reset()
    evaluator.add(bad, good)
    with pytest.raises(ValueError, match=r"2 pixels of the prediction of 1 images .* outside 0\.\.2"):
        evaluator.compute()
    evaluator.reset()
    evaluator.add(good, good)
    assert evaluator.compute().metrics["mIoU"] == 1


@pytest.mark.parametrize(
    ("predicted", "truth", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3).byte(), "the prediction must hold integers, got torch.float32"),
        (torch.zeros(2, 3).byte(), torch.zeros(2, 3).bool(), "the truth must hold integers, got torch.bool"),
        (torch.zeros(2, 3).byte(), torch.zeros(3, 2).byte(), r"differ in shape: \[2, 3\] and \[3, 2\]"),
    ],
)
def test_what_does_not_fit_is_an_error(predicted, truth, message):
    with pytest.raises(ValueError, match=message):
        SegmentationEvaluator(NAMES).add(predicted, truth)


def test_no_classes_are_an_error():
    with pytest.raises(ValueError, match="at least one class"):
        SegmentationEvaluator([])


def test_merged_parts_are_the_whole():
    """One process has two images, one none, one three; the merged one goes on as usual."""
    whole = SegmentationEvaluator(list("abcde"))
    parts = [SegmentationEvaluator(list("abcde")) for _ in range(3)]
    for seed, part in enumerate((0, 0, 2, 2, 2)):
        parts[part].add(*masks(seed))
        whole.add(*masks(seed))
    rows = [part.rows() for part in parts]
    assert [images for _, images in rows] == [2, 0, 3]
    for part in parts:
        part.merge(rows)
        assert part.images == 5 and torch.equal(part.counts(), whole.counts())
    for evaluator in (whole, parts[1]):
        evaluator.add(*masks(9))
    assert parts[1].compute().metrics == whole.compute().metrics
    assert rows[0][0].dtype == torch.int64 and rows[0][0].shape == (5, 5)


def test_counts_are_a_copy_and_reset_forgets():
    evaluator = SegmentationEvaluator(NAMES)
    evaluator.add(torch.tensor([0, 1]), torch.tensor([0, 1]))
    before = evaluator.counts()
    evaluator.add(torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert before.sum() == 2 and evaluator.counts().sum() == 4
    evaluator.reset()
    assert evaluator.counts().sum() == 0 and len(evaluator) == 0


def test_counting_neither_reads_values_nor_depends_on_them():
    """Meta tensors have no values: reading one would be an error."""
    evaluator = SegmentationEvaluator(NAMES)
    empty = torch.empty(5, 6, dtype=torch.uint8, device="meta")
    evaluator.add(empty, empty)
    assert evaluator.images == 1


def test_more_pixels_than_an_uint8_can_count():
    result = evaluated([0] * 70_000, [0] * 70_000)
    assert result.confusion[0, 0] == 70_000


def test_summary_and_tables():
    result = evaluated([[0, 0, 1, 1], [0, 2, 0, 1]], [[0, 0, 0, 1], [1, 2, 255, 255]])
    lines = result.summary().splitlines()
    assert lines[0] == " mean intersection over union      = 0.6111"
    assert lines[1] == " pixel accuracy                    = 0.6667"
    assert lines[-1] == " of 1 images, 6 labelled pixels" and len(lines) == 6
    assert result.class_table().splitlines() == [
        "class  pixels    IoU   Dice  accuracy  precision",
        "ant         3  0.500  0.667     0.667      0.667",
        "bee         2  0.333  0.500     0.500      0.500",
        "cat         1  1.000  1.000     1.000      1.000",
    ]
    worst = class_table(result.class_rows(), most=1).splitlines()
    assert worst[1].startswith("bee") and worst[2] == "… the 1 lowest of 3 classes" and len(worst) == 3


def test_long_tables_leave_out_classes_that_are_nowhere():
    result = evaluated([0, 2], [0, 0], ["ant", "bee", "cat", "dog"])
    assert [line.split()[0] for line in class_table(result.class_rows(), most=3).splitlines()] == [
        "class",
        "cat",
        "ant",
        "…",
    ]


def test_everything_goes_into_a_json_file(tmp_path):
    result = evaluated([0, 0, 1], [0, 1, 255])
    read = json.loads(write_json(tmp_path / "a.json", result.as_dict()).read_text())
    assert read["images"] == 1 and read["confusion"] == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert read["metrics"] == pytest.approx(result.metrics)
    ant, bee, cat = read["classes"]
    assert ant == {
        "name": "ant",
        "pixels": 1,
        "IoU": 0.5,
        "Dice": pytest.approx(2 / 3),
        "accuracy": 1.0,
        "precision": 0.5,
    }
    assert bee["precision"] is None and bee["IoU"] == 0 and cat["IoU"] is None
    assert isinstance(result.confusion, np.ndarray) and result.confusion.dtype == np.int64
