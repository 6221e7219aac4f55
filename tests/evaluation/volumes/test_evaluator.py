"""Metrics of many cases: means, tables and files, against numbers worked out by hand."""

import csv
import json
import math
import pickle

import numpy as np
import pytest

from trunkline.evaluation.files import write_json
from trunkline.evaluation.volumes.evaluator import VolumeEvaluator

ONE = {"organ": (1,)}
METRICS = ["Dice", "HD95_mm", "surface_Dice", "volume_ml", "true_volume_ml"]
ZEROS = np.zeros((3, 3, 3), np.uint8)
REGIONS = {"kidney, left": (1,), "liver": (2,), "spleen": (3,)}


def cube(shape, corner, sizes, label=1):
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(start, start + size) for start, size in zip(corner, sizes, strict=True))] = label
    return mask


def four_cases():
    """Kidneys in all of four scans of 2 x 3 x 6 mm, once missed; livers in one; a spleen that nobody has."""
    shape = (2, 3, 6)
    kidney, half = cube(shape, (0, 0, 0), (1, 1, 4)), cube(shape, (0, 0, 0), (1, 1, 2))
    empty = np.zeros(shape, np.uint8)
    with_liver = kidney + cube(shape, (1, 2, 0), (1, 1, 2), 2)
    return {"d": (kidney, kidney), "b": (half, kidney), "a": (empty, kidney), "c": (with_liver, kidney)}


def evaluated(cases=None, **options):
    evaluator = VolumeEvaluator(REGIONS, **options)
    for name, (predicted, truth) in (four_cases() if cases is None else cases).items():
        evaluator.add(name, predicted, truth, (1, 1, 1))
    return evaluator


def test_means_of_four_cases_by_hand():
    """Kidneys: Dice 1, 2/3, 0, 1 and HD95 0, 1.85, 7, 0; the invented liver: Dice 0 and HD95 7.

    Kidneys of four voxels in a row against the first two: the surface distances are 0, 0, 1, 2, of which the
    95th percentile lies 0.85 of the way from the third to the fourth. Within 1 mm lie 2 of 2 and 3 of 4.
    """
    evaluator = evaluated()
    assert len(evaluator) == 4
    result = evaluator.compute()
    kidney, liver, spleen = result.per_class
    assert (kidney.name, kidney.cases, kidney.absent, kidney.missed, kidney.invented) == (
        "kidney, left",
        4,
        0,
        1,
        0,
    )
    assert (liver.cases, liver.absent, liver.missed, liver.invented) == (1, 3, 0, 1)
    assert (spleen.cases, spleen.absent) == (0, 4)
    columns = {"Dice": [1, 2 / 3, 0, 1], "HD95_mm": [0, 1.85, 7, 0], "surface_Dice": [1, 5 / 6, 0, 1]}
    for metric, values in columns.items():
        assert kidney.means[metric] == pytest.approx(sum(values) / 4)
        assert kidney.medians[metric] == pytest.approx(sum(sorted(values)[1:3]) / 2)
        spread = sum((value - sum(values) / 4) ** 2 for value in values) / 4
        assert kidney.deviations[metric] == pytest.approx(math.sqrt(spread))
        assert math.isnan(spleen.means[metric]) and math.isnan(spleen.medians[metric])
    expected = {"mean_Dice": (8 / 3 / 4 + 0) / 2, "mean_HD95_mm": (8.85 / 4 + 7) / 2}
    expected["mean_surface_Dice"] = (17 / 6 / 4 + 0) / 2
    assert result.metrics == pytest.approx(expected)
    assert list(result.metrics)[0] == "mean_Dice"
    assert [case for case, _ in result.cases] == ["a", "b", "c", "d"]


def test_the_worst_cases_come_first():
    """Mean Dice: a 0, b 2/3, c (1 + 0) / 2, d 1; a case without any class has none."""
    empty = np.zeros((2, 3, 6), np.uint8)
    result = evaluated({**four_cases(), "e": (empty, empty)}).compute()
    assert result.worst_cases(3) == ["a", "c", "b"]
    assert result.worst_cases(9) == ["a", "c", "b", "d"]
    assert result.worst_cases(0) == []


