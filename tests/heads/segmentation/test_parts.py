"""Losses of single images, put together, equal those of the batch, and hold less memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trunkline.heads.segmentation import losses, parts
from trunkline.heads.segmentation.parts import terms_of

KINDS = {
    "plain": lambda: losses.CrossEntropy(),
    "weighted": lambda: losses.CrossEntropy([0.2, 1.0, 3.0, 0.5]),
    "smoothed": lambda: losses.CrossEntropy([0.2, 1.0, 3.0, 0.5], label_smoothing=0.1),
    "focal": lambda: losses.Focal(class_weights=[0.2, 1.0, 3.0, 0.5]),
}


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
    terms = terms_of(loss, logits, mask)
    sum(terms.values()).backward()
    return {name: value.detach() for name, value in terms.items()}, logits.grad


@pytest.mark.parametrize("name", KINDS)
def test_image_by_image_equals_the_batch(monkeypatch, name):
    loss = KINDS[name]()
    terms, gradient = computed(loss, *case())
    monkeypatch.setattr(parts, "MOST_AT_ONCE", 0)
    one_by_one, other = computed(loss, *case())
    assert one_by_one.keys() == terms.keys()
    torch.testing.assert_close(one_by_one, terms)
    torch.testing.assert_close(other, gradient)
    assert not other[0, :, :2].any() and not other[1].any() and other[2].any()


def test_a_batch_without_labels_costs_nothing(monkeypatch):
    monkeypatch.setattr(parts, "MOST_AT_ONCE", 0)
    logits, mask = case()
    terms, gradient = computed(losses.CrossEntropy(), logits, mask.fill_(255))
    assert terms == {"cross_entropy": 0} and not gradient.any()


@pytest.mark.parametrize("most", [0, 2**28])
def test_single_precision_is_made_of_one_image_at_a_time(monkeypatch, most):
    monkeypatch.setattr(parts, "MOST_AT_ONCE", most)
    logits, mask = case(torch.bfloat16)
    with Largest() as seen:
        computed(losses.CrossEntropy(), logits, mask)
    assert seen.numbers == logits.numel() // (1 if most else 3)


def test_a_loss_that_is_no_mean_over_pixels_sees_the_whole_batch(monkeypatch):
    expected, gradient = computed(losses.Dice(), *case_without_nan())
    monkeypatch.setattr(parts, "MOST_AT_ONCE", 0)
    found, other = computed(losses.Dice(), *case_without_nan())
    assert found == expected and torch.equal(other, gradient)


def case_without_nan():
    logits, mask = case()
    return logits.detach().nan_to_num().requires_grad_(), mask


def test_it_compiles(monkeypatch):
    monkeypatch.setattr(parts, "MOST_AT_ONCE", 0)
    loss = losses.CrossEntropy()
    plain, gradient = computed(loss, *case_without_nan())
    logits, mask = case_without_nan()
    compiled = torch.compile(terms_of, fullgraph=True, dynamic=False, backend="aot_eager")
    terms = compiled(loss, logits, mask)
    terms["cross_entropy"].backward()
    torch.testing.assert_close(terms["cross_entropy"].detach(), plain["cross_entropy"])
    torch.testing.assert_close(logits.grad, gradient)
