"""Odd tables, lists of folds and folders: each oddity has its value, its message or its warning."""

import json

import numpy as np
import pytest

from scan_cases import save, volume
from trunkline.data.scans.cases.cases import CasesError, find_cases, find_dataset
from trunkline.data.scans.cases.checks import check_cases

CLASSES = ["background", "organ"]


@pytest.fixture(autouse=True)
def warnings_only(caplog):
    caplog.set_level("WARNING", logger="trunkline")


@pytest.fixture
def root(tmp_path):
    for n in range(3):
        volume(tmp_path / f"{n}.nii"), volume(tmp_path / f"l{n}.nii")
    return tmp_path


def table(root, text, **options):
    (root / "cases.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return find_dataset(root, table="cases.csv", classes=CLASSES, **options)


ROWS = "0.nii,l0.nii,{}\n1.nii,l1.nii,{}\n2.nii,l2.nii,{}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label,fold\n" + ROWS.format(0, 1, 10**6 - 1), r"column fold: there is a fold 999999, but"),
        ("image,label,fold\n" + ROWS.format(0, 1, "9" * 5000), r"line 4, column fold: is '999"),
        ("image,label,fold\n" + ROWS.format(0, 1, 1.0), r"line 4, column fold: is '1.0'"),
        ("image,label,fold\n" + ROWS.format(0, 0, 0), r"fold 0: train is empty"),
        ("image,label,fold\n" + ROWS.format(0, 0, 2), r"fold 1: val is empty"),
        ("image,label\n0.nii,0.nii\n1.nii,l1.nii\n", r"0: has one file twice, among its channels or as"),
        ("image_0,image_1,label\n0.nii,0.nii,l0.nii\n", r"0: has one file twice"),
        ("image_0,image_1,label\n0.nii,1.nii,l0.nii\n1.nii,2.nii,l1.nii\n", r"1.nii belongs to 0 already"),
        ("image,label\n0.nii,l0.nii\n./0.nii,l1.nii\n", r"line 3, column image: ./0.nii is in line 2 al"),
        (b"image,label\n0.nii,\x00l0.nii\n", r"holds a null character"),
        ("image,label\n" + "x" * 200_000 + ",l0.nii\n", r"line 2: not readable as CSV \(field larger"),
        ("image,label\n0.nii,l0.nii\n".encode("utf-16"), r"not readable as CSV .*save it as UTF-8"),
        ("Image,image,label\n0.nii,1.nii,l0.nii\n", r"line 1: column image is there twice"),
        ("", r"has no rows"),
    ],
)  # fmt: skip
def test_wrong_tables(root, text, message):
    with pytest.raises(CasesError, match=message):
        table(root, text)


def test_names_of_columns_in_capitals_and_fields_with_line_ends(root, caplog):
    text = 'Image,LABEL,Split,note\n0.nii,l0.nii,train,"two\nlines\u2028and more"\n1.nii,l1.nii,val,\n'
    found = table(root, text)
    assert [case.images[0] for case in found.cases["train"]] == [str(root / "0.nii")]
    assert found.cases["val"][0].label == str(root / "l1.nii") and not caplog.text


@pytest.mark.parametrize(
    ("name", "meant"), [("patients", "patient"), ("Labels", "label"), ("spilt", "split")]
)
def test_columns_that_look_misspelt_are_named(root, caplog, name, meant):
    header = ["image", "label", "case", "patient", "split"]
    header[header.index(meant)] = name
    rows = ["0.nii,l0.nii,a,p,train", "1.nii,l1.nii,b,q,val"]
    try:
        table(root, "\n".join([",".join(header), *rows]), folds=2)
    except CasesError:
        assert meant == "label"
    assert f"column {name} has no meaning; is {meant} meant?" in caplog.text


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ('[{"train": ["0"], "train": ["1"], "val": ["2"]}]', "the key 'train' more than once"),
        ('[{"train": [0], "val": ["1"]}]', r"train is \[0\], not a list of names"),
        ('{"train": ["0"], "val": ["1"]}', "has to be a list"),
        ('[{"train": ["0", "0"], "val": ["1"]}]', "0 is there twice"),
        ('[{"train": ["0", "1"], "val": ["1"]}]', "1 in both train and val"),
        ('[{"train": ["0"], "val": []}]', "val is empty"),
        ('[{"train": ["0"], "val": ["9"]}]', r"1 name without a case to train with:\n  9"),
        ("[" * 100_000, "nested too deep"),
        ("null", "has to be a list"),
    ],
)
def test_wrong_folds(root, folds, message):
    (root / "splits.json").write_text(folds)
    with pytest.raises(CasesError, match=message):
        table(root, "image,label\n0.nii,l0.nii\n1.nii,l1.nii\n2.nii,l2.nii\n")


