"""Each option of the residual trunks, by its effect on every block."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth

from trunkline.backbones import CifarResNet, ResNet
from trunkline.backbones.blocks import PadShortcut, ResidualBlock
from trunkline.backbones.layers import BlurPool, SqueezeExcitation, make_norm

KINDS = [(18, False), (50, False), (18, True), (50, True)]


def tiny(depth=50, **options):
    return ResNet(depth, **{"width": 8, "width_per_group": 64, **options})


@pytest.mark.parametrize(("depth", "pre_activation"), KINDS)
@pytest.mark.parametrize(
    ("activation", "kind"),
    [("leaky_relu", nn.LeakyReLU), ("elu", nn.ELU), ("gelu", nn.GELU), ("silu", nn.SiLU), ("relu", nn.ReLU)],
)
def test_activation_reaches_every_place(depth, pre_activation, activation, kind):
    net = tiny(
        depth, pre_activation=pre_activation, activation=activation, squeeze_excitation=True, stem="deep"
    )
    kinds = (nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.ReLU)
    found = [module for module in net.modules() if isinstance(module, kinds)]
    # two in the deep stem, one for stem or end, one module and one in the gate of each block
    assert len(found) == 3 + 2 * len(net.blocks)
    assert {type(module) for module in found} == {kind}


@pytest.mark.parametrize(("depth", "pre_activation"), KINDS)
def test_norms_and_activations_stand_before_or_behind_every_convolution(depth, pre_activation):
    """Order of calls in a block, written down from the two papers."""
    net = tiny(depth, pre_activation=pre_activation).eval()
    for block in net.blocks:
        calls = []
        for name, module in block.named_children():
            if name != "downsample":
                module.register_forward_hook(lambda *_, name=name, calls=calls: calls.append(name))
        block(torch.randn(1, block.conv1.in_channels, 6, 6))
        pairs = [[f"conv{i}", f"bn{i}"] for i in range(1, block.depth + 1)]
        if pre_activation:
            expected = [[norm, "act", conv] for conv, norm in pairs]
        else:
            expected = [[conv, norm, "act"] for conv, norm in pairs]  # the last activation follows the sum
        assert calls == list(itertools.chain(*expected))


@pytest.mark.parametrize(("depth", "pre_activation"), KINDS)
@pytest.mark.parametrize("shortcut", ["projection", "average", "pad", "none"])
def test_shortcut_of_every_block(depth, pre_activation, shortcut):
    """With the branch zeroed what is left is the shortcut, computed here by other means."""
    net = tiny(depth, pre_activation=pre_activation, shortcut=shortcut).eval()
    changed = 0
    for block in net.blocks:
        x = torch.rand(2, block.conv1.in_channels, 7, 5)  # not negative, so that no activation cuts it
        block.zero_branch()
        source = block.activate(x.clone()) if pre_activation else x
        strided = block.conv1 if depth == 18 else block.conv2
        outputs, step = block.expansion * strided.out_channels, strided.stride[0]
        if shortcut == "none":
            expected = torch.zeros(2, outputs, *(-(-size // step) for size in x.shape[2:]))
        elif step == 1 and x.shape[1] == outputs:
            expected = x
            assert block.downsample is None
        elif shortcut == "pad":
            expected = torch.cat(
                [
                    source[..., ::step, ::step],
                    torch.zeros(2, outputs - x.shape[1], -(-7 // step), -(-5 // step)),
                ],
                1,
            )
        else:
            pooled = source
            if shortcut == "average" and step == 2:
                sums = F.conv2d(
                    F.pad(source, (0, 1, 0, 1)).flatten(0, 1)[:, None], torch.ones(1, 1, 2, 2), stride=2
                )
                counts = F.conv2d(
                    F.pad(torch.ones(1, 1, 7, 5), (0, 1, 0, 1)), torch.ones(1, 1, 2, 2), stride=2
                )
                pooled, step = (sums / counts).view(2, -1, 4, 3), 1
            conv = next(m for m in block.downsample if isinstance(m, nn.Conv2d))
            expected = torch.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0], pooled[..., ::step, ::step])
            if not pre_activation:
                expected = expected / math.sqrt(1 + 1e-5)
        if not pre_activation:
            expected = expected.relu()
        changed += block.downsample is not None
        torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-4)
    assert changed == {"none": 0}.get(shortcut, 3 if depth == 18 else 4)


@pytest.mark.parametrize("pre_activation", [False, True])
def test_stride_lies_in_the_first_1x1_of_every_block_if_asked(pre_activation):
    for inside in (False, True):
        net = tiny(50, stride_in_1x1=inside, pre_activation=pre_activation)
        strides = [(block.conv1.stride[0], block.conv2.stride[0]) for block in net.blocks]
        strided = (2, 1) if inside else (1, 2)
        starts = {0: (1, 1), 3: strided, 7: strided, 13: strided}
        assert strides == [starts.get(index, (1, 1)) for index in range(16)]


@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_dilation_still_samples_the_undilated_net(stride_in_1x1, randomise):
    """A net that loses its stride keeps the values of the cells that the strided one has."""
    plain = randomise(tiny(50, stride_in_1x1=stride_in_1x1)).eval()
    dilated = tiny(50, stride_in_1x1=stride_in_1x1, output_stride=8).eval()
    dilated.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 97, 65)
    with torch.no_grad():
        for x, y, step in zip(dilated(image), plain(image), (1, 1, 2, 4), strict=True):
            torch.testing.assert_close(x[..., ::step, ::step], y, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("depth", "pre_activation"), KINDS)
def test_squeeze_and_excitation_gates_every_block(depth, pre_activation):
    net = tiny(depth, pre_activation=pre_activation, squeeze_excitation=True).eval()
    for block in net.blocks:
        x = torch.randn(2, block.conv1.in_channels, 4, 4)
        opened = block(x.clone())
        nn.init.zeros_(block.se.fc2.weight)
        nn.init.constant_(block.se.fc2.bias, -100.0)  # the gate closes: what is left is the shortcut
        closed = block(x.clone())
        block.zero_branch()
        torch.testing.assert_close(closed, block(x))
        assert not torch.allclose(opened, closed)


def test_squeeze_and_excitation_by_hand():
    gate = SqueezeExcitation(2, ndim=3, activation="relu")
    for conv in (gate.fc1, gate.fc2):
        nn.init.constant_(conv.weight, 0.5)
        nn.init.zeros_(conv.bias)
    x = torch.tensor([1.0, 3.0, -2.0, 2.0]).reshape(1, 2, 2, 1, 1)
    # means 2 and 0; eight inner units of 0.5 * (2 + 0) = 1; gates sigmoid(8 * 0.5)
    torch.testing.assert_close(gate(x), x / (1 + math.exp(-4)))
    inner = [SqueezeExcitation(c, 2, "relu").fc1.out_channels for c in (64, 256, 200, 2048)]
    assert inner == [8, 16, 16, 128]


@pytest.mark.parametrize("pre_activation", [False, True])
def test_stochastic_depth_grows_linearly_and_drops_whole_branches_of_single_images(pre_activation):
    net = tiny(18, stochastic_depth=0.4, pre_activation=pre_activation, norm="group")
    rates = [block.drop.p for block in net.blocks]
    assert rates == pytest.approx([0.05 * number for number in range(1, 9)])
    block = net.blocks[-1]
    x = torch.randn(400, 64, 2, 2)
    with torch.no_grad():
        y = block.train()(x.clone())
        whole = block.eval()(x.clone())
        block.zero_branch() if pre_activation else nn.init.zeros_(block.bn2.bias)
        block.zero_branch()
        shortcut = block(x.clone())
    dropped = (y == shortcut).flatten(1).all(1)
    assert 0.3 < dropped.float().mean() < 0.5
    if pre_activation:  # the branches that stay are scaled by 1 / 0.6
        torch.testing.assert_close(y[~dropped], (x + (whole - x) / 0.6)[~dropped], atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        assert torch.equal(block.eval()(x.clone()), shortcut)
    assert not any(isinstance(m, StochasticDepth) for m in tiny(18).modules())


@pytest.mark.parametrize(("depth", "pre_activation"), KINDS)
def test_anti_aliasing_blurs_at_every_stride_and_nowhere_else(depth, pre_activation):
    net = tiny(depth, anti_alias=True, pre_activation=pre_activation).eval()
    assert [i for i, block in enumerate(net.blocks) if block.blur is not None] == (
        [2, 4, 6] if depth == 18 else [3, 7, 13]
    )
    assert isinstance(net.maxpool[1], BlurPool) and net.maxpool[0].stride == (1, 1)
    for block in net.blocks:
        assert {block.conv1.stride, block.conv2.stride} == {(1, 1)}
    for size in ((1, 1), (33, 18), (64, 64)):
        maps = net(torch.randn(1, 3, *size))
        assert [x.shape for x in maps] == [x.shape for x in tiny(depth).eval()(torch.randn(1, 3, *size))]


def test_blur_pool_by_hand():
    x = torch.tensor([[4.0, 8.0, 0.0, 4.0]])[None, None]  # [1, 1, 1, 4]
    blurred = BlurPool(1, (1, 2))(x)
    # (8 + 2 * 4 + 8) / 4 with the border reflected, (8 + 2 * 0 + 4) / 4
    assert blurred.flatten().tolist() == [6.0, 3.0]
    pulse = torch.zeros(1, 2, 5, 5)
    pulse[:, 1, 2, 2] = 16.0
    assert BlurPool(2, (2, 2))(pulse)[0, 0].abs().sum() == 0
    assert BlurPool(2, (2, 2))(pulse)[0, 1].tolist() == [[0.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(("depth", "pre_activation"), KINDS)
def test_groups_and_width_reach_every_block(depth, pre_activation):
    net = ResNet(depth, width=16, pre_activation=pre_activation)
    assert [level.channels for level in net.levels] == [(16 if depth == 18 else 64) * 2**i for i in range(4)]
    assert net.conv1.out_channels == 16
    if depth == 50:
        grouped = ResNet(50, groups=4, width_per_group=8, pre_activation=pre_activation)
        counts = (3, 4, 6, 3)
        widths = [32 * 2**stage for stage, count in enumerate(counts) for _ in range(count)]
        assert [block.conv2.out_channels for block in grouped.blocks] == widths
        assert {block.conv2.groups for block in grouped.blocks} == {4}
        assert {block.conv1.groups for block in grouped.blocks} == {1}


@pytest.mark.parametrize(("depth", "pre_activation"), KINDS)
@pytest.mark.parametrize("norm", ["batch", "frozen_batch", "sync_batch", "group", "instance"])
def test_norm_is_of_one_kind_everywhere(depth, pre_activation, norm):
    net = tiny(depth, norm=norm, pre_activation=pre_activation, stem="deep", shortcut="average")
    kind = type(make_norm(norm, 8))
    norms = [
        type(module) for name, module in net.named_modules() if name.split(".")[-1].startswith(("bn", "norm"))
    ]
    norms += [type(net.conv1[i]) for i in (1, 4)]
    norms += [type(b.downsample[2]) for b in net.blocks if b.downsample is not None and not pre_activation]
    assert set(norms) == {kind}
    per_block = 2 if depth == 18 else 3
    shortcuts = 0 if pre_activation else (3 if depth == 18 else 4)
    assert len(norms) == len(net.blocks) * per_block + 3 + shortcuts


def test_instance_norm_has_a_trained_map_and_each_image_its_own_statistics():
    net = tiny(18, norm="instance").double().train()  # the last maps have four cells, which blow rounding up
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for x, y in zip(net(images), net.eval()(images[:1]), strict=True):
            torch.testing.assert_close(x[:1], y, atol=1e-5, rtol=1e-4)
    assert all(p.requires_grad for p in net.bn1.parameters()) and len(list(net.bn1.parameters())) == 2


def test_group_norm_takes_fewer_groups_for_few_channels():
    assert [make_norm("group", c).num_groups for c in (256, 64, 16, 24, 7)] == [32, 32, 16, 8, 1]


@pytest.mark.parametrize("pre_activation", [False, True])
def test_zero_init_begins_every_block_as_its_shortcut(pre_activation):
    for net in (
        tiny(50, zero_init_residual=True, pre_activation=pre_activation),
        CifarResNet(20, zero_init_residual=True, pre_activation=pre_activation),
    ):
        for block in net.blocks:
            x = torch.rand(2, block.conv1.in_channels, 4, 4)
            if block.downsample is None:
                assert torch.equal(block(x.clone()), x)


def test_frozen_stages_hold_for_every_variant():
    for net in (
        tiny(26, pre_activation=True, stem="deep", frozen_stages=2),
        CifarResNet(20, frozen_stages=2),
        tiny(10, ndim=3, frozen_stages=2),
    ):
        net.train()
        frozen = ("conv1.", "bn1.", "layer1.")
        assert any(name.startswith("conv1.") for name, _ in net.named_parameters())
        for name, p in net.named_parameters():
            assert p.requires_grad != name.startswith(frozen), name
        for name, module in net.named_modules():
            if isinstance(module, ResidualBlock):
                assert module.training != name.startswith("layer1"), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 21}, "depth is 21; a CIFAR network has 6n"),
        ({"depth": 2}, "depth is 2; a CIFAR network"),
        ({"weights": "torchvision"}, "torchvision has no weights for depth 20"),
        ({"frozen_stages": 5}, "frozen_stages is 5; allowed are 0, 1, 2, 3, 4"),
        ({"shortcut": "none", "zero_init_residual": True}, "zero_init_residual needs shortcuts"),
    ],
)
def test_bad_arguments_of_cifar_networks_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CifarResNet(**arguments)


def test_pad_shortcut_is_option_a_of_the_paper():
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    y = PadShortcut(1, 2, (2, 2))(x)
    assert y[0, 0].tolist() == [[0.0, 2.0], [6.0, 8.0]] and y[0, 1].abs().sum() == 0
