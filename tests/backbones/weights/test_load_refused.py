"""What load_weights refuses, and how it says so; the module stays as it was."""

import pytest
import torch
import torchvision
from states import same, state_of
from torch import nn
from torchvision.models import _api

from trunkline.backbones import CifarResNet, ResNet, load_weights


@pytest.mark.parametrize(
    ("depth", "source", "message"),
    [
        (50, "resnet101", r"3\+4\+23\+3 bottleneck blocks, the model's 3\+4\+6\+3 bottleneck"),
        (101, "resnet50", r"3\+4\+6\+3 bottleneck blocks, the model's 3\+4\+23\+3 bottleneck"),
        (18, "resnet34", r"3\+4\+6\+3 basic blocks, the model's 2\+2\+2\+2 basic"),
        (
            34,
            "resnet50",
            r"layer1.0.conv1.weight: its shape is \[64, 64, 1, 1\], the model's \[64, 64, 3, 3\]",
        ),
        (50, "wide_resnet50_2", r"its shape is \[128, 64, 1, 1\], the model's \[64, 64, 1, 1\]"),
        (18, "densenet121", r" 0 %, .*\n.*unknown to the model: features.conv0.weight"),
    ],
)
def test_weights_of_another_architecture_are_an_error_and_change_nothing(depth, source, message):
    with torch.device("meta"):  # their values do not matter
        state = getattr(torchvision.models, source)().state_dict()
    net = ResNet(depth)
    before = state_of(net)
    with pytest.raises(ValueError, match=message) as error:
        load_weights(net, state)
    assert f"the state dict fits ResNet of depth {depth} by" in str(error.value)
    assert "nothing was loaded" in str(error.value)
    assert same(net, before)


def test_a_file_of_another_depth_is_named(tmp_path):
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth fits ResNet of depth 18 by 56 %"):
        ResNet(18, weights=str(tmp_path / "other.pth"))


def test_minimum_is_the_share_that_decides():
    source = torchvision.models.resnet18().state_dict()
    for name in [name for name in source if name.startswith("layer4.1.")]:  # 12 of them, two are counters
        del source[name]
    net = ResNet(18)
    before = state_of(net)
    with pytest.raises(ValueError, match="by 90 %, at least 95 % are needed"):
        load_weights(net, source, minimum=0.95)
    assert same(net, before)
    report = load_weights(net, source, minimum=0.9)
    assert report.fraction == 0.9 and len(report.missing) == 10
    assert torch.equal(net.conv1.weight, source["conv1.weight"])
    assert torch.equal(net.layer4[1].conv2.weight, before["layer4.1.conv2.weight"])


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        ({}, {"pre_activation": True}, "only the model's norms stand before .* pre_activation: false"),
        ({"pre_activation": True}, {}, "only the source's norms stand before .* pre_activation: true"),
        ({"shortcut": "projection"}, {}, "the source's shortcuts have weights, .* shortcut: projection"),
        ({"shortcut": "none"}, {"shortcut": "projection"}, "the source's shortcuts have no weights"),
    ],
)
def test_other_networks_are_refused_though_nearly_all_tensors_fit(theirs, ours, message):
    source, net = CifarResNet(110, **theirs), CifarResNet(110, **ours)
    before = state_of(net)
    with pytest.raises(ValueError, match=f"(?s)nothing was loaded.*{message}"):
        load_weights(net, source.state_dict())
    assert same(net, before)
    assert load_weights(net, source.state_dict(), minimum=0).fraction > 0.95
    # shortcuts without weights are alike in this respect
    load_weights(CifarResNet(8, shortcut="none"), CifarResNet(8, shortcut="pad").state_dict())


@pytest.mark.parametrize(("theirs", "ours"), [("7x7", "deep"), ("deep", "7x7")])
def test_another_stem_is_refused(theirs, ours):
    """A trunk whose frozen stem had kept its random start would never learn to see."""
    net, source = ResNet(50, width=16, stem=ours), ResNet(50, width=16, stem=theirs)
    before = state_of(net)
    with pytest.raises(ValueError, match=f"(?s)nothing was loaded.*another stem: stem: {theirs}"):
        load_weights(net, source.state_dict())
    assert same(net, before)
    assert load_weights(net, source.state_dict(), minimum=0).fraction > 0.9


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\1", r"w.pth cannot be read as weights \(ValueError: at position 0, opcode .* unknown\)"),
        (b"", r"w.pth cannot be read as weights \(it is empty\)"),
        (b"\n<!DOCTYPE html><html></html>", r"\(it is a web page; download the file itself\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid", r"\(it is a pointer of Git LFS; fetch"),
        ([1, 2], "holds a list without tensors"),
        ({}, "holds a dict without tensors"),
        ({"epoch": 3, "net": {}}, "'epoch' is a int, not a tensor"),
        ({"state_dict": {"conv1.weight": "x"}}, "'conv1.weight' is a str, not a tensor"),
        (nn.Linear(1, 1), r"cannot be read as weights .*torch.save\(model.state_dict\(\), path\)"),
    ],
)
def test_unreadable_files_are_named(content, message, tmp_path):
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        load_weights(ResNet(18), path)


@pytest.mark.parametrize("content", [b"\1", b"<html>", b"", b"not a checkpoint"])
def test_no_message_advises_to_run_the_code_in_a_file(content, tmp_path):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_weights(ResNet(18), tmp_path / "w.pth")
    assert "weights_only" not in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_cut_off_is_named(tmp_path):
    torch.save(ResNet(10, width=8).state_dict(), tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"w.pth cannot be read as weights \(its end is missing; download"):
        load_weights(ResNet(10, width=8), tmp_path / "w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value):
    net, source = ResNet(10, width=8), ResNet(10, width=8)
    before = state_of(net)
    source.layer2[0].conv1.weight.data[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="not finite, for layer2.0.conv1.weight; nothing was loaded"):
        load_weights(net, source.state_dict())
    assert same(net, before)


def test_folders_and_unknown_names_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="that is a folder"):
        load_weights(ResNet(18), tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file, and not the name"):
        load_weights(ResNet(18), tmp_path / "w.pth")
    for name in ("ResNet18_Weights.V9", "ResNet19_Weights.DEFAULT"):
        with pytest.raises(ValueError, match=f"{name} is neither a file nor the name of torchvision weights"):
            load_weights(ResNet(18), name)


def test_failed_download_says_what_to_do(monkeypatch):
    def offline(url, **_):
        raise OSError("no network")

    monkeypatch.setattr(_api, "load_state_dict_from_url", offline)
    with pytest.raises(OSError, match="could not be downloaded from https.*no network.*path of the file"):
        ResNet(18, weights="torchvision")


def test_two_tensors_for_one_place_are_an_error():
    state = ResNet(18).state_dict()
    state["bottom_up.conv1.weight"] = state["conv1.weight"]
    with pytest.raises(
        ValueError, match="conv1.weight and bottom_up.conv1.weight are both the trunk's conv1.weight"
    ):
        load_weights(ResNet(18), state)


def test_modules_without_trunk_are_an_error():
    with pytest.raises(TypeError, match="Linear: it is no Backbone"):
        load_weights(nn.Linear(1, 1), {"weight": torch.zeros(1, 1)})