def test_a_case_validated_in_two_folds_is_said(root, caplog):
    (root / "splits.json").write_text(
        json.dumps([{"train": ["0", "2"], "val": ["1"]}, {"train": ["0"], "val": ["1", "2"]}])
    )
    found = table(root, "image,label\n0.nii,l0.nii\n1.nii,l1.nii\n2.nii,l2.nii\n")
    assert len(found.cases["train"]) == 2
    assert "1 case validated in more than one fold (1)" in caplog.text


def test_one_case_or_one_patient(root):
    with pytest.raises(
        CasesError, match="there is 1 case for training and validation; two patients are the least"
    ):
        table(root, "image,label\n0.nii,l0.nii\n")
    with pytest.raises(CasesError, match="there are 2 cases, all of 1 patient, for training"):
        table(root, "image,label,patient\n0.nii,l0.nii,p\n1.nii,l1.nii,p\n")


def folders(root):
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        save(root / f"images/{split}/{name}.nii.gz", np.full((2, 2, 2), ord(name), np.int16))
        volume(root / f"labels/{split}/{name}.nii.gz")
    return root


def test_what_is_left_out_is_counted_and_named(tmp_path, caplog):
    folders(tmp_path)
    for place in ("images", "labels"):
        (tmp_path / place / "train/._a.nii.gz").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "images/train/__MACOSX").mkdir()
    for name in ("a.json", ".DS_Store", "Thumbs.db", ".hidden"):  # a sidecar and systems' files
        (tmp_path / "images/train" / name).write_bytes(b"x")
    for name in ("d.nii.part", "notes.txt"):
        (tmp_path / "images/train" / name).write_bytes(b"x")
    (tmp_path / "images/train/deep/deeper").mkdir(parents=True)
    volume(tmp_path / "labels/train/z.nii.gz")
    found = find_dataset(tmp_path, classes=CLASSES)
    assert [case.name for case in found.cases["train"]] == ["a", "b"]
    assert (
        f"{tmp_path}/images/train: files and folders left out: 2 of macOS's metadata (._a.nii.gz, "
        "__MACOSX), 3 that are no scans "
        "(d.nii.part, deep, notes.txt)"
    ) in caplog.text
    assert (
        f"{tmp_path}/labels/train: files and folders left out: 1 of macOS's metadata (._a.nii.gz)"
        in caplog.text
    )
    assert f"{tmp_path}/labels/train: 1 label without a scan of its name: z.nii.gz" in caplog.text
    assert len(caplog.records) == 3


def test_labels_of_all_splits_in_one_folder_are_no_strays(tmp_path, caplog):
    folders(tmp_path)
    for split in ("train", "val"):
        for file in (tmp_path / "labels" / split).iterdir():
            file.rename(tmp_path / "labels" / file.name)
        (tmp_path / "labels" / split).rmdir()
    find_dataset(tmp_path, classes=CLASSES)
    assert not caplog.text


def test_folders_of_cases_name_what_they_leave_out(tmp_path, caplog):
    for name in ("p1", "p2"):
        volume(tmp_path / f"images/{name}/t1.nii"), volume(tmp_path / f"images/{name}/t2.nii")
        volume(tmp_path / f"labels/{name}.nii")
    (tmp_path / "images/p1/report.pdf").write_bytes(b"x")
    (tmp_path / "images/list.xlsx").write_bytes(b"x")
    find_dataset(tmp_path, classes=CLASSES, folds=2)
    assert (
        f"{tmp_path}/images: files and folders left out: 2 that are no scans (list.xlsx, p1/report.pdf)"
        in caplog.text
    )


def test_a_pipe_named_like_a_scan_stops_nothing(tmp_path, caplog):
    import os

    folders(tmp_path)
    os.mkfifo(tmp_path / "images/train/pipe.nii")
    assert len(find_dataset(tmp_path, classes=CLASSES).cases["train"]) == 2
    assert "1 that are no scans (pipe.nii)" in caplog.text


def test_scans_to_predict_on_name_what_is_left_out(tmp_path, caplog):
    folders(tmp_path)
    (tmp_path / "images/train/d.tar.gz").write_bytes(b"x")
    assert len(find_cases([tmp_path / "images/train"])) == 2
    assert "files and folders left out: 1 that are no scans (d.tar.gz)" in caplog.text


def test_one_scan_under_two_names_is_said(tmp_path, caplog):
    folders(tmp_path)
    copied = (tmp_path / "images/train/a.nii.gz").read_bytes()
    (tmp_path / "images/val/c.nii.gz").write_bytes(copied)
    check_cases(find_dataset(tmp_path, classes=CLASSES), ["train", "val"])
    assert "1 scan there under two names, by their bytes" in caplog.text
    assert f"{tmp_path}/images/train/a.nii.gz (train) and {tmp_path}/images/val/c.nii.gz (val)" in caplog.text
