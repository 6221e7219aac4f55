"""255, which is ignored by default, as the foreground of label files: never left out in silence."""

import numpy as np
import pytest

from scan_cases import save, volume
from trunkline.data.scans.cases.cases import CasesError, find_dataset
from trunkline.data.scans.cases.checks import check_cases
from trunkline.planning.fingerprint import read_fingerprint

BINARY = {0: "background", 1: "organ"}


def dataset(root, ids, classes=BINARY, **options):
    for number, values in enumerate(ids):
        volume(root / f"images/train/{number}.nii")
        save(root / f"labels/train/{number}.nii", np.resize(np.array(values, np.uint8), (2, 2, 2)))
    volume(root / "images/val/v.nii"), volume(root / "labels/val/v.nii", ids[0])
    return find_dataset(root, classes=classes, **options)


def both(found):
    check_cases(found, ["train", "val"])
    read_fingerprint(found, workers=1)


def test_a_foreground_of_255_alone(tmp_path):
    found = dataset(tmp_path, [[0, 255], [0, 255]])
    message = (
        r"0.nii: no label file has a class other than the background, but 3 have the id 255; 255 is ignored "
        r"unless it is a class; declare the class \(data.classes: \{0: background, 255: NAME\}\), or set "
        "data.ignore_id to 255"
    )
    for check in (lambda: check_cases(found, ["train", "val"]), lambda: read_fingerprint(found)):
        with pytest.raises(CasesError, match=message):
            check()
    both(find_dataset(tmp_path, classes={0: "background", 255: "organ"}))
    both(find_dataset(tmp_path, classes=BINARY, ignore_id=255))


def test_half_of_the_files_with_1_and_half_with_255(tmp_path):
    found = dataset(tmp_path, [[0, 1], [0, 1], [0, 255], [0, 0]])
    with pytest.raises(CasesError, match=r"1 label file with the id 255 and no class \(.*2.nii\), 3 with"):
        check_cases(found, ["train", "val"])
    with pytest.raises(CasesError, match="write one id for one class in all files"):
        read_fingerprint(found)
    both(find_dataset(tmp_path, classes=BINARY, ignore_id=255))
    with pytest.raises(CasesError, match=r"ids that are no class: 1 \(4 voxels\)"):
        check_cases(find_dataset(tmp_path, classes={0: "background", 255: "organ"}), ["train"])


@pytest.mark.parametrize("ids", [[[0, 1, 255], [0, 255]], [[0, 1], [0, 0]], [[0, 0], [0, 1, 255]]])
def test_ignored_margins_of_partly_labelled_scans_are_fine(tmp_path, ids):
    both(dataset(tmp_path, ids))


def test_an_ignored_id_that_a_dataset_states_is_not_questioned(tmp_path):
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "organ": 1, "ignore": 255}}')
    both(dataset(tmp_path, [[0, 1], [0, 255]], classes=None, images="images", labels="labels"))


def test_ids_of_binary_masks_are_proposed_as_classes(tmp_path):
    with pytest.raises(CasesError, match=r"data.classes: \{0: background, 255: class_255\}"):
        dataset(tmp_path, [[0, 255]], classes=None)
