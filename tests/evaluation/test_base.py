"""Results as text and files, one or several together."""

import csv
import json
import math
from dataclasses import dataclass, field

import pytest
import torch

from trunkline.evaluation.base import Result, class_table, merge_metrics, write_result
from trunkline.evaluation.segmentation import SegmentationEvaluator

NAN = math.nan


@dataclass(frozen=True)
class Rows(Result):
    """A result of somebody else: rows, and further entries of the JSON file."""

    rows: list = field(default_factory=list)
    more: dict = field(default_factory=dict)
    titles = {"one": "the first"}

    def class_rows(self):
        return self.rows

    def as_dict(self):
        return {**super().as_dict(), **self.more}


ONE = Rows(
    {"one": 0.1, "undefined": NAN},
    [{"name": "ant", "images": 3, "AP": 1 / 3}, {"name": "bee", "images": 0, "AP": NAN}],
    {"images": 3, "of": "the first"},
)
OTHER = Rows(
    {"two": 2.0},
    [{"name": "bee, wild", "recall": 0.5}, {"name": "ant", "images": 99, "recall": 0.25}],
    {"of": "the second", "confusion": [[1]]},
)
PLAIN = Result({"plain": 7.0})


def read(folder):
    """Read the files back; JSON must be strict."""
    content = json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)
    with open(folder / "metrics_per_class.csv", newline="") as file:
        return content, list(csv.reader(file))


def test_one_result_is_written_as_it_is(tmp_path):
    written = write_result([ONE], tmp_path / "new")
    assert list(written) == ["metrics", "metrics per class"]
    assert sorted(written.values()) == sorted((tmp_path / "new").iterdir())
    content, rows = read(tmp_path / "new")
    assert content == {
        "metrics": {"one": 0.1, "undefined": None},
        "classes": [{"name": "ant", "images": 3, "AP": 1 / 3}, {"name": "bee", "images": 0, "AP": None}],
        "images": 3,
        "of": "the first",
    }
    assert rows == [["class", "images", "AP"], ["ant", "3", repr(1 / 3)], ["bee", "0", ""]]


def test_several_results_are_joined_by_the_names_of_classes(tmp_path):
    write_result([ONE, PLAIN, OTHER], tmp_path)
    content, rows = read(tmp_path)
    assert content["metrics"] == {"one": 0.1, "undefined": None, "plain": 7.0, "two": 2.0}
    assert content["classes"] == [
        {"name": "ant", "images": 3, "AP": 1 / 3, "recall": 0.25},
        {"name": "bee", "images": 0, "AP": None},
        {"name": "bee, wild", "recall": 0.5},
    ]
    assert (content["images"], content["of"], content["confusion"]) == (3, "the first", [[1]])
    assert rows == [
        ["class", "images", "AP", "recall"],
        ["ant", "3", repr(1 / 3), "0.25"],
        ["bee", "0", "", ""],
        ["bee, wild", "", "", "0.5"],
    ]


def test_without_rows_there_is_no_table(tmp_path):
    assert write_result([PLAIN], tmp_path) == {"metrics": tmp_path / "metrics.json"}
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"metrics": {"plain": 7.0}, "classes": []}
    assert write_result([], tmp_path / "none") == {} and not (tmp_path / "none").exists()


def test_classes_of_equal_names_stay_apart(tmp_path):
    twice = [{"name": "ant", "AP": 0.1}, {"name": "ant", "AP": 0.2}]
    other = [{"name": "ant", "AR": 0.3}, {"name": "ant", "AR": 0.4}]
    write_result([Rows({}, twice), Rows({}, other)], tmp_path)
    content, rows = read(tmp_path)
    assert content["classes"] == [a | b for a, b in zip(twice, other, strict=True)]
    assert rows[1:] == [["ant", "0.1", "0.3"], ["ant", "0.2", "0.4"]]


def test_a_metric_of_two_evaluators_is_an_error_that_names_it(tmp_path):
    for use in (merge_metrics, lambda results: write_result(results, tmp_path)):
        with pytest.raises(ValueError, match="two evaluators have a metric named 'one'"):
            use([ONE, PLAIN, Result({"one": 0.1})])
    with pytest.raises(ValueError, match="metric of classes named 'AP'"):
        write_result([ONE, Rows({}, [{"name": "ant", "AP": 1 / 3}])], tmp_path)
    assert not list(tmp_path.iterdir())
    assert merge_metrics([PLAIN, OTHER]) == {"plain": 7.0, "two": 2.0}
    assert merge_metrics([]) == {}


def test_infinite_metrics_are_written_as_text_and_numbers_of_any_kind_are_taken(tmp_path):
    rows = Rows(
        {"far": float("inf"), "near": torch.tensor(0.5), "none": NAN}, [{"name": "ant", "HD": -math.inf}]
    )
    write_result([rows], tmp_path)
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["metrics"] == {"far": "inf", "near": 0.5, "none": None}
    assert content["classes"] == [{"name": "ant", "HD": "-inf"}]


def test_what_is_no_result_and_no_number_is_named():
    with pytest.raises(ValueError, match="returned a dict; return a Result"):
        merge_metrics([{"one": 1.0}])
    with pytest.raises(ValueError, match="the metric 'one' is None; it has to be a number"):
        merge_metrics([Result({"one": None})])


@pytest.mark.parametrize("kind", ["boxes", "masks", "classes", "several classes", "scans"])
def test_written_results_are_read_back(contract_cases, kind, tmp_path):
    result = contract_cases[kind].direct.compute()
    write_result([result], tmp_path)
    content, (header, *rows) = read(tmp_path)
    metrics = {name: NAN if value is None else value for name, value in content["metrics"].items()}
    assert metrics == pytest.approx(result.metrics, abs=0, nan_ok=True)
    assert content.keys() == result.as_dict().keys()
    expected = result.class_rows()
    assert len(rows) == len(expected) == len(content["classes"])
    for cells, row in zip(rows, expected, strict=True):
        found = dict(zip(header, cells, strict=True))
        assert found.pop("class") == row.pop("name")
        numbers = {name: float(cell or "nan") for name, cell in found.items()}
        assert numbers == pytest.approx(row, abs=0, nan_ok=True)


def test_two_evaluators_of_masks_have_the_same_metrics(tmp_path):
    result = SegmentationEvaluator(["a"]).compute()
    with pytest.raises(ValueError, match="'mIoU'"):
        write_result([result, result], tmp_path)


def test_the_text_of_a_result():
    assert PLAIN.text() == f" {'plain':<33} = 7.0000" and PLAIN.class_table() == ""
    lines = ONE.text().splitlines()
    assert lines[:3] == [f" {'the first':<33} = 0.1000", f" {'undefined':<33} = nan", ""]
    assert lines[3:] == ["class  images     AP", "ant         3  0.333", "bee         0    nan"]


def test_long_tables_show_the_lowest_classes():
    rows = [{"id": k, "name": f"n{k}", "AP": 1 - k / 10, "note": "x"} for k in range(5)]
    rows[4]["AP"] = NAN
    assert class_table(rows, most=2).splitlines() == [
        "id  class     AP  note",
        " 3  n3     0.700     x",
        " 2  n2     0.800     x",
        "… the 2 lowest of 5 classes",
    ]
    assert len(class_table(rows, most=None).splitlines()) == len(class_table(rows, most=5).splitlines()) == 6
    counts = [{"name": "a", "images": 1}, {"name": "b", "images": 2}]
    assert len(class_table(counts, most=1).splitlines()) == 3  # without a metric there is no lowest one
