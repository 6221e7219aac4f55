"""Which scans are predicted as which cases, and how ids become labels."""

import nibabel
import numpy as np
import pytest
from PIL import Image

from trunkline.data.scans.cases.cases import CasesError, find_cases
from trunkline.data.scans.cases.classes import to_labels
from trunkline.data.shared.labels.classes import LabelClass
from trunkline.data.shared.locate import DataNotFoundError


def volume(path, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((2, 2, 2, channels) if channels > 1 else (2, 2, 2), dtype=np.uint8)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)


def dicom(folder):
    """A folder that is known as DICOM by the mark in its file."""
    folder.mkdir(parents=True)
    (folder / "1.dcm").write_bytes(bytes(128) + b"DICM")


def found(given, channels=None):
    cases = find_cases([str(path) for path in given], channels)
    assert all(case.label is None and case.patient == case.name for case in cases)
    return {case.name: case.images for case in cases}


def paths(root, *names):
    return tuple(str(root / name) for name in names)


def test_files_and_folders_of_files_and_dicom(tmp_path):
    volume(tmp_path / "in/b.nii.gz"), volume(tmp_path / "in/a.mha.nii"), volume(tmp_path / "one.nii")
    dicom(tmp_path / "in/series"), dicom(tmp_path / "other")
    Image.new("L", (2, 2)).save(tmp_path / "in/p.png")
    (tmp_path / "in/notes.txt").write_text("x"), volume(tmp_path / "in/._b.nii")
    assert found([tmp_path / "one.nii", tmp_path / "in", tmp_path / "other", tmp_path / "one.nii"]) == {
        "one": paths(tmp_path, "one.nii"),
        "a.mha": paths(tmp_path, "in/a.mha.nii"),
        "b": paths(tmp_path, "in/b.nii.gz"),
        "p": paths(tmp_path, "in/p.png"),
        "series": paths(tmp_path, "in/series"),
        "other": paths(tmp_path, "other"),
    }


def test_a_file_and_its_folder_are_one_scan(tmp_path):
    volume(tmp_path / "a.nii"), volume(tmp_path / "b.nii")
    assert list(found([tmp_path / "b.nii", tmp_path])) == ["b", "a"]
    assert list(found([tmp_path, tmp_path / "b.nii"])) == ["a", "b"]


def test_numbers_of_channels(tmp_path):
    for name in ("x_0001", "x_0000", "y_0000", "y_0001"):
        volume(tmp_path / f"{name}.nii")
    both = {n: paths(tmp_path, f"{n}_0000.nii", f"{n}_0001.nii") for n in "xy"}
    single = {f"{n}_000{c}": paths(tmp_path, f"{n}_000{c}.nii") for n in "xy" for c in (0, 1)}
    assert found([tmp_path]) == both
    assert found([tmp_path], 2) == both
    assert found([tmp_path], 1) == single  # four scans of one channel that happen to be numbered
    assert found([tmp_path], 3) == single  # none has all three
    (tmp_path / "x_0001.nii").unlink()  # reported when it is read; the others go on
    assert found([tmp_path], 2) == {"x": paths(tmp_path, "x_0000.nii"), "y": both["y"]}
    assert len(found([tmp_path])) == 3
    volume(tmp_path / "z.nii")
    assert len(found([tmp_path], 2)) == 4  # not every name ends in a number


def test_numbers_of_files_named_one_by_one(tmp_path):
    for place in ("a/x_0000.nii", "b/y.nii", "a/x_0001.nii"):
        volume(tmp_path / place)
    assert found([tmp_path / "a/x_0000.nii", tmp_path / "b/y.nii", tmp_path / "a/x_0001.nii"], 2) == {
        "x": paths(tmp_path, "a/x_0000.nii", "a/x_0001.nii"),
        "y": paths(tmp_path, "b/y.nii"),
    }


def test_the_number_of_a_single_channel_is_no_part_of_the_name(tmp_path):
    volume(tmp_path / "x_0000.nii"), volume(tmp_path / "y_0000.nii")
    for channels in (None, 1, 4):
        assert found([tmp_path], channels) == {n: paths(tmp_path, f"{n}_0000.nii") for n in "xy"}


def test_a_folder_per_case(tmp_path):
    for case in ("p", "q"):
        volume(tmp_path / f"in/{case}/t2.nii"), volume(tmp_path / f"in/{case}/t1.nii")
    both = {n: paths(tmp_path, f"in/{n}/t1.nii", f"in/{n}/t2.nii") for n in "pq"}
    assert found([tmp_path / "in"]) == both
    assert found([tmp_path / "in"], 2) == both
    assert found([tmp_path / "in"], 1) == {
        f"{n}_{t}": paths(tmp_path, f"in/{n}/{t}.nii") for n in "pq" for t in ("t1", "t2")
    }
    assert found([tmp_path / "in/p"], 2) == {"p": both["p"]}
    assert list(found([tmp_path / "in/p"])) == list(found([tmp_path / "in/p"], 3)) == ["t1", "t2"]
    volume(tmp_path / "in/q/t3.nii")
    assert [len(files) for files in found([tmp_path / "in"], 2).values()] == [2, 3]  # q is reported when read
    assert len(found([tmp_path / "in"])) == 5


