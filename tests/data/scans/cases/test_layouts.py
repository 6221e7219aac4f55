"""How a dataset of scans is recognised: folders, channels, classes; and what is said else."""

import json
import logging
import shutil

import pytest
from PIL import Image

from scan_cases import described, volume
from trunkline.data.scans.cases.cases import CasesError, find_dataset
from trunkline.data.shared.locate import DataNotFoundError


def picture(path, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (3, 2), "red" if mode == "RGB" else 0).save(path)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "classes.txt").write_text("background\nliver\n")
    return tmp_path


@pytest.mark.parametrize(
    ("images", "labels", "names"),
    [
        ("images/{}", "labels/{}", ("train", "val", "test")),
        ("images/{}", "masks/{}", ("training", "validation", "test")),
        ("images/{}", "labels", ("train", "val", "test")),
    ],
)
def test_folders_of_splits(root, images, labels, names):
    for number, name in enumerate(names):
        volume(root / images.format(name) / f"c.{number}.nii.gz")
        volume(root / labels.format(name) / f"c.{number}.nii")
        (root / images.format(name) / "notes.txt").write_text("x")
        volume(root / images.format(name) / "._hidden.nii")
    found = find_dataset(root)
    assert described(found, root) == {
        split: {f"c.{n}": ([f"{images.format(name)}/c.{n}.nii.gz"], f"{labels.format(name)}/c.{n}.nii")}
        for n, (split, name) in enumerate(zip(("train", "val", "test"), names, strict=True))
    }
    assert [entry[:2] for entry in found.classes] == [(0, "background"), (1, "liver")]
    assert (found.channels, found.regions, found.ignore_id) == (("image",), {}, 255)
    assert [case.patient for case in found.cases["val"]] == ["c.1"]
    assert not (root / "splits.json").exists()


def test_folders_without_splits_are_split_into_folds(root, caplog):
    for n in range(6):
        volume(root / f"images/{n}.nii"), volume(root / f"labels/{n}_seg.nii")
    with caplog.at_level(logging.INFO, "trunkline"):
        found = find_dataset(root, folds=3)
    assert {split: len(cases) for split, cases in found.cases.items()} == {"train": 4, "val": 2}
    assert "wrote 3 folds of 6 cases" in caplog.text and "fold 0 of 3 (4 train, 2 val)" in caplog.text
    case = found.cases["val"][0]
    assert case.label == str(root / f"labels/{case.name}_seg.nii")
    folds = json.loads((root / "splits.json").read_text())
    assert [case.name for case in found.cases["val"]] == folds[0]["val"]


def test_cases_to_test_with_need_no_labels_but_all_or_none_have_them(root):
    for n in range(4):
        volume(root / f"images/train/{n}.nii"), volume(root / f"labels/train/{n}.nii")
    volume(root / "images/test/7.nii"), volume(root / "images/test/8.nii")
    found = find_dataset(root, folds=2)  # no val: train is split
    assert {split: len(cases) for split, cases in found.cases.items()} == {"train": 2, "val": 2, "test": 2}
    assert [case.label for case in found.cases["test"]] == [None, None]
    volume(root / "labels/test/7.nii")
    with pytest.raises(CasesError, match=r"1 case of 2 without labels in .*labels/test:\n  8: no 8\.\*"):
        find_dataset(root, folds=2)


def test_only_cases_to_test_with(root):
    volume(root / "images/test/7.nii"), volume(root / "labels/test/7.nii")
    assert list(find_dataset(root).cases) == ["test"]


def test_given_folders(root):
    for split in ("train", "val"):
        volume(root / split / "scans" / f"{split}.nii"), volume(root / "truth" / split / f"{split}.nii")
        volume(root / "images" / split / "other.nii"), volume(root / "seg" / f"{split}.nii")
    found = find_dataset(root, images="{split}/scans", labels="truth/{split}")
    assert described(found, root) == {
        s: {s: ([f"{s}/scans/{s}.nii"], f"truth/{s}/{s}.nii")} for s in ("train", "val")
    }
    found = find_dataset(root, images="{split}/scans", labels="seg")
    assert found.cases["val"][0].label == str(root / "seg/val.nii")
    assert find_dataset(root, images="{split}/scans", labels="truth").cases["train"][0].label == str(
        root / "truth/train/train.nii"
    )
    with pytest.raises(DataNotFoundError, match=r"data.images: .*/nowhere is no folder"):
        find_dataset(root, images="nowhere", labels="seg")
    with pytest.raises(DataNotFoundError, match=r"data.labels: .*/nowhere is no folder"):
        find_dataset(root, images="{split}/scans", labels="nowhere")


