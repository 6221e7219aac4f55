"""load_weights and the third dimension: inflation, MONAI's and MedicalNet's networks, channels."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from trunkline.backbones import ResNet, load_weights
from trunkline.backbones.densenet import DenseNet
from trunkline.backbones.weights.adapt import inflate


@torch.no_grad()
def outputs(net, image):
    return net.eval()(image)


@pytest.mark.parametrize("channels", [3, 1, 4])
@pytest.mark.parametrize(
    ("build", "options"),
    [
        (ResNet, {"depth": 18}),
        (
            ResNet,
            {"depth": 26, "width": 16, "stem": "deep", "shortcut": "average", "squeeze_excitation": True},
        ),
        (DenseNet, {"depth": 121}),
    ],
)
def test_a_centre_inflated_network_on_a_constant_volume_is_the_flat_one(build, options, channels, randomise):
    source = randomise(build(**options)).state_dict()
    flat, deep = build(**options, in_channels=channels), build(**options, ndim=3, in_channels=channels)
    load_weights(flat, source)
    report = load_weights(deep, source)
    assert report.fraction == 1.0 and report.missing == []
    image = torch.randn(1, channels, 40, 40)
    volume = image[:, :, None].expand(1, channels, 32, 40, 40)
    for x, y in zip(outputs(deep, volume), outputs(flat, image), strict=True):
        for piece in x.unbind(2):
            assert (piece - y).abs().max() <= 1e-4 * y.abs().max()


def test_the_report_says_how_kernels_were_inflated(randomise):
    source = torchvision.models.resnet18().state_dict()
    centre, mean = ResNet(18, ndim=3, in_channels=1), ResNet(18, ndim=3)
    report = load_weights(centre, source)
    assert (
        report.adapted["conv1.weight"]
        == "summed over its 3 input channels; 2-D kernel put in the middle of a 3-D one"
    )
    assert report.adapted["layer1.0.conv1.weight"] == "2-D kernel put in the middle of a 3-D one"
    assert len(report.adapted) == 20 and len(report.matched) == 80
    report = load_weights(mean, source, inflation="mean")
    assert report.adapted["layer1.0.conv1.weight"] == "2-D kernel spread over the depth"
    kernel = mean.layer1[0].conv1.weight
    torch.testing.assert_close(kernel, source["layer1.0.conv1.weight"][:, :, None].expand_as(kernel) / 3)
    kernel = centre.layer1[0].conv1.weight
    assert torch.equal(kernel[:, :, 1], source["layer1.0.conv1.weight"]) and not kernel[:, :, ::2].any()


def test_a_mean_inflated_kernel_on_a_constant_volume_is_the_flat_one():
    weight, image = torch.randn(4, 2, 3, 3), torch.randn(1, 2, 9, 9)
    kernel, _ = inflate(weight, 5, "mean")
    found = F.conv3d(image[:, :, None].expand(1, 2, 7, 9, 9), kernel)
    torch.testing.assert_close(
        found, F.conv2d(image, weight)[:, :, None].expand_as(found), atol=1e-5, rtol=1e-5
    )


def test_the_trunk_passes_its_inflation_on(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    net = ResNet(18, ndim=3, weights=str(tmp_path / "w.pth"), inflation="mean")
    assert torch.equal(net.conv1.weight[:, :, 0], net.conv1.weight[:, :, 6])
    with pytest.raises(ValueError, match="inflation is 'edge'"):
        load_weights(net, tmp_path / "w.pth", inflation="edge")


def test_a_network_for_volumes_does_not_fit_one_for_images():
    with pytest.raises(
        ValueError, match="the source is 3-D, the model 2-D.*\n(.*\n)*.*build the model with ndim: 3"
    ):
        load_weights(ResNet(18), ResNet(18, ndim=3).state_dict())


def medical(depth, **options):
    """A network as MedicalNet's files hold it: for one channel, with the segmentation layers they end in."""
    source = ResNet(depth, ndim=3, width=16, in_channels=1, **options)
    state = {f"module.{name}": value for name, value in source.state_dict().items()}
    state |= {
        "module.conv_seg.0.weight": torch.zeros(4, 4, 2, 2, 2),
        "module.conv_seg.0.bias": torch.zeros(4),
    }
    return source, state


@pytest.mark.parametrize(("depth", "shortcut"), [(10, "projection"), (18, "pad"), (50, "projection")])
def test_networks_of_medicalnet(depth, shortcut, tmp_path):
    source, state = medical(depth, shortcut=shortcut)
    assert any("downsample" in name for name in state) == (shortcut == "projection")
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    net = ResNet(depth, ndim=3, width=16, in_channels=1, shortcut=shortcut, weights=str(tmp_path / "w.pth"))
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in net.state_dict().items())
    report = load_weights(net, tmp_path / "w.pth")
    assert set(report.skipped.values()) == {"belongs to no trunk, neck or head"}


@pytest.mark.parametrize("norm", ["batch", "frozen_batch"])
def test_the_bias_of_a_projection_goes_into_its_norm(norm, randomise):
    source, state = medical(10)
    randomise(source)
    # The oracle: MONAI's projections are convolutions with a bias in front of the batch norm.
    for index in (2, 3, 4):
        shortcut = source.get_submodule(f"layer{index}.0.downsample")
        shortcut[0].bias = nn.Parameter(torch.randn(len(shortcut[0].weight)))
        state[f"module.layer{index}.0.downsample.0.bias"] = shortcut[0].bias.detach()
    net = ResNet(10, ndim=3, width=16, in_channels=1, norm=norm)
    report = load_weights(net, state)
    assert report.fraction == 1.0 and len(report.adapted) == 3
    assert report.adapted["layer2.0.downsample.1.running_mean"].startswith("less the bias of the convolution")
    assert report.skipped["module.layer2.0.downsample.0.bias"] == "went into the norm that follows"
    volume = torch.randn(1, 1, 24, 24, 24)
    for x, y in zip(outputs(net, volume), outputs(source, volume), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_a_bias_before_a_group_norm_cannot_be_kept(randomise):
    source, state = medical(10, norm="group")
    state["module.layer2.0.downsample.0.bias"] = torch.randn(32)
    report = load_weights(ResNet(10, ndim=3, width=16, in_channels=1, norm="group"), state)
    assert report.skipped["module.layer2.0.downsample.0.bias"] == "the model has no such tensor"
    assert report.fraction < 1


def test_one_channel_for_several(randomise):
    source, state = medical(10)
    net = ResNet(10, ndim=3, width=16, in_channels=4)
    report = load_weights(net, state)
    assert report.adapted == {"conv1.weight": "1 input channel repeated for 4, times 1/4"}
    volume = torch.randn(1, 1, 16, 16, 16)
    for x, y in zip(outputs(net, volume.expand(1, 4, 16, 16, 16)), outputs(source, volume), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
