"""Trunk, neck and head as one compiled or exported graph: no graph breaks, and the same results."""

import copy

import pytest
import torch
from torch import nn

from trunkline.backbones import FPN, CifarResNet, DenseNet, ResidualEncoder, ResNet, TimmBackbone
from trunkline.heads import FCN, Classifier, MultiHead, UNet
from trunkline.heads.segmentation import (
    CrossEntropy,
    DeepLabV3,
    DeepLabV3Plus,
    Dice,
    Focal,
    Lovasz,
    SemanticFPN,
    Tversky,
    WeightedSum,
)

pytestmark = pytest.mark.filterwarnings("ignore:the trunk has no weights")


def encoder(ndim):
    return ResidualEncoder((4, 8, 8), (1, 1, 1), in_channels=3, ndim=ndim)


TRUNKS = {
    "cifar": lambda: CifarResNet(8),
    "resnet": lambda: ResNet(18, width=8),
    "frozen": lambda: ResNet(18, width=8, norm="frozen_batch", frozen_stages=2),
    "resnext": lambda: ResNet(26, groups=4, width_per_group=16, width=8),
    "resnet-d": lambda: ResNet(
        26,
        width=8,
        stem="deep",
        shortcut="average",
        anti_alias=True,
        squeeze_excitation=True,
        stochastic_depth=0.2,
    ),
    "pre-activation": lambda: ResNet(18, width=8, pre_activation=True, norm="group"),
    "checkpointed": lambda: ResNet(18, width=8, checkpointing=True),
    "densenet": lambda: DenseNet(121, checkpointing=True),
    "timm": lambda: TimmBackbone("convnext_atto"),
    "swin": lambda: TimmBackbone("swin_tiny_patch4_window7_224"),
    "fpn": lambda: FPN(ResNet(18, width=8), channels=8),
    "encoder": lambda: encoder(2),
    "volumes": lambda: encoder(3),
}
SUM = WeightedSum([CrossEntropy(class_weights=[1.0, 2.0, 3.0]), Dice(), Focal(), Tversky(), Lovasz()])
HEADS = {
    "fcn": lambda levels: FCN(levels, 3, aux=-2, skips=1),
    "deeplab": lambda levels: DeepLabV3(levels, 3, rates=(1, 2), channels=8, aux=-2),
    "deeplab+": lambda levels: DeepLabV3Plus(levels, 3, rates=(1, 2), channels=8),
    "semantic fpn": lambda levels: SemanticFPN(levels, 3),
    "unet": lambda levels: UNet(levels, 3, upsampling="transposed", loss=copy.deepcopy(SUM)),
    "regions": lambda levels: FCN(
        levels, 3, regions=[[1, 2], [2]], loss=WeightedSum([CrossEntropy(), Dice()])
    ),
    "classes": lambda levels: Classifier(levels, 3, label_smoothing=0.1, class_weights=[1.0, 2.0, 3.0]),
    "several": lambda levels: MultiHead(levels, {name: HEADS[name] for name in ("fcn", "classes")}),
}
SLOW = [
    *[
        ("resnet", "fcn"),
        ("frozen", "deeplab"),
        ("resnext", "classes"),
        ("resnet-d", "unet"),
        ("fpn", "several"),
    ],
    *[("pre-activation", "regions"), ("checkpointed", "fcn"), ("densenet", "classes"), ("timm", "fcn")],
    *[
        ("swin", "classes"),
        ("fpn", "semantic fpn"),
        ("fpn", "deeplab+"),
        ("encoder", "unet"),
        ("volumes", "unet"),
    ],
    *[("volumes", "regions")],
]
CASES = [("cifar", "several"), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


class Network(nn.Module):
    def __init__(self, trunk, head):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = TRUNKS[trunk]()
        self.head = HEADS[head](self.backbone.levels)

    def losses(self, image, targets):
        return self.head.losses(self.head(self.backbone(image), tuple(image.shape[2:])), targets)

    def forward(self, image, sizes):
        return self.head.predict(self.head(self.backbone(image), tuple(image.shape[2:])), sizes)


class Targets:
    def __init__(self, images, size):
        generator = torch.Generator().manual_seed(1)
        self.mask = torch.randint(0, 3, (images, *size), dtype=torch.uint8, generator=generator)
        self.mask[0, 0] = 255
        self.label = torch.arange(images) % 3

    def for_head(self, name):
        return self


def batch(case, size):
    size = (*size, 16) if case == "volumes" else size
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    return image, Targets(2, size), torch.tensor([size, [number - 8 for number in size]])


def step(network, losses, image, targets):
    """Losses, gradients and statistics of a training step, after which the network is as before."""
    before = copy.deepcopy(network.state_dict())
    torch.manual_seed(3)
    parts = losses(image, targets)
    torch.stack(list(parts.values())).sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.zero_grad()
    network.load_state_dict(before)
    return {name: value.detach() for name, value in parts.items()}, gradients, statistics


def same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        if wanted is None:
            assert found[name] is None, name
        else:
            largest = float(wanted.abs().max())
            torch.testing.assert_close(found[name], wanted, rtol=0, atol=tolerance * largest + 1e-6, msg=name)


def tensors(predictions):
    parts = predictions.items() if isinstance(predictions, dict) else [("", predictions)]
    return {f"{name}.{field}": value for name, part in parts for field, value in vars(part).items()}


@pytest.fixture
def graphs():
    """Number of graphs that Dynamo has made since the test began."""
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters["stats"]
    first = counters["unique_graphs"]
    yield lambda: counters["unique_graphs"] - first
    torch.compiler.reset()


@pytest.mark.parametrize(("trunk", "head"), CASES)
def test_one_graph_a_canvas_gives_what_the_network_gives(trunk, head, graphs):
    network = Network(trunk, head)
    options = {"backend": "aot_eager", "fullgraph": True, "dynamic": False}
    losses, predict = torch.compile(network.losses, **options), torch.compile(network.__call__, **options)
    for number, size in enumerate([(64, 64), (96, 64), (64, 64)]):
        image, targets, sizes = batch(trunk, size)
        network.train()
        # The reductions of deep networks add up in another order.
        for found, wanted in zip(
            step(network, losses, image, targets), step(network, network.losses, image, targets), strict=True
        ):
            same(found, wanted, tolerance=0.01)
        network.eval()
        with torch.no_grad():
            found, expected = tensors(predict(image, sizes)), tensors(network(image, sizes))
        for name, wanted in expected.items():
            assert found[name].dtype == wanted.dtype
            assert (found[name].float() - wanted.float()).abs().mean() < 1e-3
        assert graphs() == 2 * min(number + 1, 2), "compiled again for a canvas that it knew"


@pytest.mark.parametrize(("trunk", "head"), CASES)
def test_inference_can_be_exported(trunk, head):
    network = Network(trunk, head).eval()
    image, _, sizes = batch(trunk, (64, 64))
    with torch.no_grad():
        found = torch.export.export(network, (image, sizes)).module()(image, sizes)
        expected = network(image, sizes)
    assert type(found) is type(expected)
    for name, wanted in tensors(expected).items():
        assert (tensors(found)[name].float() - wanted.float()).abs().mean() < 1e-3


def test_a_dataclass_of_ones_own_can_be_exported():
    from dataclasses import dataclass

    from trunkline.heads.base import RawClassification, exportable

    @exportable
    @dataclass
    class RawWithMaps(RawClassification):
        maps: torch.Tensor

    class Own(nn.Module):
        def forward(self, x):
            return RawWithMaps(x + 1, x)

    x = torch.ones(2)
    found = torch.export.export(Own(), (x,)).module()(x)
    assert type(found) is RawWithMaps and torch.equal(found.logits, x + 1) and torch.equal(found.maps, x)
