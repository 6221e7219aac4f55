"""Splits by patient: how they are dealt, kept in a file, chosen; and what cannot be a split."""

import json
import logging
import multiprocessing
from collections import Counter

import pytest

from trunkline.data.scans.cases.cases import Case, CasesError, find_dataset
from trunkline.data.scans.cases.splits import check_patients, make_folds, read_folds, write_folds
from trunkline.data.shared.locate import DataNotFoundError

CLASSES = {0: "background", 1: "liver"}


def files(root, *names, images="images", labels="labels"):
    """Write empty files: no header is needed to split cases."""
    for name in names:
        for folder in (images, labels):
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / f"{name}.nii").write_bytes(b"")


def names(found):
    return {split: [case.name for case in cases] for split, cases in found.cases.items()}


def cases(*patients):
    return [Case(f"c{n:02}", (f"{n}.nii",), f"{n}.nii", patient) for n, patient in enumerate(patients)]


@pytest.fixture
def root(tmp_path):
    files(tmp_path, *"abcdefghij")
    return tmp_path


def find(root, **options):
    return find_dataset(root, classes=CLASSES, **options)


def test_every_case_validates_once_and_patients_stay_together():
    made = cases(*"aaabbbccdefghh")
    folds = make_folds(made, 4, seed=3)
    patient = {case.name: case.patient for case in made}
    assert Counter(name for fold in folds for name in fold["val"]) == dict.fromkeys(patient, 1)
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == sorted(patient) and fold["val"] == sorted(fold["val"])
        assert not {patient[n] for n in fold["train"]} & {patient[n] for n in fold["val"]}
    assert sorted(len(fold["val"]) for fold in folds) == [3, 3, 4, 4]  # of 14


@pytest.mark.parametrize(("count", "folds"), [(5, 5), (13, 5), (161, 5), (7, 2)])
def test_folds_of_single_cases_differ_by_one_at_most(count, folds):
    sizes = [len(fold["val"]) for fold in make_folds(cases(*map(str, range(count))), folds, 0)]
    assert sum(sizes) == count and max(sizes) - min(sizes) <= 1


def test_folds_depend_on_the_seed_and_not_on_the_order():
    made = cases(*map(str, range(20)))
    assert make_folds(made, 5, 1) == make_folds(made[::-1], 5, 1)
    assert make_folds(made, 5, 1) != make_folds(made, 5, 2)


def test_too_many_or_too_few_folds():
    with pytest.raises(
        CasesError, match="data.folds is 3, but there are 2 patients in 4 cases; ask for fewer"
    ):
        make_folds(cases(*"aabb"), 3, 0)
    with pytest.raises(CasesError, match="data.folds is 1; there have to be at least 2"):
        make_folds(cases(*"ab"), 1, 0)


def test_the_file_is_written_once_and_then_decides(root):
    first = find(root, fold=1, folds=5, seed=4)
    content = (root / "splits.json").read_bytes()
    again = find(root, fold=1, folds=2, seed=9)
    assert names(first) == names(again) and (root / "splits.json").read_bytes() == content
    assert sorted(root.iterdir()) == [root / "images", root / "labels", root / "splits.json"]
    folds = json.loads(content)
    assert names(first) == folds[1] and len(folds) == 5
    assert names(find(root)) == folds[0]
    assert names(find(root, splits="more/other.json", folds=2, seed=4)) != folds[0]
    assert len(json.loads((root / "more/other.json").read_text())) == 2
    assert names(find(root, splits=str(root / "splits.json"), fold=4)) == folds[4]


def test_seed_and_folds_reach_a_new_file(root):
    made = find(root, splits="one.json", folds=5, seed=1)
    assert names(made) != names(find(root, splits="two.json", folds=5, seed=2))
    assert names(made) == names(find(root, splits="three.json", folds=5, seed=1))


def test_cases_that_a_fold_does_not_name_are_left_out_and_logged(root, caplog):
    (root / "splits.json").write_text(json.dumps([{"train": ["c", "a"], "val": ["b"]}]))
    with caplog.at_level(logging.INFO, "trunkline"):
        assert names(find(root)) == {"train": ["c", "a"], "val": ["b"]}
    assert "leaves out 7 cases (d, e, f, g, h); remove the file" in caplog.text
    assert "fold 0 of 1 (2 train, 1 val)" in caplog.text


def test_split_folders_stay_unless_a_fold_is_asked_for(tmp_path, caplog):
    for split, members in (("train", "abc"), ("val", "de"), ("test", "f")):
        files(tmp_path, *members, images=f"images/{split}", labels=f"labels/{split}")
    assert names(find(tmp_path)) == {"train": ["a", "b", "c"], "val": ["d", "e"], "test": ["f"]}
    assert not (tmp_path / "splits.json").exists()
    assert "set aside" not in caplog.text
    with pytest.raises(CasesError, match=r"data.fold is 5; of data.folds 5 it must be 0 to 4"):
        find(tmp_path, fold=5, folds=5)
    assert not (tmp_path / "splits.json").exists()
    found = names(find(tmp_path, fold=0, folds=5))
    assert "its own train and val are set aside: data.fold or data.splits splits all 5 cases" in caplog.text
    assert sorted(found["train"] + found["val"]) == list("abcde") and len(found["val"]) == 1
    assert found["test"] == ["f"]
    assert names(find(tmp_path))["val"] == ["d", "e"]  # the file alone changes nothing
    (tmp_path / "own.json").write_text(json.dumps([{"train": ["d"], "val": ["a"]}]))
    assert names(find(tmp_path, splits="own.json")) == {"train": ["d"], "val": ["a"], "test": ["f"]}


