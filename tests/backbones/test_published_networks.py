"""Every published network: features of the peer on copied weights, and its number of parameters."""

import re

import pytest
import timm
import torch
import torchvision

from trunkline.backbones import CifarResNet, ResNet

TORCHVISION = {
    "resnet18": {"depth": 18},
    "resnet34": {"depth": 34},
    "resnet50": {"depth": 50},
    "resnet101": {"depth": 101},
    "resnet152": {"depth": 152},
    "resnext50_32x4d": {"depth": 50, "groups": 32, "width_per_group": 4},
    "resnext101_32x8d": {"depth": 101, "groups": 32, "width_per_group": 8},
    "resnext101_64x4d": {"depth": 101, "groups": 64, "width_per_group": 4},
    "wide_resnet50_2": {"depth": 50, "width_per_group": 128},
    "wide_resnet101_2": {"depth": 101, "width_per_group": 128},
}
TIMM = {
    "resnet26": {"depth": 26},
    "resnet18d": {"depth": 18, "stem": "deep", "shortcut": "average"},
    "resnet50d": {"depth": 50, "stem": "deep", "shortcut": "average"},
    "resnet200d": {"depth": 200, "stem": "deep", "shortcut": "average"},
    "seresnet50": {"depth": 50, "squeeze_excitation": True},
    "seresnext50_32x4d": {"depth": 50, "groups": 32, "width_per_group": 4, "squeeze_excitation": True},
    "resnetblur50": {"depth": 50, "anti_alias": True},
    "resnet50_gn": {"depth": 50, "norm": "group"},
}
TIMM_V2 = {
    "resnetv2_18": {"depth": 18},
    "resnetv2_50": {"depth": 50},
    "resnetv2_50d": {"depth": 50, "stem": "deep", "shortcut": "average"},
}
IMAGE = (1, 3, 75, 97)


def stages_of(net, image):
    act = net.relu if hasattr(net, "relu") else net.act1
    x = net.maxpool(act(net.bn1(net.conv1(image))))
    maps = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = stage(x)
        maps.append(x)
    return maps


def assert_close(maps, expected):
    for x, y in zip(maps, expected, strict=True):
        assert x.shape == y.shape
        assert (x - y).abs().max() <= 1e-5 * y.abs().max()


def without_classifier(state):
    return {key: value for key, value in state.items() if not key.startswith(("fc.", "head."))}


@pytest.mark.parametrize("name", [name for name in TORCHVISION if not name.startswith("resnet")])
def test_features_are_those_of_torchvision(name, randomise):
    theirs = randomise(getattr(torchvision.models, name)()).eval()
    ours = ResNet(**TORCHVISION[name]).eval()
    ours.load_state_dict(without_classifier(theirs.state_dict()))
    image = torch.randn(IMAGE)
    with torch.no_grad():
        assert_close(ours(image), stages_of(theirs, image))


@pytest.mark.parametrize("name", TIMM)
def test_features_are_those_of_timm(name, randomise):
    theirs = randomise(timm.create_model(name)).eval()
    ours = ResNet(**TIMM[name]).eval()
    ours.load_state_dict(without_classifier(theirs.state_dict()))
    image = torch.randn(IMAGE)
    with torch.no_grad():
        assert_close(ours(image), stages_of(theirs, image))


def v2_name(key):
    """Our name for a tensor of timm's resnetv2."""
    stem = {"conv1": "0", "norm1": "1", "conv2": "3", "norm2": "4", "conv3": "6"}
    key = re.sub(r"stem\.(conv1|norm1|conv2|norm2|conv3)\.", lambda found: f"conv1.{stem[found[1]]}.", key)
    key = key.replace("stem.conv.", "conv1.").replace(".norm", ".bn")
    return re.sub(r"stages\.(\d)\.blocks", lambda found: f"layer{int(found[1]) + 1}", key)


@pytest.mark.parametrize("name", TIMM_V2)
def test_preactivation_features_are_what_the_next_stage_of_timm_reads(name, randomise):
    theirs = randomise(timm.create_model(name)).eval()
    ours = ResNet(pre_activation=True, **TIMM_V2[name]).eval()
    position = "1" if name.endswith("d") else "0"
    state = {
        v2_name(key).replace("downsample.conv", f"downsample.{position}"): value
        for key, value in without_classifier(theirs.state_dict()).items()
    }
    ours.load_state_dict(state)
    image = torch.randn(IMAGE)
    with torch.no_grad():
        x, expected = theirs.stem(image), []
        for index, stage in enumerate(theirs.stages):
            x = stage(x)
            closing = theirs.norm if index == 3 else theirs.stages[index + 1].blocks[0].norm1
            expected.append(closing(x))  # timm's norm layers apply the activation, too
        assert_close(ours(image), expected)


@pytest.mark.parametrize("name", TORCHVISION)
def test_parameters_are_as_many_as_published(name):
    weights = next(iter(torchvision.models.get_model_weights(name)))
    with torch.device("meta"):
        net = ResNet(**TORCHVISION[name])
    classifier = 1000 * (net.levels[-1].channels + 1)
    assert sum(p.numel() for p in net.parameters()) + classifier == weights.meta["num_params"]


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7), (1202, 19.4)]
)
def test_cifar_networks_have_the_parameters_of_the_paper(depth, millions):
    """Table 6 of He et al. 2016, classifier of 10 classes included."""
    with torch.device("meta"):
        net = CifarResNet(depth)
        plain = CifarResNet(depth, shortcut="none")
    number = sum(p.numel() for p in net.parameters()) + 65 * 10
    assert number / 1e6 == pytest.approx(millions, abs=0.05 if millions > 1 else 0.005)
    convolutions = [name for name, p in net.named_parameters() if p.ndim == 4]
    assert len(convolutions) + 1 == depth  # and the classifier
    assert (
        sum(p.numel() for p in plain.parameters()) + 650 == number
    )  # "exactly the same depth, width, parameters"
