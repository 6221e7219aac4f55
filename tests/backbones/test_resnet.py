"""ResNet against torchvision's on copied weights, and each argument by its effect."""

import pytest
import torch
import torchvision
from torch import nn

from trunkline.backbones import resnet
from trunkline.backbones.norms import FrozenBatchNorm, InstanceNorm2d
from trunkline.backbones.resnet import ResNet
from trunkline.backbones.weights.published import torchvision_name

NORM_LAYERS = {18: 20, 34: 36, 50: 53, 101: 104, 152: 155}


def torchvision_features(net, image):
    x = net.maxpool(net.relu(net.bn1(net.conv1(image))))
    maps = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = stage(x)
        maps.append(x)
    return maps


def assert_close(maps, expected):
    assert len(maps) == len(expected)
    for x, y in zip(maps, expected, strict=True):
        assert x.shape == y.shape
        assert (x - y).abs().max() <= 1e-5 * y.abs().max()


def copy(source, target):
    """Copy a torchvision net's state into a trunk without the code under test."""
    state = {key: value for key, value in source.state_dict().items() if not key.startswith("fc.")}
    target.load_state_dict(state)
    return target


@pytest.mark.parametrize(
    ("depth", "training"),
    [(18, False), (34, False), (50, False), (101, False), (152, False), (18, True), (50, True)],
)
def test_features_are_those_of_torchvision(depth, training, randomise):
    theirs = randomise(getattr(torchvision.models, f"resnet{depth}")()).train(training)
    ours = copy(theirs, ResNet(depth)).train(training)
    image = torch.randn(2, 3, 75, 97)
    with torch.no_grad():
        assert_close(ours(image), torchvision_features(theirs, image))


@pytest.mark.parametrize(("output_stride", "replace"), [(16, [False, False, True]), (8, [False, True, True])])
def test_dilation_is_placed_as_torchvision_places_it(output_stride, replace, randomise):
    theirs = randomise(torchvision.models.resnet50(replace_stride_with_dilation=replace)).eval()
    ours = copy(theirs, ResNet(50, output_stride=output_stride)).eval()
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        assert_close(ours(image), torchvision_features(theirs, image))


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("output_stride", [16, 8])
def test_dilated_net_sampled_at_the_old_stride_is_the_undilated_net(depth, output_stride, randomise):
    plain = randomise(ResNet(depth)).eval()
    dilated = ResNet(depth, output_stride=output_stride).eval()
    dilated.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 97, 130)
    with torch.no_grad():
        expected, maps = plain(image), dilated(image)
    steps = [old.stride[0] // new.stride[0] for old, new in zip(plain.levels, dilated.levels, strict=True)]
    assert steps == {16: [1, 1, 1, 2], 8: [1, 1, 2, 4]}[output_stride]
    assert_close([x[..., ::step, ::step] for x, step in zip(maps, steps, strict=True)], expected)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_declared_levels_are_the_measured_ones(depth, output_stride):
    with torch.device("meta"):
        net = ResNet(depth, output_stride=output_stride)
        maps = net(torch.empty(1, 3, 128, 192))
    assert len(net.levels) == 4
    for level, x in zip(net.levels, maps, strict=True):
        assert x.shape[1] == level.channels
        assert (128 // x.shape[2], 192 // x.shape[3]) == level.stride


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("instance", InstanceNorm2d),
        ("batch", nn.BatchNorm2d),
        ("frozen_batch", FrozenBatchNorm),
        ("sync_batch", nn.SyncBatchNorm),
        ("group", nn.GroupNorm),
    ],
)
@pytest.mark.parametrize("depth", [18, 50])
def test_norm_reaches_every_layer(norm, kind, depth):
    net = ResNet(depth, norm=norm)
    kinds = (nn.BatchNorm2d, FrozenBatchNorm, nn.SyncBatchNorm, nn.GroupNorm, nn.InstanceNorm2d)
    norms = [module for module in net.modules() if isinstance(module, kinds)]
    assert [type(module) for module in norms] == [kind] * NORM_LAYERS[depth]
    assert all(module.num_groups == 32 for module in norms if norm == "group")


