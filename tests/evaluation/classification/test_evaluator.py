"""Metrics of classifications against slow loops and counts by hand."""

import json
import math

import numpy as np
import pytest
import torch

from trunkline.evaluation.base import EvaluationContext, class_table
from trunkline.evaluation.classification.evaluator import ClassificationEvaluator
from trunkline.evaluation.files import write_json

NAMES = ["ant", "bee", "cat"]


def one_hots(guesses, classes=3):
    return torch.eye(classes)[torch.tensor(guesses)]


def evaluated(guesses, labels, names=NAMES):
    evaluator = ClassificationEvaluator(names)
    evaluator.add(torch.arange(len(labels)), one_hots(guesses, len(names)), torch.tensor(labels))
    return evaluator.compute()


def test_metrics_of_five_images_by_hand():
    """Two ants (one right), three bees (two right), no cat, but one thing taken for a cat."""
    result = evaluated([0, 2, 1, 1, 0], [0, 0, 1, 1, 1])
    assert result.confusion.tolist() == [[1, 0, 1], [1, 2, 0], [0, 0, 0]]
    assert result.metrics == pytest.approx({"accuracy": 3 / 5, "mean_class_accuracy": (1 / 2 + 2 / 3) / 2})
    assert [(row.name, row.images) for row in result.per_class] == [("ant", 2), ("bee", 3), ("cat", 0)]
    shares = [row.metrics["accuracy"] for row in result.per_class]
    assert shares[:2] == pytest.approx([1 / 2, 2 / 3]) and math.isnan(shares[2])
    assert result.images == 5


def test_metrics_equal_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    classes = 8
    labels = torch.randint(classes, (60,), generator=generator)
    scores = torch.rand(60, classes, generator=generator)
    scores[range(60), labels] += 0.4
    evaluator = ClassificationEvaluator([f"c{k}" for k in range(classes)])
    for start in range(0, 60, 7):  # the last batch is smaller
        part = slice(start, start + 7)
        evaluator.add(torch.arange(60)[part], scores[part], labels[part])
    assert len(evaluator) == 60
    result = evaluator.compute()
    right, within, per_class = 0, 0, {k: [] for k in range(classes)}
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        order = sorted(range(classes), key=lambda k: -row[k])
        right += order[0] == label
        within += label in order[:5]
        per_class[label].append(order[0] == label)
    assert result.metrics["accuracy"] == pytest.approx(right / 60)
    assert result.metrics["accuracy_top5"] == pytest.approx(within / 60)
    assert right < within < 60
    means = [sum(hits) / len(hits) for hits in per_class.values()]
    assert result.metrics["mean_class_accuracy"] == pytest.approx(sum(means) / classes)
    assert [row.metrics["accuracy"] for row in result.per_class] == pytest.approx(means)


def test_top5_is_left_out_where_it_says_nothing():
    assert "accuracy_top5" not in evaluated([0], [0], ["a", "b", "c", "d", "e"]).metrics


def average_precision(scores, truth):
    """Sum of precision times the step in recall, one image after the other (scores all differ)."""
    found, total = 0, 0.0
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    for rank, index in enumerate(order, start=1):
        if truth[index]:
            found += 1
            total += found / rank
    return total / sum(truth)


