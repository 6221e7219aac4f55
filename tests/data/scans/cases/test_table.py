"""Datasets that a CSV lists, and what is said of wrong lines."""

import pytest

from scan_cases import described, volume
from trunkline.data.scans.cases.cases import CasesError, find_dataset
from trunkline.data.shared.locate import DataNotFoundError


@pytest.fixture
def root(tmp_path):
    (tmp_path / "classes.txt").write_text("background\nliver\n")
    return tmp_path


def table(root, text):
    (root / "lists").mkdir(exist_ok=True)
    (root / "lists/cases.csv").write_text(text)
    return find_dataset(root, table="lists/cases.csv", folds=2)


def test_table(root):
    for n in range(4):
        volume(root / f"lists/i{n}.nii"), volume(root / f"l{n}.nii")
    rows = [f"i{n}.nii,../l{n}.nii,{s},p{n},x" for n, s in enumerate(("train", "Validation", "test"))]
    found = table(root, "\n".join(["image,label,split,patient,remark", *rows, "i3.nii,,test,p3,"]))
    assert described(found, root) == {
        "train": {"i0": (["lists/i0.nii"], "lists/../l0.nii")},
        "val": {"i1": (["lists/i1.nii"], "lists/../l1.nii")},
        "test": {"i2": (["lists/i2.nii"], "lists/../l2.nii"), "i3": (["lists/i3.nii"], None)},
    }
    assert found.cases["val"][0].patient == "p1" and found.channels == ("image",)
    (root / "dataset.json").write_text("{")  # the table goes before it
    found = table(root, "case;image;label\nfirst;i0.nii;../l0.nii\nsecond;i1.nii;../l1.nii\n")
    assert {case.name for cases in found.cases.values() for case in cases} == {"first", "second"}
    (root / "classes.txt").rename(root / "lists/classes.txt"), (root / "splits.json").unlink()
    assert len(table(root, "image,label\ni0.nii,../l0.nii\ni1.nii,../l1.nii\n").classes) == 2
    with pytest.raises(CasesError, match=r"leave out data.images and data.labels"):
        find_dataset(root, table="lists/cases.csv", images="x")


def test_table_named_like_a_list_of_classes(root):
    for n in range(2):
        volume(root / f"i{n}.nii"), volume(root / f"l{n}.nii")
    (root / "classes.txt").unlink()
    (root / "labels.csv").write_text("image,label\ni0.nii,l0.nii\ni1.nii,l1.nii\n")
    with pytest.raises(CasesError, match="the classes are not known"):
        find_dataset(root, table="labels.csv")
    assert len(find_dataset(root, table="labels.csv", classes=["a", "b"], folds=2).classes) == 2


def test_table_with_channels(root):
    for case in ("a", "b"):
        for n in range(2):
            volume(root / f"lists/{case}/t{n}.nii"), volume(root / f"lists/{case}_000{n}.nii")
        volume(root / f"lists/{case}.seg.nii")
    rows = "".join(f"{c}/t1.nii,{c}.seg.nii,7,{c}/t0.nii\n" for c in "ab")
    found = table(root, "T1w,label,age,T0w\n" + rows)
    assert found.channels == ("T1w", "T0w")
    assert {c.name for cases in found.cases.values() for c in cases} == {"a", "b"}
    assert [image[-6:] for image in found.cases["train"][0].images] == ["t1.nii", "t0.nii"]
    rows = "".join(f"{c}_0000.nii,{c}_0001.nii,{c}.seg.nii,x.nii\n" for c in "ab")
    found = table(root, "image_2,image_1,label,other\n" + rows)
    assert found.channels == ("channel_0", "channel_1")
    assert [image[-8:] for image in found.cases["train"][0].images] == ["0001.nii", "0000.nii"]
    assert {c.name for cases in found.cases.values() for c in cases} == {"a", "b"}
    with pytest.raises(CasesError, match=r"line 1: no column image_2 \(there are image_1, image_3, label\)"):
        table(root, "image_1,image_3,label\na,b,c\n")


def test_table_with_folds(root):
    for n in range(5):
        volume(root / f"lists/{n}.nii"), volume(root / f"lists/l{n}.nii")
    rows = [f"{n}.nii,l{n}.nii,{fold},{'test' if n == 4 else 'train'}" for n, fold in enumerate("0112 ")]
    text = "\n".join(["image,label,fold,split", *rows])
    names = {k: [case.name for case in v] for k, v in table(root, text).cases.items()}
    assert names == {"train": ["1", "2", "3"], "val": ["0"], "test": ["4"]}
    found = find_dataset(root, table="lists/cases.csv", fold=1)
    assert [case.name for case in found.cases["val"]] == ["1", "2"]
    assert not (root / "splits.json").exists()
    with pytest.raises(
        CasesError, match=r"data.fold is 3, but .*cases.csv, column fold has the folds 0 to 2"
    ):
        find_dataset(root, table="lists/cases.csv", fold=3)
    with pytest.raises(CasesError, match=r"column fold, fold 1: val is empty"):
        table(root, text.replace(",1,", ",0,"))
    found = find_dataset(
        root, table="lists/cases.csv", splits="own.json", folds=2
    )  # a given file goes before
    assert {len(found.cases["train"]), len(found.cases["val"])} == {2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\n", r"cases.csv: has no rows"),
        ("image,label,image\na,b,c\n", r"line 1: column image is there twice"),
        ("image,label\na.nii\n", r"line 2: has 1 field, the header 2"),
        (
            "patient,label\nx,a.nii\n",
            r"line 1: no column with scans \(there are patient, label\); name it image",
        ),
        ("image,label\na.nii,a.nii\nb.nii,a.nii\n", r"line 3, column image: .*/b.nii does not exist"),
        ("image,label\na.nii,b.nii\n", r"line 2, column label: .*/b.nii does not exist"),
        ("image,label\na.nii,\n", r"line 2, column label: is empty; give the file"),
        ("image\na.nii\n", r"line 2, column label: is empty"),
        ("image,label\n,a.nii\n", r"line 2, column image: is empty; every case needs all channels"),
        ("image,label,split\na.nii,a.nii,dev\n", r"line 2, column split: is 'dev', not train, val or test"),
        ("image,label,fold\na.nii,a.nii,x\n", r"line 2, column fold: is 'x', not 0, 1, 2"),
        ("image,label,fold\na.nii,a.nii,\n", r"line 2, column fold: is '', not 0, 1, 2"),
        ("image,label,patient\na.nii,a.nii,\n", r"line 2, column patient: is empty"),
        ("image,label,case\na.nii,a.nii,x/y\n", r"line 2, column case: is 'x/y'; predictions are named so"),
        (
            "image,label\na.nii,a.nii\n\n./a.nii,a.nii\n",
            r"line 4, column image: ./a.nii is in line 2 already",
        ),
        ("image,label,case\na.nii,a.nii,x\nc.nii,a.nii,x\n", r"line 3, column case: x is in line 2 already"),
    ],
)
def test_wrong_tables(root, text, message):
    volume(root / "lists/a.nii"), volume(root / "lists/c.nii")
    with pytest.raises(CasesError, match=message):
        table(root, text)


def test_no_table(root):
    with pytest.raises(DataNotFoundError, match=r"data.table: there is no file .*/none.csv"):
        find_dataset(root, table="none.csv")
    (root / "x.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CasesError, match=r"x.csv: not readable as CSV"):
        find_dataset(root, table="x.csv")
