"""All evaluators keep the contract: made without knowledge of the data, then prepared, they do as by hand."""

import csv
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from PIL import Image

from trunkline.evaluation.base import EvaluationContext, Evaluator, Result
from trunkline.evaluation.classification import ClassificationEvaluator
from trunkline.evaluation.detection import CocoEvaluator
from trunkline.evaluation.files import write_json
from trunkline.evaluation.pictures.confusion import confusion_picture, draw_confusion
from trunkline.evaluation.segmentation import SegmentationEvaluator
from trunkline.evaluation.volumes import VolumeEvaluator

KINDS = ["boxes", "masks", "classes", "several classes", "scans"]
HEADLINES = dict(zip(KINDS, ["AP", "mIoU", "accuracy", "mAP", "mean_Dice"], strict=True))


@pytest.fixture(params=KINDS)
def case(request, contract_cases):
    return contract_cases[request.param]


def prepared(case, **options):
    evaluator = case.kind(**options)
    evaluator.prepare(case.context)
    return evaluator


def run(evaluator, batches):
    evaluator.reset()
    for predictions, batch in batches:
        evaluator.update(predictions, batch)
    evaluator.gather()
    return evaluator.compute()


def text(result, folder):
    """NaN does not equal NaN; the text of a JSON file does."""
    return write_json(folder / "result.json", result.as_dict()).read_text()


def test_by_the_contract_is_as_by_hand(case, tmp_path):
    evaluator = prepared(case)
    assert isinstance(evaluator, Evaluator)
    expected = text(case.direct.compute(), tmp_path)
    for _ in range(2):  # the second evaluation forgets the first
        result = run(evaluator, case.batches)
        assert isinstance(result, Result)
        assert text(result, tmp_path) == expected
    evaluator.prepare(case.context)
    assert len(evaluator) == 0
    assert text(run(evaluator, case.batches), tmp_path) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_headline_is_a_metric(contract_cases, kind):
    case = contract_cases[kind]
    evaluator = prepared(case)
    assert evaluator.headline == HEADLINES[kind]
    assert 0 < run(evaluator, case.batches).metrics[evaluator.headline] < 1
    assert evaluator.needs_truth == (kind == "boxes")


def test_every_report_has_text_and_rows_for_each_class(case):
    result = case.direct.compute()
    rows = result.class_rows()
    assert [row["name"] for row in rows] == [row.name for row in result.per_class]
    assert all(row.keys() == rows[0].keys() for row in rows)
    assert result.text() == f"{result.summary()}\n\n{result.class_table()}"
    assert all(row["name"] in result.class_table() for row in rows)
    assert result.as_dict()["metrics"] == result.metrics


def test_evaluators_can_be_named_in_yaml():
    parser = ArgumentParser()
    parser.add_argument("--evaluators", type=list[Evaluator])
    given = [
        {
            "class_path": "trunkline.evaluation.detection.CocoEvaluator",
            "init_args": {"backend": "pycocotools"},
        },
        {"class_path": "trunkline.evaluation.segmentation.SegmentationEvaluator"},
        {"class_path": "trunkline.evaluation.classification.ClassificationEvaluator"},
        {
            "class_path": "trunkline.evaluation.volumes.VolumeEvaluator",
            "init_args": {"regions": {"whole": [1, 2]}, "tolerance": 2.0, "surfaces": False},
        },
    ]
    config = parser.parse_args(["--evaluators", yaml.safe_dump(given)])
    coco, masks, classes, volumes = parser.instantiate(config).evaluators
    assert isinstance(coco, CocoEvaluator) and coco.backend == "pycocotools"
    assert isinstance(masks, SegmentationEvaluator) and isinstance(classes, ClassificationEvaluator)
    assert volumes.regions == {"whole": (1, 2)} and volumes.tolerance == 2.0 and not volumes.surfaces


# What the context lacks, and what the constructor was given


def test_without_truth_the_method_of_the_data_module_is_named(contract_cases):
    evaluator = CocoEvaluator()
    with pytest.raises(ValueError, match=r'evaluation_truth\("detection", stage\)'):
        evaluator.prepare(EvaluationContext(["cat"]))
    case = contract_cases["boxes"]
    with pytest.raises(ValueError, match="not in the ground truth of 0 images"):
        evaluator.update(*case.batches[0])
    given = CocoEvaluator(case.context.truth)
    given.prepare(EvaluationContext(["cat"]))  # its own is enough
    assert run(given, case.batches).metrics == case.direct.compute().metrics


def test_another_truth_replaces_the_first(contract_cases):
    case = contract_cases["boxes"]
    evaluator = prepared(case)
    crowded = [{**item, "iscrowd": 1} for item in case.context.truth["annotations"]]
    evaluator.prepare(replace(case.context, truth={**case.context.truth, "annotations": crowded}))
    assert math.isnan(run(evaluator, case.batches).metrics["AP"])
    evaluator.prepare(case.context)
    assert run(evaluator, case.batches).metrics == case.direct.compute().metrics
    with pytest.raises(ValueError, match="ids repeat"):
        evaluator.prepare(EvaluationContext([], truth={**case.context.truth, "images": [{"id": 1}] * 2}))


