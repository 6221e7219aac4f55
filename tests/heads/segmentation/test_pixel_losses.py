"""Losses that are means over pixels, against torch, MONAI, smp and numbers by hand."""

import math

import pytest
import segmentation_models_pytorch.losses as smp
import torch
import torch.nn.functional as F
from loss_cases import NAN, SHAPES, WEIGHTS, K, batch, value_and_gradient
from monai import losses as monai

from trunkline.heads.segmentation.losses import (
    CrossEntropy,
    Focal,
    OnlineHardExampleMining,
)

# -- cross-entropy


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_equals_torchs(shape, smoothing, weights):
    logits, mask = batch(shape)
    expected = F.cross_entropy(
        logits, mask, weights and torch.tensor(weights), ignore_index=255, label_smoothing=smoothing
    )
    found, gradient = value_and_gradient(CrossEntropy(weights, smoothing), logits, mask)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])


def test_cross_entropy_equals_the_peers_soft_one_without_ignored_pixels():
    """With them smp's mean still divides by all pixels."""
    logits, mask = batch(ignored=0)
    peer = smp.SoftCrossEntropyLoss(smooth_factor=0.2, ignore_index=255)
    torch.testing.assert_close(CrossEntropy(label_smoothing=0.2)(logits, mask), peer(logits, mask).mean())


@pytest.mark.parametrize("kind", [CrossEntropy, Focal, OnlineHardExampleMining])
def test_training_goes_on_with_weights_that_a_validation_has_moved(kind):
    """Lightning validates in inference mode, also before training."""
    loss, mask = kind(class_weights=[1.0, 2.0, 3.0]), torch.randint(0, 3, (2, 4, 4))
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        loss.to("meta").to_empty(device="cpu")
        expected = loss(logits, mask).item()
    found = loss(logits, mask)
    found.backward()
    assert found.item() == expected and logits.grad.any()


def test_balanced_weights_by_hand():
    """60, 30 and 10 pixels of three classes that occur, none of the fourth: 100 / (3 * count)."""
    loss = CrossEntropy("balanced")
    assert loss.balanced and loss.class_weights is None and not CrossEntropy(WEIGHTS).balanced
    logits, mask = batch()
    with pytest.raises(ValueError, match=r"head\.loss\.class_weights is 'balanced'"):
        loss(logits, mask)
    loss.balance([60, 30, 10, 0])
    weights = [100 / 180, 100 / 90, 100 / 30, 1.0]
    assert loss.class_weights == pytest.approx(weights)
    torch.testing.assert_close(loss(logits, mask), CrossEntropy(weights)(logits, mask))
    other = CrossEntropy("balanced")
    other.set_class_weights(loss.class_weights)
    assert torch.equal(other(logits, mask), loss(logits, mask))
    assert not loss.state_dict()


# -- hard examples


def probabilities_of(*shares):
    """Two classes, one row of pixels of class 0 whose true class has these probabilities."""
    shares = torch.tensor(shares)
    return torch.stack([shares, 1 - shares]).log()[None, :, None], torch.zeros(1, 1, len(shares)).long()


@pytest.mark.parametrize(
    ("threshold", "min_kept", "kept"),
    [
        (0.5, 0.125, [0.1, 0.2, 0.3]),  # below the threshold
        (0.0, 0.25, [0.1, 0.2]),  # none is, so the hardest quarter of eight
        (0.25, 0.5, [0.1, 0.2, 0.3, 0.6]),  # fewer are than the half
        (0.0, 0.3, [0.1, 0.2, 0.3]),  # rounded up
        (1.0, 0.125, [0.1, 0.2, 0.3, 0.6, 0.7, 0.8, 0.85, 0.9]),
        (0.0, 1.0, [0.1, 0.2, 0.3, 0.6, 0.7, 0.8, 0.85, 0.9]),
    ],
)
def test_hard_pixels_by_hand(threshold, min_kept, kept):
    logits, mask = probabilities_of(0.7, 0.1, 0.9, 0.3, 0.6, 0.2, 0.8, 0.85)
    loss = OnlineHardExampleMining(threshold, min_kept)
    expected = -sum(map(math.log, kept)) / len(kept)
    assert loss(logits, mask).item() == pytest.approx(expected, rel=1e-5)
    # Ignored pixels are no hard ones, and do not count in the share.
    more = torch.cat([logits, torch.full((1, 2, 1, 9), NAN)], dim=3)
    ignored = torch.cat([mask, torch.full((1, 1, 9), 255)], dim=2)
    assert loss(more, ignored).item() == pytest.approx(expected, rel=1e-5)


def test_hard_pixels_are_weighed_but_not_chosen_by_class_weights():
    logits, mask = probabilities_of(0.2, 0.1, 0.9, 0.3)
    mask[0, 0, 1] = 1  # now at 0.9
    found = OnlineHardExampleMining(0.25, 0.5, [3.0, 100.0])(logits, mask)
    assert found.item() == pytest.approx(-(3 * math.log(0.2) + 3 * math.log(0.3)) / 6, rel=1e-5)
    both = OnlineHardExampleMining(0.0, 1.0, WEIGHTS)
    logits, mask = batch()
    torch.testing.assert_close(both(logits, mask), CrossEntropy(WEIGHTS)(logits, mask))


def test_equally_hard_pixels_all_count():
    """Where mmseg's "harder than the hardest that is left out" finds none."""
    logits, mask = probabilities_of(0.5, 0.5, 0.5, 0.5)
    assert OnlineHardExampleMining(0.2, 0.25)(logits, mask).item() == pytest.approx(math.log(2))


# -- focal


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_equals_the_peers(shape, gamma):
    logits, mask = batch(shape, ignored=0)
    found = Focal(gamma)(logits, mask)
    peer = smp._functional.softmax_focal_loss_with_logits(logits, mask, gamma)
    torch.testing.assert_close(found, peer)
    # MONAI takes the mean over classes too, of which all but one cost nothing.
    peer = monai.FocalLoss(to_onehot_y=True, gamma=gamma, use_softmax=True)
    torch.testing.assert_close(found, K * peer(logits, mask[:, None]))


def test_focal_equals_monais_with_class_weights_and_ignored_pixels():
    """MONAI divides by the number of pixels, ours by the sum of their weights, as cross-entropy does."""
    logits, mask = batch()
    peer = monai.FocalLoss(to_onehot_y=True, gamma=1.5, use_softmax=True, weight=WEIGHTS, ignore_index=255)
    labels = mask[mask != 255]
    mean_weight = torch.tensor(WEIGHTS)[labels].mean()
    torch.testing.assert_close(Focal(1.5, WEIGHTS)(logits, mask), peer(logits, mask[:, None]) / mean_weight)
    torch.testing.assert_close(Focal(0.0, WEIGHTS)(logits, mask), CrossEntropy(WEIGHTS)(logits, mask))
