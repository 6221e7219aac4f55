"""What version 0.1 made still works: import paths, and checkpoints with their class paths and settings."""

import csv
import filecmp
import importlib
import json
import re
import sys
from contextlib import nullcontext
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from mask_files import fill_boxes
from PIL import Image

from trunkline.cli import main
from trunkline.compat import MOVED, upgrade_settings

FILES = Path(__file__).parent / "checkpoints"
SAMPLES = {"detection": (4, 2), "segmentation": (4, 2), "classification": (6, 3), "scans": (2, 1)}
TASKS = [*SAMPLES, "multitask"]
# The classes of each task, by its heads.
CLASSES = {
    "detection": {"": [(1, "circle"), (3, "rectangle"), (7, "triangle")]},
    "segmentation": {"": [(0, "background"), (1, "circle"), (2, "rectangle"), (3, "triangle")]},
    "classification": {"": [(0, "circle"), (1, "rectangle"), (2, "triangle")]},
    "scans": {"": [(0, "background"), (1, "liver"), (2, "spleen"), (3, "kidney")]},
    "multitask": {
        "boxes": [(1, "circle"), (3, "rectangle"), (7, "triangle")],
        "stuff": [(0, "nothing"), (1, "circle"), (3, "rectangle"), (7, "triangle")],
    },
}

# Public names of version 0.1, by the module that had them: classes and options that configs name, and what
# its pages import.
OLD_NAMES = """
backbones: FPN Backbone CifarResNet DenseNet FeatureLevel ResNet ResidualEncoder TimmBackbone load_weights
backbones: detectron2_state
backbones.base: Backbone FeatureLevel
backbones.cifar: CifarResNet
backbones.densenet: DenseNet
backbones.fpn: FPN
backbones.optimised: optimised
backbones.residual_encoder: ResidualEncoder
backbones.resnet: ResNet
backbones.timm_backbone: TimmBackbone
backbones.weight_files: read_weights
backbones.weights: load_weights
heads: FCN Classifier DeepLabV3 DeepLabV3Plus FasterRCNN Head SemanticFPN UNet
heads.base: Head
heads.classification: Classifier
heads.detection: AnchorOptions Detections FasterRCNN RPN RPNOptions RawDetections RoIOptions
heads.detection.faster_rcnn: FasterRCNN
heads.detection.options: AnchorOptions RPNOptions RoIOptions
heads.detection.roi: Detections
heads.multi: MultiHead
heads.segmentation: FCN CrossEntropy DeepLabV3 DeepLabV3Plus Dice Focal Lovasz OnlineHardExampleMining
heads.segmentation: RawSegmentation Segmentation SegmentationHead SegmentationLoss SemanticFPN Tversky
heads.segmentation: UNet WeightedSum
heads.segmentation.base: RawSegmentation Segmentation SegmentationHead
heads.segmentation.losses: CrossEntropy Dice Focal Lovasz OnlineHardExampleMining Tversky WeightedSum
heads.segmentation.loss_base: SegmentationLoss
data.augment: Augmentation
data.batches: DetectionSample DetectionBatch ClassificationSample ClassificationBatch SegmentationSample
data.batches: SegmentationBatch collate_detection collate_classification collate_segmentation
data.classification: ImageClassification
data.coco: CocoDetection
data.io: read_image
data.locate: DataNotFoundError
data.multi: CocoDetectionAndMasks DetectionAndMaskDataset
data.scans.files: read_scan write_labels
data.scans.grid: Grid
data.scans.intensity: Intensity
data.scans.module: ScanSegmentation
data.scans.prepare: Preparation prepare
data.scans.restore: Restorer
data.scans.scan: Scan ScanError
data.segmentation: ImageSegmentation
data.synthetic: write_detection write_classification write_segmentation
data.synthetic_scans: write_scans
evaluation.classification: ClassificationEvaluator
evaluation.coco: CocoEvaluator
evaluation.files: write_csv write_json
evaluation.masks: draw_mask
evaluation.pictures: contact_sheet draw_boxes save_picture
evaluation.segmentation: SegmentationEvaluator
evaluation.volume_result: VolumeResult
evaluation.volumes: VolumeEvaluator
tasks.base: Task
tasks.branches: Branch PredictionWriter
tasks.classification: Classification
tasks.command: TrunklineCLI
tasks.detection: Detection
tasks.inference: InferenceOptions
tasks.mixing: Mixing
tasks.multi: MultiTask
tasks.optimization: OptimizationOptions
tasks.planning: Plan make_plan
tasks.segmentation: SemanticSegmentation
tasks.volume_inference: VolumeInference
tasks.volumes: VolumeSegmentation
"""
TABLE = [line.split(": ") for line in OLD_NAMES.strip().splitlines()]
QUIET = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]


