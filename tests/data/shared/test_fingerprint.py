"""The fingerprint of a dataset: equal for a copy elsewhere, another for other images or labels."""

import csv
import json
import shutil

import nibabel
import numpy as np
import pytest
import torch
from mask_files import fill_boxes
from PIL import Image

from trunkline.data.classification import ImageClassification
from trunkline.data.detection import CocoDetection
from trunkline.data.multitask import CocoDetectionAndMasks
from trunkline.data.scans.module import ScanSegmentation
from trunkline.data.segmentation import ImageSegmentation
from trunkline.data.shared.fingerprint import MOST_FILES, differences, digest, sizes_on_disk
from trunkline.data.synthetic.scans import write_scans

KINDS = ["detection", "segmentation", "classification", "table", "multitask", "scans"]


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("scans") / "data", train=2, val=1, progress=False)


@pytest.fixture
def root(request, kind, tmp_path):
    sources = {
        "detection": "shapes",
        "multitask": "shapes",
        "segmentation": "masked_shapes",
        "scans": "scans",
    }
    folder = tmp_path / "data"
    shutil.copytree(request.getfixturevalue(sources.get(kind, "class_folders")), folder)
    if kind == "multitask":
        fill_boxes(folder)
    if kind == "table":
        with (folder / "data.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["path", "split", "label"])
            for path in sorted(folder.rglob("*.jpg")):
                rows.writerow([path.relative_to(folder), path.parts[-3], path.parts[-2]])
    return folder


def found(kind, root):
    """The fingerprint as a run takes it, in what a checkpoint holds."""
    if kind == "scans":
        data = ScanSegmentation(
            str(root), patch=[8, 8, 8], workers=0, cache_folder=str(root.parent / "cache")
        )
    elif kind == "table":
        data = ImageClassification(str(root / "data.csv"), workers=0)
    else:
        classes = {"detection": CocoDetection, "segmentation": ImageSegmentation}
        classes |= {"classification": ImageClassification, "multitask": CocoDetectionAndMasks}
        data = classes[kind](root=str(root), workers=0)
    data.prepare_data()
    data.setup("fit")
    torch.save(data.fingerprint(), root.parent / "kept")
    return torch.load(root.parent / "kept", weights_only=True)


def change_label(kind, root):
    """Give one object, pixel, image or voxel of the training data another class; sizes of files stay."""
    if kind in ("detection", "multitask"):
        (path,) = (root / "annotations").glob("instances_train*.json")
        content = json.loads(path.read_text())
        first, *others = content["annotations"]
        first["category_id"] = next(
            each["category_id"] for each in others if each["category_id"] != first["category_id"]
        )
        path.write_text(json.dumps(content))
    elif kind == "segmentation":
        path = sorted((root / "masks/train").iterdir())[0]
        image = Image.open(path)
        size, values = path.stat().st_size, np.array(image)
        values[0, 0] = 1 if values[0, 0] != 1 else 2
        changed = Image.fromarray(values, image.mode)
        if image.mode == "P":
            changed.putpalette(image.getpalette())
        changed.save(path)
        assert path.stat().st_size >= size - 64
    elif kind == "classification":
        first = sorted((root / "train").iterdir())[0]
        other = sorted((root / "train").iterdir())[1]
        path = sorted(first.iterdir())[0]
        path.rename(other / f"moved_{path.name}")
    elif kind == "table":
        lines = (root / "data.csv").read_text().splitlines()
        places = [n for n, line in enumerate(lines) if ",train," in line]
        first, last = (lines[n].rpartition(",") for n in (places[0], places[-1]))
        lines[places[0]], lines[places[-1]] = f"{first[0]},{last[2]}", f"{last[0]},{first[2]}"
        (root / "data.csv").write_text("\n".join(lines))
    else:
        path = sorted((root / "labels/train").iterdir())[0]
        image = nibabel.load(path)
        values = np.asanyarray(image.dataobj).copy()
        values[0, 0, 0] = 1 - (values[0, 0, 0] == 1)
        nibabel.save(nibabel.Nifti1Image(values, image.affine, image.header), path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_equal_and_a_changed_label_or_image_is_not(kind, root, tmp_path):
    before = found(kind, root)
    assert set(before) >= {"train", "val"}
    moved = tmp_path / "moved" / "data"
    moved.parent.mkdir()
    root.rename(moved)
    assert differences(before, found(kind, moved)) == []
    change_label(kind, moved)
    changed = differences(before, found(kind, moved))
    assert changed and all(text.startswith("train") for text in changed), changed


def test_a_picture_that_was_replaced_is_seen_by_its_size(shapes, tmp_path):
    shutil.copytree(shapes, tmp_path / "data")
    before = found("detection", tmp_path / "data")
    picture = sorted((tmp_path / "data").rglob("*.jpg"))[0]
    picture.write_bytes(picture.read_bytes() + b"\0")
    (told,) = differences(before, found("detection", tmp_path / "data"))
    assert told.endswith(": changed: files")


def test_differences_name_numbers_and_what_else_has_changed():
    before = {
        "train": {"images": 7, "labels": "a", "names": "b", "of an older version": 1},
        "val": {"labels": "c"},
    }
    now = {"train": {"images": 8, "labels": "z", "names": "b", "of a newer version": 1}}
    assert differences(before, now) == ["train: 7 images before, 8 now; changed: labels"]
    assert differences({}, now) == []


def test_digests_tell_apart_what_is_cut_otherwise():
    assert digest(["ab", "c"]) != digest(["a", "bc"]) != digest(["a"], ["bc"])
    assert digest(torch.zeros(2, 3)) != digest(torch.zeros(3, 2))
    assert digest(torch.zeros(2)) != digest(torch.zeros(2, dtype=torch.int32))


def test_of_many_files_some_are_looked_at(monkeypatch):
    looked = []
    monkeypatch.setattr("trunkline.data.shared.fingerprint._size", lambda path: looked.append(path) or 1)
    sizes_on_disk([str(number) for number in range(3 * MOST_FILES)])
    assert len(looked) == MOST_FILES and {"0", str(3 * MOST_FILES - 1)} <= set(looked)
