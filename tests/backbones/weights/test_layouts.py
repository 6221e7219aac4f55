"""load_weights on the layouts of other libraries: equal outputs on copied weights, prefixes, classifiers."""

import re

import pytest
import timm
import torch
import torchvision
from torch import nn

from trunkline.backbones import ResNet, load_weights
from trunkline.backbones.densenet import DenseNet
from trunkline.backbones.timm_backbone import TimmBackbone
from trunkline.backbones.weights.keymaps import encoder_prefix
from trunkline.heads import Classifier


class Task(nn.Module):
    def __init__(self, trunk, classes):
        super().__init__()
        self.backbone = trunk
        self.head = Classifier(trunk.levels, classes)

    def forward(self, image):
        return self.head(self.backbone(image), image.shape[2:]).logits


def assert_equal_outputs(ours, theirs, tolerance=1e-4):
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()
    assert theirs.abs().max() > 0 and theirs.std() > 0


@torch.no_grad()
def outputs(net, image):
    return net.eval()(image)


# -- classifiers


def test_the_classifier_of_torchvision_fills_a_head_that_has_one(randomise, tmp_path):
    theirs = randomise(torchvision.models.resnet18(num_classes=7))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    task, image = Task(ResNet(18), 7), torch.randn(2, 3, 64, 64)
    report = load_weights(task, tmp_path / "w.pth")
    assert report.fraction == 1.0 and report.skipped == {} and "head.fc.weight" in report.matched
    assert_equal_outputs(outputs(task, image), outputs(theirs, image))


def test_another_number_of_classes_starts_afresh():
    task = Task(ResNet(18), 5)
    before = task.head.fc.weight.clone()
    report = load_weights(task, torchvision.models.resnet18(num_classes=7).state_dict())
    assert torch.equal(task.head.fc.weight, before)
    assert report.skipped["fc.weight"] == "its shape is [7, 512], the model's [5, 512]"


def test_the_classifier_of_a_segmenter_is_none():
    state = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None).state_dict()
    task = Task(ResNet(50), 21)
    before = task.head.fc.weight.clone()
    report = load_weights(task, state)
    assert torch.equal(task.head.fc.weight, before)
    assert report.skipped["classifier.4.weight"] == "belongs to no trunk, neck or head"
    assert report.fraction == 1.0


# -- DenseNet


@pytest.mark.parametrize("old_names", [False, True])
def test_densenet_of_torchvision_and_its_classifier(old_names, randomise):
    theirs = randomise(torchvision.models.densenet121(num_classes=4))
    state = theirs.state_dict()
    if old_names:  # as the published files have them
        state = {
            re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)\.", r"\1.\2.", name): v for name, v in state.items()
        }
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    task, image = Task(DenseNet(121), 4), torch.randn(1, 3, 64, 64)
    report = load_weights(task, state)
    assert report.fraction == 1.0 and report.skipped == {} and report.missing == []
    assert_equal_outputs(outputs(task, image), outputs(theirs, image))


# -- timm


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18d", {"depth": 18, "stem": "deep", "shortcut": "average"}),
        ("seresnet18", {"depth": 18, "squeeze_excitation": True}),
        ("resnetv2_50", {"depth": 50, "pre_activation": True}),
        ("resnetv2_50d", {"depth": 50, "pre_activation": True, "stem": "deep", "shortcut": "average"}),
    ],
)
def test_resnets_of_timm_and_their_classifiers(name, options, randomise):
    theirs = randomise(timm.create_model(name, num_classes=6))
    nn.init.normal_(theirs.get_classifier().weight)
    task, image = Task(ResNet(**options), 6), torch.randn(1, 3, 64, 64)
    report = load_weights(task, theirs.state_dict())
    assert report.fraction == 1.0 and report.missing == [] and report.skipped == {}
    assert report.adapted == ({"head.fc.weight": "1x1 convolution made linear"} if "v2" in name else {})
    assert_equal_outputs(outputs(task, image), outputs(theirs, image), 1e-3)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "densenet121"])
def test_wrapped_networks_take_files_of_timm(name, randomise, tmp_path):
    theirs = randomise(timm.create_model(name))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    net, image = TimmBackbone(name), torch.randn(1, 3, 64, 64)
    report = load_weights(net, tmp_path / "w.pth")
    assert report.fraction == 1.0 and report.missing == []
    # The oracle: timm reads the file itself, as it would a published one.
    reference = timm.create_model(
        name,
        features_only=True,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "w.pth")},
    )
    expected = {tuple(x.shape): x for x in outputs(reference, image)}
    for x in outputs(net, image):
        assert_equal_outputs(x, expected[tuple(x.shape)])


def test_wrapped_networks_read_what_tasks_with_them_and_bare_resnets_wrote(randomise):
    source = randomise(timm.create_model("resnet18"))
    net = TimmBackbone("resnet18")
    load_weights(net, source.state_dict())
    bare, again = ResNet(18), TimmBackbone("resnet18")
    load_weights(bare, {f"backbone.{name}": value for name, value in net.state_dict().items()})
    load_weights(again, bare.state_dict())
    image = torch.randn(1, 3, 64, 64)
    expected = outputs(net, image)
    for found in (outputs(bare, image), outputs(again, image)):
        for x, y in zip(found, expected, strict=True):
            assert_equal_outputs(x, y)


