"""Every key of ``dataset.json`` that is accepted has its effect, or it is said that it has none."""

import json

import pytest

from scan_cases import volume
from trunkline.data.scans.cases.cases import CasesError, find_dataset

LABELS = {"background": 0, "a": 1, "b": 2}


@pytest.fixture(autouse=True)
def warnings_only(caplog):
    caplog.set_level("WARNING", logger="trunkline")


def write(root, content, cases=("c1", "c2"), suffix=".nii.gz", raw=None):
    (root / "dataset.json").write_text(json.dumps(content) if raw is None else raw)
    for name in cases:
        volume(root / f"imagesTr/{name}_0000{suffix}"), volume(root / f"labelsTr/{name}{suffix}")


def nnunet(**more):
    return {"channel_names": {"0": "T1"}, "labels": LABELS, "numTraining": 2, "file_ending": ".nii.gz"} | more


REGIONS = {"background": 0, "whole": [1, 2, 4], "core": [2, 4], "rim": [1, 2]}


def test_the_order_of_regions_says_which_label_each_is_written_as(tmp_path):
    """With these regions no label belongs to the first alone, so that nothing but the order can tell."""
    write(tmp_path, nnunet(labels=REGIONS, regions_class_order=[4, 2, 1]))
    found = find_dataset(tmp_path, folds=2)
    assert found.regions == {"whole": (1, 2, 3), "core": (2, 3), "rim": (1, 2)}
    assert found.region_labels == (3, 2, 1)  # ids 4, 2 and 1
    write(tmp_path, nnunet(labels={"background": 0, "all": [1, 2], "b": 2}))
    assert find_dataset(tmp_path, folds=2).region_labels == ()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"regions_class_order": [1, 2]}, r"is \[1, 2\]; it needs one id for each of the 3"),
        ({"regions_class_order": [4, 1, 2]}, r"core would be written as 1, which is none of its ids \(2"),
        ({"regions_class_order": [4, 2, True]}, r"region rim would be written as True"),
        ({"regions_class_order": ["4", 2, 1]}, r"region whole would be written as '4'"),
        ({"regions_class_order": {"a": 1}}, r"regions_class_order: is \{'a': 1\}"),
        ({"labels": None, "training": [], "regions_class_order": [1]}, "regions_class_order, but no labels"),
        ({"labels": {"background": 0, "a": [1, 2], "b": [2, 1]}}, r"regions a and b have the same ids \(1"),
        ({"labels": {"background": 0, " ": 1}}, "the class of id 1 has no name"),
        ({"file_ending": ".xyz"}, r"file_ending: is '.xyz', not one of .nii, "),
        ({"file_ending": 3}, r"file_ending: is 3"),
        ({"numTraining": "2"}, r"numTraining: is '2', not a number of cases"),
        ({"numTraining": 2.0}, r"numTraining: is 2.0"),
        ({"numTest": -1}, r"numTest: is -1"),
        ({"labels": {"background": 0, "a": 10**12}}, r"id 1000000000000"),
        ({"labels": {"background": 0, "a": -(10**400)}}, r"id"),
        ({"dataset": ["c1"]}, r"dataset: is no object"),
        ({"channel_names": {"0": "T1", "2": "T2"}}, "channel_names: is"),
        ({"channel_names": "T1"}, "channel_names: is 'T1'"),
    ],
)  # fmt: skip
def test_values_of_another_type_or_out_of_range(tmp_path, more, message):
    write(tmp_path, nnunet(labels=REGIONS) | more)
    with pytest.raises(CasesError, match=message):
        find_dataset(tmp_path, folds=2)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ('{"labels": {"background": 0, "liver": 1, "liver": 2}}', r"the key 'liver' more than once"),
        ('{"labels": {"background": 0}, "labels": {}}', r"the key 'labels' more than once"),
        ("", "the file is empty"),
        ("[" * 100_000, "nested too deep"),
        ('{"numTraining": ' + "9" * 5000 + "}", "thousands of digits"),
        ("\x1f\x8b", "not readable as JSON"),
    ],
)
def test_damaged_json(tmp_path, raw, message):
    write(tmp_path, None, raw=raw)
    with pytest.raises(CasesError, match=message):
        find_dataset(tmp_path, folds=2)