@pytest.mark.parametrize(
    ("kind", "message"),
    [(SegmentationEvaluator, "class_names is empty"), (VolumeEvaluator, "regions is empty")],
)
def test_without_classes_there_is_nothing_to_evaluate(kind, message):
    with pytest.raises(ValueError, match=message):
        kind().prepare(EvaluationContext([]))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("masks", "has no classes"),
        ("classes", r"probabilities must be \[4, 0\]"),
        ("scans", "regions is empty"),
    ],
)
def test_predictions_before_prepare_are_an_error(contract_cases, kind, message):
    case = contract_cases[kind]
    with pytest.raises(ValueError, match=message):
        case.kind().update(*case.batches[0])


def test_what_the_constructor_was_given_stays():
    context = EvaluationContext(["a", "b"], multi_label=True, regions={"a": (1,)}, fitting=True)
    masks, classes = SegmentationEvaluator(["x"]), ClassificationEvaluator(["x", "y", "z"])
    volumes = VolumeEvaluator({"x": (3,)}, surfaces=True)
    for evaluator in (masks, classes, volumes):
        evaluator.prepare(context)
    assert masks.class_names == ["x"] and classes.class_names == ["x", "y", "z"]
    assert classes.multi_label  # a property of the labels, so the data's
    assert volumes.regions == {"x": (3,)} and volumes.surfaces


def test_other_class_names_come_with_another_context(contract_cases):
    for kind in ("masks", "classes"):
        case = contract_cases[kind]
        evaluator = prepared(case)
        names = [f"new {name}" for name in case.context.class_names]
        evaluator.prepare(replace(case.context, class_names=[*names, "one more"]))
        evaluator.prepare(replace(case.context, class_names=names))
        result = run(evaluator, case.batches)
        assert [row.name for row in result.per_class] == names
        assert result.metrics == case.direct.compute().metrics


@pytest.mark.parametrize(
    ("given", "fitting", "measured"),
    [(None, False, True), (None, True, False), (True, True, True), (False, False, False)],
)
def test_surfaces_are_not_measured_while_a_training_goes_on(contract_cases, given, fitting, measured):
    case = contract_cases["scans"]
    evaluator = VolumeEvaluator(surfaces=given)
    evaluator.prepare(replace(case.context, fitting=fitting))
    result = run(evaluator, case.batches[:1])
    assert ("mean_HD95_mm" in result.metrics) == measured
    assert VolumeEvaluator({"a": (1,)}).surfaces  # in Python, without a training


def test_a_mask_without_its_truth_is_an_error():
    evaluator = SegmentationEvaluator(["a"])
    with pytest.raises(ValueError, match="shorter"):
        evaluator.update([{"mask": torch.zeros(2, 2).byte()}], SimpleNamespace(truth=()))


# Files and pictures of a result


@pytest.mark.parametrize("kind", ["masks", "classes"])
def test_the_confusion_matrix_is_drawn(contract_cases, kind, tmp_path):
    case = contract_cases[kind]
    result = case.direct.compute()
    expected = draw_confusion(result.confusion, case.context.class_names)
    (title, picture), *others = prepared(case).pictures(result).items()
    assert title == "confusion" and not others and (picture == expected).all()
    written = case.direct.write(result, tmp_path)
    assert written == {"confusion": tmp_path / "confusion.png"}
    assert (np.asarray(Image.open(written["confusion"])) == expected).all()


@pytest.mark.parametrize("kind", ["boxes", "several classes"])
def test_some_results_have_no_further_files(contract_cases, kind, tmp_path):
    evaluator = contract_cases[kind].direct
    assert evaluator.pictures(evaluator.compute()) == {}
    assert evaluator.write(evaluator.compute(), tmp_path) == {} and not list(tmp_path.iterdir())


def test_more_classes_than_a_picture_has_pixels_are_not_drawn():
    names = [str(k) for k in range(2001)]
    assert confusion_picture(np.zeros((2001, 2001), np.int64), names) == {}


def test_cases_are_written_as_a_table(contract_cases, tmp_path):
    evaluator = contract_cases["scans"].direct
    result = evaluator.compute()
    written = evaluator.write(result, tmp_path)
    assert written == {"cases": tmp_path / "cases.csv"}
    with open(written["cases"], newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [(case, name, metrics) for case, classes in result.cases for name, metrics in classes.items()]
    assert len(rows) == len(expected) == 12
    for row, (case, name, metrics) in zip(rows, expected, strict=True):
        assert (row.pop("case"), row.pop("class")) == (case, name)
        numbers = {column: float(cell or "nan") for column, cell in row.items()}
        assert numbers == pytest.approx(metrics, rel=1e-5, nan_ok=True)
