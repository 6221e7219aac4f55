"""DenseNet against torchvision's on copied weights, and each argument by its effect."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from trunkline.backbones.densenet import DenseNet
from trunkline.backbones.norms import FrozenBatchNorm, InstanceNorm2d

# Parameters with the classifier, as torchvision publishes them, and the classifier's inputs.
PUBLISHED = {121: (7978856, 1024), 161: (28681000, 2208), 169: (14149480, 1664), 201: (20013928, 1920)}
NORM_LAYERS = {121: 121, 161: 161, 169: 169, 201: 201}  # one before each convolution but the first, and norm5
NORM_KINDS = (
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    FrozenBatchNorm,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm2d,
)


def copy(source, target):
    """Copy a torchvision net's state into a trunk without the code under test."""
    state = {key.removeprefix("features."): value for key, value in source.state_dict().items()}
    target.load_state_dict({key: value for key, value in state.items() if not key.startswith("classifier.")})
    return target


def torchvision_levels(net, image):
    """What the following stage reads: each transition after its norm and ReLU; the last map after ReLU."""
    parts = net.features
    x = parts.pool0(parts.relu0(parts.norm0(parts.conv0(image))))
    maps = []
    for index in (1, 2, 3):
        transition = parts.get_submodule(f"transition{index}")
        read = F.relu(transition.norm(parts.get_submodule(f"denseblock{index}")(x)))
        maps.append(read)
        x = transition.pool(transition.conv(read))
    return [*maps, F.relu(parts.norm5(parts.denseblock4(x)))]


def assert_close(maps, expected):
    assert len(maps) == len(expected)
    for x, y in zip(maps, expected, strict=True):
        assert x.shape == y.shape
        assert (x - y).abs().max() <= 1e-5 * y.abs().max()


def norms_of(net):
    return [module for module in net.modules() if isinstance(module, NORM_KINDS)]


