"""ResidualEncoder against a plain computation, its 2-D twin, and the effect of every argument."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trunkline.backbones import ResidualEncoder, load_weights
from trunkline.backbones.blocks import PadShortcut
from trunkline.backbones.layers import SqueezeExcitation

CHANNELS, BLOCKS = (4, 6, 8, 8), (1, 2, 1, 1)
STRIDES = [1, (1, 2, 2), 2, (2, 1, 2)]
KERNELS = [(1, 3, 3), (1, 3, 3), 3, (3, 5, 1)]


def tiny(**options):
    return ResidualEncoder(**{"channels": CHANNELS, "blocks": BLOCKS, "ndim": 2, **options})


@pytest.fixture
def shaken(randomise):
    """Random affine maps everywhere: the norms that close a block would begin at zero."""

    def apply(net):
        for part in randomise(net).modules():
            if isinstance(part, nn.InstanceNorm2d | nn.InstanceNorm3d):
                nn.init.uniform_(part.weight, 0.5, 1.2)
                nn.init.normal_(part.bias, 0, 0.2)
        return net

    return apply


def spelt(value):
    return (value,) * 3 if isinstance(value, int) else tuple(value)


def norm(x, part):
    """Instance norm, image by image and channel by channel."""
    rows = []
    for image in x:
        maps = [(y - y.mean()) / (y.var(correction=0) + 1e-5).sqrt() for y in image]
        rows.append(torch.stack([y * w + b for y, w, b in zip(maps, part.weight, part.bias, strict=True)]))
    return torch.stack(rows)


def conv(x, layer, kernel, stride=(1, 1, 1)):
    assert layer.weight.shape[2:] == kernel and layer.bias is None
    return F.conv3d(x, layer.weight, None, stride, tuple(size // 2 for size in kernel))


def test_equals_a_plain_computation(shaken):
    net = shaken(ResidualEncoder(CHANNELS, BLOCKS, STRIDES, KERNELS, in_channels=2))
    image = torch.randn(2, 2, 8, 16, 16)
    x = F.leaky_relu(norm(conv(image, net.conv1, (1, 3, 3)), net.bn1), 0.01)
    width = CHANNELS[0]
    for found, name, channels, count, stride, kernel in zip(
        net(image), net.stage_names, CHANNELS, BLOCKS, map(spelt, STRIDES), map(spelt, KERNELS), strict=True
    ):
        assert len(getattr(net, name)) == count
        for number, block in enumerate(getattr(net, name)):
            step = stride if number == 0 else (1, 1, 1)
            out = F.leaky_relu(norm(conv(x, block.conv1, kernel, step), block.bn1), 0.01)
            out = norm(conv(out, block.conv2, kernel), block.bn2)
            short = F.avg_pool3d(x, step, step) if max(step) > 1 else x
            if width != channels:
                _, layer, after = block.downsample
                short = norm(conv(short, layer, (1, 1, 1)), after)
            x, width = F.leaky_relu(out + short, 0.01), channels
        torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


def test_defaults_are_the_published_six_stages():
    with torch.device("meta"):
        net = ResidualEncoder()
        sizes = [tuple(x.shape[1:]) for x in net(torch.empty(1, 1, 64, 64, 64))]
    assert sizes == [
        (width, *(64 // 2**index,) * 3) for index, width in enumerate((32, 64, 128, 256, 320, 320))
    ]
    assert [len(getattr(net, name)) for name in net.stage_names] == [1, 3, 4, 6, 6, 6]
    # a projection only where the channels change: not from 320 to 320
    assert [
        name for name, _ in net.named_parameters() if "downsample" in name and name.endswith("1.weight")
    ] == [f"layer{index}.0.downsample.1.weight" for index in (2, 3, 4, 5)]
    convs = 27 * (1 * 32 + 2 * 32**2)
    norms = 2 * 32 * 3
    width = 32
    for channels, count in zip((64, 128, 256, 320, 320), (3, 4, 6, 6, 6), strict=True):
        convs += 27 * (width * channels + (2 * count - 1) * channels**2)
        norms += 2 * channels * 2 * count
        if width != channels:
            convs, norms = convs + width * channels, norms + 2 * channels
        width = channels
    assert sum(x.numel() for x in net.parameters()) == convs + norms


@pytest.mark.parametrize("size", [(8, 16, 16), (7, 13, 18), (2, 9, 9)])
def test_strides_are_per_stage_and_axis_and_declared_as_measured(size):
    net = ResidualEncoder(CHANNELS, BLOCKS, STRIDES, KERNELS, norm="group").eval()
    assert [level.stride for level in net.levels] == [(1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 4, 8)]
    for level, x in zip(net.levels, net(torch.randn(1, 1, *size)), strict=True):
        assert x.shape[1] == level.channels
        assert x.shape[2:] == tuple(-(-n // step) for n, step in zip(size, level.stride, strict=True))


def test_without_strides_all_stages_but_the_first_halve_and_a_first_stride_counts():
    assert [level.stride for level in tiny().levels] == [(1, 1), (2, 2), (4, 4), (8, 8)]
    net = tiny(strides=[2, 1, 2, 2])
    assert net(torch.randn(1, 1, 32, 32))[0].shape[2:] == (16, 16) and net.levels[0].stride == (2, 2)
    assert net.conv1.stride == (1, 1) and net.layer1[0].conv1.stride == (2, 2)


def test_a_kernel_of_1_keeps_an_axis_apart():
    """With 1x3x3 kernels and strides, planes know of each other only through norms: frozen ones, nothing."""
    net = ResidualEncoder(
        (4, 6), (2, 1), [1, (1, 2, 2)], [(1, 3, 3)] * 2, norm="frozen_batch", zero_init_residual=False
    )
    volume = torch.randn(1, 1, 4, 9, 9)
    for whole, plane in zip(net(volume), net(volume[:, :, 2:3]), strict=True):
        torch.testing.assert_close(whole[:, :, 2:3], plane)


@pytest.mark.parametrize("kernels", [None, [(1, 3, 3), (1, 3, 3), 3, 3]])
@pytest.mark.parametrize("normalised", ["instance", "batch"])
def test_weights_of_a_2d_net_give_every_slice_of_a_constant_volume_its_maps(
    kernels, normalised, shaken, tmp_path
):
    flat = shaken(tiny(norm=normalised, squeeze_excitation=True)).eval()
    torch.save(flat.state_dict(), tmp_path / "flat.pt")
    strides = [1, (1, 2, 2), 2, 2]
    deep = tiny(
        ndim=3, strides=strides, kernels=kernels, norm=normalised, squeeze_excitation=True,
        weights=str(tmp_path / "flat.pt"),
    ).eval()  # fmt: skip
    image = torch.randn(2, 1, 37, 24)
    for x, y in zip(deep(image[:, :, None].repeat(1, 1, 6, 1, 1)), flat(image), strict=True):
        torch.testing.assert_close(x, y[:, :, None].expand_as(x), rtol=1e-4, atol=1e-4)


def test_mean_inflation_spreads_kernels_and_other_shapes_are_errors():
    flat = tiny()
    deep = tiny(ndim=3, kernels=[(1, 3, 3), 3, 3, 3])
    load_weights(deep, flat.state_dict(), inflation="mean")
    torch.testing.assert_close(deep.layer1[0].conv1.weight[:, :, 0], flat.layer1[0].conv1.weight)
    torch.testing.assert_close(deep.layer2[0].conv1.weight[:, :, 0] * 3, flat.layer2[0].conv1.weight)
    with pytest.raises(ValueError, match="have another shape"):
        load_weights(tiny(channels=(8, 12, 16, 16)), flat.state_dict())
    with pytest.raises(ValueError, match="torchvision has no weights for ResidualEncoder"):
        tiny(weights="torchvision")


def test_norm_and_activation_reach_every_layer():
    net = tiny(norm="group", activation="silu")
    convs = sum(isinstance(x, nn.Conv2d) for x in net.modules())
    assert sum(isinstance(x, nn.GroupNorm) for x in net.modules()) == convs == 1 + 2 * 5 + 2
    assert not any(isinstance(x, nn.LeakyReLU | nn.ReLU | nn.InstanceNorm2d) for x in net.modules())
    assert sum(isinstance(x, nn.SiLU) for x in net.modules()) == 6


@pytest.mark.parametrize("start", [True, False])
def test_blocks_begin_as_their_shortcuts_only_with_zeroed_norms(start):
    net = tiny(zero_init_residual=start)
    x = torch.randn(2, 4, 9, 9)
    assert torch.equal(net.layer1[0](x), F.leaky_relu(x, 0.01)) is start


@pytest.mark.parametrize("shortcut", ["projection", "pad", "none"])
def test_other_shortcuts(shortcut):
    net = tiny(shortcut=shortcut, zero_init_residual=False)
    blocks = [getattr(net, name)[0].downsample for name in net.stage_names]
    if shortcut == "projection":
        assert blocks[0] is None and [part[0].stride for part in blocks[1:]] == [(2, 2)] * 3
    else:
        kinds = {"pad": PadShortcut, "none": type(None)}
        assert all(isinstance(part, kinds[shortcut]) for part in blocks[1:])


def test_stochastic_depth_leaves_branches_out_in_training_alone():
    net = tiny(stochastic_depth=0.9, zero_init_residual=False)
    assert [block.drop.p for block in net.blocks] == pytest.approx([0.18, 0.36, 0.54, 0.72, 0.9])
    x = torch.randn(64, 8, 4, 4)
    block = net.layer4[0]
    skipped = (block(x) == F.leaky_relu(block.downsample(x), 0.01)).flatten(1).all(1)
    assert 45 <= skipped.sum() < 64
    assert not (block.eval()(x) == F.leaky_relu(block.downsample(x), 0.01)).flatten(1).all(1).any()


def test_squeeze_excitation_is_in_every_block():
    net = tiny(squeeze_excitation=True)
    assert sum(isinstance(x, SqueezeExcitation) for x in net.modules()) == 5


def test_checkpointing_changes_neither_maps_nor_gradients():
    image = torch.randn(2, 1, 21, 16)
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        net = tiny(checkpointing=checkpointing, stochastic_depth=0.5, zero_init_residual=False)
        torch.manual_seed(2)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):  # noqa: B023
            maps = net(image)
        sum(x.square().mean() for x in maps).backward()
        results.append((len(saved), [*maps, *(x.grad for x in net.parameters())]))
    (many, whole), (few, again) = results
    assert few < many / 2
    for x, y in zip(whole, again, strict=True):
        torch.testing.assert_close(x, y)


def test_a_volume_trains_every_parameter(shaken):
    net = shaken(ResidualEncoder(CHANNELS, BLOCKS, STRIDES, KERNELS, squeeze_excitation=True))
    sum(x.square().mean() for x in net(torch.randn(2, 1, 8, 16, 16))).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in net.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": ()}, r"channels is \[\]; give at least one stage"),
        ({"channels": (4, 0, 8, 8)}, r"channels is \[4, 0, 8, 8\]"),
        ({"blocks": (1, 1, 1)}, r"blocks is \[1, 1, 1\]; give 4 numbers"),
        ({"blocks": (1, 1, 1, 0)}, r"blocks is \[1, 1, 1, 0\]"),
        ({"strides": [1, 2, 2]}, "strides has 3 entries; give 4: layer1, layer2, layer3, layer4"),
        ({"strides": [1, 2, 4, 2]}, r"strides of the layer3 is \(4, 4\); each must be 1 or 2"),
        ({"strides": [1, 2, [2, 2, 2], 2]}, r"strides of the layer3 is \[2, 2, 2\]; give one number, or 2"),
        ({"kernels": [3, 3]}, "kernels has 2 entries; give 4: layer1"),
        ({"kernels": [3, 3, 3, [3, 2]]}, r"kernels of layer4 is \(3, 2\); each must be 1, 3 or 5"),
        ({"kernels": [3, 3, 3, [3]]}, r"kernels of layer4 is \[3\]; give one number, or 2"),
        ({"kernels": [0, 3, 3, 3]}, "kernels of layer1 is 0"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"ndim": 4}, "ndim is 4"),
        ({"norm": "layer"}, "norm is 'layer'"),
        ({"activation": "tanh"}, "activation is 'tanh'"),
        ({"shortcut": "pool"}, "shortcut is 'pool'"),
        ({"shortcut": "none"}, "zero_init_residual needs shortcuts"),
        ({"stochastic_depth": 1.0}, "stochastic_depth is 1.0"),
        ({"inflation": "sum"}, "inflation is 'sum'"),
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


@pytest.mark.parametrize("channels", [(4,), (2, 3, 4, 5, 6, 7, 8)])
def test_any_number_of_stages(channels):
    net = ResidualEncoder(channels, (1,) * len(channels), ndim=2, norm="group").eval()
    maps = net(torch.randn(1, 1, 65, 33))
    assert [x.shape[1] for x in maps] == list(channels)
    assert [x.shape[2] for x in maps] == [-(-65 // 2**index) for index in range(len(channels))]