def test_as_many_whole_scans_as_channels_are_no_case(tmp_path):
    volume(tmp_path / "a.nii", channels=2), volume(tmp_path / "b.nii", channels=2)
    assert list(found([tmp_path], 2)) == ["a", "b"]
    (tmp_path / "a.nii").write_text("damaged")
    assert list(found([tmp_path], 2)) == ["a", "b"]


def test_a_folder_of_one_scan_per_case(tmp_path):
    volume(tmp_path / "in/p/x.nii"), dicom(tmp_path / "in/q/series")
    for channels in (None, 1, 3):
        assert found([tmp_path / "in"], channels) == {
            "p": paths(tmp_path, "in/p/x.nii"),
            "q": paths(tmp_path, "in/q/series"),
        }


def test_names_are_unique(tmp_path):
    places = ["a/x.nii", "b/x.nii", "c/b/x.nii", "a/x.nrrd", "y.nii", "a_x.nii"]
    volume(tmp_path / "a/x.nii"), volume(tmp_path / "b/x.nii"), volume(tmp_path / "c/b/x.nii")
    volume(tmp_path / "y.nii"), volume(tmp_path / "a_x.nii"), (tmp_path / "a/x.nrrd").write_text("")
    names = {files[0]: name for name, files in found([tmp_path / place for place in places]).items()}
    assert [names[str(tmp_path / place)] for place in places] == [
        "a_x",
        "b_x",
        "b_x_2",
        "a_x_2",
        "y",
        "a_x_3",
    ]


def test_nothing_to_predict(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataNotFoundError, match=r"data.predict: no such file or folder: gone.nii, away"):
        find_cases(["gone.nii", str(tmp_path), "away"])
    with pytest.raises(DataNotFoundError, match=r"data.predict: no scan in .* \(looked for .nii, .*DICOM"):
        find_cases([str(tmp_path)])
    assert find_cases([str(tmp_path / "notes.txt")])[0].name == "notes.txt"  # reported when it is read


CLASSES = [LabelClass(i, f"c{i}", (0, 0, 0)) for i in (0, 7, -3, 300)]


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.int64])
@pytest.mark.parametrize("far", [0, 1], ids=["near", "far"])
def test_labels_of_ids(kind, far):
    """A slow loop, for ids that lie close together and for ids too far apart for a table."""
    ignore = 30_000 if kind == np.int16 else (2_000_000 if far else 255)
    choices = [0, 7, -3, 300, ignore]
    ids = np.random.default_rng(0).choice(choices, (3, 4, 5)).astype(kind)
    labels = to_labels(ids, CLASSES, ignore, "a.nii")
    wanted = {0: 0, 7: 1, -3: 2, 300: 3, ignore: 255}
    assert labels.dtype == np.uint8 and labels.shape == ids.shape
    assert labels.ravel().tolist() == [wanted[value] for value in ids.ravel().tolist()]


@pytest.mark.parametrize("kind", [bool, np.uint8, np.uint16, np.uint32])
def test_labels_of_unsigned_ids(kind):
    ids = np.array([[0, 1], [1, 0]], dtype=kind)
    labels = to_labels(ids, [CLASSES[0], CLASSES[0]._replace(id=1)], 255, "a.nii")
    assert labels.tolist() == [[0, 1], [1, 0]]


def test_more_voxels_than_are_looked_up_at_a_time():
    ids = np.tile(np.array([0, 7, 7], dtype=np.uint8), 2**20).reshape(3, 2**10, 2**10)
    ids[-1, -1, -1] = 255
    labels = to_labels(ids, CLASSES[:2], 255, "a.nii")
    assert np.array_equal(labels == 1, ids == 7) and labels[-1, -1, -1] == 255
    ids[0, 0, 0], ids[-1, -1, -1] = 9, 9
    with pytest.raises(CasesError, match=r"a.nii: ids that are no class: 9 \(2 voxels\);"):
        to_labels(ids, CLASSES[:2], 255, "a.nii")


def test_a_class_may_have_the_id_that_is_ignored_by_default():
    classes = [CLASSES[0], CLASSES[0]._replace(id=255)]
    assert to_labels(np.array([0, 255]), classes, 255, "a.nii").tolist() == [0, 1]


def test_labels_in_order_of_memory_and_of_no_voxel():
    ids = np.array([[0, 7], [300, 0]], dtype=np.int32)
    assert to_labels(ids.T, CLASSES, 255, "a.nii").tolist() == [[0, 3], [1, 0]]
    assert to_labels(np.zeros((0, 3), dtype=np.uint8), CLASSES, 255, "a.nii").shape == (0, 3)


@pytest.mark.parametrize("large", [9, 5_000_000])
def test_undeclared_ids_are_counted(large):
    ids = np.array([0, 7, 5, large, large, 255, large], dtype=np.int32)
    with pytest.raises(CasesError) as error:
        to_labels(ids, CLASSES, 255, "a.nii")
    assert str(error.value) == (
        f"a.nii: ids that are no class: {large} (3 voxels), 5 (1 voxel); declared are 0, 7, -3, 300 and 255 "
        "to ignore. Add them to the classes, or correct the file"
    )
    with pytest.raises(CasesError, match=r"and 10 more; declared"):
        to_labels(np.arange(400, 420), CLASSES, 255, "a.nii")
    with pytest.raises(CasesError, match=r"a.nii: labels are float64, not integers"):
        to_labels(np.zeros(3), CLASSES, 255, "a.nii")