def test_files_numbered_by_channel(root):
    for name in ("a", "b"):
        for split, number in (("train", 1), ("train", 0), ("val", 0), ("val", 1), ("test", 0), ("test", 1)):
            volume(root / f"images/{split}/{split}_{name}_000{number}.nii")
        for split in ("train", "val"):
            volume(root / f"labels/{split}/{split}_{name}.nii")
    found = find_dataset(root)
    assert found.channels == ("channel_0", "channel_1")
    assert [(case.name, len(case.images)) for case in found.cases["test"]] == [("test_a", 2), ("test_b", 2)]
    assert described(found, root)["train"]["train_b"] == (
        ["images/train/train_b_0000.nii", "images/train/train_b_0001.nii"],
        "labels/train/train_b.nii",
    )
    (root / "images/train/train_b_0000.nii").unlink()
    with pytest.raises(CasesError, match=r"train_b: there is no train_b_0000\nadd the files"):
        find_dataset(root)


def test_numbers_that_labels_have_too_are_those_of_cases(root):
    for number in range(4):
        picture(root / f"images/{'train' if number < 2 else 'val'}/slice_000{number}.png")
        picture(root / f"masks/{'train' if number < 2 else 'val'}/slice_000{number}.png")
    picture(root / "images/test/slice_0004.png"), picture(root / "images/test/slice_0005.png")
    found = find_dataset(root)
    assert [case.name for case in found.cases["val"]] == ["slice_0002", "slice_0003"]
    assert [case.name for case in found.cases["test"]] == ["slice_0004", "slice_0005"]


def test_one_numbered_file_per_case(root):
    for name in ("a", "b"):
        volume(root / f"images/{name}_0000.nii"), volume(root / f"labels/{name}.nii")
    found = find_dataset(root, folds=2)
    assert {case.name for cases in found.cases.values() for case in cases} == {"a", "b"}
    assert found.channels == ("image",)


def test_a_folder_per_case(root):
    for split in ("train", "val"):
        for name in ("t2", "t1"):
            volume(root / f"images/{split}/{split}1/{name}.nii.gz")
        volume(root / f"labels/{split}/{split}1.nii.gz")
    found = find_dataset(root)
    assert found.channels == ("t1", "t2")
    assert described(found, root)["train"] == {
        "train1": (
            ["images/train/train1/t1.nii.gz", "images/train/train1/t2.nii.gz"],
            "labels/train/train1.nii.gz",
        )
    }
    for name in ("t1", "flair"):
        volume(root / f"images/train/other/{name}.nii.gz")
    for name in ("t1", "t2"):
        volume(root / f"images/train/third/{name}.nii.gz")
    with pytest.raises(CasesError, match=r"most have t1, t2; others do not:\n  other: has flair, t1\n"):
        find_dataset(root)
    volume(root / "images/train/loose.nii")
    with pytest.raises(CasesError, match=r"holds scans \(loose.nii ...\) and folders of scans \(other ...\)"):
        find_dataset(root)


def test_a_folder_per_case_with_one_file_of_any_name(root):
    for name in ("p1", "p2"):
        volume(root / f"images/{name}/{name}_ct.nii"), volume(root / f"labels/{name}.nii")
    found = find_dataset(root, folds=2)
    assert found.cases["train"][0].images[0].endswith("_ct.nii") and found.channels == ("image",)


def test_a_dicom_folder_is_a_case_or_a_channel(root):
    for place in ("train/s1", "val/s2"):
        (root / "images" / place).mkdir(parents=True)
        (root / "images" / place / "1.dcm").write_bytes(bytes(128) + b"DICM")
        volume(root / "labels" / f"{place}.nii.gz")
    found = find_dataset(root)
    assert described(found, root)["train"] == {"s1": (["images/train/s1"], "labels/train/s1.nii.gz")}
    for split, case in (("train", "s1"), ("val", "s2")):
        (root / "images" / split / case).rename(root / "moved")
        for channel in ("flair", "adc"):
            shutil.copytree(root / "moved", root / "images" / split / case / channel)
        shutil.rmtree(root / "moved")
    found = find_dataset(root)
    assert found.channels == ("adc", "flair")
    assert described(found, root)["val"] == {
        "s2": (["images/val/s2/adc", "images/val/s2/flair"], "labels/val/s2.nii.gz")
    }


def test_splits_with_other_channels(root):
    volume(root / "images/train/a/t1.nii"), volume(root / "images/train/a/t2.nii")
    volume(root / "images/val/b.nii"), volume(root / "labels/a.nii"), volume(root / "labels/b.nii")
    with pytest.raises(CasesError, match=r"train: t1, t2\n  val: one file per case\nmake them alike"):
        find_dataset(root)


@pytest.mark.parametrize(
    ("write", "channels"),
    [
        (lambda path: picture(path.with_suffix(".png"), "RGB"), ("red", "green", "blue")),
        (lambda path: picture(path.with_suffix(".png")), ("image",)),
        (lambda path: volume(path.with_suffix(".nii"), channels=2), ("channel_0", "channel_1")),
    ],
)
def test_channels_of_one_file_are_counted(root, write, channels):
    for split in ("train", "val"):
        write(root / f"images/{split}/{split}"), picture(root / f"masks/{split}/{split}.png")
    assert find_dataset(root).channels == channels


