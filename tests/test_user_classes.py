"""Classes of a user by their paths: found without PYTHONPATH, and named with the reason where that fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from trunkline.cli import main

OWN_HEAD = """
from trunkline.heads import FCN

class OwnHead(FCN):
    pass
"""
OWN_METRIC = """
from trunkline.evaluation.base import Evaluator, Result

class Count(Evaluator):
    def reset(self):
        self.images = 0

    def update(self, predictions, batch):
        self.images += len(predictions)

    def gather(self):
        pass

    def compute(self):
        return Result({"seen": float(self.images)})
"""


def config(root, folder, head="FCN", evaluators=()):
    """Write a config whose model is small and whose data are few."""
    content = {
        "model": {
            "class_path": "SemanticSegmentation",
            "init_args": {
                "backbone": {"class_path": "CifarResNet", "init_args": {"depth": 8, "width": 4}},
                "head": {"class_path": head, "init_args": {"num_classes": 4, "channels": 4}},
                **({"evaluators": [{"class_path": path} for path in evaluators]} if evaluators else {}),
            },
        },
        "data": {
            "class_path": "ImageSegmentation",
            "init_args": {"root": str(root), "batch_size": 2, "workers": 0},
        },
        "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
    }
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.slow
def test_the_installed_command_finds_classes_here_and_beside_the_config(masked_shapes, tmp_path):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    (here / "heads_of_mine.py").write_text(OWN_HEAD)
    (elsewhere / "metrics_of_mine.py").write_text(OWN_METRIC)
    evaluators = ["SegmentationEvaluator", "metrics_of_mine.Count"]
    given = config(masked_shapes, elsewhere, "heads_of_mine.OwnHead", evaluators)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = Path(sys.executable).with_name("trunkline")
    done = subprocess.run(
        [program, "validate", "--config", given, f"--trainer.default_root_dir={tmp_path / 'runs'}"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=here,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "runs").rglob("val/metrics.json")
    metrics = json.loads(path.read_text())["metrics"]
    assert metrics["seen"] == 4 and "mIoU" in metrics


@pytest.fixture
def stopped(monkeypatch, tmp_path):
    """Run the command in a folder with broken modules; return what it said when it stopped."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "sound_module.py").write_text("class Other:\n    pass\n")
    (tmp_path / "broken_module.py").write_text("1 / 0\n")

    def stopped(*words):
        monkeypatch.setattr("sys.argv", ["trunkline"])
        with pytest.raises(SystemExit) as caught:
            main(list(map(str, words)))
        assert str(caught.value).startswith("\ntrunkline: error: ")
        return str(caught.value)

    yield stopped
    for name in ("sound_module", "broken_module"):
        sys.modules.pop(name, None)


CAUSES = {
    "missing_module.Own": "No module named 'missing_module'",
    "sound_module.Own": "has no class Own",
    "broken_module.Own": "ZeroDivisionError",
}


@pytest.mark.parametrize("path", CAUSES)
def test_a_wrong_path_of_an_option_says_what_could_not_be_imported_and_why(
    stopped, masked_shapes, tmp_path, path
):
    given = config(masked_shapes, tmp_path)
    said = stopped("fit", "--config", given, f"--model.head={path}")
    assert "--model.head" in said and all(part in said for part in (*path.split("."), CAUSES[path]))


@pytest.mark.parametrize("path", CAUSES)
def test_a_wrong_path_inside_a_config_is_named_with_its_place(stopped, masked_shapes, tmp_path, path):
    said = stopped("fit", "--config", config(masked_shapes, tmp_path, head=path))
    assert "model.init_args.head.class_path" in said and "own.yaml" in said
    assert all(part in said for part in (*path.split("."), CAUSES[path]))


@pytest.mark.parametrize("path", CAUSES)
def test_a_wrong_path_in_a_list_is_named_with_its_number(stopped, masked_shapes, tmp_path, path):
    evaluators = ["SegmentationEvaluator", path]
    said = stopped("validate", "--config", config(masked_shapes, tmp_path, evaluators=evaluators))
    assert "model.init_args.evaluators[1].class_path" in said
    assert all(part in said for part in (*path.split("."), CAUSES[path]))


def test_a_name_that_no_class_has_is_one_line_with_the_nearest(stopped, masked_shapes, tmp_path):
    said = stopped("fit", "--config", config(masked_shapes, tmp_path, head="DeepLap3"))
    assert "no class DeepLap3 is known" in said and "did you mean DeepLabV3?" in said
