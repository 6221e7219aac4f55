"""Names in lists and annotations lead nowhere but into the data, unless the user allows it."""

import json

import pytest
from PIL import Image

from trunkline.data.classification import ImageClassification
from trunkline.data.detection import CocoDetection
from trunkline.data.scans.cases.cases import find_dataset
from trunkline.data.shared.inside import files_of, outside

WAYS = ["../secret.png", "a/../../secret.png", "{away}/secret.png", "file:///etc/passwd", "s3://other/x.png"]
WAYS += ["~/secret.png", "..\\secret.png", "C:\\secret.png", "\\\\host\\x.png", "https://x.org/x.png"]


@pytest.fixture
def away(tmp_path):
    """The folder of an image beside that of the data."""
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (tmp_path / "data" / "images").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("way", WAYS)
def test_names_that_lead_out_are_refused_before_anything_is_looked_for(way, away):
    name = way.format(away=away)
    with files_of(away / "data", False):
        assert outside(name, away / "data")
    with files_of(away / "data", True):
        assert not outside(name, away / "data")
        assert outside("a\0b", away / "data")


@pytest.mark.parametrize(
    "name", ["a.png", "./a.png", "b/../a.png", "..a.png", "a..b/c.png", "~", "../data/a.png", "é"]
)
def test_names_inside_are_taken(name, away):
    with files_of(away / "data", False):
        assert not outside(name, away / "data")
        assert not outside(str(away / "data" / "a.png"), away / "data" / "images")
        assert not outside("../labels/a.png", away / "data" / "images")
        assert outside("../labels/a.png", away / "data")
    assert not outside("a/b.png", "s3://bucket/x") and outside("../y/b.png", "s3://bucket/x")


def coco(folder, name, **options):
    content = {"images": [{"id": 7, "file_name": name, "width": 8, "height": 8}], "annotations": []}
    content["categories"] = [{"id": 1, "name": "a"}]
    (folder / "data" / "a.json").write_text(json.dumps(content))
    options = {
        "root": str(folder / "data"),
        "train_annotations": "a.json",
        "train_images": "images",
    } | options
    data = CocoDetection(workers=0, batch_size=1, **options)
    return data.indices("fit")["train"]


@pytest.mark.parametrize("way", ["../../secret.png", "{away}/secret.png", "{away}/not_there.png"])
def test_coco(way, away):
    name = way.format(away=away)
    with pytest.raises(
        ValueError, match=r"a\.json: names of .*\n.*image id 7: .*leads out of.*\n.*allow_outside_root"
    ):
        coco(away, name)
    assert len(coco(away, name, allow_outside_root=True)) == 1


def test_csv_of_images(away):
    (away / "data" / "a.csv").write_text("path,label\n../secret.png,x\n")
    with pytest.raises(ValueError, match=r"line 2: \.\./secret\.png leads out of .*data\.allow_outside_root"):
        ImageClassification(str(away / "data"), train="a.csv").indices("fit")
    made = ImageClassification(str(away / "data"), train="a.csv", allow_outside_root=True)
    assert len(made.indices("fit")["train"]) == 1


def test_lists_of_scans(away):
    labels = {"labels": {"0": "a", "1": "b"}}
    lists = {"training": [{"image": "../secret.png", "label": "../not_there.png"}]}
    (away / "data" / "dataset.json").write_text(json.dumps(labels | lists))
    with pytest.raises(ValueError, match=r"training\[0\]: \.\./secret\.png leads out of") as raised:
        find_dataset(away / "data")
    assert "does not exist" not in str(raised.value)
    (away / "data" / "a.csv").write_text("image,label\n../secret.png,../not_there.png\n")
    with pytest.raises(ValueError, match=r"line 2, column label: \.\./not_there\.png leads out of"):
        find_dataset(away / "data", table="a.csv")
