"""Plans for odd datasets: what cannot be planned is refused, what is unusual is said."""

import itertools

import numpy as np
import pytest

from scan_cases import save
from trunkline.data.scans.cases.cases import CasesError
from trunkline.planning.config import config
from trunkline.planning.plan import make_plan

GIVEN = {"classes": ["background", "organ"]}


@pytest.fixture(autouse=True)
def warnings_only(caplog):
    caplog.set_level("WARNING", logger="trunkline")


def dataset(root, spacings=((1, 1, 1),), value=None, organ=1):
    for number, (split, _) in enumerate(itertools.product(("train", "val"), range(2))):
        ids = np.zeros((12, 13, 9), np.uint8)
        ids[4:9, 5:9, 3:6] = organ
        voxels = np.random.default_rng(number).normal(size=ids.shape).astype(np.float32) + 5 * ids
        affine = np.diag([*spacings[number % len(spacings)], 1.0])
        save(
            root / f"images/{split}/c{number}.nii",
            voxels if value is None else np.full_like(voxels, value),
            affine,
        )
        save(root / f"labels/{split}/c{number}.nii", ids, affine)
    return root


@pytest.mark.parametrize(
    ("spacings", "words"),
    [
        (((0.001, 0.001, 0.001),), "voxels measure 0.001 x 0.001 x 0.001 mm in the median, which is unusual"),
        (((1, 1, 1000),), "voxels measure 1 x 1 x 1000 mm in the median, which is unusual"),
        (((1, 1, 1), (1000, 1000, 1000)), "2 scans with other voxels than most:"),
        (((1, 1, 1), (1, 1, 4.5)), None),
        (((0.3, 0.3, 12),), None),
    ],
)
def test_spacings(tmp_path, caplog, spacings, words):
    plan = make_plan(dataset(tmp_path, spacings), GIVEN)
    assert plan.patch and config(plan)
    assert (words in caplog.text) if words else not caplog.text


def test_scans_of_another_unit_are_named(tmp_path, caplog):
    make_plan(dataset(tmp_path, ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1000, 1000, 1000))), GIVEN)
    assert (
        f"1 scan with other voxels than most:\n  {tmp_path}/images/val/c3.nii: its voxels measure 1000"
        in caplog.text
    )


def test_scans_of_one_value_are_named(tmp_path, caplog):
    plan = make_plan(dataset(tmp_path, value=3), GIVEN)
    assert "4 scans with one value in all voxels of a channel" in caplog.text
    assert "\n  c0: channel 0\n" in caplog.text and "zscore" in config(plan)


def test_without_foreground_there_is_nothing_to_plan(tmp_path):
    with pytest.raises(
        CasesError, match="no label holds a class other than the background, so there is nothing"
    ):
        make_plan(dataset(tmp_path, organ=0), GIVEN)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_no_numbers(tmp_path, value):
    with pytest.raises(
        CasesError, match=r"4 cases of 4 cannot be read:\n  c0: .*1404 of 1404 voxels are infinite or"
    ):
        make_plan(dataset(tmp_path, value=value), GIVEN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 0}, "--memory is 0"),
        ({"memory": float("nan")}, "--memory is nan"),
        ({"memory": float("inf")}, "--memory is inf"),
        ({"workers": -1}, "--workers is -1; it must be at least 0"),
        ({"ndim": 4}, "--ndim is 4"),
        ({"spacing": [1, float("nan"), 1]}, r"--spacing is \[1, nan, 1\]; give one number of mm above 0"),
        ({"spacing": [1, 1]}, r"--spacing is \[1, 1\]"),
        ({"modality": ["ct", "mr"]}, "--modality is ct mr"),
        ({"modality": ["xray"]}, "--modality is xray"),
        ({"given": GIVEN | {"folds": 1, "fold": 0}}, "data.folds is 1; there have to be at least 2"),
        ({"given": GIVEN | {"fold": -1}}, "data.fold is -1"),
        ({"given": GIVEN | {"ignore_id": 2**40}}, "ids are numbers of 32 bits"),
    ],
)
def test_options_out_of_range(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_plan(dataset(tmp_path), **{"given": GIVEN} | options)


def test_a_spacing_far_from_that_of_the_scans_is_said(tmp_path, caplog):
    make_plan(dataset(tmp_path), GIVEN, spacing=[6, 1, 1])
    assert "--spacing is [6, 1, 1], but voxels of the scans measure 1 x 1 x 1 mm in the median" in caplog.text
