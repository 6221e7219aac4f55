"""The command ``test`` of a detector takes the test split, and says so where it takes another."""

import json
import shutil
from pathlib import Path

import pytest

from trunkline.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:.*the old path goes with:FutureWarning")
CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "detection.ckpt"


@pytest.fixture
def tested(monkeypatch, tmp_path):
    """Run a command on a dataset; return the written metrics by stage."""

    def tested(command, root):
        monkeypatch.setattr("sys.argv", ["trunkline"])
        words = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
        where = [f"--data.root={root}", f"--trainer.default_root_dir={tmp_path / 'runs'}"]
        main([command, f"--ckpt_path={CHECKPOINT}", *where, *words])
        return {
            path.parent.name: json.loads(path.read_text()) for path in tmp_path.rglob("runs/**/metrics.json")
        }

    return tested


@pytest.fixture
def with_test(shapes, tmp_path):
    """The dataset with two of its validation images as test images; it has six to validate with."""
    root = tmp_path / "with_test"
    shutil.copytree(shapes, root)
    content = json.loads((root / "annotations/instances_val.json").read_text())
    content["images"] = content["images"][:2]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
    (root / "annotations/instances_test.json").write_text(json.dumps(content))
    (root / "images/test").mkdir()
    for image in content["images"]:
        shutil.copy(root / "images/val" / image["file_name"], root / "images/test")
    return root


def test_the_test_split_is_tested_where_there_is_one(tested, with_test, caplog):
    found = tested("test", with_test)
    assert list(found) == ["test"] and found["test"]["images"] == 2
    assert "take their place" not in caplog.text


def test_validation_data_take_its_place_with_a_word(tested, shapes, caplog):
    found = tested("test", shapes)
    assert list(found) == ["test"] and found["test"]["images"] == 6
    assert "there are no test data: the val data take their place" in caplog.text


def test_validate_and_test_write_into_folders_of_their_own(tested, with_test):
    tested("validate", with_test)
    found = tested("test", with_test)
    assert {stage: content["images"] for stage, content in found.items()} == {"val": 6, "test": 2}
