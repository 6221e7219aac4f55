"""What is wrong with the files of a dataset shows before training, all at once."""

import logging

import nibabel
import numpy as np
import pytest
from PIL import Image

from trunkline.data.scans.cases.cases import CasesError, find_dataset
from trunkline.data.scans.cases.checks import check_cases

OBLIQUE = np.array([[0.7, -0.5, 0.1, 9], [0.5, 0.7, 0, -40], [0, 0.2, 2.5, 7], [0, 0, 0, 1]])


def save(path, values, affine=OBLIQUE):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, None)
    image.header.set_sform(affine, code=1)
    nibabel.save(image, path)


def write(root, name, split="train", affine=OBLIQUE, shape=(4, 3, 2), ids=(0, 1, 2), channels=1):
    """A case whose label has the ids, repeated; its affine and shape can be set apart."""
    size = (4, 3, 2) if channels == 1 else (4, 3, 2, channels)
    save(root / f"images/{split}/{name}.nii", np.ones(size, dtype=np.int16))
    save(root / f"labels/{split}/{name}.nii", np.resize(np.array(ids, dtype=np.int16), shape), affine)


def check(root, *splits, **options):
    found = find_dataset(root, **{"classes": ["background", "anterior", "posterior"]} | options)
    check_cases(found, splits or tuple(found.cases))


def problems(root, *splits, **options):
    with pytest.raises(CasesError) as error:
        check(root, *splits, **options)
    return str(error.value).splitlines()


@pytest.fixture
def root(tmp_path):
    write(tmp_path, "a"), write(tmp_path, "b"), write(tmp_path, "c", "val")
    return tmp_path


def test_sound_data_pass(root, caplog):
    check(root)
    assert "no training label" not in caplog.text


def test_grids_that_differ_by_rounding_pass(root):
    close = OBLIQUE.copy()
    close[:3, 3] += 0.005
    close[0, 0] += 1e-5
    write(root, "b", affine=close)
    check(root)


def test_labels_on_another_grid(root):
    moved = OBLIQUE.copy()
    moved[2, 3] += 3
    write(root, "a", affine=moved), write(root, "b", shape=(4, 3, 1))
    head, first, second = problems(root)
    assert head == "2 problems in 3 cases:"
    assert first == (
        f"  {root}/labels/train/a.nii: does not lie on the grid of {root}/images/train/a.nii (corners lie up "
        "to 3 mm apart); resample it, or copy the affine of the other's header if the voxels belong together"
    )
    assert f"{root}/labels/train/b.nii" in second and "(shape 4x3x2 and 4x3x1); resample it to that" in second


def test_channels_on_another_grid(root):
    for name in ("a", "b"):
        for number in range(2):
            affine = OBLIQUE if (name, number) != ("b", 1) else np.diag([1.0, 1, 1, 1])
            save(root / f"in/{name}_000{number}.nii", np.ones((4, 3, 2), dtype=np.uint8), affine)
    head, line = problems(root, images="in", labels="labels/train", folds=2)
    assert head == "1 problem in 2 cases:" and f"{root}/in/b_0001.nii: does not lie on the grid" in line


def test_undeclared_ids(root):
    write(root, "b", ids=(0, 0, 7)), write(root, "c", "val", ids=(1, 255))
    assert problems(root) == [
        "1 problem in 3 cases:",
        f"  {root}/labels/train/b.nii: ids that are no class: 7 (8 voxels); declared are 0, 1, 2 and 255 to "
        "ignore. Add them to the classes, or correct the file",
    ]
    check(root, ignore_id=7, classes={0: "bg", 1: "a", 2: "p", 255: "x"})
    check(root, "val")  # only the splits asked for


