"""Datasets that a ``dataset.json`` describes: of the Decathlon, and of nnU-Net with regions."""

import json

import pytest

from scan_cases import described, volume
from trunkline.data.scans.cases.cases import CasesError, find_dataset


@pytest.fixture
def root(tmp_path):
    (tmp_path / "classes.txt").write_text("background\nliver\n")
    return tmp_path


def decathlon(root, training, **more):
    content = {
        "labels": {"0": "background", "2": "tumour", "1": "liver"},
        "modality": {"0": "CT"},
        "training": training,
    }
    (root / "dataset.json").write_text(json.dumps(content | more))


def test_decathlon(tmp_path, caplog):
    for n in range(3):
        volume(tmp_path / f"imagesTr/la_{n}.nii.gz"), volume(tmp_path / f"labelsTr/la_{n}.nii.gz")
    volume(tmp_path / "imagesTs/la_9.nii.gz")
    training = [
        {"image": f"./imagesTr/la_{n}.nii.gz", "label": f"./labelsTr/la_{n}.nii.gz"} for n in range(3)
    ]
    decathlon(tmp_path, training, test=["./imagesTs/la_9.nii.gz", "./imagesTs/la_10.nii.gz"])
    (tmp_path / "images").mkdir()  # dataset.json goes before folders
    found = find_dataset(tmp_path, folds=3, fold=2)
    assert described(found, tmp_path)["test"] == {"la_9": (["imagesTs/la_9.nii.gz"], None)}
    assert "1 case to test with left out:\n  test[1]: " in caplog.text
    assert {case.name for split in ("train", "val") for case in found.cases[split]} == {
        "la_0",
        "la_1",
        "la_2",
    }
    assert [entry[:2] for entry in found.classes] == [(0, "background"), (1, "liver"), (2, "tumour")]
    assert found.channels == ("CT",)
    for name in "ab":  # given folders go before dataset.json, which tells the classes still
        volume(tmp_path / f"x/{name}.nii"), volume(tmp_path / f"y/{name}.nii")
    found = find_dataset(tmp_path, images="x", labels="y", folds=2, splits="own.json")
    assert {case.name for cases in found.cases.values() for case in cases} == {"a", "b"}
    assert len(found.classes) == 3 and found.channels == ("CT",)


def test_decathlon_in_the_first_version_of_nnunet(tmp_path):
    for n in range(2):
        for channel in range(2):
            volume(tmp_path / f"imagesTr/la_{n}_000{channel}.nii.gz")
        volume(tmp_path / f"labelsTr/la_{n}.nii.gz")
    training = [{"image": f"imagesTr/la_{n}.nii.gz", "label": f"labelsTr/la_{n}.nii.gz"} for n in range(2)]
    decathlon(tmp_path, training, modality={"0": "T1", "1": "T2"})
    found = find_dataset(tmp_path, folds=2)
    case = found.cases["val"][0]
    assert [image[-12:] for image in case.images] == ["_0000.nii.gz", "_0001.nii.gz"]
    assert found.channels == ("T1", "T2")


@pytest.mark.parametrize(
    ("training", "more", "message"),
    [
        ([{"image": "no.nii", "label": "a.nii"}], {}, r"training\[0\]: .*/no.nii does not exist"),
        ([{"image": "a.nii", "label": "no.nii"}], {}, r"training\[0\]: .*/no.nii does not exist"),
        ([{"image": "a.nii"}], {}, r"training\[0\]: no label"),
        (["a.nii"], {}, r"training\[0\]: no label"),
        ([7], {}, r"training\[0\]: is 7, not \{image, label\}"),
        ([{"label": "a.nii"}], {}, r"training\[0\]: image is \[None\], not a path"),
        ([{"image": "a.nii", "label": "a.nii"}] * 2, {}, r"a is listed twice"),
        ({"a": 1}, {}, r"dataset.json, training: is no list"),
        ([], {}, r"lists no cases \(training\), and there is no folder imagesTr next to it"),
        ([{"image": "a.nii", "label": "a.nii"}], {"labels": ["x"]}, r"labels: is \['x'\], not \{"),
        (
            [{"image": "a.nii", "label": "a.nii"}],
            {"labels": {"0": "x", "1": "x"}},
            r"labels: x is there twice",
        ),
        ([{"image": "a.nii", "label": "a.nii"}], {"labels": {"x": 0.5}}, r"labels: x is 0.5, not an id"),
        ([{"image": "a.nii", "label": "a.nii"}], {"labels": {"x": "y"}}, r"labels: y is 'x', not an id"),
        (
            [{"image": "a.nii", "label": "a.nii"}],
            {"modality": {"1": "CT"}},
            r"modality: is \{'1': 'CT'\}, not",
        ),
    ],
)
def test_wrong_decathlon(tmp_path, training, more, message):
    volume(tmp_path / "a.nii")
    decathlon(tmp_path, training, **more)
    with pytest.raises(CasesError, match=message):
        find_dataset(tmp_path)


