"""``num_classes: auto``: from the data, from a checkpoint, and what is said where neither knows."""

import pytest
import torch
import yaml
from jsonargparse import Namespace

from trunkline.backbones.base import FeatureLevel
from trunkline.cli import CONFIGS, shipped_configs, with_null_overrides, with_resolved_configs
from trunkline.data.detection import CocoDetection
from trunkline.data.shared.labels.classes import LabelClass
from trunkline.data.shared.module import TrunklineData
from trunkline.heads import FCN, Classifier, FasterRCNN
from trunkline.tasks.command import TrunklineCLI
from trunkline.tasks.settings.num_classes import auto_heads, fill_in

DEMO = "detection/faster_rcnn_r18_fpn_demo"
LEVELS = (FeatureLevel(8, (4, 4)),)


def built(monkeypatch, *words):
    """Return the CLI object of a command that ends when everything is built."""
    monkeypatch.setattr(TrunklineCLI, "_run_subcommand", lambda *_: None)
    small = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--model.backbone.weights=null"]
    line = with_null_overrides(with_resolved_configs([words[0], "--config", *words[1:], *small]))
    monkeypatch.setattr("sys.argv", ["trunkline", *line])
    return TrunklineCLI()


def numbers(content):
    if isinstance(content, dict):
        for key, value in content.items():
            yield from [value] if key == "num_classes" else numbers(value)


@pytest.mark.parametrize("file", [*shipped_configs().values(), *(CONFIGS.parent / "examples").glob("*.yaml")])
def test_every_config_takes_the_number_from_the_data(file):
    found = list(numbers(yaml.safe_load(file.read_text(encoding="utf-8"))["model"]))
    assert found and set(found) == {"auto"}


def test_the_data_are_read_once_and_the_model_starts_as_with_the_number(monkeypatch, shapes):
    read = []
    original = CocoDetection.read_split
    monkeypatch.setattr(
        CocoDetection, "read_split", lambda self, split: read.append(split) or original(self, split)
    )
    cli = built(monkeypatch, "fit", DEMO, f"--data.root={shapes}")
    assert cli.model.head.num_classes == 3 and sorted(read) == ["train", "val"]
    cli.datamodule.setup("fit")
    assert sorted(read) == ["train", "val"]
    assert cli.config.fit.model.init_args.head.init_args.num_classes == 3  # which is saved as config.yaml
    assert cli.model.hparams["head"]["init_args"]["num_classes"] == 3
    assert cli.datamodule.hparams["root"] == str(shapes)
    stated = built(monkeypatch, "fit", DEMO, f"--data.root={shapes}", "--model.head.num_classes=3")
    for name, value in stated.model.state_dict().items():
        assert torch.equal(value, cli.model.state_dict()[name]), name


def test_without_a_command_it_is_taken_from_the_data_to_train_on(shapes, tmp_path):
    small = ["--trainer.accelerator=cpu", "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}"]
    config = f"--config={shipped_configs()[DEMO]}"
    cli = TrunklineCLI(run=False, args=[config, f"--data.root={shapes}", *small])
    assert cli.subcommand is None and cli.model.head.num_classes == 3


def test_a_number_that_is_given_counts_and_nothing_is_read(monkeypatch, shapes):
    monkeypatch.setattr(CocoDetection, "read_split", lambda *_: pytest.fail("read"))
    cli = built(monkeypatch, "fit", DEMO, f"--data.root={shapes}", "--model.head.num_classes=7")
    assert cli.model.head.num_classes == 7


def test_print_config_leaves_auto_as_it_is(monkeypatch, shapes, capsys):
    with pytest.raises(SystemExit):
        built(monkeypatch, "fit", DEMO, f"--data.root={shapes}", "--print_config")
    assert "num_classes: auto" in capsys.readouterr().out


