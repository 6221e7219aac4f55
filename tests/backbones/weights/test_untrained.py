"""No layer stays untrained under trained ones without an error, and none above them without a warning."""

import logging

import pytest
import torch

from trunkline.backbones import CifarResNet, DenseNet, ResidualEncoder, ResNet, TimmBackbone
from trunkline.backbones.weights import load_weights
from trunkline.backbones.weights.load import TORCHVISION_PIXELS, check_pixels, skip_pretrained
from trunkline.heads import FCN, Classifier
from trunkline.tasks.classification.task import Classification


def state(make, seed=0):
    torch.manual_seed(seed)
    return {name: value.clone() for name, value in make().state_dict().items()}


def small(**options):
    return ResNet(10, width=8, **options)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (lambda: small(in_channels=4), small),
        (lambda: small(in_channels=4), lambda: small(in_channels=1)),
        (lambda: small(in_channels=2), small),
        (lambda: small(in_channels=4), lambda: small(in_channels=1, ndim=3)),
        (lambda: DenseNet(121, in_channels=5), lambda: DenseNet(121)),
        (lambda: CifarResNet(20, in_channels=4), lambda: CifarResNet(20)),
        (lambda: TimmBackbone("test_convnext", in_channels=4), lambda: TimmBackbone("test_convnext")),
        (lambda: TimmBackbone("test_vit", in_channels=4), lambda: TimmBackbone("test_vit")),
    ],
)
def test_a_first_layer_for_other_channels_is_refused(theirs, ours):
    net = ours()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"(?s)untrained under trained ones.*which of them mean.*in_channels: "
    ):
        load_weights(net, state(theirs))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(("before", "after"), [(3, 1), (3, 2), (3, 4), (3, 6), (1, 3), (1, 4)])
def test_a_first_layer_for_three_channels_or_one_is_adapted(before, after):
    """The sum over equal channels is what it was; else channels come in turn, as timm's ``repeat`` does."""
    kernel = state(lambda: small(in_channels=before))["conv1.weight"]
    net = small(in_channels=after)
    load_weights(net, state(lambda: small(in_channels=before)))
    if after == 1:
        expected = kernel.sum(1, keepdim=True)
    else:
        expected = torch.cat([kernel] * after, 1)[:, :after] * before / after
    assert torch.allclose(net.conv1.weight, expected, atol=1e-6)


@pytest.mark.parametrize(
    "names", [("conv1.weight",), ("bn1.running_mean", "bn1.running_var"), ("layer1.0.bn2.bias",)]
)
def test_a_layer_that_is_missing_under_others_is_refused(names):
    source = state(lambda: ResNet(18, width=8))
    for name in names:
        del source[name]
    with pytest.raises(ValueError, match=f"nothing was loaded. There is nothing that fits {names[0]}"):
        load_weights(ResNet(18, width=8), source)


def test_a_kernel_of_another_size_is_refused():
    source = state(lambda: ResNet(18, width=8))
    source["conv1.weight"] = torch.randn(8, 3, 3, 3)
    with pytest.raises(
        ValueError, match=r"(?s)conv1.weight: its shape is \[8, 3, 3, 3\], .*of this very network"
    ):
        load_weights(ResNet(18, width=8), source)


def test_what_is_missing_above_is_loaded_with_a_warning(caplog):
    source = state(lambda: ResNet(50, width=16))
    del source["layer4.2.bn3.running_mean"], source["layer4.2.bn3.running_var"]
    load_weights(ResNet(50, width=16), source)
    assert "has nothing for layer4.2.bn3.running_mean, layer4.2.bn3.running_var, which start" in caplog.text


@pytest.mark.parametrize("minimum", [0.0])
def test_who_asks_for_any_share_gets_it(minimum, caplog):
    source = state(small)
    del source["conv1.weight"]
    load_weights(small(), source, minimum=minimum)
    assert "nothing for conv1.weight" in caplog.text