def test_labels_that_are_no_integers(root):
    save(root / "labels/train/a.nii", np.full((4, 3, 2), 0.5, dtype=np.float32))
    head, line = problems(root)
    assert head.startswith("1 problem") and f"{root}/labels/train/a.nii" in line


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_affines_that_are_none(root, value):
    affine = OBLIQUE.copy()
    affine[:, 1] = value
    affine[3] = (0, 0, 0, 1)
    save(root / "images/val/c.nii", np.ones((4, 3, 2), dtype=np.int16), affine)
    head, line = problems(root)
    assert head == "1 problem in 3 cases:" and f"{root}/images/val/c.nii" in line and "affine" in line


def test_damaged_files(root):
    (root / "images/train/a.nii").write_text("x")
    (root / "labels/train/b.nii").write_text("x")
    lines = problems(root)
    assert lines[0] == "2 problems in 3 cases:"
    assert "images/train/a.nii" in lines[1] and "labels/train/b.nii" in lines[2]


def test_channels_that_differ_between_cases(root):
    write(root, "c", "val", channels=2)
    head, line = problems(root)
    assert head == "1 problem in 3 cases:"
    assert f"{root}/images/val/c.nii: case c has 2 channels where others have 1; add or remove" in line


def test_the_first_case_may_be_the_one_with_other_channels(root):
    write(root, "a", channels=2)
    head, line = problems(root)
    assert f"{root}/images/train/a.nii: case a has 2 channels where others have 1" in line


def test_channels_that_the_dataset_does_not_name(root):
    (root / "dataset.json").write_text(
        '{"labels": {"0": "bg", "1": "a", "2": "p"}, "modality": {"0": "T1", "1": "T2"}}'
    )
    assert problems(root, images="images", classes=None)[1:] == [
        "  all cases have 1 channel, but the dataset names 2 (T1, T2); correct the names of the channels"
    ]
    write(root, "a", channels=2)  # the one that is as declared is right, though the others are more
    lines = problems(root, images="images", classes=None)
    assert [line.split(":")[1] for line in lines[1:]] == [
        f" case {name} has 1 channel where others have 2; add or remove channels, or the case"
        for name in "bc"
    ]


def test_pictures_among_volumes(root):
    Image.new("L", (3, 2)).save(root / "images/train/p.png")
    Image.new("L", (3, 2)).save(root / "labels/train/p.png")
    head, line = problems(root)
    assert "p.png: has 2 spatial axes where others have 3; keep 2D images and volumes" in line


def test_cases_without_labels(root):
    save(root / "images/test/d.nii", np.ones((4, 3, 2), dtype=np.int16))
    check(root)  # they can be predicted
    found = find_dataset(root, classes=["a", "b", "c"])
    found.cases["train"] = found.cases["test"]
    with pytest.raises(CasesError, match="case d: has no labels; add them, or remove the case from train"):
        check_cases(found, ["train"])


def test_a_split_that_is_not_there(root):
    assert problems(root, "train", "test")[1:] == ["  there are no test cases (there are train, val)"]


def test_twenty_of_many_problems_are_listed(root):
    for number in range(30):
        write(root, f"n{number:02}", ids=(0, 9))
    lines = problems(root)
    assert lines[0] == "30 problems in 33 cases:" and len(lines) == 22
    assert lines[-1] == "  ... and 10 more"


def test_with_enough_wrong_headers_labels_are_not_read(root):
    write(root, "b", ids=(0, 9))
    for number in range(20):
        write(root, f"n{number:02}", shape=(1, 1, 1))
    assert problems(root)[0] == "20 problems in 23 cases:"
    (root / "images/train/n00.nii").unlink(), (root / "labels/train/n00.nii").unlink()
    assert problems(root)[0] == "20 problems in 22 cases:"  # 19, and then the ids


def test_a_class_in_no_training_label_is_logged(root, caplog):
    for name in ("a", "b"):
        write(root, name, ids=(0, 1))
    with caplog.at_level(logging.WARNING, "trunkline"):
        check(root)
    assert "no training label holds posterior;" in caplog.text
