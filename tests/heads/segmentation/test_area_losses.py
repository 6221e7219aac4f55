"""Dice, Tversky and Lovász, against MONAI, smp and numbers by hand."""

import math

import pytest
import segmentation_models_pytorch.losses as smp
import torch
import torch.nn.functional as F
from loss_cases import SHAPES, K, batch, value_and_gradient
from monai import losses as monai

from trunkline.heads.segmentation.losses import (
    Dice,
    Lovasz,
    Tversky,
)

# -- Dice and Tversky


def one_image(mask):
    """``[1, K, N]`` logits of two classes with shares of 0.8, 0.6, 0.3 of class 0, and this mask."""
    shares = torch.tensor([0.8, 0.6, 0.3])
    return torch.stack([shares, 1 - shares]).log()[None], torch.tensor([mask])


def test_dice_by_hand():
    """Class 0: I 1.4, P 1.7, T 2; class 1: I 0.7, P 1.3, T 1."""
    logits, mask = one_image([0, 0, 1])
    first, second = 2.8 / 3.7, 1.4 / 2.3
    assert Dice(smooth=0)(logits, mask).item() == pytest.approx(1 - (first + second) / 2)
    assert Dice(smooth=0, include_background=False)(logits, mask).item() == pytest.approx(1 - second)
    smooth = (2.8 + 2) / (3.7 + 2) + (1.4 + 2) / (2.3 + 2)
    assert Dice(smooth=2)(logits, mask).item() == pytest.approx(1 - smooth / 2)
    squares = 0.64 + 0.36 + 0.09, 0.04 + 0.16 + 0.49
    found = Dice(smooth=0, squared_denominator=True)(logits, mask).item()
    assert found == pytest.approx(1 - (2.8 / (squares[0] + 2) + 1.4 / (squares[1] + 1)) / 2)


def test_absent_classes_by_hand():
    """All of class 0, I 1.7, P 1.7, T 3: class 1 is left out, or counts for its 1.3 false positives."""
    logits, mask = one_image([0, 0, 0])
    present, absent = 1 - 3.4 / 4.7, 1 - 0.1 / 1.4
    assert Dice(smooth=0)(logits, mask).item() == pytest.approx(present)
    both = (1 - 3.5 / 4.8 + absent) / 2
    assert Dice(smooth=0.1, classes="all")(logits, mask).item() == pytest.approx(both)
    assert Dice(include_background=False)(logits, mask).item() == 0.0
    found = Tversky(0.5, 1.0, smooth=0.1, classes="all")(logits, mask).item()
    assert found == pytest.approx((1 - 1.8 / (1.7 + 1.3 + 0.1) + 1 - 0.1 / 0.75) / 2)
    # The largest probability of class 1, and the largest error of class 0.
    assert Lovasz(classes="all")(logits, mask).item() == pytest.approx((0.7 + (0.7 + 0.4 + 0.2) / 3) / 2)
    assert Lovasz()(logits, mask).item() == pytest.approx(1.3 / 3)


