"""One line moves a shipped config to any trunk: each then trains a step and declares what it returns."""

import pytest
import torch

from trunkline.cli import shipped_configs, with_null_overrides, with_resolved_configs
from trunkline.tasks.command import TrunklineCLI

# The words that a user adds, and the class of the trunk that must come of it.
TRUNKS = {
    "ResNeXt-50": ("ResNet", ["depth=50", "groups=32", "width_per_group=4"]),
    "Wide ResNet-50-2": ("ResNet", ["depth=50", "width_per_group=128"]),
    "ResNet-26-D, v2": ("ResNet", ["depth=26", "pre_activation=true", "stem=deep", "shortcut=average"]),
    "SE-ResNet-18": ("ResNet", ["depth=18", "squeeze_excitation=true", "anti_alias=true"]),
    "plain-18": ("ResNet", ["depth=18", "shortcut=none"]),
    "DenseNet-121": ("DenseNet", ["depth=121"]),
    "CIFAR ResNet-20": ("CifarResNet", ["depth=20"]),
    "ConvNeXt": ("TimmBackbone", ["name=convnext_atto"]),
    "EfficientNet": ("TimmBackbone", ["name=efficientnet_b0"]),
}
QUIET = [
    "--data.workers=0",
    "--data.batch_size=2",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.max_steps=1",
    "--trainer.limit_val_batches=0",
    "--trainer.callbacks=null",
    "--trainer.logger=false",
    "--trainer.precision=32-true",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
DETECTION = ["--data.short_side=64", "--data.long_side=96"]
CLASSIFICATION = ["--data.size=32", "--data.augment=[]"]
CROP = '--data.augment=[{"RandomCrop": {"height": 64, "width": 64}}]'
SEGMENTATION = [CROP, "--model.head.num_classes=4"]


def fit(monkeypatch, name, kind, options, *more):
    # The trunk's class goes last in the file and first on the command line, as a user would type it.
    trunk = [f"--model.backbone={kind}", "--model.backbone.weights=null"]
    words = ["fit", "--config", name, *QUIET, *more, *trunk, *(f"--model.backbone.{o}" for o in options)]
    words = with_null_overrides(with_resolved_configs(words))
    monkeypatch.setattr("sys.argv", ["trunkline", *words])
    return TrunklineCLI()


def check(cli, kind, size):
    trunk = cli.model.trunk
    assert type(trunk).__name__ == kind
    assert cli.trainer.global_step == 1
    with torch.no_grad():
        maps = trunk.eval()(torch.zeros(1, 3, *size))
    assert [x.shape[1] for x in maps] == [level.channels for level in trunk.levels]
    return trunk


@pytest.mark.parametrize("name", TRUNKS)
def test_a_detector_moves_to_any_trunk(monkeypatch, tmp_path, shapes, name):
    kind, options = TRUNKS[name]
    where = [f"--data.root={shapes}", f"--trainer.default_root_dir={tmp_path}", *DETECTION]
    cli = fit(monkeypatch, "detection/faster_rcnn_r18_fpn_demo", kind, options, *where)
    trunk = check(cli, kind, (64, 96))
    if name == "ResNeXt-50":
        assert trunk.layer1[0].conv2.groups == 32
    if name == "plain-18":
        assert all(block.downsample is None for block in trunk.blocks)


@pytest.mark.parametrize("name", TRUNKS)
def test_a_classifier_moves_to_any_trunk(monkeypatch, tmp_path, class_folders, name):
    kind, options = TRUNKS[name]
    where = [f"--data.root={class_folders}", f"--trainer.default_root_dir={tmp_path}", *CLASSIFICATION]
    cli = fit(monkeypatch, "classification/resnet20_cifar10", kind, options, *where)
    check(cli, kind, (32, 32))


@pytest.mark.parametrize("name", ["ResNet-26-D, v2", "DenseNet-121", "CIFAR ResNet-20", "EfficientNet"])
def test_a_segmenter_moves_to_any_trunk(monkeypatch, tmp_path, masked_shapes, name):
    kind, options = TRUNKS[name]
    where = [f"--data.root={masked_shapes}", f"--trainer.default_root_dir={tmp_path}", *SEGMENTATION]
    cli = fit(monkeypatch, "segmentation/unet_r18_membrane", kind, options, *where)
    check(cli, kind, (64, 64))


@pytest.mark.slow
@pytest.mark.parametrize("config", [name for name in shipped_configs() if name.startswith("detection/")])
@pytest.mark.parametrize("name", ["DenseNet-121", "ConvNeXt", "CIFAR ResNet-20"])
def test_every_detection_config_moves(monkeypatch, tmp_path, shapes, config, name):
    kind, options = TRUNKS[name]
    where = [f"--data.root={shapes}", f"--trainer.default_root_dir={tmp_path}", *DETECTION]
    check(fit(monkeypatch, config, kind, options, *where), kind, (64, 96))