def test_metrics_of_several_labels_equal_a_slow_loop():
    """Class 2 has no image and is left out of the means."""
    generator = torch.Generator().manual_seed(1)
    labels = (torch.rand(40, 3, generator=generator) < 0.4).float()
    labels[:, 2] = 0
    scores = (torch.rand(40, 3, generator=generator) + 0.4 * labels).clamp(max=0.999) * torch.linspace(
        0.9, 1, 120
    ).view(40, 3)
    evaluator = ClassificationEvaluator(NAMES, multi_label=True)
    for part in (slice(0, 25), slice(25, 40)):
        evaluator.add(torch.arange(40)[part], scores[part], labels[part])
    result = evaluator.compute()
    precisions, f1s = [], []
    for k in range(2):
        truth, column = labels[:, k].int().tolist(), scores[:, k].tolist()
        precisions.append(average_precision(column, truth))
        chosen = [p >= 0.5 for p in column]
        both = sum(t and c for t, c in zip(truth, chosen, strict=True))
        f1s.append(2 * both / (sum(truth) + sum(chosen)))
    rows = zip(scores.tolist(), labels.tolist(), strict=True)
    right = sum(all((p >= 0.5) == bool(t) for p, t in zip(*row, strict=True)) for row in rows)
    assert 0 < right < 40
    assert [row.metrics["AP"] for row in result.per_class[:2]] == pytest.approx(precisions, rel=1e-5)
    assert [row.metrics["F1"] for row in result.per_class[:2]] == pytest.approx(f1s, rel=1e-5)
    assert all(math.isnan(value) for value in result.per_class[2].metrics.values())
    expected = {"mAP": sum(precisions) / 2, "F1": sum(f1s) / 2, "subset_accuracy": right / 40}
    assert result.metrics == pytest.approx(expected, rel=1e-5)
    assert [row.images for row in result.per_class] == labels.sum(0).int().tolist()
    assert result.confusion is None and result.images == 40


def test_images_without_label_are_left_out():
    evaluator = ClassificationEvaluator(NAMES)
    evaluator.add(torch.arange(3), one_hots([0, 1, 2]), torch.tensor([0, -1, 1]))
    assert len(evaluator) == 2 and evaluator.compute().metrics["accuracy"] == 0.5
    several = ClassificationEvaluator(NAMES, multi_label=True)
    several.add(torch.arange(2), one_hots([0, 1]), torch.tensor([[1.0, 0, 0], [-1, -1, -1]]))
    assert several.compute().metrics["subset_accuracy"] == 1.0 and len(several) == 1


@pytest.mark.parametrize("several", [False, True])
def test_without_images_the_metrics_are_not_defined(several):
    evaluator = ClassificationEvaluator(["a", "b", "c", "d", "e", "f"], several)
    result = evaluator.compute()
    assert result.images == 0 and all(math.isnan(value) for value in result.metrics.values())
    assert "nan" in result.summary() and result.class_table()


@pytest.mark.parametrize("several", [False, True])
def test_parts_of_two_processes_give_the_metrics_of_one(several):
    """The second process saw two images of the first again; a third saw none."""
    generator = torch.Generator().manual_seed(2)
    ids, scores = torch.arange(10) * 3, torch.rand(10, 3, generator=generator)
    labels = torch.randint(3, (10,), generator=generator)
    labels = torch.eye(3)[labels] if several else labels

    def of(rows, shift=0.0):
        evaluator = ClassificationEvaluator(NAMES, several)
        if len(rows):
            evaluator.add(ids[rows], (scores[rows] + shift) / (1 + shift), labels[rows])
        return evaluator

    alone = of(range(10)).compute()
    parts = [of([7, 0, 3, 5]), of([1, 2, 4, 6, 8, 9]), of([])]
    parts[1].add(ids[[3, 0]], 1 - scores[[3, 0]], labels[[3, 0]])
    merged = of([])
    merged.merge([part.rows() for part in parts])
    assert len(merged) == 10
    assert merged.compute().metrics == pytest.approx(alone.metrics)
    merged.merge([merged.rows()])
    assert len(merged) == 10
    merged.reset()
    assert len(merged) == 0