def test_group_norm_does_not_depend_on_the_batch():
    net = ResNet(18, norm="group").train()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        assert_close([x[:1] for x in net(images)], net(images[:1]))


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("frozen_stages", range(6))
def test_frozen_stages_keep_parameters_and_statistics(frozen_stages, norm):
    net = ResNet(18, norm=norm, frozen_stages=frozen_stages).eval().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad] or [torch.zeros(1)], lr=0.1)
    loss = sum(x.square().mean() for x in net(torch.randn(2, 3, 64, 64)))
    if loss.requires_grad:
        loss.backward()
    optimizer.step()
    stages = [("conv1.", "bn1."), ("layer1.",), ("layer2.",), ("layer3.",), ("layer4.",)]
    frozen = tuple(prefix for stage in stages[:frozen_stages] for prefix in stage)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(frozen), name


def test_freezing_holds_inside_a_larger_module():
    outer = nn.Sequential(ResNet(18, frozen_stages=2)).train()
    assert outer[0].layer2[0].bn1.training
    assert not outer[0].layer1[0].bn1.training
    assert not outer[0].bn1.training


def test_zero_init_residual_makes_every_block_the_identity():
    for depth, norm in ((18, "batch"), (50, "batch"), (50, "group")):
        net = ResNet(depth, norm=norm, zero_init_residual=True)
        x = torch.rand(2, net.layer2[0].conv1.in_channels, 8, 8)
        with torch.no_grad():
            x = net.layer2[0](x)
            assert torch.equal(net.layer2[1:](x), x), (depth, norm)
            assert not torch.equal(ResNet(depth, norm=norm).layer2[1:](x), x), (depth, norm)


def test_initialisation_is_he_normal_over_the_outputs():
    for layer in (ResNet(50).layer4[0].conv2, ResNet(50).layer3[0].downsample[0]):
        fan_out = layer.out_channels * layer.kernel_size[0] ** 2
        assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.01)


def test_in_channels_is_the_number_of_channels_read():
    assert ResNet(18, in_channels=5)(torch.randn(2, 5, 64, 64))[0].shape == (2, 64, 16, 16)


@pytest.mark.parametrize("size", [(1, 1), (1, 33), (7, 2)])
def test_tiny_images_pass(size):
    assert [x.shape[1] for x in ResNet(18).eval()(torch.randn(1, 3, *size))] == [64, 128, 256, 512]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 51}, "depth is 51; allowed are 10, 18, 26, 34, 50, 101, 152, 200"),
        (
            {"norm": "layer"},
            "norm is 'layer'; allowed are 'batch', 'frozen_batch', 'sync_batch', 'group', 'instance'",
        ),
        ({"frozen_stages": 6}, "frozen_stages is 6; allowed are 0, 1, 2, 3, 4, 5"),
        ({"output_stride": 4}, "output_stride is 4; allowed are 32, 16, 8"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"norm": "frozen_batch", "zero_init_residual": True}, "zero_init_residual needs norms that learn"),
        ({"depth": 50, "weights": "ResNet101_Weights.IMAGENET1K_V2"}, "do not fit depth 50"),
        ({"ndim": 4}, "ndim is 4; allowed are 2, 3"),
        ({"activation": "tanh"}, "activation is 'tanh'; allowed are 'relu'"),
        (
            {"shortcut": "identity"},
            "shortcut is 'identity'; allowed are 'projection', 'average', 'pad', 'none'",
        ),
        ({"stem": "3x3"}, "stem is '3x3'; allowed are '7x7', 'deep'"),
        ({"inflation": "max"}, "inflation is 'max'; allowed are 'centre', 'mean'"),
        ({"width": 0}, "width is 0"),
        ({"depth": 18, "groups": 2}, "groups is for bottlenecks .*: set groups to 1"),
        ({"depth": 34, "width_per_group": 128}, "width_per_group is for bottlenecks"),
        ({"depth": 18, "stride_in_1x1": True}, "stride_in_1x1 is for bottlenecks .* to false"),
        ({"width_per_group": 0}, "leave no channel"),
        ({"stochastic_depth": 1.0}, "stochastic_depth is 1.0; a rate"),
        ({"stochastic_depth": 0.1, "shortcut": "none"}, "stochastic_depth needs shortcuts"),
        ({"zero_init_residual": True, "shortcut": "none"}, "zero_init_residual needs shortcuts"),
        ({"anti_alias": True, "stride_in_1x1": True}, "needs stride_in_1x1: false"),
        ({"strides": [2, 2, 2]}, "strides has 3 entries; give 5: stem, max pool, layer2, layer3, layer4"),
        ({"strides": [2, 2, 3, 2, 2]}, r"strides of the layer2 is \(3, 3\); each must be 1 or 2"),
        (
            {"strides": [2, [1, 2, 2], 2, 2, 2]},
            r"strides of the max pool is \[1, 2, 2\]; give one number, or 2",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**arguments)