def task(classes):
    return Classification(backbone=small(), head=lambda levels: Classifier(levels, classes))


def test_a_head_that_starts_untrained_is_a_warning(caplog):
    load_weights(task(3), state(lambda: task(3)))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    load_weights(task(3), state(lambda: task(5)))
    assert "has nothing that fits head.fc.weight, head.fc.bias: they start untrained" in caplog.text
    caplog.clear()
    load_weights(task(3), state(small))
    assert "has nothing that fits head.fc.weight" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load_by_value(dtype):
    source = state(small)
    net = small()
    load_weights(net, {k: v.to(dtype) if v.is_floating_point() else v for k, v in source.items()})
    assert net.conv1.weight.dtype == torch.float32
    assert torch.equal(net.conv1.weight, source["conv1.weight"].to(dtype).float())


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: (x * 100).to(torch.int8),
        lambda x: x.to(torch.complex64),
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        lambda x: x.to(torch.float8_e4m3fn),
        lambda x: x.to("meta"),
    ],
)
def test_values_of_another_kind_are_refused(convert):
    source = state(small)
    source["conv1.weight"] = convert(source["conv1.weight"])
    with pytest.raises(
        ValueError, match=r"holds values of another kind \(\w+\) for conv1.weight; nothing was l"
    ):
        load_weights(small(), source)


@pytest.mark.parametrize("name", ["bn1.running_var", "layer2.0.conv1.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(name, value):
    source = state(small)
    source[name].view(-1)[0] = value
    with pytest.raises(ValueError, match=f"not finite, for {name}"):
        load_weights(small(), source)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "_orig_mod."])
def test_prefixes_of_wrappers_are_taken_away(prefix):
    source = state(small)
    net = small()
    report = load_weights(net, {prefix + name: value for name, value in source.items()})
    assert report.fraction == 1 and torch.equal(net.conv1.weight, source["conv1.weight"])


def test_published_weights_of_torchvision_know_their_normalisation(monkeypatch):
    source = state(lambda: ResNet(18))
    monkeypatch.setattr("torchvision.models.ResNet18_Weights.get_state_dict", lambda *_, **__: source)
    made = ResNet(18, weights="IMAGENET1K_V1")
    assert made.expected_pixels == TORCHVISION_PIXELS
    check_pixels(made, *TORCHVISION_PIXELS)
    with pytest.raises(ValueError, match=r"model.pixel_mean: \[0.485, 0.456, 0.406\]"):
        check_pixels(made, (0.5, 0.5, 0.5), TORCHVISION_PIXELS[1])


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: small(frozen_stages=2), "frozen_stages: 2"),
        (lambda: small(norm="frozen_batch"), "norm: frozen_batch"),
        (lambda: DenseNet(121, frozen_stages=1), "frozen_stages: 1"),
        (lambda: CifarResNet(20, frozen_stages=1), "frozen_stages: 1"),
        (lambda: TimmBackbone("test_resnet", frozen_stages=1), "frozen_stages: 1"),
        (lambda: TimmBackbone("test_resnet", freeze_batch_norm=True), "freeze_batch_norm: true"),
        (
            lambda: ResidualEncoder(
                channels=[4, 8], blocks=[1, 1], strides=[1, 2], norm="frozen_batch", zero_init_residual=False
            ),
            "norm: frozen_batch",
        ),
    ],
)
def test_frozen_layers_without_weights_are_a_warning(make, option, caplog):
    make()
    assert f"the trunk has no weights, and {option} would keep layers as they are, untrained" in caplog.text
    caplog.clear()
    with skip_pretrained():  # a checkpoint brings them
        make()
    assert not caplog.text


def test_frozen_layers_with_weights_are_none(tmp_path, caplog):
    torch.save(state(small), tmp_path / "w.pth")
    ResNet(10, width=8, weights=str(tmp_path / "w.pth"), frozen_stages=2)
    FCN(small().levels, 2)
    assert "untrained" not in caplog.text