def checkpoint(folder, number):
    """Write what of a checkpoint counts here: the arguments of the head."""
    head = {"class_path": "FasterRCNN", "init_args": {"num_classes": number}}
    torch.save({"hyper_parameters": {"head": head}, "state_dict": {}}, folder / "old.ckpt")
    return folder / "old.ckpt"


@pytest.mark.parametrize(
    ("command", "option", "expected"),
    [
        ("validate", "ckpt_path", 5),
        ("predict", "ckpt_path", 5),
        ("fit", "ckpt_path", 5),
        ("predict", "model.weights", 5),
        ("validate", "model.weights", 5),
        ("fit", "model.weights", 3),  # trained on from there, for the classes of other data
    ],
)
def test_the_number_of_a_checkpoint_counts(monkeypatch, shapes, tmp_path, command, option, expected):
    file = checkpoint(tmp_path, 5)
    monkeypatch.setattr("trunkline.tasks.base.network.Network.load_pretrained", lambda *_: None)
    words = [f"--{option}={file}", f"--data.root={shapes}", f"--data.predict={shapes}/images/val"]
    assert built(monkeypatch, command, DEMO, *words).model.head.num_classes == expected


def test_predicting_with_nothing_that_knows_the_classes_says_so(monkeypatch, shapes):
    with pytest.raises(ValueError, match="--model.head.num_classes is auto, but CocoDetection names no cl"):
        built(monkeypatch, "predict", DEMO, "--data.root=null", f"--data.predict={shapes}/images/val")


class Known(TrunklineData):
    """Says that boxes have two classes and masks three."""

    def read_classes(self, stage):
        self.read = stage

    def label_classes(self, kind, head=""):
        names = {("detection", "boxes"): "ab", ("segmentation", "stuff"): "xyz", ("volumes", ""): "uvwx"}
        return [LabelClass(k, name) for k, name in enumerate(names.get((kind, head), ""))]


def section(task, **arguments):
    return Namespace(model=Namespace(class_path=f"trunkline.tasks.{task}", init_args=Namespace(**arguments)))


def head(name, number="auto"):
    return Namespace(class_path=f"trunkline.heads.{name}", init_args=Namespace(num_classes=number))


def test_each_of_several_heads_gets_the_number_of_its_own_labels():
    heads = {"boxes": head("FasterRCNN"), "stuff": head("SemanticFPN"), "more": head("Classifier", 9)}
    config = section("multitask.MultiTask", heads=heads)
    assert [found.option for found in auto_heads(config.model)] == [
        "model.heads.boxes.num_classes",
        "model.heads.stuff.num_classes",
    ]
    data = fill_in(config, "fit", Known)
    assert [one.init_args.num_classes for one in heads.values()] == [2, 3, 9] and data.read == "fit"
    assert fill_in(config, "fit", lambda: pytest.fail("built again")) is None


def test_scans_are_asked_for_their_own_kind_of_labels():
    config = section("volumes.VolumeSegmentation", head=head("UNet"))
    fill_in(config, "test", Known)
    assert config.model.init_args.head.init_args.num_classes == 4


@pytest.mark.parametrize(
    ("weights", "number"),
    [
        ("FasterRCNN_ResNet50_FPN_Weights.COCO_V1", 80),
        ("FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1", 21),
        ("ResNet50_Weights.IMAGENET1K_V1", 1000),
    ],
)
def test_published_weights_bring_their_number_where_nothing_is_trained(weights, number):
    config = section("detection.Detection", head=head("FasterRCNN"), weights=weights)
    fill_in(config, "predict", lambda: pytest.fail("built"))
    assert config.model.init_args.head.init_args.num_classes == number


@pytest.mark.parametrize("kind", [FasterRCNN, FCN, Classifier])
@pytest.mark.parametrize(
    ("number", "words"), [("auto", "built in Python needs the number"), (2.5, "whole number")]
)
def test_a_head_in_python_needs_the_number(kind, number, words):
    with pytest.raises(ValueError, match=words):
        kind(LEVELS, number)