def test_wrapped_classifiers_are_filled_by_files_of_timm():
    theirs = timm.create_model("test_efficientnet", num_classes=6)
    task = Task(TimmBackbone("test_efficientnet"), 6)
    # timm widens the last map before its classifier, so the shapes differ: reported, and left alone
    report = load_weights(task, theirs.state_dict())
    assert "classifier.weight" in report.skipped and "its shape is" in report.skipped["classifier.weight"]
    theirs = timm.create_model("resnet18", num_classes=6)
    task = Task(TimmBackbone("resnet18"), 6)
    load_weights(task, theirs.state_dict())
    assert torch.equal(task.head.fc.weight, theirs.fc.weight)


# -- encoders inside larger networks


SQUARE = (4, 4)
# What stands in front of the encoder and of a second one, what else there is, and whether fc is a projection.
LAYOUTS = {
    "MoCo": (
        "module.encoder_q.",
        "module.encoder_k.",
        {"module.queue": (128, 8), "module.queue_ptr": (1,)},
        True,
    ),
    "MoCo v3": (
        "module.base_encoder.",
        "module.momentum_encoder.",
        {"module.predictor.0.weight": SQUARE},
        True,
    ),
    "DINO": (
        "module.backbone.",
        None,
        {"module.head.mlp.0.weight": SQUARE, "module.head.last_layer.weight_v": SQUARE},
        False,
    ),
    "SwAV": (
        "module.",
        None,
        {"module.projection_head.0.weight": SQUARE, "module.prototypes.weight": SQUARE},
        False,
    ),
    "Barlow Twins": ("module.backbone.", None, {"module.projector.0.weight": SQUARE}, False),
    "solo-learn": ("backbone.", "momentum_backbone.", {"projector.0.weight": SQUARE}, False),
    "old solo-learn": ("encoder.", None, {"projector.0.weight": SQUARE}, False),
    "BYOL": (
        "online_encoder.net.",
        "target_encoder.net.",
        {"online_predictor.net.0.weight": SQUARE},
        True,
    ),
    "Lightning": ("model.", None, {"metric.total": ()}, False),
}


@pytest.mark.parametrize("method", LAYOUTS)
def test_encoders_of_self_supervised_networks(method, tmp_path):
    prefix, second, more, projection = LAYOUTS[method]
    source, copy = torchvision.models.resnet18(num_classes=9), torchvision.models.resnet18(num_classes=9)
    drop = () if projection else ("fc.weight", "fc.bias")
    state = {prefix + name: value for name, value in source.state_dict().items() if name not in drop}
    if second:
        state = {second + k: v for k, v in copy.state_dict().items() if k not in drop} | state
    state |= {name: torch.zeros(shape) for name, shape in more.items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "w.pth")
    task = Task(ResNet(18), 9)
    before = task.head.fc.weight.clone()
    report = load_weights(task, tmp_path / "w.pth")
    assert report.fraction == 1.0 and report.missing == [] and report.adapted == {}
    for name, value in task.backbone.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])
    assert torch.equal(task.head.fc.weight, before)  # a projection is no classifier
    assert more.keys() <= report.skipped.keys()
    if second:
        assert f"{second}conv1.weight" in report.skipped


def test_a_classifier_behind_neutral_prefixes_is_one():
    source = torchvision.models.resnet18(num_classes=9)
    task = Task(ResNet(18), 9)
    load_weights(task, {f"module.model.{name}": value for name, value in source.state_dict().items()})
    assert torch.equal(task.head.fc.weight, source.fc.weight)


def test_the_prefix_is_reported_and_an_ambiguous_one_is_an_error():
    state = torchvision.models.resnet18().state_dict()
    one = {f"left.{name}": value for name, value in state.items()}
    report = load_weights(ResNet(18), one)
    assert report.prefix == "left." and "the state dict, under 'left.': 100 tensors copied" in str(report)
    two = one | {f"right.{name}": value for name, value in state.items()}
    with pytest.raises(
        ValueError, match=r"the state dict: holds several networks, under 'left\.', 'right\.'"
    ):
        load_weights(ResNet(18), two)


@pytest.mark.parametrize(
    ("keys", "prefix"),
    [
        (["conv1.weight", "layer1.0.conv1.weight"], ""),
        (["backbone.body.conv1.weight", "backbone.body.layer1.0.conv1.weight"], ""),
        (["net.backbone.body.conv1.weight", "net.backbone.body.layer1.0.conv1.weight"], "net."),
        (["a.b.features.conv0.weight", "a.b.features.denseblock1.x"], "a.b."),
        (
            ["student.conv1.weight", "student.layer1.x", "teacher.conv1.weight", "teacher.layer1.x"],
            "teacher.",
        ),
        (["x.conv1.0.weight", "x.layer1.0.conv1.weight"], "x."),
        (["trunk.stem.conv.weight", "trunk.stages.0.blocks.0.conv1.weight"], "trunk."),
        (["block.conv1.weight"], ""),
        (["student.conv1.weight", "student.layer1.x"], "student."),  # alone, it gives way to none
    ],
)
def test_a_trunk_begins_where_stem_and_first_stage_stand_side_by_side(keys, prefix):
    assert encoder_prefix(keys) == prefix
