"""TimmBackbone against timm's own feature extractors on copied weights, and each argument by its effect."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from trunkline.backbones.timm_backbone import TimmBackbone
from trunkline.backbones.weights.load import skip_pretrained

SWIN = "swin_tiny_patch4_window7_224"
TINY_SWIN = {"embed_dim": 12, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 4, 8], "drop_path_rate": 0.0}
VIT = "vit_tiny_patch16_224"
# One small network of each kind: convolutional, channels-last, with batch norm, without, with attention.
NETWORKS = {
    "test_convnext": {},
    "test_efficientnet": {},
    "test_resnet": {},
    "test_mambaout": {},
    "test_nfnet": {},
    "test_byobnet": {},
    "test_maxvit": {},
    "test_vit": {},
    "mobilenetv3_small_050": {},
    "regnety_002": {},
    "pvt_v2_b0": {},
    SWIN: TINY_SWIN,
    VIT: {"embed_dim": 24, "depth": 4},
}
IN_ORDER = ["test_convnext", "test_efficientnet", "test_resnet", "mobilenetv3_small_050", SWIN]


def peer(name, **settings):
    return timm.create_model(name, features_only=True, **NETWORKS.get(name, {}), **settings)


def ours(name, **arguments):
    return TimmBackbone(name, options=NETWORKS.get(name), **arguments)


def channels_first(maps, channels):
    """Put the axis that has the declared number of channels, and may be last, in second place."""
    return [x if x.shape[1] == c else x.permute(0, 3, 1, 2) for x, c in zip(maps, channels, strict=True)]


def assert_close(maps, expected):
    assert len(maps) == len(expected)
    for x, y in zip(maps, expected, strict=True):
        assert x.shape == y.shape
        assert (x - y).abs().max() <= 1e-5 * y.abs().max()


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


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "test_vit", "test_resnet", SWIN])
@pytest.mark.parametrize("channels", [3, 1])
def test_files_with_the_names_of_timm_or_of_the_trunk_load(name, channels, tmp_path):
    """A whole classifier of timm, and a trunk's own state."""
    whole = timm.create_model(name, **NETWORKS[name])
    torch.save(whole.state_dict(), tmp_path / "timm.pth")
    trunk = ours(name, weights=str(tmp_path / "timm.pth"), in_channels=channels).eval()
    torch.save(trunk.state_dict(), tmp_path / "own.pth")
    again = ours(name, weights=str(tmp_path / "own.pth"), in_channels=channels).eval()
    size = trunk.native_size
    image = torch.randn(1, channels, *size)
    whole.eval()
    with torch.no_grad():
        maps = trunk(image)
        assert_close(again(image), maps)
        if name == "test_vit":
            last = whole.forward_intermediates(image.expand(-1, 3, -1, -1), intermediates_only=True)[-1:]
        else:
            last = whole.forward_intermediates(image.expand(-1, 3, -1, -1), intermediates_only=True)[-4:]
        assert_close(maps, channels_first(last, [level.channels for level in trunk.levels]))


def test_a_file_of_another_network_is_refused_by_name(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.pth")
    for channels in (3, 1):
        with pytest.raises(ValueError, match=r"resnet\.pth"):
            TimmBackbone("test_convnext", weights=str(tmp_path / "resnet.pth"), in_channels=channels)


def test_published_weights_are_asked_for_and_a_failure_is_explained(tmp_path):
    """timm reads a file in place of its download, so that no network is needed here."""
    whole = timm.create_model("test_convnext")
    torch.save(whole.state_dict(), tmp_path / "published.pth")
    config = {"file": str(tmp_path / "published.pth"), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.4)}
    local = {"pretrained_cfg_overlay": config}
    trunk = TimmBackbone("test_convnext", weights="timm", options=local)
    assert torch.equal(trunk.model.stem_0.weight, whole.stem[0].weight)
    assert trunk.expected_pixels == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.4))
    assert not torch.equal(
        TimmBackbone("test_convnext", options=local).model.stem_0.weight, whole.stem[0].weight
    )
    nowhere = {"pretrained_cfg_overlay": {"file": str(tmp_path / "missing.pth")}}
    with pytest.raises(OSError, match="could not fetch the weights of test_convnext .*give its path"):
        TimmBackbone("test_convnext", weights="timm", options=nowhere)
    with skip_pretrained():
        TimmBackbone("test_convnext", weights="timm", options=nowhere)
        TimmBackbone("test_convnext", weights=str(tmp_path / "missing.pth"))
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        TimmBackbone("test_convnext", weights=str(tmp_path / "missing.pth"))


def test_missing_timm_is_explained(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'trunkline\[timm\]'"):
        TimmBackbone("resnet18")


def test_a_model_without_features_is_named(monkeypatch):
    def flat(**settings):
        raise RuntimeError("features_only not implemented for this one")

    monkeypatch.setitem(timm.models._registry._model_entrypoints, "test_flat", flat)
    with pytest.raises(
        ValueError, match=r"cannot build test_flat as a trunk \(features_only\).*not implemented"
    ):
        TimmBackbone("test_flat")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "convnxt_tiny"}, "timm has no model 'convnxt_tiny'; did you mean convnext_tiny"),
        (
            {"name": "convnext_tiny.fb_in1"},
            "timm has no weights 'fb_in1' of convnext_tiny; there are: .*fb_in1k",
        ),
        ({"name": "test_resnet", "weights": "torchvision"}, "use weights: timm"),
        ({"name": "test_resnet", "weights": "IMAGENET1K_V1"}, "use weights: timm"),
        ({"name": "test_resnet", "weights": "ResNet50_Weights.DEFAULT"}, "use weights: timm"),
        ({"name": "test_convnext2", "weights": "nowhere.pth"}, r"nowhere\.pth"),
        ({"name": "test_resnet", "in_channels": 0}, "in_channels is 0"),
        ({"name": "test_resnet", "frozen_stages": 6}, "frozen_stages is 6; test_resnet has 0 to 5"),
        ({"name": "test_byobnet", "frozen_stages": 1, "out_indices": [0]}, "frozen_stages 1 is empty"),
        ({"name": "test_vit", "frozen_stages": 1}, "frozen_stages is unknown for test_vit"),
        ({"name": "test_convnext", "freeze_batch_norm": True}, "test_convnext has no batch norm"),
        ({"name": "test_resnet", "checkpointing": True}, "set freeze_batch_norm: true as well"),
        ({"name": "test_resnet", "out_indices": [5]}, r"levels 0 to 4 of strides \[2, 4, 8, 16, 32\]"),
        ({"name": "test_resnet", "out_indices": [2, 1]}, "ascending order"),
        ({"name": "test_resnet", "out_indices": [-1, 4]}, "ascending order"),
        ({"name": "test_resnet", "out_indices": []}, "out_indices is "),
        ({"name": "test_resnet", "options": {"in_chans": 1}}, "options holds in_chans"),
        ({"name": "test_resnet", "options": {"widht": 1}}, "cannot build test_resnet .*'widht'"),
        ({"name": SWIN, "options": {"widht": 1}}, "'widht'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        TimmBackbone(**arguments)


def test_checkpointing_that_timm_does_not_have_is_named():
    with pytest.raises(ValueError, match="no checkpointing for hrnet_w18_small"), torch.device("meta"):
        TimmBackbone("hrnet_w18_small", freeze_batch_norm=True, checkpointing=True)


@pytest.mark.slow
def test_compiles_to_one_graph():
    explanation = torch._dynamo.explain(TimmBackbone("test_convnext").train())(torch.randn(1, 3, 64, 64))
    assert explanation.graph_break_count == 0