def test_nothing_to_pool(tmp_path):
    files(tmp_path, "f", images="images/test", labels="labels/test")
    with pytest.raises(CasesError, match="no cases to split into folds; leave out data.fold"):
        find(tmp_path, fold=0)


def test_one_name_in_two_splits(tmp_path):
    for split in ("train", "val"):
        files(tmp_path, "a", images=f"images/{split}", labels=f"labels/{split}")
    with pytest.raises(CasesError, match=r"1 name in two splits:\n  a: in train and in val\n.*rename one"):
        find(tmp_path)


def test_patients_from_a_file(root):
    rows = [f"{name},{'xyz'[n % 3]}" for n, name in enumerate("abcdefghij")]
    (root / "p.csv").write_text(
        "\n".join(["patient of,case,patient", *(f"?,{row}" for row in rows), "?,gone,q"])
    )
    found = find(root, patients="p.csv", folds=3)
    assert {case.patient for case in found.cases["val"]} < set("xyz")
    assert {case.patient for case in found.cases["train"]} | {c.patient for c in found.cases["val"]} == set(
        "xyz"
    )
    assert not {case.patient for case in found.cases["train"]} & {c.patient for c in found.cases["val"]}
    (root / "splits.json").write_text(json.dumps([{"train": ["a", "e"], "val": ["d", "b", "c"]}]))
    with pytest.raises(CasesError) as error:
        find(root, patients="p.csv")
    assert "fold 0: 2 patients in two splits" in str(error.value)
    assert "  patient x: case a in train, case d in val\n  patient y: case e in train, case b in val" in str(
        error.value
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,patient\na,x\n", r"p.csv, line 1: no column case \(there are name, patient\)"),
        ("case,who\na,x\n", r"p.csv, line 1: no column patient"),
        ("case,patient\na,\n", r"p.csv, line 2: column patient is empty"),
        ("case,patient\na,x\na,y\n", r"p.csv, line 3: case a has another patient above"),
        ("case,patient\na,x\n", r"p.csv: 9 cases without a patient:\n  b\n  c\n(.|\n)*add a row for each"),
    ],
)
def test_wrong_files_of_patients(root, text, message):
    (root / "p.csv").write_text(text)
    with pytest.raises(CasesError, match=message):
        find(root, patients="p.csv")


def test_no_file_of_patients(root):
    with pytest.raises(DataNotFoundError, match="data.patients: there is no file"):
        find(root, patients="p.csv")


def test_patients_in_two_of_the_given_folders(tmp_path):
    files(tmp_path, "a", images="images/train"), files(tmp_path, "b", images="images/val")
    files(tmp_path, "c", images="images/test")
    (tmp_path / "p.csv").write_text("case,patient\na,x\nb,y\nc,x\n")
    with pytest.raises(
        CasesError, match="1 patient in two splits(.|\n)*patient x: case a in train, case c in test"
    ):
        find(tmp_path, patients="p.csv")
    check_patients({"train": cases("x", "x"), "val": cases("y")}, "here")  # twice in one split is fine


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[",
            r"splits.json: not readable as JSON \(Expecting .*or remove splits.json to have new folds made",
        ),
        ("[]", r"splits.json: has to be a list of \{\"train\""),
        ('{"train": ["a"]}', r"has to be a list of"),
        ('[["a"]]', r"fold 0: train is None, not a list of names"),
        ('[{"train": ["a"]}]', r"fold 0: val is None, not a list of names"),
        ('[{"train": ["a"], "val": [1]}]', r"fold 0: val is \[1\], not a list of names"),
        ('[{"train": ["a"], "val": ["b"]}, {"train": [], "val": ["b"]}]', r"fold 1: train is empty"),
        ('[{"train": ["a", "a"], "val": ["b"]}]', r"fold 0, train: a is there twice"),
        ('[{"train": ["a"], "val": ["a"]}]', r"fold 0: a in both train and val"),
        (
            '[{"train": ["a", "x"], "val": ["y"]}]',
            r"fold 0: 2 names without a case to train with:\n  x\n  y\n",
        ),
    ],
)
def test_wrong_files_of_folds(root, text, message):
    (root / "splits.json").write_text(text)
    with pytest.raises(CasesError, match=message):
        find(root)


@pytest.mark.parametrize("fold", [-1, 5])
def test_no_such_fold(root, fold):
    with pytest.raises(CasesError, match=rf"data.fold is {fold}; of data.folds 5 it must be 0 to 4"):
        find(root, fold=fold)
    find(root, fold=0)  # writes the file, which counts from then on
    with pytest.raises(CasesError, match=rf"data.fold is {fold}, but .*splits.json has the folds 0 to 4"):
        find(root, fold=fold)


def test_a_place_that_cannot_be_written(root):
    (root / "taken").write_text("a file")
    with pytest.raises(
        CasesError, match=r"taken/s.json: the folds cannot be written .*set data.splits to a file"
    ):
        find(root, splits="taken/s.json")


def _write_often(path):
    for number in range(60):
        write_folds(path, [{"train": ["a"] * 1000, "val": [str(number)]}])


def test_processes_that_write_at_once_leave_a_whole_file(tmp_path):
    path = tmp_path / "splits.json"
    write_folds(path, [{"train": ["a"], "val": ["b"]}])
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(path,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        json.loads(path.read_text())  # damaged if half written
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_with_a_byte_order_mark(tmp_path):
    (tmp_path / "s.json").write_text('[{"train": ["ä"], "val": ["b"]}]', encoding="utf-8-sig")
    assert read_folds(tmp_path / "s.json") == [{"train": ["ä"], "val": ["b"]}]
