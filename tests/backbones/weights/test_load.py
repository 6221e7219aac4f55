"""load_weights: trunks and necks, sources, adaptation, and errors that leave the module as it was."""

import functools
import logging
import re

import pytest
import torch
import torchvision
from states import same, state_of
from torch import nn
from torchvision.models import _api
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from trunkline.backbones import FPN, ResidualEncoder, ResNet, load_weights
from trunkline.backbones.weights.load import explain_mismatch, pretrained_is_skipped, skip_pretrained


@pytest.fixture
def published(monkeypatch):
    """Replace torchvision's download by a state dict; return the list of requested addresses."""

    def publish(state):
        addresses = []

        def download(url, progress, check_hash):
            assert check_hash
            addresses.append(url)
            return state

        monkeypatch.setattr(_api, "load_state_dict_from_url", download)
        return addresses

    return publish


@pytest.mark.parametrize("norm", ["batch", "frozen_batch", "sync_batch"])
def test_classifier_of_torchvision_fills_a_trunk(norm, randomise, caplog):
    source = randomise(torchvision.models.resnet18()).state_dict()
    net = ResNet(18, norm=norm)
    with caplog.at_level(logging.INFO, logger="trunkline"):
        report = load_weights(net, source)
    assert all(torch.equal(value, source[name]) for name, value in net.state_dict().items())
    assert report.fraction == 1.0 and len(report.matched) == 20 * 5 and report.missing == []
    assert report.skipped.keys() == {"fc.weight", "fc.bias"}
    assert "100 tensors copied, 0 adapted, 2 skipped, 0 missing (100 % matched)" in str(report)
    assert str(report) in caplog.messages


@pytest.mark.parametrize("wrap", ["{}", "module.{}", "_orig_mod.{}"])
@pytest.mark.parametrize("under", [None, "state_dict", "model", "model_state"])
def test_files_and_their_wrappings(wrap, under, tmp_path):
    source = torchvision.models.resnet18().state_dict()
    state = {wrap.format(name): value for name, value in source.items()}
    torch.save(state if under is None else {"epoch": 3, under: state}, tmp_path / "w.pth")
    net = ResNet(18, weights=str(tmp_path / "w.pth"))
    assert all(torch.equal(value, source[name]) for name, value in net.state_dict().items())


def test_names_of_torchvision_are_downloaded_with_their_hash(published):
    source = torchvision.models.resnet18().state_dict()
    addresses = published(source)
    for name in ("torchvision", "IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1"):
        net = ResNet(18, weights=name)
        assert all(torch.equal(value, source[key]) for key, value in net.state_dict().items())
    assert addresses == [torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url] * 3


def test_torchvision_means_the_best_weights_of_the_depth(published):
    addresses = published(torchvision.models.resnet50().state_dict())
    ResNet(50, weights="torchvision")
    assert addresses == [torchvision.models.ResNet50_Weights.IMAGENET1K_V2.url]


def test_skip_pretrained_builds_without_loading():
    with skip_pretrained():
        ResNet(18, weights="no/such/file.pth")
    with pytest.raises(FileNotFoundError, match="no/such/file.pth: no such file"):
        ResNet(18, weights="no/such/file.pth")


def test_a_trunk_can_be_skipped_while_its_task_is_not():
    assert not pretrained_is_skipped() and not pretrained_is_skipped(task=True)
    with skip_pretrained(only_trunk=True):
        ResNet(18, weights="no/such/file.pth")
        assert pretrained_is_skipped() and not pretrained_is_skipped(task=True)
    with skip_pretrained():
        assert pretrained_is_skipped() and pretrained_is_skipped(task=True)


def test_a_state_dict_of_another_depth_is_explained():
    text = explain_mismatch(ResNet(18), ResNet(34).state_dict(), "last.ckpt")
    assert text.startswith("last.ckpt fits ResNet of depth 18 only in part; nothing was loaded.")
    assert "3+4+6+3 basic blocks, the model's 2+2+2+2 basic blocks: is it of another depth?" in text


def test_a_trunk_without_a_depth_is_named_and_not_its_blocks():
    encoder = ResidualEncoder(channels=[4, 8], blocks=[1, 1])
    text = explain_mismatch(encoder, ResNet(18, ndim=3).state_dict(), "last.ckpt")
    assert text.startswith("last.ckpt fits ResidualEncoder ")


def test_skip_pretrained_ends_with_an_error_too():
    with pytest.raises(KeyError), skip_pretrained():
        raise KeyError
    with pytest.raises(FileNotFoundError):
        ResNet(18, weights="no/such/file.pth")