def test_a_damaged_first_file_does_not_keep_channels_from_being_counted(root):
    (root / "images/train").mkdir(parents=True), (root / "images/train/a.nii").write_text("x")
    volume(root / "images/train/b.nii", channels=3), volume(root / "images/val/c.nii", channels=3)
    for name in "abc":
        volume(root / f"labels/{name}.nii")
    assert len(find_dataset(root).channels) == 3


def test_images_without_labels_are_listed(root):
    for name in ("a", "b", "c"):
        volume(root / f"images/{name}.nii")
    volume(root / "labels/a.nii"), volume(root / "labels/B.nii")
    with pytest.raises(CasesError) as error:
        find_dataset(root)
    text = str(error.value)
    assert f"{root}/images: 2 cases of 3 without labels in {root}/labels:\n  b: no b.*\n  c: no c.*\n" in text
    assert f"labels without images: {root}/labels/B.nii" in text and "data.table" in text


def test_nothing_there(root):
    with pytest.raises(DataNotFoundError, match=r"data.root: .*/gone is no folder"):
        find_dataset(root / "gone")
    with pytest.raises(DataNotFoundError, match=r"no scans found, looked for\n.*dataset.json"):
        find_dataset(root)
    (root / "images/train").mkdir(parents=True)
    with pytest.raises(DataNotFoundError, match=r"images/train: holds no scans; put the train cases there"):
        find_dataset(root)


def test_files_that_differ_in_the_suffix_alone(root):
    volume(root / "images/a.nii"), volume(root / "images/a.nii.gz"), volume(root / "labels/a.nii")
    with pytest.raises(CasesError, match=r"a\.nii and a\.nii\.gz have the same name; remove one"):
        find_dataset(root)


def test_classes_are_sorted_with_the_background_first(root):
    volume(root / "images/train/a.nii"), volume(root / "images/val/b.nii")
    volume(root / "labels/a.nii"), volume(root / "labels/b.nii")
    (root / "classes.txt").unlink()
    (root / "classes.csv").write_text("id,name,colour\n300,spleen,#ff0000\n7,liver,\n0,background,\n")
    found = find_dataset(root)
    assert [entry[:2] for entry in found.classes] == [(0, "background"), (7, "liver"), (300, "spleen")]
    assert found.classes[2].colour == (255, 0, 0)
    given = find_dataset(root, classes={-1: "air", 2: "x", 0: "rest"}, ignore_id=9)
    assert [entry[:2] for entry in given.classes] == [(0, "rest"), (-1, "air"), (2, "x")]
    assert given.ignore_id == 9
    assert [entry[:2] for entry in find_dataset(root, classes=["r", "s"]).classes] == [(0, "r"), (1, "s")]
    assert find_dataset(root, classes={"0": "r", "4": "s"}).classes[1].id == 4
    assert find_dataset(root, classes={1: "r", 4: "s"}, ignore_id=0).classes[0].id == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["a", "a"]}, r"data.classes: name a is there twice"),
        ({"classes": {0: "a", "0": "b"}}, r"data.classes: id 0 is there twice"),
        ({"classes": {"x": "a"}}, r"data.classes: x: ids have to be whole numbers"),
        ({"classes": ["a"]}, r"data.classes: there is 1 class; 2 to 255"),
        ({"classes": [str(n) for n in range(256)]}, r"there are 256 classes; 2 to 255"),
        ({"classes": {1: "a", 2: "b"}}, r"no class has the id 0, which is the background; declare it"),
        ({"classes": {0: "a", 2: "b"}, "ignore_id": 2}, r"class b has the id 2, which is to be ignored"),
    ],
)
def test_wrong_classes(root, options, message):
    volume(root / "images/a.nii"), volume(root / "labels/a.nii")
    with pytest.raises(CasesError, match=message):
        find_dataset(root, **options)


def test_without_classes_the_ids_are_shown(root):
    (root / "classes.txt").unlink()
    volume(root / "images/a.nii"), volume(root / "labels/a.nii", (0, 4, 255))
    volume(root / "images/b.nii"), volume(root / "labels/b.nii", (1, 4))
    with pytest.raises(CasesError) as error:
        find_dataset(root)
    text = str(error.value)
    assert "2 of 2 label files hold the ids 0, 1, 4, 255" in text
    assert "data.classes: {0: background, 1: class_1, 4: class_4}" in text
    (root / "classes.txt").write_text(text.partition("Write\n")[2].partition("\nwith")[0])
    assert [entry[:2] for entry in find_dataset(root, folds=2).classes] == [
        (0, "background"),
        (1, "class_1"),
        (4, "class_4"),
    ]


def test_folders_of_nnunet_without_its_json(root):
    for n in range(2):
        volume(root / f"imagesTr/a_{n}.nii"), volume(root / f"labelsTr/a_{n}.nii")
    assert find_dataset(root, folds=2).cases["val"][0].label.startswith(str(root / "labelsTr"))