def test_short_names_of_weights_are_completed():
    assert torchvision_name("torchvision", "ResNet101", "x") == "ResNet101_Weights.DEFAULT"
    assert torchvision_name("IMAGENET1K_V1", "ResNet18", "x") == "ResNet18_Weights.IMAGENET1K_V1"
    assert torchvision_name("ResNet34_Weights.DEFAULT", "ResNet34", "x") == "ResNet34_Weights.DEFAULT"
    assert torchvision_name("folder/file.pth", None, "x") == "folder/file.pth"
    with pytest.raises(ValueError, match="torchvision has no weights for depth 200; give a file"):
        torchvision_name("torchvision", None, "depth 200")
    with pytest.raises(ValueError, match="timm are for a TimmBackbone, .* give a file, torchvision, or null"):
        torchvision_name("timm", "ResNet18", "depth 18")
    with pytest.raises(ValueError, match="not for depth 200; give a file, or null"):
        torchvision_name("timm", None, "depth 200")


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ({"depth": 50, "groups": 32, "width_per_group": 4}, "ResNeXt50_32X4D_Weights.DEFAULT"),
        ({"depth": 101, "groups": 32, "width_per_group": 8}, "ResNeXt101_32X8D_Weights.DEFAULT"),
        ({"depth": 101, "groups": 64, "width_per_group": 4}, "ResNeXt101_64X4D_Weights.DEFAULT"),
        ({"depth": 50, "width_per_group": 128}, "Wide_ResNet50_2_Weights.DEFAULT"),
        ({"depth": 101, "width_per_group": 128}, "Wide_ResNet101_2_Weights.DEFAULT"),
        ({"depth": 34}, "ResNet34_Weights.DEFAULT"),
        # their parameters are those of the published network
        ({"depth": 50, "shortcut": "average", "anti_alias": True}, "ResNet50_Weights.DEFAULT"),
        ({"depth": 18, "activation": "silu", "ndim": 3, "in_channels": 1}, "ResNet18_Weights.DEFAULT"),
    ],
)
def test_weights_of_each_family_are_those_of_its_name(arguments, asked, monkeypatch):
    sources = []
    monkeypatch.setattr(resnet, "load_weights", lambda module, source, **more: sources.append(source))
    with torch.device("meta"):
        ResNet(**arguments, weights="torchvision")
    assert sources == [asked]
    torchvision.models.get_weight(asked)  # there is such a name


@pytest.mark.parametrize(
    ("arguments", "network"),
    [
        ({"groups": 2}, "groups 2"),
        ({"width": 32}, "width 32"),
        ({"stem": "deep"}, "stem deep"),
        ({"shortcut": "pad"}, "shortcut pad"),
        ({"shortcut": "none"}, "shortcut none"),
        ({"pre_activation": True}, "pre_activation true"),
        (
            {"squeeze_excitation": True, "groups": 32, "width_per_group": 4},
            "groups 32, .*, squeeze_excitation true",
        ),
    ],
)
@pytest.mark.parametrize("weights", ["torchvision", "IMAGENET1K_V1", "ResNet50_Weights.DEFAULT"])
def test_networks_that_torchvision_has_no_weights_for_are_named(arguments, network, weights):
    with pytest.raises(ValueError, match=f"torchvision has no weights for depth 50, {network}; give a file"):
        ResNet(50, weights=weights, **arguments)


def test_channels_last_and_bfloat16_pass_through():
    net = ResNet(18, norm="frozen_batch").eval().to(memory_format=torch.channels_last)
    image = torch.randn(1, 3, 64, 64).to(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = net(image)
    with torch.no_grad():
        full = net(image)
    for x, y in zip(half, full, strict=True):
        assert x.dtype == torch.bfloat16
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert (x - y).abs().max() < 0.05 * y.abs().max()