@pytest.mark.filterwarnings("ignore:.*the old path goes with:FutureWarning")
@pytest.mark.parametrize(("module", "names"), TABLE, ids=[module for module, _ in TABLE])
def test_released_names_are_found_at_their_old_paths(module, names):
    old = importlib.import_module(f"trunkline.{module}")
    for name in names.split():
        found = getattr(old, name)
        assert found.__name__ == name
        # and it is the same object as at its present place, so that isinstance works for both
        assert getattr(sys.modules[found.__module__], name) is found


def test_every_moved_module_is_in_the_table():
    # branched held nothing that a config names; its class is Task now
    assert set(MOVED) - {module for module, _ in TABLE} == {"tasks.branched"}


def test_an_old_path_warns_once_and_says_the_new_one(monkeypatch):
    forget(monkeypatch, ["data.coco"])
    with pytest.warns(FutureWarning) as warned:
        import trunkline.data.coco  # noqa: F401
    (message,) = (str(warning.message) for warning in warned)
    assert message == (
        "trunkline.data.coco is trunkline.data.detection.module since version 0.2; the old path goes with 0.3"
    )


def test_a_name_that_is_at_neither_place_is_an_attribute_error_of_the_old_module():
    with pytest.warns(FutureWarning) if "trunkline.data.io" not in sys.modules else nullcontext():
        import trunkline.data.io
    with pytest.raises(AttributeError, match="module 'trunkline.data.io' has no attribute 'no_such_thing'"):
        trunkline.data.io.no_such_thing  # noqa: B018
    with pytest.raises(ModuleNotFoundError, match=r"trunkline\.data\.no_such_module"):
        importlib.import_module("trunkline.data.no_such_module")