@pytest.mark.parametrize("loss", [Dice, Tversky, Lovasz])
def test_per_image_is_the_mean_of_the_images(loss):
    logits, mask = batch()
    apart = torch.stack([loss()(logits[i : i + 1], mask[i : i + 1]) for i in range(2)]).mean()
    torch.testing.assert_close(loss(per_image=True)(logits, mask), apart)
    assert abs(loss()(logits, mask) - apart) > 1e-3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ignored", [0.0, 0.3])
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("per_image", [True, False])
def test_dice_of_all_classes_equals_monais(shape, ignored, background, squared, per_image):
    logits, mask = batch(shape, ignored)
    peer = monai.DiceLoss(
        include_background=background,
        to_onehot_y=True,
        softmax=True,
        squared_pred=squared,
        smooth_nr=0.1,
        smooth_dr=0.1,
        batch=not per_image,
        ignore_index=255,
    )
    found = Dice(per_image, squared, 0.1, background, "all")(logits, mask)
    torch.testing.assert_close(found, peer(logits, mask[:, None]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("per_image", [True, False])
def test_tversky_of_all_classes_equals_monais(shape, per_image):
    logits, mask = batch(shape)
    peer = monai.TverskyLoss(
        include_background=False,
        to_onehot_y=True,
        softmax=True,
        alpha=0.2,
        beta=0.9,
        smooth_nr=0.1,
        smooth_dr=0.1,
        batch=not per_image,
        ignore_index=255,
    )
    found = Tversky(0.2, 0.9, 1.0, per_image, 0.1, False, "all")(logits, mask)
    torch.testing.assert_close(found, peer(logits, mask[:, None]))


@pytest.mark.parametrize("shape", SHAPES)
def test_present_classes_equal_the_peers(shape):
    """smp counts absent classes as perfect: its mean is over all K, here 4, of which three are there."""
    logits, mask = batch(shape)
    dice = smp.DiceLoss("multiclass", ignore_index=255)
    torch.testing.assert_close(Dice(smooth=0)(logits, mask), dice(logits, mask) * K / 3)
    tversky = smp.TverskyLoss("multiclass", ignore_index=255, alpha=0.2, beta=0.9)
    torch.testing.assert_close(Tversky(0.2, 0.9, smooth=0)(logits, mask), tversky(logits, mask) * K / 3)


def test_gamma_is_taken_of_each_class():
    logits, mask = one_image([0, 0, 1])
    # Class 0: I 1.4, FP 0.3, FN 0.6; class 1: I 0.7, FP 0.6, FN 0.3.
    losses = 1 - 1.4 / (1.4 + 0.2 * 0.3 + 0.9 * 0.6), 1 - 0.7 / (0.7 + 0.2 * 0.6 + 0.9 * 0.3)
    for gamma in (0.75, 1.0, 2.0):
        expected = (losses[0] ** gamma + losses[1] ** gamma) / 2
        assert Tversky(0.2, 0.9, gamma, smooth=0)(logits, mask).item() == pytest.approx(expected, rel=1e-5)


def test_tversky_is_dice_at_one_half():
    logits, mask = batch()
    torch.testing.assert_close(Tversky(0.5, 0.5, smooth=0)(logits, mask), Dice(smooth=0)(logits, mask))


# -- Lovász


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("per_image", [True, False])
def test_lovasz_equals_the_authors(shape, per_image):
    """Berman's own code, which smp carries; its values and its gradients."""
    logits, mask = batch(shape)
    peer = smp.LovaszLoss("multiclass", per_image, ignore_index=255)(logits, mask)
    value, gradient = value_and_gradient(Lovasz(per_image), logits, mask)
    torch.testing.assert_close(value, peer)
    torch.testing.assert_close(gradient, torch.autograd.grad(peer, logits)[0])
    shares = logits.softmax(1)
    peer = smp.lovasz._lovasz_softmax(shares, mask, "all", per_image, 255)
    torch.testing.assert_close(Lovasz(per_image, "all")(logits, mask), peer)


def test_lovasz_of_a_hard_prediction_is_one_minus_iou():
    """Class 0: 1 of 3, class 1: 1 of 3, class 2: 1 of 2 in the union."""
    mask = torch.tensor([[0, 0, 1, 1, 2]])
    taken = torch.tensor([[0, 1, 1, 2, 2]])
    logits = 1e4 * F.one_hot(taken, K).movedim(-1, 1).float()
    expected = 1 - (1 / 2 + 1 / 3 + 1 / 2) / 3
    assert Lovasz()(logits, mask).item() == pytest.approx(expected)


def test_lovasz_keeps_its_digits_over_millions_of_pixels():
    """Every pixel has the error e, so the loss is e times the whole of 1 - IoU: e itself, for both classes.

    The differences of neighbouring values that the authors' code takes are off by nearly a thousandth here.
    """
    pixels = 2_000_000
    mask = (torch.arange(pixels) % 3 == 0).long()[None]
    logits = 0.5 * F.one_hot(mask, 2).movedim(-1, 1).float()
    error = 1 / (1 + math.exp(0.5))
    assert Lovasz()(logits, mask).item() == pytest.approx(error, rel=1e-5)