def test_summary_and_tables_are_aligned_and_show_the_lowest_classes_when_there_are_many():
    names = [f"class number {k}" for k in range(60)]
    guesses = list(range(60))
    guesses[17] = 3  # class 17 at zero
    result = evaluated(guesses, list(range(60)), names)
    lines = class_table(result.class_rows(), most=4).splitlines()
    assert len(lines) == 6 and lines[1].startswith("class number 17") and "0.000" in lines[1]
    assert lines[-1] == "… the 4 lowest of 60 classes" and len({len(line) for line in lines[:-1]}) == 1
    spare = evaluated([0, 1, 1], [0, 0, 1], [*NAMES, "dog"])  # neither cat nor dog has an image
    assert [line.split()[0] for line in class_table(spare.class_rows(), most=3).splitlines()] == [
        "class",
        *NAMES[:2],
        "…",
    ]
    assert class_table(spare.class_rows(), most=3).splitlines()[-1] == "… the 2 lowest of 4 classes"
    assert len(class_table(spare.class_rows(), most=4).splitlines()) == 5
    full = class_table(result.class_rows(), most=60).splitlines()
    assert len(full) == 61 and full[18].startswith("class number 17")
    assert "accuracy" in result.summary() and "0.9833" in result.summary() and "60 images" in result.summary()


def test_as_dict_is_strict_json(tmp_path):
    path = write_json(tmp_path / "metrics.json", evaluated([0, 2, 1], [0, 0, 1]).as_dict())
    content = json.loads(path.read_text())
    assert content["images"] == 3 and content["metrics"]["accuracy"] == pytest.approx(2 / 3)
    assert content["classes"][2] == {"name": "cat", "images": 0, "accuracy": None}
    assert np.array(content["confusion"]).tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (torch.rand(2, 4), torch.tensor([0, 1]), r"must be \[2, 3\] .*got \[2, 4\]"),
        (torch.rand(2, 3), torch.zeros(2, 3), r"labels \[2\]"),
        (torch.rand(2, 3), torch.tensor([0, 3]), r"label 3 does not lie in 0\.\.2"),
        (torch.full((2, 3), math.nan), torch.tensor([0, 1]), r"ids \[0, 1\] is not finite"),
    ],
)
def test_what_does_not_fit_is_an_error(probabilities, labels, message):
    with pytest.raises(ValueError, match=message):
        ClassificationEvaluator(NAMES).add(torch.arange(2), probabilities, labels)


@pytest.mark.parametrize(
    ("several", "labels", "words"),
    [
        (False, [0.0, math.nan], "label nan of the image with id 1 is not a whole number"),
        (False, [0.5, 1.0], "label 0.5 of the image with id 0"),
        (True, [[0.0, 1.0], [math.nan, 1.0]], "label nan of the image with id 1 is not 0, 1 or"),
        (True, [[0.0, 1.0], [0.0, 0.3]], "label 0.3"),
        (True, [[0.0, 2.0], [0.0, 1.0]], "label 2.0 of the image with id 0"),
    ],
)
def test_what_is_no_label_is_refused(several, labels, words):
    evaluator = ClassificationEvaluator(["ant", "bee"])
    evaluator.prepare(EvaluationContext(["ant", "bee"], multi_label=several))
    with pytest.raises(ValueError, match=words):
        evaluator.add(torch.arange(2), torch.full((2, 2), 0.5), torch.tensor(labels))


@pytest.mark.parametrize("several", [False, True])
def test_metrics_of_nothing_are_said_to_be_nan(several, caplog):
    evaluator = ClassificationEvaluator()
    evaluator.prepare(EvaluationContext(["ant", "bee"], multi_label=several))
    unknown = torch.full((2, 2) if several else (2,), -1)
    evaluator.add(torch.arange(2), torch.full((2, 2), 0.5), unknown)
    assert all(math.isnan(value) for value in evaluator.compute().metrics.values())
    assert "no image with a label was evaluated" in caplog.text


def test_a_class_without_images_does_not_make_means_nan(caplog):
    evaluator = ClassificationEvaluator()
    evaluator.prepare(EvaluationContext(["ant", "bee", "cat"], multi_label=True))
    labels = torch.tensor([[1, 0, 0], [0, 0, 1]])
    evaluator.add(torch.arange(2), torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.1, 0.7]]), labels)
    result = evaluator.compute()
    assert result.metrics == {"mAP": 1.0, "F1": 1.0, "subset_accuracy": 0.5}
    assert math.isnan(result.per_class[1].metrics["AP"]) and not caplog.text