def forget(monkeypatch, modules):
    """Let the next import of old paths be the first."""
    for module in modules:
        monkeypatch.delitem(sys.modules, f"trunkline.{module}", raising=False)
        parent, _, name = f"trunkline.{module}".rpartition(".")
        monkeypatch.delattr(sys.modules[parent], name, raising=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The datasets that the checkpoints were trained on, in folders of their names."""
    root = tmp_path_factory.mktemp("samples")
    for task, (train, val) in SAMPLES.items():
        main(["sample", task, str(root / task), "--train", str(train), "--val", str(val), "--seed", "0"])
    main(["sample", "detection", str(root / "multitask"), "--train", "4", "--val", "2", "--seed", "0"])
    fill_boxes(root / "multitask")
    return root


@pytest.fixture
def run(monkeypatch, data, tmp_path):
    """Run a command on the checkpoint of a task, from the folder of the datasets."""

    def run(command, task, *words):
        monkeypatch.chdir(data)
        monkeypatch.setattr("sys.argv", ["trunkline"])
        main([command, f"--ckpt_path={FILES / task}.ckpt", *QUIET, *words])

    return run


def pictures(folder):
    return {path.name: np.array(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def assert_same_boxes(new, old):
    new, old = (json.loads(path.read_text()) for path in (new, old))
    assert [row["image_id"] for row in new] == [row["image_id"] for row in old] and old
    assert [row["category_id"] for row in new] == [row["category_id"] for row in old]
    for name in ("bbox", "score"):
        np.testing.assert_allclose([r[name] for r in new], [r[name] for r in old], rtol=1e-5, atol=1e-4)


def assert_same_masks(new, old):
    new, old = pictures(new), pictures(old)
    assert list(new) == list(old) and old
    for name, mask in old.items():  # a pixel may change sides where two scores are equal up to rounding
        assert new[name].shape == mask.shape and (new[name] != mask).mean() < 1e-3


def assert_same_classes(new, old):
    new, old = (list(csv.reader(path.open())) for path in (new, old))
    assert [row[:2] for row in new] == [row[:2] for row in old] and len(old) == 4
    numbers = [np.array([row[2:] for row in rows[1:]], dtype=float) for rows in (new, old)]
    np.testing.assert_allclose(*numbers, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_an_old_checkpoint_predicts_what_the_old_version_predicted(run, tmp_path, task):
    images = [f"{task}/images/val"]
    if task == "classification":
        images = [f"classification/val/{name}" for _, name in CLASSES[task][""]]
    words = [f"--data.predict=[{','.join(images)}]", f"--output.folder={tmp_path}", "--output.pictures=false"]
    run("predict", task, *words)
    old = FILES / task
    if task == "detection":
        assert_same_boxes(tmp_path / "predictions.json", old / "results.json")
    elif task == "segmentation":
        assert_same_masks(tmp_path / "masks", old)
    elif task == "classification":
        assert_same_classes(tmp_path / "predictions.csv", old / "predictions.csv")
    elif task == "multitask":
        assert_same_boxes(tmp_path / "boxes/predictions.json", old / "results.json")
        assert_same_masks(tmp_path / "stuff/masks", old)
    else:
        new, expected = (nibabel.load(path / "scan_003.nii.gz") for path in (tmp_path / "labels", old))
        assert np.array_equal(new.affine, expected.affine) and new.shape == expected.shape
        assert (np.asarray(new.dataobj) != np.asarray(expected.dataobj)).mean() < 1e-3
        if np.array_equal(new.dataobj, expected.dataobj):
            assert filecmp.cmp(tmp_path / "predictions.csv", old / "volumes.csv", shallow=False)


@pytest.mark.filterwarnings("ignore:.*the old path goes with:FutureWarning")
@pytest.mark.parametrize("task", TASKS)
def test_an_old_checkpoint_evaluates(run, tmp_path, task):
    run("validate", task, f"--trainer.default_root_dir={tmp_path}")
    files = sorted(path.relative_to(path.parents[1]) for path in tmp_path.rglob("metrics.json"))
    heads = list(CLASSES[task])
    assert [str(path) for path in files] == (
        ["val/metrics.json"] if heads == [""] else [f"{name}/metrics.json" for name in heads]
    )
    for path, head in zip(sorted(tmp_path.rglob("metrics.json")), heads, strict=True):
        content = json.loads(path.read_text())
        named = [row["name"] for row in content["classes"]]
        expected = [name for _, name in CLASSES[task][head]]
        assert named == (expected[1:] if task == "scans" else expected)


@pytest.mark.filterwarnings("ignore:.*the old path goes with:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*The dirpath has changed from")
@pytest.mark.parametrize("task", TASKS)
def test_an_old_checkpoint_goes_on_training(run, tmp_path, task):
    before = torch.load(FILES / f"{task}.ckpt", weights_only=True)
    words = ["--trainer.max_steps=4", "--trainer.limit_val_batches=0", "--trainer.logger=false"]
    run("fit", task, *words, f"--trainer.default_root_dir={tmp_path}")
    (path,) = tmp_path.rglob("last.ckpt")
    after = torch.load(path, weights_only=True)
    assert (before["global_step"], after["global_step"]) == (2, 4)
    assert after["trunkline_version"] and after["state_dict"].keys() == before["state_dict"].keys()
    changed = [
        key for key, value in after["state_dict"].items() if not torch.equal(value, before["state_dict"][key])
    ]
    assert len(changed) > len(before["state_dict"]) / 2
    found = {
        name: [(row["id"], row["name"]) for row in state["classes"]]
        for name, state in after["branches"].items()
    }
    assert found == CLASSES[task]
    if task == "segmentation":
        assert after["branches"][""]["class_weights"] == pytest.approx(before["class_weights"])
    if task == "scans":
        assert after["branches"][""]["patch"] == [16, 16, 16]
        assert after["branches"][""]["regions"] == {"liver": [1], "spleen": [2], "kidney": [3]}
    settings = after["datamodule_hyper_parameters"]
    for stored in (settings, after["hyper_parameters"]):
        module, _, name = stored["_class_path"].rpartition(".")
        assert module.removeprefix("trunkline.") not in MOVED  # opens without compat
        assert hasattr(importlib.import_module(module), name)
    assert "missing_masks" not in settings
    if task in ("segmentation", "multitask"):
        assert settings["missing"] == "skip"
    if task == "classification":
        assert settings["augment"] == [{"HorizontalFlip": {"p": 0.5}}]
    if task == "scans":
        assert settings["augment"]


@pytest.mark.filterwarnings("ignore:.*the old path goes with:FutureWarning")
@pytest.mark.parametrize("task", ["detection", "classification", "scans"])
def test_an_old_config_is_understood(monkeypatch, capsys, task):
    monkeypatch.setattr("sys.argv", ["trunkline"])
    with pytest.raises(SystemExit) as stopped:
        main(["fit", f"--config={FILES / task}.yaml", "--print_config"])
    printed = capsys.readouterr().out
    assert stopped.value.code in (0, None)
    paths = re.findall(r"class_path: (trunkline\.\S+)", printed)
    given = (FILES / f"{task}.yaml").read_text()
    assert len(paths) >= given.count("class_path: trunkline.") > 3


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"_class_path": "a.ImageSegmentation", "missing_masks": "skip"}, {"missing": "skip"}),
        ({"_class_path": "a.ImageSegmentation", "missing_masks": "error"}, {"missing": "error"}),
        ({"_class_path": "a.CocoDetectionAndMasks", "missing_masks": "ignore"}, {"missing": "skip"}),
        (
            {"_class_path": "a.ImageClassification", "augment": None},
            {"augment": [{"HorizontalFlip": {"p": 0.5}}]},
        ),
        # These had no flip in version 0.1: scans, axes of their own, an empty list.
        ({"_class_path": "a.ImageClassification", "augment": None, "size": (8, 8, 8)}, {"augment": None}),
        ({"_class_path": "a.ImageClassification", "augment": []}, {"augment": []}),
    ],
)
def test_settings_of_version_0_1_are_translated(stored, expected):
    checkpoint = {"datamodule_hyper_parameters": dict(stored)}
    upgrade_settings(checkpoint)
    assert checkpoint["datamodule_hyper_parameters"].items() >= expected.items()
    assert "missing_masks" not in checkpoint["datamodule_hyper_parameters"]


def test_scans_of_version_0_1_get_no_flip_whatever_their_size():
    trunk = {"class_path": "trunkline.backbones.ResNet", "init_args": {"ndim": 3}}
    data = {"_class_path": "a.ImageClassification", "augment": None, "size": 16}
    checkpoint = {"hyper_parameters": {"backbone": trunk}, "datamodule_hyper_parameters": data}
    upgrade_settings(checkpoint)
    assert data["augment"] is None


def test_settings_of_this_version_stay_as_they_are():
    data = {"_class_path": "a.ImageClassification", "augment": None}
    checkpoint = {"trunkline_version": "0.2.0", "datamodule_hyper_parameters": dict(data)}
    upgrade_settings(checkpoint)
    assert checkpoint["datamodule_hyper_parameters"] == data
