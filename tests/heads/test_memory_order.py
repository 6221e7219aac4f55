"""Channels last from the image to the scores: no layer changes the memory order, and none copies to do so."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trunkline.backbones import FPN, CifarResNet, DenseNet, ResidualEncoder, ResNet
from trunkline.heads import FCN, UNet
from trunkline.heads.segmentation import DeepLabV3, DeepLabV3Plus, SemanticFPN

ORDERS = {4: torch.channels_last, 5: torch.channels_last_3d}
VIEWS = {"view", "_unsafe_view", "expand", "detach", "slice", "select", "unsqueeze", "permute", "alias"}


class Orders(TorchDispatchMode):
    """Counts operators that return maps in another order, and copies."""

    def __init__(self):
        super().__init__()
        self.others, self.copies = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        for x in out if isinstance(out, tuple | list) else [out]:
            # A single channel or cell lies in both orders.
            if isinstance(x, torch.Tensor) and x.ndim in ORDERS and min(x.shape[1], x[0, 0].numel()) > 1:
                wrong = not x.is_contiguous(memory_format=ORDERS[x.ndim])
                self.others[name] += wrong and name not in VIEWS
        self.copies[name] += name in ("clone", "contiguous", "copy_")
        return out

    def seen(self):
        return {name: n for name, n in self.others.items() if n}, {
            name: n for name, n in self.copies.items() if n
        }


def encoder(norm):
    return ResidualEncoder((8, 16), (1, 1), in_channels=3, ndim=2, norm=norm)


NETWORKS = {
    "fcn": (lambda: ResNet(18, width=8), lambda levels: FCN(levels, 3, aux=-2, skips=2)),
    "frozen": (lambda: ResNet(26, width=8, norm="frozen_batch"), lambda levels: FCN(levels, 3)),
    "resnext": (lambda: ResNet(26, groups=4, width_per_group=16, width=8), lambda levels: FCN(levels, 3)),
    "variants": (
        lambda: ResNet(
            26, width=8, stem="deep", shortcut="average", anti_alias=True, squeeze_excitation=True
        ),
        lambda levels: UNet(levels, 3, deep_supervision=True),
    ),
    "pre-activation": (lambda: ResNet(18, width=8, pre_activation=True), lambda levels: FCN(levels, 3)),
    "cifar": (lambda: CifarResNet(8), lambda levels: FCN(levels, 3)),
    "densenet": (lambda: DenseNet(121), lambda levels: FCN(levels, 3)),
    "pyramid": (
        lambda: FPN(ResNet(18, width=8), channels=8, extra="convs"),
        lambda levels: SemanticFPN(levels[:4], 3),
    ),
    "deeplab": (lambda: ResNet(18, width=8), lambda levels: DeepLabV3(levels, 3, channels=8, rates=(1, 2))),
    "deeplab+": (
        lambda: ResNet(18, width=8),
        lambda levels: DeepLabV3Plus(levels, 3, channels=8, rates=(1,)),
    ),
    "transposed": (lambda: encoder("batch"), lambda levels: UNet(levels, 3, upsampling="transposed")),
    "instance": (lambda: encoder("instance"), lambda levels: UNet(levels, 3, norm="instance")),
    "group": (lambda: encoder("group"), lambda levels: UNet(levels, 3, norm="group")),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore:the trunk has no weights")
def test_every_map_lies_channels_last(name):
    trunk, head = NETWORKS[name]
    trunk = trunk()
    head = head(trunk.levels)
    for part in (trunk, head):
        part.to(memory_format=torch.channels_last)
    image = torch.randn(2, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    with Orders() as orders:
        maps = trunk(image)
        raw = head(maps[:4], (64, 96))
    # DeepLab writes the mean of each image out, for every cell.
    assert orders.seen() == ({}, {"clone": 1} if name.startswith("deeplab") else {})
    for x in [*maps, raw.logits, *raw.aux]:
        assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.filterwarnings("ignore:the trunk has no weights")
def test_gradients_of_trunks_lie_channels_last():
    trunk = ResNet(26, width=8, norm="frozen_batch").to(memory_format=torch.channels_last)
    maps = trunk(torch.randn(2, 3, 64, 96).contiguous(memory_format=torch.channels_last))
    with Orders() as orders:
        torch.autograd.backward(maps, [torch.randn_like(x) for x in maps])
    assert orders.seen() == ({}, {})
    for parameter in trunk.parameters():
        if parameter.ndim == 4:
            assert parameter.grad.is_contiguous(memory_format=torch.channels_last)