@pytest.mark.parametrize(
    ("depth", "training"), [(121, False), (161, False), (169, False), (201, False), (121, True)]
)
def test_levels_are_those_of_torchvision(depth, training, randomise):
    theirs = randomise(getattr(torchvision.models, f"densenet{depth}")()).train(training)
    ours = copy(theirs, DenseNet(depth)).train(training)
    image = torch.randn(2, 3, 75, 99)
    with torch.no_grad():
        maps = ours(image)
        assert_close(maps, torchvision_levels(theirs, image))
    if training:
        assert torch.equal(ours.norm5.running_mean, theirs.features.norm5.running_mean)
    else:  # the last level is what torchvision's classifier pools
        with torch.no_grad():
            scores = theirs.classifier(maps[-1].mean((2, 3)))
            torch.testing.assert_close(scores, theirs(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [121, 161, 169, 201])
def test_parameters_are_as_many_as_published(depth):
    total, features = PUBLISHED[depth]
    with torch.device("meta"):
        net = DenseNet(depth)
    assert net.levels[-1].channels == features
    assert sum(p.numel() for p in net.parameters()) + 1000 * (features + 1) == total


@pytest.mark.parametrize(
    ("depth", "strides", "size"),
    [
        *((depth, None, (64, 96)) for depth in (121, 161, 169, 201)),
        (121, None, (64, 64, 32)),
        (121, [1, 2, 2, 2, 2], (64, 96)),
        (121, [[1, 2, 2], [1, 2, 2], 2, 2, [1, 2, 2]], (8, 64, 96)),
        (169, [2, 1, [2, 1], 1, 2], (32, 64)),
        (121, [1, 1, 1, 1, 1], (8, 6)),
    ],
)
def test_declared_levels_are_the_measured_ones(depth, strides, size):
    with torch.device("meta"):
        net = DenseNet(depth, strides=strides, ndim=len(size))
        maps = net(torch.empty(1, 3, *size))
    assert len(net.levels) == len(maps) == 4
    for level, x in zip(net.levels, maps, strict=True):
        assert x.shape[1] == level.channels
        assert tuple(a // b for a, b in zip(size, x.shape[2:], strict=True)) == level.stride


def test_strides_are_taken_in_their_order():
    net = DenseNet(ndim=3, strides=[[1, 2, 2], 1, [2, 1, 1], [1, 2, 1], [1, 1, 2]])
    assert [level.stride for level in net.levels] == [(1, 2, 2), (2, 2, 2), (2, 4, 2), (2, 4, 4)]
    with torch.no_grad():
        shapes = [x.shape[2:] for x in net(torch.randn(1, 3, 4, 8, 8))]
    assert shapes == [(4, 4, 4), (2, 4, 4), (2, 2, 4), (2, 2, 2)]
    assert [layer for layer in net.modules() if isinstance(layer, nn.MaxPool3d)] == []


@pytest.mark.parametrize(
    ("strides", "size"), [(None, (29, 29)), (None, (64, 29)), ([2, [1, 2], 2, 2, [1, 2]], (7, 29))]
)
def test_the_smallest_image_passes_and_a_smaller_one_is_an_error(strides, size):
    with torch.device("meta"):
        net = DenseNet(strides=strides).eval()
        assert min(net(torch.empty(1, 3, *size))[-1].shape) == 1
        with pytest.raises(
            ValueError, match=rf"{size[0]} x 28 is too small .* give at least {net.smallest[0]} x 29"
        ):
            net(torch.empty(1, 3, size[0], 28))


@pytest.mark.parametrize("strides", [None, [2, 2, 2, 1, [1, 2, 2]]])
def test_centre_inflated_net_equals_its_original_on_a_constant_volume(randomise, strides):
    flat_strides = strides and [step[1:] if isinstance(step, list) else step for step in strides]
    plane = randomise(DenseNet(strides=flat_strides)).eval()
    volume = DenseNet(ndim=3, strides=strides).eval()
    state = plane.state_dict()
    for name, value in volume.state_dict().items():
        if value.ndim == 5:  # [F, C, kh, kw] -> [F, C, kd, kh, kw], zero but in the middle slice
            side = value.shape[2] // 2
            state[name] = F.pad(state[name][:, :, None], (0, 0, 0, 0, side, side))
    volume.load_state_dict(state)
    image = torch.randn(1, 3, 45, 39)
    with torch.no_grad():
        flat, deep = plane(image), volume(image[:, :, None].expand(-1, -1, 33, -1, -1))
    for x, y in zip(flat, deep, strict=True):
        assert (y - x[:, :, None]).abs().max() <= 1e-5 * x.abs().max()


@pytest.mark.parametrize(
    ("norm", "ndim", "kind"),
    [
        ("batch", 2, nn.BatchNorm2d),
        ("batch", 3, nn.BatchNorm3d),
        ("frozen_batch", 2, FrozenBatchNorm),
        ("sync_batch", 2, nn.SyncBatchNorm),
        ("group", 2, nn.GroupNorm),
        ("instance", 2, InstanceNorm2d),
    ],
)
@pytest.mark.parametrize("depth", [121, 161, 169, 201])
def test_norm_reaches_every_layer(norm, ndim, kind, depth):
    with torch.device("meta"):
        norms = norms_of(DenseNet(depth, norm=norm, ndim=ndim))
    assert [type(module) for module in norms] == [kind] * NORM_LAYERS[depth]


@pytest.mark.parametrize("norm", ["group", "instance"])
def test_norms_without_statistics_do_not_depend_on_the_batch(norm):
    net = DenseNet(norm=norm).double().train()  # instance norm over a few cells enlarges rounding errors
    images = torch.randn(3, 3, 64, 64).double()
    with torch.no_grad():
        assert_close([x[:1] for x in net(images)], net(images[:1]))


@pytest.mark.parametrize(
    ("activation", "function"),
    [("leaky_relu", F.leaky_relu), ("elu", F.elu), ("gelu", F.gelu), ("silu", F.silu)],
)
def test_activation_reaches_every_layer(activation, function, randomise, monkeypatch):
    theirs = randomise(torchvision.models.densenet121()).eval()
    ours = copy(theirs, DenseNet(activation=activation)).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        with monkeypatch.context() as patch:  # only theirs: a ReLU left over in ours would show
            patch.setattr(nn.ReLU, "forward", lambda self, x: function(x))
            patch.setattr(F, "relu", lambda x, inplace=False: function(x))
            expected = torchvision_levels(theirs, image)
        assert_close(ours(image), expected)


def gradients(net, image):
    """Return the gradients and the number of cells that autograd kept for them."""
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = sum(x.square().mean() for x in net(image))
    loss.backward()
    return {name: p.grad for name, p in net.named_parameters()}, sum(kept.values())


def test_checkpointing_changes_memory_and_nothing_else(randomise):
    plain = randomise(DenseNet()).train()
    saving = DenseNet(checkpointing=True).train()
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 96, 96)
    (expected, all_kept), (found, kept) = gradients(plain, image), gradients(saving, image)
    assert kept < 0.35 * all_kept
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
    after = saving.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(after[name], value), name
    before = {name: value.clone() for name, value in after.items()}
    saving.eval()
    with torch.no_grad():
        assert_close(saving(image), plain.eval()(image))
    assert all(torch.equal(value, before[name]) for name, value in saving.state_dict().items())


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("frozen_stages", range(6))
def test_frozen_stages_keep_parameters_and_statistics(frozen_stages, norm):
    net = DenseNet(norm=norm, frozen_stages=frozen_stages).eval().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad] or [torch.zeros(1)], lr=0.1)
    loss = sum(x.square().mean() for x in net(torch.randn(2, 3, 64, 64)))
    if loss.requires_grad:
        loss.backward()
    optimizer.step()
    stages = [
        ("conv0.", "norm0."),
        ("denseblock1.", "transition1.norm."),
        ("transition1.conv.", "denseblock2.", "transition2.norm."),
        ("transition2.conv.", "denseblock3.", "transition3.norm."),
        ("transition3.conv.", "denseblock4.", "norm5."),
    ]
    frozen = tuple(prefix for stage in stages[:frozen_stages] for prefix in stage)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(frozen), name


