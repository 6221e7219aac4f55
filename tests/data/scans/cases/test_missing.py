"""Cases without labels: an error, or left out."""

import json

import pytest

from scan_cases import volume
from trunkline.data.scans.cases.cases import CasesError, find_dataset


def test_cases_without_labels_are_left_out_if_asked(tmp_path, caplog):
    (tmp_path / "classes.txt").write_text("background\nliver\n")
    for split, names in {"train": "abc", "val": "de", "test": "f"}.items():
        for name in names:
            volume(tmp_path / f"images/{split}/{name}.nii")
    for place in ("train/a", "train/c", "val/e"):
        volume(tmp_path / f"labels/{place}.nii")
    with pytest.raises(CasesError, match=r"(?s)1 case of 3 without labels in .*b: no b\.\*.*to skip"):
        find_dataset(tmp_path)
    found = find_dataset(tmp_path, missing="skip")
    assert {split: [case.name for case in cases] for split, cases in found.cases.items()} == {
        "train": ["a", "c"],
        "val": ["e"],
        "test": ["f"],
    }
    assert "1 of 3 train cases have no labels and are left out (b)" in caplog.text
    assert "1 of 2 val cases have no labels and are left out (d)" in caplog.text
    (tmp_path / "labels/val/e.nii").unlink()
    with pytest.raises(CasesError, match="none of the 2 val cases has labels"):
        find_dataset(tmp_path, missing="skip")


def test_numbered_slices_without_labels_are_no_channels(tmp_path):
    (tmp_path / "classes.txt").write_text("background\nliver\n")
    for number in range(4):
        volume(tmp_path / f"images/slice_000{number}.nii")
    for number in (0, 1, 3):
        volume(tmp_path / f"labels/slice_000{number}.nii")
    found = find_dataset(tmp_path, missing="skip", folds=3)
    names = {case.name for cases in found.cases.values() for case in cases}
    assert names == {"slice_0000", "slice_0001", "slice_0003"}


@pytest.mark.parametrize("kind", ["table", "dataset.json"])
def test_lists_may_have_cases_without_labels_if_asked(tmp_path, kind):
    (tmp_path / "classes.txt").write_text("background\nliver\n")
    for name in "abc":
        volume(tmp_path / f"{name}.nii"), volume(tmp_path / f"{name}_truth.nii")
    options = {"folds": 2}
    if kind == "table":
        options["table"] = "cases.csv"
        rows = ["image,label,fold", "a.nii,a_truth.nii,0", "b.nii,,1", "c.nii,c_truth.nii,1"]
        (tmp_path / "cases.csv").write_text("\n".join(rows))
    else:
        training = [{"image": f"{name}.nii", "label": f"{name}_truth.nii"} for name in "ac"]
        content = {"training": [*training, {"image": "b.nii"}], "labels": {"0": "background", "1": "liver"}}
        (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(CasesError, match="no label|label: is empty"):
        find_dataset(tmp_path, **options)
    found = find_dataset(tmp_path, missing="skip", **options)
    assert sorted(case.name for cases in found.cases.values() for case in cases) == ["a", "c"]
