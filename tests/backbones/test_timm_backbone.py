"""TimmBackbone against timm's own feature extractors on copied weights, and each argument by its effect."""

import pytest
import timm
import torch
from timm_cases import NETWORKS, SWIN, VIT, assert_close, channels_first, ours
from torch import nn
from torch.nn import functional as F

from trunkline.backbones.timm_backbone import TimmBackbone

IN_ORDER = ["test_convnext", "test_efficientnet", "test_resnet", "mobilenetv3_small_050", SWIN]


def peer(name, **settings):
    return timm.create_model(name, features_only=True, **NETWORKS.get(name, {}), **settings)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_levels_are_those_of_timm(name, training):
    theirs = peer(name)
    strides = theirs.feature_info.reduction()
    net = ours(name).train(training)
    theirs.train(training)
    if name in ("test_vit", VIT):  # every block has the same stride: the last one is the level
        assert [level.stride for level in net.levels] == [(16, 16)]
    else:
        assert [level.stride for level in net.levels] == [(4, 4), (8, 8), (16, 16), (32, 32)]
    missing = net.model.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing.missing_keys
    image = torch.randn(2, 3, *theirs.pretrained_cfg["input_size"][1:])
    with torch.no_grad():
        expected = channels_first(theirs(image), theirs.feature_info.channels())
        last = dict(zip(strides, expected, strict=True))
        found = net(image)
    assert_close(found, list(last.values())[-4:])