def test_only_files_of_the_stated_suffix_are_cases_and_others_are_named(tmp_path, caplog):
    write(tmp_path, nnunet())
    volume(tmp_path / "imagesTr/preview_0000.nii"), volume(tmp_path / "labelsTr/preview.nii")
    found = find_dataset(tmp_path, folds=2)
    assert {case.name for cases in found.cases.values() for case in cases} == {"c1", "c2"}
    assert (
        f"{tmp_path}/imagesTr: files and folders left out: 1 that are no scans (preview_0000.nii)"
        in caplog.text
    )
    (tmp_path / "dataset.json").write_text(json.dumps(nnunet(file_ending=".nrrd")))
    with pytest.raises(FileNotFoundError, match=r"imagesTr: holds no scans .nrrd \(the file_ending of"):
        find_dataset(tmp_path)


def test_other_numbers_of_cases_than_stated_are_said(tmp_path, caplog):
    write(tmp_path, nnunet(numTraining=3))
    find_dataset(tmp_path, folds=2)
    assert "numTraining is 3, but there are 2 train cases; are files missing" in caplog.text
    caplog.clear()
    (tmp_path / "dataset.json").write_text(json.dumps(nnunet()))
    find_dataset(tmp_path, folds=2)
    assert not caplog.text


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"region_class_order": [1]}, "region_class_order has no meaning; is regions_class_order meant?"),
        ({"num_training": 3, "numTraining": None}, ""),
        ({"overwrite_image_reader_writer": "Tiff3DIO"}, "names Tiff3DIO, which is not used"),
        ({"overwrite_image_reader_writer": "SimpleITKIO"}, ""),
        ({"name": "x", "licence": "y", "tensorImageSize": "4D", "anything": {}}, ""),
    ],
)  # fmt: skip
def test_keys_without_effect_are_said(tmp_path, caplog, more, words):
    write(tmp_path, nnunet() | more)
    find_dataset(tmp_path, folds=2)
    assert words in caplog.text
    assert bool(words) == bool(caplog.text)


def test_folds_and_testing_of_a_list(tmp_path, caplog):
    """As in the lists of MONAI's bundles and Auto3DSeg."""
    for n in range(4):
        volume(tmp_path / f"{n}.nii"), volume(tmp_path / f"l{n}.nii")
    entries = [{"image": f"{n}.nii", "label": f"l{n}.nii", "fold": n % 3} for n in range(3)]
    content = {"labels": LABELS, "training": entries, "testing": [{"image": "3.nii"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = find_dataset(tmp_path, fold=1)
    assert [case.name for case in found.cases["val"]] == ["1"] and found.cases["test"][0].name == "3"
    assert not (tmp_path / "splits.json").exists()
    del entries[0]["fold"]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(CasesError, match="some cases have a fold, but 0 has none"):
        find_dataset(tmp_path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image": "a.nii", "label": "l.nii", "fold": "1"}, r"training\[0\]: fold is '1'"),
        ({"image": "a.nii", "label": 3}, r"training\[0\]: label is 3, not a path"),
        ({"image": "a.nii", "label": ""}, r"training\[0\]: label is '', not a path"),
        ({"image": "", "label": "l.nii"}, r"training\[0\]: image is \[''\], not a path"),
        ({"image": ["a.nii", "a.nii"], "label": "l.nii"}, r"a: has one file twice"),
        ({"image": "a.nii", "label": "a.nii"}, r"a: has one file twice, among its channels or as"),
    ],
)  # fmt: skip
def test_wrong_entries(tmp_path, entry, message):
    volume(tmp_path / "a.nii"), volume(tmp_path / "l.nii")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": LABELS, "training": [entry]}))
    with pytest.raises(CasesError, match=message):
        find_dataset(tmp_path)


def test_one_scan_under_two_names(tmp_path):
    volume(tmp_path / "a.nii"), volume(tmp_path / "l.nii")
    dataset = {name: {"images": ["a.nii"], "label": "l.nii"} for name in ("p1", "p2")}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": LABELS, "dataset": dataset}))
    with pytest.raises(CasesError, match=r"p2: .*/a.nii belongs to p1 already"):
        find_dataset(tmp_path)


@pytest.mark.parametrize("labels", [{"background": 1, "liver": 0}, {"0": "liver", "1": "Background"}])
def test_a_background_that_is_not_0_is_refused(tmp_path, labels):
    write(tmp_path, nnunet(labels=labels))
    with pytest.raises(CasesError, match=r"class [bB]ackground has the id 1, and liver the id 0"):
        find_dataset(tmp_path, folds=2)
