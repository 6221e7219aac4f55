"""Losses of many logits, computed image by image, equal those of the batch, and hold less memory."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trunkline.backbones.base import FeatureLevel
from trunkline.heads.segmentation import FCN, RawSegmentation, SegmentationLoss, losses, pixels

KINDS = {
    "plain": lambda: losses.CrossEntropy(),
    "weighted": lambda: losses.CrossEntropy([0.2, 1.0, 3.0, 0.5]),
    "smoothed": lambda: losses.CrossEntropy([0.2, 1.0, 3.0, 0.5], label_smoothing=0.1),
    "focal": lambda: losses.Focal(class_weights=[0.2, 1.0, 3.0, 0.5]),
    "hard": lambda: losses.OnlineHardExampleMining(),
    "dice": lambda: losses.Dice(),
    "tversky": lambda: losses.Tversky(per_image=True),
    "lovasz": lambda: losses.Lovasz(),
    "sum": lambda: losses.WeightedSum([losses.Dice(), losses.CrossEntropy()]),
}
SINGLE = ["plain", "weighted", "focal", "hard", "dice", "tversky", "sum"]  # never float32 of the whole batch


class Squares(SegmentationLoss):
    """A loss of one's own, which cannot compute in half precision."""

    def forward(self, logits, mask):
        assert logits.dtype == torch.float32
        return logits.square().mean()


class Halved(losses.WeightedSum):
    def terms(self, logits, mask):
        return {name: value / 2 for name, value in super().terms(logits, mask).items()}


class Largest(TorchDispatchMode):
    """The size of the largest float32 result."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for value in torch.utils._pytree.tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
                self.numbers = max(self.numbers, value.numel())
        return result


def case(dtype=torch.float32):
    """Three images: one labelled in part, with NaN where it is not, one without a label, one as a whole."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(3, 4, 6, 8, generator=generator)).to(dtype)
    mask = torch.randint(0, 4, (3, 6, 8), dtype=torch.uint8, generator=generator)
    mask[0, :2], mask[1] = 255, 255
    logits[0, :, 0] = float("nan")
    return logits.requires_grad_(), mask


def computed(loss, logits, mask):
    head = FCN([FeatureLevel(4, (4, 4))], 4, loss=loss)
    terms = head.losses(RawSegmentation(logits), SimpleNamespace(mask=mask))
    sum(terms.values()).backward()
    return {name: value.detach() for name, value in terms.items()}, logits.grad


@pytest.mark.parametrize("name", KINDS)
def test_image_by_image_equals_the_batch(monkeypatch, name):
    loss = KINDS[name]()
    terms, gradient = computed(loss, *case())
    monkeypatch.setattr(pixels, "LARGE", 0)
    one_by_one, other = computed(loss, *case())
    assert one_by_one.keys() == terms.keys()
    torch.testing.assert_close(one_by_one, terms)
    torch.testing.assert_close(other, gradient)
    assert not other[0, :, :2].any() and not other[1].any() and other[2].any()


def test_a_batch_without_labels_costs_nothing(monkeypatch):
    monkeypatch.setattr(pixels, "LARGE", 0)
    logits, mask = case()
    terms, gradient = computed(losses.CrossEntropy(), logits, mask.fill_(255))
    assert terms == {"cross_entropy": 0} and not gradient.any()


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("most", [0, 2**28])
def test_single_precision_is_made_of_one_image_at_a_time(monkeypatch, most, name):
    monkeypatch.setattr(pixels, "LARGE", most)
    logits, mask = case(torch.bfloat16)
    with Largest() as seen:
        _, gradient = computed(KINDS[name](), logits, mask)
    assert gradient.dtype == torch.bfloat16
    assert seen.numbers == logits.numel() // (1 if most else 3)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "smoothed"])
def test_half_precision_gives_what_its_values_give_in_single(monkeypatch, name):
    monkeypatch.setattr(pixels, "LARGE", 0)
    logits, mask = case(torch.bfloat16)
    terms, gradient = computed(KINDS[name](), logits, mask)
    exact, other = computed(KINDS[name](), logits.detach().float().requires_grad_(), mask)
    torch.testing.assert_close(terms, exact)
    torch.testing.assert_close(gradient, other.bfloat16())


def test_losses_of_ones_own_get_the_whole_batch_in_single_precision(monkeypatch):
    monkeypatch.setattr(pixels, "LARGE", 0)
    logits, mask = case_without_nan(torch.bfloat16)
    mean = logits.detach().float().square().mean()
    assert computed(Squares(), logits, mask)[0] == {"squares": mean}
    found, _ = computed(losses.WeightedSum([Squares(), losses.CrossEntropy()]), logits, mask)
    assert found["squares"] == mean
    whole = losses.WeightedSum([losses.Dice(), losses.CrossEntropy()])
    for outer in (Halved(whole.losses), losses.WeightedSum([Halved(whole.losses)])):
        found, _ = computed(outer, logits, mask)
        expected, _ = computed(whole, logits, mask)
        torch.testing.assert_close(found, {name: value / 2 for name, value in expected.items()})


def case_without_nan(dtype=torch.float32):
    logits, mask = case(dtype)
    return logits.detach().nan_to_num().requires_grad_(), mask


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "focal", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_compiles(monkeypatch, name, dtype):
    monkeypatch.setattr(pixels, "LARGE", 0)
    expected, gradient = computed(KINDS[name](), *case_without_nan(dtype))
    logits, mask = case_without_nan(dtype)
    head = FCN([FeatureLevel(4, (4, 4))], 4, loss=KINDS[name]())
    compiled = torch.compile(head.losses, fullgraph=True, dynamic=False, backend="aot_eager")
    terms = compiled(RawSegmentation(logits), SimpleNamespace(mask=mask))
    sum(terms.values()).backward()
    torch.testing.assert_close({name: value.detach() for name, value in terms.items()}, expected)
    torch.testing.assert_close(logits.grad, gradient)