@pytest.mark.parametrize(
    "name",
    [
        SWIN,
        "convnext_tiny",
        "efficientnet_b0",
        "tf_efficientnetv2_s",
        "resnet50",
        "resnetv2_50",
        "regnety_004",
    ]
    + ["mobilenetv3_large_100", "pvt_v2_b1", "maxvit_tiny_tf_224", "hrnet_w18_small", "densenet121"]
    + [
        "mambaout_femto",
        "vit_tiny_patch16_224",
        "vgg11",
        "davit_tiny",
        "repvgg_a0",
        "levit_128",
        "nest_tiny",
    ],
)
def test_declared_levels_are_the_measured_ones(name):
    with torch.device("meta"):
        net = TimmBackbone(name).eval()
        maps = net(torch.empty(1, 3, *net.native_size))
    assert len(maps) == len(net.levels) <= 4
    for level, x in zip(net.levels, maps, strict=True):
        assert x.shape[1] == level.channels
        sizes = zip(net.native_size, level.stride, strict=True)
        assert tuple(x.shape[2:]) == tuple(-(-size // step) for size, step in sizes)


@pytest.mark.parametrize(("name", "patch"), [(SWIN, 4), (VIT, 16)])
def test_networks_of_one_size_take_any_other(name, patch):
    net = ours(name).eval()
    image = torch.randn(1, 3, 97, 131)
    padded = F.pad(image, (0, -131 % patch, 0, -97 % patch))
    with torch.no_grad():
        maps = net(image)
        assert_close(maps, net(padded))
    for level, x in zip(net.levels, maps, strict=True):
        assert tuple(x.shape[2:]) == (-(-97 // level.stride[0]), -(-131 // level.stride[1]))
    # A map of the native size by itself is what timm computes without any of this.
    with torch.no_grad(), pytest.raises(AssertionError, match="doesn't match"):
        peer(name)(padded)


def test_a_network_that_keeps_to_its_size_says_so():
    net = TimmBackbone("test_maxvit")
    with pytest.raises(
        ValueError, match=r"test_maxvit cannot take an image of 64 x 96 .*built for 160 x 160"
    ):
        net(torch.randn(1, 3, 64, 96))
    resized = TimmBackbone("test_maxvit", options={"img_size": [64, 96]})
    assert [tuple(x.shape[2:]) for x in resized(torch.randn(1, 3, 64, 96))][:2] == [(16, 24), (8, 12)]
    with pytest.raises(RuntimeError, match="expected input"):  # another error stays what it is
        TimmBackbone("test_resnet")(torch.randn(1, 2, 64, 64))


def upstream(name, level):
    """Names of the parameters that a level depends on, as autograd finds them."""
    net = ours(name)
    net(torch.randn(2, 3, 64, 64))[level].square().mean().backward()
    return {key for key, parameter in net.named_parameters() if parameter.grad is not None}


STEMS = {
    "test_convnext": ("stem_",),
    "test_efficientnet": ("conv_stem.", "bn1.", "blocks.0."),
    "test_resnet": ("conv1.", "bn1."),
    "mobilenetv3_small_050": ("conv_stem.", "bn1."),
    SWIN: ("patch_embed.",),
}


@pytest.mark.parametrize("name", IN_ORDER)
def test_frozen_stages_keep_parameters_and_statistics(name):
    levels = [upstream(name, index) for index in range(4)]
    everything = {key for key, _ in ours(name).named_parameters()}
    stem = {key for key in everything if key.removeprefix("model.").startswith(STEMS[name])}
    for count, expected in enumerate([set(), stem, *levels[:3], everything]):
        net = ours(name, frozen_stages=count).eval().train()
        assert {key for key, p in net.named_parameters() if not p.requires_grad} == expected, count
        before = {key: value.clone() for key, value in net.named_buffers() if "running" in key}
        with torch.no_grad():
            net(torch.randn(2, 3, 64, 64))
        norms = {key.rpartition(".")[0] for key in expected}
        for key, value in net.named_buffers():
            if key in before:
                assert torch.equal(value, before[key]) == (key.rpartition(".")[0] in norms), key


def test_frozen_stages_count_the_levels_that_are_returned():
    net = TimmBackbone("test_resnet", out_indices=[0, 2], frozen_stages=3)
    learning = {key.split(".")[1] for key, p in net.named_parameters() if p.requires_grad}
    frozen = {key.split(".")[1] for key, p in net.named_parameters() if not p.requires_grad}
    assert learning == set() and frozen == {"conv1", "bn1", "layer1", "layer2"}
    net = TimmBackbone("test_resnet", out_indices=[0, 2], frozen_stages=2)
    assert {key.split(".")[1] for key, p in net.named_parameters() if not p.requires_grad} == {"conv1", "bn1"}


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_byobnet"])
def test_frozen_batch_norms_do_not_change(name, randomise):
    net = randomise(ours(name, freeze_batch_norm=True)).eval().train()
    norms = {key for key, part in net.named_modules() if isinstance(part, nn.BatchNorm2d)}
    before = {key: value.clone() for key, value in net.state_dict().items()}
    parameters = [p for p in net.parameters() if p.requires_grad]
    sum(x.square().mean() for x in net(torch.randn(2, 3, 64, 64))).backward()
    torch.optim.SGD(parameters, lr=0.1).step()
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]) == (key.rpartition(".")[0] in norms), key


def kept_and_gradients(net, image):
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = sum(x.square().mean() for x in net(image))
    loss.backward()
    return sum(kept.values()), {key: p.grad for key, p in net.named_parameters()}


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "test_vit", SWIN])
def test_checkpointing_changes_memory_and_nothing_else(name):
    frozen = name == "test_efficientnet"
    plain = ours(name, freeze_batch_norm=frozen).train()
    saving = ours(name, freeze_batch_norm=frozen, checkpointing=True).train()
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 96, 96)
    (all_kept, expected), (kept, found) = kept_and_gradients(plain, image), kept_and_gradients(saving, image)
    assert kept < 0.8 * all_kept
    for key, gradient in expected.items():
        assert (gradient is None) == (found[key] is None), key
        if gradient is not None:
            assert (found[key] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), key


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_takes_part(name):
    """A parameter without gradient would stop training on several devices."""
    net = ours(name)
    sum(x.square().mean() for x in net(torch.randn(2, 3, *net.native_size))).backward()
    assert [key for key, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("channels", [1, 5])
def test_in_channels_is_the_number_of_channels_read(channels):
    image = torch.randn(1, channels, 64, 64, requires_grad=True)
    TimmBackbone("test_convnext", in_channels=channels)(image)[-1].square().sum().backward()
    assert (image.grad.abs().amax((0, 2, 3)) > 0).all()


@pytest.mark.parametrize(
    ("indices", "strides"),
    [([0, 2], [2, 8]), ([-1], [32]), ([0, 1, -1], [2, 4, 32]), ([1, 2, 3, 4], [4, 8, 16, 32])],
)
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_out_indices_choose_levels(name, indices, strides):
    net, all_levels = ours(name, out_indices=indices).eval(), peer(name).eval()
    net.model.load_state_dict(all_levels.state_dict(), strict=False)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = all_levels(image)
        assert_close(net(image), [expected[index] for index in indices])
    assert [level.stride for level in net.levels] == [(stride, stride) for stride in strides]


def test_options_reach_timm():
    image = torch.randn(4, 3, 64, 64)
    for rate, same in ((0.0, True), (0.6, False)):
        net = TimmBackbone("test_convnext", options={"drop_path_rate": rate}).train()
        for part in net.modules():  # a layer scale of 1e-6 would hide what the branches do
            if hasattr(part, "gamma") and part.gamma is not None:
                nn.init.ones_(part.gamma)
        with torch.no_grad():
            assert torch.equal(net(image)[-1], net(image)[-1]) == same


@pytest.mark.slow
def test_compiles_to_one_graph():
    explanation = torch._dynamo.explain(TimmBackbone("test_convnext").train())(torch.randn(1, 3, 64, 64))
    assert explanation.graph_break_count == 0