def test_several_processes_find_what_one_finds():
    cases = four_cases()
    alone = evaluated(cases)
    first, second = (evaluated({name: cases[name] for name in names}) for names in ("db", "cab"))
    first.merge(pickle.loads(pickle.dumps([first.rows(), second.rows(), []])))
    assert len(first) == 4
    # Written out, for a NaN does not equal another.
    assert json.dumps(first.compute().as_dict()) == json.dumps(alone.compute().as_dict())
    first.reset()
    assert len(first) == 0 and first.rows() == []


def test_a_case_added_twice_counts_once():
    cases = four_cases()
    evaluator = evaluated({"a": cases["a"]})
    evaluator.add("a", *cases["d"], (1, 1, 1))
    assert len(evaluator) == 1 and evaluator.compute().metrics["mean_Dice"] == 0


def test_options_of_the_evaluator_reach_the_metrics():
    assert evaluated(tolerance=2.0).compute().per_class[0].means["surface_Dice"] == pytest.approx(3 / 4)
    plain = evaluated(surfaces=False).compute()
    assert list(plain.metrics) == ["mean_Dice"]
    assert plain.metrics["mean_Dice"] == evaluated().compute().metrics["mean_Dice"]
    assert "surface" not in plain.summary().splitlines()[1]


def test_an_error_names_the_case():
    with pytest.raises(ValueError, match="case_07: prediction and truth differ"):
        VolumeEvaluator(ONE).add("case_07", ZEROS, ZEROS[:2], (1, 1, 1))


def test_without_a_case_all_metrics_are_nan(tmp_path):
    result = VolumeEvaluator(REGIONS).compute()
    assert list(result.metrics) == ["mean_Dice", "mean_HD95_mm", "mean_surface_Dice"]
    assert all(math.isnan(value) for value in result.metrics.values())
    assert result.worst_cases(3) == []
    assert "of 0 cases" in result.summary() and "spleen" in result.class_table()
    header = result.write_csv(tmp_path / "cases.csv").read_text()
    assert header == "case,class,Dice,HD95_mm,surface_Dice,volume_ml,true_volume_ml\n"


def test_the_csv_has_a_row_per_case_and_class(tmp_path):
    path = evaluated().compute().write_csv(tmp_path / "new" / "cases.csv")
    assert [file.name for file in path.parent.iterdir()] == ["cases.csv"]  # no half-written file
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["case", "class", *METRICS]
    assert [row[:2] for row in rows[1:4]] == [["a", name] for name in REGIONS]
    assert len(rows) == 1 + 4 * 3
    assert rows[4] == ["b", "kidney, left", "0.666667", "1.85", "0.833333", "0.002", "0.004"]
    assert rows[6] == ["b", "spleen", "", "", "", "0", "0"]


def test_the_csv_of_pictures_has_areas(tmp_path):
    evaluator = VolumeEvaluator(ONE, surfaces=False)
    mask = cube((4, 4), (0, 0), (2, 3))
    evaluator.add("a", mask, mask, (1, 0.5))
    text = evaluator.compute().write_csv(tmp_path / "cases.csv").read_text()
    assert text == "case,class,Dice,area_mm2,true_area_mm2\na,organ,1,3,3\n"


def test_json_states_the_rule_and_has_null_for_nan(tmp_path):
    result = evaluated().compute()
    content = json.loads(write_json(tmp_path / "result.json", result.as_dict()).read_text())
    assert content["cases"] == 4 and content["surface_tolerance_mm"] == 1.0
    assert "absent from truth and prediction" in content["absent_classes"]
    assert content["metrics"] == result.metrics
    assert content["classes"][2]["means"] == {"Dice": None, "HD95_mm": None, "surface_Dice": None}
    assert (
        content["per_case"][0] == {"case": "a", "class": "kidney, left"} | result.cases[0][1]["kidney, left"]
    )
    assert content["per_case"][2]["Dice"] is None and len(content["per_case"]) == 12


def test_the_texts_show_the_metrics():
    result = evaluated().compute()
    lines = result.summary().splitlines()
    values = [float(line.split()[-1]) for line in lines[:3]]
    assert values == pytest.approx([1 / 3, 4.60625, 17 / 48], abs=1e-4)
    assert "4 cases" in lines[3] and "within 1 mm" in lines[3]
    assert "the diagonal of the scan as HD95" in lines[4]
    table = result.class_table().splitlines()
    assert table[0].split()[:4] == ["class", "cases", "missed", "invented"]
    assert table[1].split()[2:8] == ["4", "1", "0", "0.667", "±", "0.408"]
    assert table[2].split()[1:4] == ["1", "0", "1"] and len(table) == 4
