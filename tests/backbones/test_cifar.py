"""Each argument of the small-image networks by its effect; what they share with ResNet is tested there."""

import pytest
import torch
from torch import nn

from trunkline.backbones import CifarResNet
from trunkline.backbones.layers import make_norm


@pytest.mark.parametrize(
    ("activation", "kind"), [("relu", nn.ReLU), ("leaky_relu", nn.LeakyReLU), ("silu", nn.SiLU)]
)
@pytest.mark.parametrize("pre_activation", [False, True])
def test_activation_reaches_stem_and_every_block(activation, kind, pre_activation):
    net = CifarResNet(20, activation=activation, pre_activation=pre_activation)
    found = [m for m in net.modules() if isinstance(m, (nn.ReLU, nn.LeakyReLU, nn.SiLU))]
    assert len(found) == 1 + 9 and {type(m) for m in found} == {kind}


@pytest.mark.parametrize("norm", ["batch", "frozen_batch", "sync_batch", "group", "instance"])
def test_norm_is_of_one_kind_everywhere(norm):
    net = CifarResNet(20, norm=norm, shortcut="projection")
    found = [m for name, m in net.named_modules() if name.endswith(("bn1", "bn2", "downsample.1"))]
    assert len(found) == 1 + 2 * 9 + 2 and {type(m) for m in found} == {type(make_norm(norm, 16))}


def test_stochastic_depth_grows_linearly():
    net = CifarResNet(20, stochastic_depth=0.45)
    assert [block.drop.p for block in net.blocks] == pytest.approx([0.05 * number for number in range(1, 10)])


@pytest.mark.parametrize("count", range(5))
def test_frozen_stages_count_from_the_stem(count):
    net = CifarResNet(8, frozen_stages=count).train()
    stages = [("conv1.", "bn1."), ("layer1.",), ("layer2.",), ("layer3.",)][:count]
    frozen = tuple(name for stage in stages for name in stage)
    for name, parameter in net.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name
    before = {name: value.clone() for name, value in net.named_buffers()}
    with torch.no_grad():
        net(torch.randn(2, 3, 16, 16))
    for name, value in net.named_buffers():
        assert torch.equal(value, before[name]) == name.startswith(frozen), name


def test_width_and_channels():
    net = CifarResNet(8, width=6, in_channels=2)
    assert [level.channels for level in net.levels] == [6, 12, 24]
    image = torch.randn(1, 2, 16, 16, requires_grad=True)
    net(image)[-1].square().sum().backward()
    assert (image.grad.abs().amax((0, 2, 3)) > 0).all()


@pytest.mark.parametrize("inflation", ["centre", "mean"])
def test_a_file_of_a_flat_network_fills_one_for_volumes(inflation, tmp_path, randomise):
    flat = randomise(CifarResNet(8))
    torch.save(flat.state_dict(), tmp_path / "w.pth")
    deep = CifarResNet(8, ndim=3, weights=str(tmp_path / "w.pth"), inflation=inflation)
    kernel = flat.layer2[0].conv1.weight
    zero = torch.zeros_like(kernel)
    slices = [zero, kernel, zero] if inflation == "centre" else [kernel / 3] * 3
    assert torch.equal(deep.layer2[0].conv1.weight, torch.stack(slices, 2))
    assert torch.equal(deep.layer3[0].bn2.running_mean, flat.layer3[0].bn2.running_mean)
    again = CifarResNet(8, weights=str(tmp_path / "w.pth"))
    assert all(torch.equal(value, flat.state_dict()[name]) for name, value in again.state_dict().items())
