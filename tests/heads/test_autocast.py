"""Losses inside autocast: float32, finite, and those of float32, also for batches without any label."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trunkline.backbones.base import FeatureLevel
from trunkline.data.detection.batches import DetectionBatch
from trunkline.heads import FCN, Classifier, FasterRCNN, UNet
from trunkline.heads.detection import RoIOptions
from trunkline.heads.segmentation import (
    CrossEntropy,
    Dice,
    Focal,
    Lovasz,
    OnlineHardExampleMining,
    Tversky,
    WeightedSum,
)

K = 3
SIZE = (64, 64)
WEIGHTS = [0.013, 2.7, 4.1]  # that no half precision holds
KINDS = [torch.float16, torch.bfloat16]
LEVELS = [FeatureLevel(8, (4, 4)), FeatureLevel(8, (8, 8)), FeatureLevel(8, (16, 16))]
LOSSES = {
    "cross-entropy": lambda: CrossEntropy(WEIGHTS, label_smoothing=0.1),
    "hard examples": lambda: OnlineHardExampleMining(class_weights=WEIGHTS),
    "focal": lambda: Focal(class_weights=WEIGHTS),
    "dice": Dice,
    "tversky": Tversky,
    "lovasz": Lovasz,
    "sum": lambda: WeightedSum([CrossEntropy(), Dice()], [1.0, 0.3]),
}
HEADS = {
    **{
        f"fcn, {name}": lambda loss=loss: FCN(LEVELS, K, aux=-2, loss=loss()) for name, loss in LOSSES.items()
    },
    "unet": lambda: UNet(LEVELS, K, deep_supervision=True),
    "regions": lambda: FCN(LEVELS, K, regions=[[1, 2], [2]], loss=WeightedSum([CrossEntropy(), Dice()])),
    "classes": lambda: Classifier(LEVELS, K, class_weights=WEIGHTS, label_smoothing=0.1),
    "soft classes": lambda: Classifier(LEVELS, K, class_weights=WEIGHTS),
    "binary": lambda: Classifier(LEVELS, K, multi_label=True, class_weights=WEIGHTS),
    "boxes": lambda: FasterRCNN(LEVELS, K, roi=RoIOptions(hidden=16, levels=3)),
}


class Targets:
    """Labels for every head; without any, if ``labelled`` is false."""

    def __init__(self, name, labelled):
        generator = torch.Generator().manual_seed(1)
        self.mask = torch.randint(0, K, (2, *SIZE), dtype=torch.uint8, generator=generator)
        self.label = torch.tensor([2, 0])
        if name in ("soft classes", "binary"):
            self.label = torch.rand(2, K, generator=generator).softmax(1)
        if not labelled:
            self.mask.fill_(255)
            self.label = torch.full_like(self.label, -1)


class Products(TorchDispatchMode):
    """Notes matrix products and convolutions of half precision."""

    NAMES = ("mm", "bmm", "addmm", "baddbmm", "addmv", "mv", "dot", "convolution", "linear")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ in self.NAMES and out.dtype in KINDS:
            self.seen.append(function.overloadpacket.__name__)
        return out


def raw_of(head):
    generator = torch.Generator().manual_seed(2)
    maps = [torch.randn(2, 8, 64 // s, 64 // s, generator=generator) for s in (4, 8, 16)]
    return head(maps, SIZE)


def boxes(labelled):
    rows = torch.tensor([[[4.0, 4, 30, 40], [20, 20, 60, 60]], [[0, 8, 50, 50], [1, 1, 9, 9]]])
    return DetectionBatch(
        image=torch.zeros(2, 3, *SIZE, dtype=torch.uint8),
        image_sizes=torch.tensor([SIZE, SIZE]),
        boxes=rows,
        labels=torch.tensor([[0, 2], [1, -1]]) if labelled else torch.full((2, 2), -1),
        crowd=torch.zeros(2, 2, dtype=torch.bool),
        image_ids=torch.tensor([1, 2]),
        original_sizes=torch.tensor([SIZE, SIZE]),
    )


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "no label"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_losses_are_those_of_float32(name, kind, labelled):
    torch.manual_seed(0)
    head = HEADS[name]()
    targets = boxes(labelled) if name == "boxes" else Targets(name, labelled)
    if name == "boxes":  # its losses run layers, and choose proposals: only types and ranges can be compared
        with torch.autocast("cpu", kind):
            found = head.losses(raw_of(head), targets)
    else:
        raw = raw_of(head)
        expected = head.losses(raw, targets)
        with torch.autocast("cpu", kind), Products() as products:
            found = head.losses(raw, targets)
        assert not products.seen
        with torch.autocast("cpu", kind):
            rounded = head.losses(raw_of(head), targets)  # of logits in half precision
        assert found.keys() == expected.keys() == rounded.keys()
        for part, value in found.items():
            torch.testing.assert_close(value, expected[part], rtol=1e-6, atol=1e-7)
            assert rounded[part].dtype == torch.float32 and rounded[part].isfinite(), part
            assert labelled or value == 0
    for part, value in found.items():
        assert value.dtype == torch.float32 and value.isfinite(), part
    torch.stack(list(found.values())).sum().backward()
    for part, parameter in head.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), part
