"""What a trunk declares is compared with what it returns, once for each size of images."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trunkline.backbones import FPN, Backbone, DenseNet, FeatureLevel, ResidualEncoder, ResNet, TimmBackbone
from trunkline.backbones.maps import check_maps
from trunkline.heads import FCN, Classifier, FasterRCNN, UNet
from trunkline.tasks.base.network import Network
from trunkline.tasks.classification.task import Classification

SIZES = [(64, 64), (37, 61), (65, 33), (95, 127), (96, 200)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "make",
    [
        lambda: ResNet(10, width=8),  # rounds up
        lambda: ResNet(10, width=8, output_stride=8),
        lambda: DenseNet(121),  # rounds down
        lambda: FPN(ResNet(10, width=8), channels=8, extra="convs"),
    ],
)
def test_rounding_of_odd_sizes_up_or_down_is_allowed(make, size):
    net = make().eval()
    with torch.no_grad():
        check_maps(net, net(torch.zeros(1, 3, *size)), size)


@pytest.mark.parametrize(
    "name", ["test_convnext", "test_efficientnet", "test_resnet", "test_vit", "inception_v3"]
)
@pytest.mark.parametrize("size", [(96, 96), (160, 160), (301, 245)])
def test_networks_of_timm_fit_what_timm_declares(name, size):
    """inception_v3 has convolutions without padding, so its maps lack up to five cells."""
    net = TimmBackbone(name).eval()
    with torch.no_grad():
        check_maps(net, net(torch.zeros(1, 3, *size)), size)


class Resizing(Backbone):
    """Declares stride 4, and brings every image to 64 pixels first, as some networks of timm do."""

    def __init__(self, channels=4, maps=1):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, 4)
        self.maps = maps
        self.levels = (FeatureLevel(channels, (4, 4)),)

    def forward(self, image):
        return [self.conv(F.interpolate(image, (64, 64)))] * self.maps


def network(backbone, head=lambda levels: FCN(levels, 2)):
    return Network(backbone=backbone, head=head)


def test_a_trunk_that_resizes_its_input_is_refused_at_every_size_but_its_own():
    task = network(Resizing())
    task.run(torch.zeros(1, 3, 64, 64))
    for _ in range(2):  # a size that was refused is not taken for checked
        with pytest.raises(
            ValueError, match=r"Resizing declares stride 4 x 4 for level 0, but made a map of "
        ):
            task.run(torch.zeros(1, 3, 128, 96))
    with pytest.raises(ValueError, match=r"16 x 16 cells from an image of 96 x 96, which is 6 x 6 pixels"):
        task.run(torch.zeros(1, 3, 96, 96))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": 8}, r"declares 8 channels .* returned a map of shape \[1, 4, 16, 16\]"),
        ({"maps": 2}, "declares 1 levels and returned 2 maps"),
    ],
)
def test_other_channels_and_numbers_of_maps_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        network(Resizing(**options), lambda levels: Classifier(levels, 2)).run(torch.zeros(1, 3, 64, 64))


def test_a_wrong_stride_under_a_neck_is_refused_too():
    trunk = ResNet(10, width=8)
    trunk.levels = tuple(FeatureLevel(level.channels, (8, 8)) for level in trunk.levels)
    with pytest.raises(ValueError, match="FPN declares stride 8 x 8 for level 0"):
        network(FPN(trunk, channels=8), lambda levels: FasterRCNN(levels, 2)).run(torch.zeros(1, 3, 96, 96))


def test_each_size_is_checked_once(monkeypatch):
    seen = []
    monkeypatch.setattr("trunkline.tasks.base.network.check_maps", lambda *given: seen.append(given[2]))
    task = network(ResNet(10, width=8))
    for size in [(64, 64), (64, 96), (64, 64), (64, 96)]:
        task.run(torch.zeros(2, 3, *size))
    assert seen == [(64, 64), (64, 96)]


@pytest.mark.parametrize(
    ("make", "size", "words"),
    [
        (
            lambda: network(ResNet(10, width=8)),
            (3, 32, 32),
            "too little for a norm that .* is 1 image of 32 x 32",
        ),
        (
            lambda: Classification(
                backbone=ResNet(10, width=8, norm="instance"), head=lambda levels: Classifier(levels, 2)
            ),
            (3, 32, 32),
            "coarsest map is a single cell is too small for instance norm .*--data.patch",
        ),
        (
            lambda: network(
                ResidualEncoder(channels=[4, 8], blocks=[1, 1], strides=[1, 2], in_channels=1, ndim=3),
                lambda levels: UNet(levels, 2),
            ),
            (1, 2, 2, 2),
            "too small for instance norm .*image of 2 x 2 x 2",
        ),
        (
            lambda: network(ResNet(10, width=8, norm="group"), lambda levels: FCN(levels, 2, norm="batch")),
            (3, 32, 32),
            "too little for a norm that .*--model.head.norm",
        ),
    ],
)
def test_norms_that_see_a_single_value_are_explained(make, size, words):
    with pytest.raises(ValueError, match=words):
        make().train().run(torch.zeros(1, *size))
