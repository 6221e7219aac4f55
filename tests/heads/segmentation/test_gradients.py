"""Gradients of segmentation's losses are those of finite differences in float64 where others do not look.

``test_losses.py`` and ``test_regions.py`` check each loss by itself, with ignored pixels. Here: sums of
losses, which share a softmax, with and without squares; the same image by image, as large logits are taken;
class weights; a patch of which a whole image is ignored; saturated logits; all of it through a head, with
auxiliary maps at a coarser size. Second derivatives are refused, not wrong.
"""

import pytest
import torch
from loss_cases import WEIGHTS, K, batch
from torch.autograd import gradcheck

from trunkline.backbones.base import FeatureLevel
from trunkline.heads.segmentation import (
    FCN,
    CrossEntropy,
    Dice,
    Focal,
    Lovasz,
    OnlineHardExampleMining,
    Tversky,
    WeightedSum,
    pixels,
)
from trunkline.heads.segmentation.base import RawSegmentation

SUMS = {
    "plain": lambda: WeightedSum([CrossEntropy(WEIGHTS), Dice(include_background=False)], [0.3, 2.0]),
    "squared": lambda: WeightedSum([Dice(squared_denominator=True, per_image=True), CrossEntropy()]),
    "both": lambda: WeightedSum([Dice(squared_denominator=True), Tversky(gamma=0.75), Focal(1.5, WEIGHTS)]),
    "smoothed": lambda: WeightedSum([CrossEntropy(WEIGHTS, label_smoothing=0.2), Lovasz(classes="all")]),
    "mined": lambda: WeightedSum([OnlineHardExampleMining(0.6, 0.25, WEIGHTS), Lovasz(per_image=True)]),
    "nested": lambda: WeightedSum([WeightedSum([Dice(), CrossEntropy()]), Dice(classes="all")]),
}


def double(shape=(2, 3), **options):
    logits, mask = batch(shape, **options)
    return logits.detach().double().requires_grad_(), mask


@pytest.mark.parametrize(("ignored", "large"), [(0.0, False), (0.4, False), (0.4, True)])
@pytest.mark.parametrize("name", SUMS)
def test_sums_of_losses(monkeypatch, name, ignored, large):
    logits, mask = double(ignored=ignored, images=3)
    if ignored:
        mask[2] = 255
    if large:
        monkeypatch.setattr(pixels, "LARGE", logits.numel() - 1)
    loss = SUMS[name]()
    assert loss(logits, mask).dtype == torch.float64
    assert gradcheck(lambda x: loss(x, mask), logits)


@pytest.mark.parametrize("name", SUMS)
def test_saturated_logits_have_finite_values_and_gradients(name):
    for size in (1e3, 1e20, 1e35):  # the sum over the pixels is a number still
        logits, mask = batch((6, 7))
        logits = (size * logits.detach().sign()).requires_grad_()
        loss = SUMS[name]()(logits, mask)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite() and gradient.isfinite().all()
    logits, mask = double()
    right = (
        torch.where(mask[:, None] == torch.arange(K)[:, None, None], 30.0, -30.0).double().requires_grad_()
    )
    assert gradcheck(lambda x: SUMS[name]()(x, mask), right)


@pytest.mark.parametrize("name", SUMS)
def test_losses_of_a_head_with_auxiliary_maps(name):
    head = FCN([FeatureLevel(4, (8, 8))], K, loss=SUMS[name](), aux_weight=0.4)
    logits, mask = double((4, 4), images=2)
    aux = torch.randn(2, K, 2, 2, dtype=torch.float64, requires_grad=True)

    class Targets:
        pass

    targets = Targets()
    targets.mask = mask

    def losses(x, coarse):
        return tuple(head.losses(RawSegmentation(x, (coarse,)), targets).values())

    assert all(value.dtype == torch.float64 for value in losses(logits, aux))
    assert gradcheck(losses, (logits, aux), fast_mode=True)


def test_second_derivatives_are_refused():
    logits, mask = double()
    loss = SUMS["plain"]()(logits, mask)
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("label", [K, 254, -1])
@pytest.mark.parametrize("name", SUMS)
def test_a_label_of_no_class_is_an_error(name, label):
    logits, mask = double()
    mask[1, 0, 1] = label
    for loss in SUMS[name]().losses:
        with pytest.raises((IndexError, RuntimeError), match="out of bounds|there are 4 classes"):
            loss(logits, mask)