@pytest.mark.parametrize("channels", [1, 5])
def test_in_channels_is_the_number_of_channels_read(channels):
    net = DenseNet(in_channels=channels).eval()
    image = torch.randn(1, channels, 40, 40, requires_grad=True)
    net(image)[-1].sum().backward()
    assert (image.grad.abs().amax((0, 2, 3)) > 0).all()


def test_initialisation_is_he_normal_over_the_inputs():
    net = DenseNet(norm="frozen_batch").eval()
    for layer in (net.conv0, net.denseblock3.denselayer1.conv2, net.transition2.conv):
        fan_in = layer.in_channels * layer.kernel_size[0] ** 2
        assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)
    with torch.no_grad():  # so the size of the maps stays the same without statistics that would correct it
        sizes = [x.square().mean().sqrt() for x in net(torch.randn(1, 3, 64, 64))]
    assert min(sizes) > 0.1 and max(sizes) < 10


@pytest.mark.parametrize("inflation", ["centre", "mean"])
def test_inflation_fills_volumes_from_images(inflation, tmp_path):
    plane = DenseNet()
    torch.save(plane.state_dict(), tmp_path / "plane.pt")
    volume = DenseNet(ndim=3, weights=str(tmp_path / "plane.pt"), inflation=inflation)
    flat, deep = plane.conv0.weight, volume.conv0.weight
    parts = [1 / 7] * 7 if inflation == "mean" else [0, 0, 0, 1, 0, 0, 0]
    for index, part in enumerate(parts):
        torch.testing.assert_close(deep[:, :, index], flat * part)


def test_torchvision_state_is_read_from_a_file(tmp_path, randomise):
    theirs = randomise(torchvision.models.densenet121())
    torch.save(theirs.state_dict(), tmp_path / "densenet.pth")
    # The published files are older than the present names: norm.1 and conv.2 within a layer.
    old = {}
    for key, value in theirs.state_dict().items():
        for layer in ("norm1", "norm2", "conv1", "conv2"):
            key = key.replace(f".{layer}.", f".{layer[:-1]}.{layer[-1]}.")
        old[key] = value
    torch.save(old, tmp_path / "published.pth")
    expected = copy(theirs, DenseNet()).state_dict()
    for name in ("densenet.pth", "published.pth"):
        found = DenseNet(weights=str(tmp_path / name)).state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.items()), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 120}, "depth is 120; allowed are 121, 161, 169, 201"),
        ({"norm": "layer"}, "norm is 'layer'; allowed are 'batch'"),
        ({"activation": "tanh"}, "activation is 'tanh'; allowed are 'relu'"),
        ({"frozen_stages": 6}, "frozen_stages is 6; allowed are 0, 1, 2, 3, 4, 5"),
        ({"ndim": 1}, "ndim is 1; allowed are 2, 3"),
        ({"inflation": "sum"}, "inflation is 'sum'; allowed are 'centre', 'mean'"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"strides": [2, 2, 2, 2]}, "strides has 4 entries; give 5: stem, max pool, transition1"),
        ({"strides": [2, 2, 2, 2, 4]}, "strides of the transition3"),
        ({"strides": [2, [2, 2, 2], 2, 2, 2]}, "strides of the max pool"),
        ({"weights": "DenseNet169_Weights.IMAGENET1K_V1"}, "do not fit depth 121"),
        ({"weights": "ResNet50_Weights.DEFAULT"}, "do not fit depth 121"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DenseNet(**arguments)


@pytest.mark.slow
def test_compiles_to_one_graph():
    with torch.no_grad():
        explanation = torch._dynamo.explain(DenseNet(norm="frozen_batch", frozen_stages=2).train())(
            torch.randn(1, 3, 64, 64)
        )
    assert explanation.graph_break_count == 0