@pytest.mark.parametrize("old_names", [False, True])
def test_detector_of_torchvision_fills_pyramid_or_bare_trunk(old_names, randomise):
    theirs = randomise(resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d))
    for parameter in theirs.fpn.parameters():
        nn.init.normal_(parameter, 0, 0.1)
    theirs.eval()
    state = {f"backbone.{name}": value for name, value in theirs.state_dict().items()}
    if old_names:
        state = {re.sub(r"(blocks\.\d)\.0\.", r"\1.", name): value for name, value in state.items()}
        assert "backbone.fpn.inner_blocks.0.weight" in state
    image = torch.randn(1, 3, 65, 97)
    net, trunk = FPN(ResNet(18)).eval(), ResNet(18).eval()
    assert load_weights(net, state).fraction == 1.0
    report = load_weights(trunk, state)
    assert report.fraction == 1.0 and set(report.skipped.values()) == {"the model has no neck"}
    with torch.no_grad():
        for x, y in zip(net(image), theirs(image).values(), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
        body = list(theirs.body(image).values())
        for x, y in zip(trunk(image), body, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_retinanet_of_torchvision_fills_a_trunk():
    theirs = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    net = ResNet(50)
    assert load_weights(net, theirs.state_dict()).fraction == 1.0
    assert torch.equal(net.layer4[2].conv3.weight, theirs.backbone.body.layer4[2].conv3.weight)


def test_segmenter_of_torchvision_fills_a_trunk():
    theirs = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True)
    net = ResNet(50, output_stride=8)
    assert load_weights(net, theirs.state_dict()).fraction == 1.0
    assert same(net, theirs.backbone.state_dict())


def test_trunk_fills_the_trunk_of_a_pyramid():
    net = FPN(ResNet(18))
    before = state_of(net.lateral)
    source = torchvision.models.resnet18().state_dict()
    report = load_weights(net, source)
    assert report.fraction == 1.0 and same(net.bottom_up, source) and same(net.lateral, before)


def test_own_state_dicts_load_with_and_without_the_neck():
    source = FPN(ResNet(18), extra="convs")
    whole, trunk = FPN(ResNet(18), extra="convs"), ResNet(18)
    assert load_weights(whole, source.state_dict()).fraction == 1.0 and same(whole, source.state_dict())
    load_weights(trunk, source.state_dict())
    assert same(trunk, source.bottom_up.state_dict())


def test_one_channel_sees_a_grey_image_as_three_equal_channels():
    source = torchvision.models.resnet18()
    net = ResNet(18, in_channels=1)
    report = load_weights(net, source.state_dict())
    assert report.adapted == {"conv1.weight": "summed over its 3 input channels"} and report.fraction == 1.0
    grey = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(
        net.conv1(grey), source.conv1(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5
    )


def test_more_channels_repeat_and_keep_the_size_of_the_response():
    source = torchvision.models.resnet18()
    six, four = ResNet(18, in_channels=6), ResNet(18, in_channels=4)
    load_weights(six, source.state_dict())
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(six.conv1(image.repeat(1, 2, 1, 1)), source.conv1(image), rtol=1e-4, atol=1e-5)
    load_weights(four, source.state_dict())
    expected = torch.stack([source.conv1.weight[:, channel] for channel in (0, 1, 2, 0)], 1) * 0.75
    torch.testing.assert_close(four.conv1.weight, expected)


@pytest.mark.parametrize("norm", ["frozen_batch", "batch"])
@pytest.mark.parametrize("by_file", [False, True])
def test_detectors_published_without_eps_give_what_torchvision_gives(
    norm, by_file, randomise, published, tmp_path
):
    without = functools.partial(FrozenBatchNorm2d, eps=0.0)
    theirs = randomise(torchvision.models.resnet50(norm_layer=without)).eval()
    for part in theirs.modules():
        if isinstance(part, FrozenBatchNorm2d):
            part.running_var[::5] = 1e-9  # far below eps
            part.weight[::5] *= 3e-5
            part.running_mean[::5] *= 3e-5
    del theirs.fc  # detectors have none
    state = {f"backbone.body.{name}": value for name, value in theirs.state_dict().items()}
    weights = torchvision.models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    published(state)
    source = str(weights)
    if by_file:
        source = tmp_path / weights.url.rpartition("/")[2]
        torch.save(state, source)
    net = ResNet(50, norm=norm).eval()
    report = load_weights(net, source)
    assert len(report.adapted) == 53 and report.fraction == 1.0
    image = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        for index, ours in enumerate(net(image), start=1):
            x = theirs.get_submodule(f"layer{index}")(x)
            assert (ours - x).abs().max() <= 1e-4 * x.abs().max()


def test_other_published_detectors_keep_their_norms(published):
    state = {f"backbone.body.{k}": v for k, v in torchvision.models.resnet50().state_dict().items()}
    published(state)
    net = ResNet(50)
    assert load_weights(net, "FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1").adapted == {}


def test_group_norm_takes_the_convolutions_only(randomise):
    source = randomise(torchvision.models.resnet18())
    net = ResNet(18, norm="group")
    report = load_weights(net, source.state_dict())
    assert len(report.matched) == 20 and report.fraction == 1.0
    assert "layer1.0.bn1.weight" in report.skipped and "layer1.0.bn1.running_var" in report.skipped
    assert torch.equal(net.layer3[1].conv2.weight, source.layer3[1].conv2.weight)
    assert torch.equal(net.layer1[0].bn1.weight, torch.ones(64)) and not net.layer1[0].bn1.bias.any()