def test_a_dataset_json_that_is_damaged_or_of_another_kind(root):
    volume(root / "images/train/a.nii"), volume(root / "images/val/b.nii")
    volume(root / "labels/a.nii"), volume(root / "labels/b.nii")
    (root / "dataset.json").write_text('{"licence": "mine"}')
    assert find_dataset(root).cases["train"][0].name == "a"
    (root / "dataset.json").write_text('{"labels": ')
    with pytest.raises(CasesError, match=r"dataset.json: not readable as JSON \(Expecting value"):
        find_dataset(root)


def nnunet(root, labels, channels=2, **more):
    names = {str(n): f"T{n}" for n in range(channels)}
    content = {"channel_names": names, "labels": labels, "file_ending": ".nii.gz", "numTraining": 2}
    (root / "dataset.json").write_text(json.dumps(content | more))
    for name in ("case_1", "case_2"):
        for number in range(2):
            volume(root / f"imagesTr/{name}_000{number}.nii.gz")
        volume(root / f"labelsTr/{name}.nii.gz")


def test_nnunet(tmp_path):
    nnunet(tmp_path, {"background": 0, "liver": 2, "tumour": 1, "ignore": 3})
    (tmp_path / "imagesTs").mkdir()
    found = find_dataset(tmp_path, folds=2)
    assert "test" not in found.cases
    volume(tmp_path / "imagesTs/x_0000.nii.gz"), volume(tmp_path / "imagesTs/x_0001.nii.gz")
    found = find_dataset(tmp_path, fold=0)
    everything = {k: v for cases in described(found, tmp_path).values() for k, v in cases.items()}
    assert everything == {
        "case_1": (["imagesTr/case_1_0000.nii.gz", "imagesTr/case_1_0001.nii.gz"], "labelsTr/case_1.nii.gz"),
        "case_2": (["imagesTr/case_2_0000.nii.gz", "imagesTr/case_2_0001.nii.gz"], "labelsTr/case_2.nii.gz"),
        "x": (["imagesTs/x_0000.nii.gz", "imagesTs/x_0001.nii.gz"], None),
    }
    assert [entry[:2] for entry in found.classes] == [(0, "background"), (1, "tumour"), (2, "liver")]
    assert (found.channels, found.ignore_id) == (("T0", "T1"), 3)
    assert find_dataset(tmp_path, ignore_id=77).ignore_id == 77


def test_nnunet_regions(tmp_path):
    labels = {"background": 0, "whole": [1, 2, 4], "core": [2, 4], "enhancing": 4, "ignore": 5}
    nnunet(tmp_path, labels, regions_class_order=[1, 2, 4])
    found = find_dataset(tmp_path, folds=2)
    assert found.regions == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert [e[:2] for e in found.classes] == [
        (0, "background"),
        (1, "label_1"),
        (2, "label_2"),
        (4, "enhancing"),
    ]
    assert found.ignore_id == 5
    named = find_dataset(tmp_path, classes={0: "bg", 1: "oedema", 2: "necrosis", 4: "enhancing"})
    assert named.regions == found.regions and named.classes[1].name == "oedema"
    with pytest.raises(
        CasesError, match=r"region whole has the id 4, which is no class \(there are 0, 1, 2\)"
    ):
        find_dataset(tmp_path, classes=["a", "b", "c"])


def test_nnunet_regions_of_one_id_each(tmp_path):
    nnunet(tmp_path, {"background": 0, "a": 1, "b": 2}, regions_class_order=[1, 2])
    assert find_dataset(tmp_path, folds=2).regions == {"a": (1,), "b": (2,)}
    nnunet(tmp_path, {"background": 0, "a": 1, "b": 2}, regions_class_order=[1])
    with pytest.raises(CasesError, match=r"regions_class_order: is \[1\]; it needs one id for each of the 2"):
        find_dataset(tmp_path)
    nnunet(tmp_path, {"background": 0, "a": 1, "ignore": [2, 3]})
    with pytest.raises(CasesError, match=r"ignore is \[2, 3\]; it has to be one id"):
        find_dataset(tmp_path)
    nnunet(tmp_path, {"background": 0, "a": [1, "b"]})
    with pytest.raises(CasesError, match=r"a is \[1, 'b'\], not an id or a list of ids"):
        find_dataset(tmp_path)


def test_nnunet_with_other_channels_than_named(tmp_path):
    nnunet(tmp_path, {"background": 0, "a": 1}, channels=3)
    with pytest.raises(CasesError, match=r"names 3 channels \(T0, T1, T2\), but case case_1 has 2 files"):
        find_dataset(tmp_path)


def test_nnunet_with_a_list_of_files(tmp_path):
    dataset = {
        name: {"images": [f"far/{name}/one.nii", f"far/{name}/two.nii"], "label": "seg.nii"}
        for name in ("p1", "p2")
    }
    for path in ("seg.nii", *(path for entry in dataset.values() for path in entry["images"])):
        volume(tmp_path / path)
    content = {"channel_names": {"0": "a", "1": "b"}, "labels": {"background": 0, "x": 1}, "dataset": dataset}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = find_dataset(tmp_path, folds=2)
    names = {case.name: case.images for cases in found.cases.values() for case in cases}
    assert names == {
        name: (f"{tmp_path}/far/{name}/one.nii", f"{tmp_path}/far/{name}/two.nii") for name in ("p1", "p2")
    }
