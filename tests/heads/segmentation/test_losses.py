"""The losses against torch, MONAI, segmentation_models_pytorch and numbers by hand."""

import math

import pytest
import segmentation_models_pytorch.losses as smp
import torch
import torch.nn.functional as F
from monai import losses as monai

from trunkline.heads.segmentation import loss_base, region_losses
from trunkline.heads.segmentation.losses import (
    CrossEntropy,
    Dice,
    Focal,
    Lovasz,
    OnlineHardExampleMining,
    SegmentationLoss,
    Tversky,
    WeightedSum,
)

K = 4
WEIGHTS = [0.5, 2.0, 1.0, 3.0]
SHAPES = [(6, 7), (3, 4, 5)]
NAN = float("nan")
EVERY = {
    "cross_entropy": lambda: CrossEntropy(WEIGHTS, 0.1),
    "ohem": lambda: OnlineHardExampleMining(0.3, 0.25, WEIGHTS),
    "focal": lambda: Focal(2.0, WEIGHTS),
    "focal_root": lambda: Focal(0.5),
    "dice": lambda: Dice(),
    "dice_per_image": lambda: Dice(True, True, 0.5, False, "all"),
    "tversky": lambda: Tversky(),
    "tversky_root": lambda: Tversky(0.3, 0.7, 0.75, True, 0.0, False),
    "lovasz": lambda: Lovasz(),
    "lovasz_per_image": lambda: Lovasz(True, "all"),
    "sum": lambda: WeightedSum([CrossEntropy(), Dice(), Dice(classes="all")], [1.0, 0.5, 2.0]),
}


def batch(shape=(6, 7), ignored=0.3, classes=K, images=2, seed=0):
    """Logits and a mask of which every class but the last occurs, in one image or both."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, classes, *shape, generator=generator)
    mask = torch.randint(0, classes - 1, (images, *shape), generator=generator)
    mask[0] = mask[0].clamp(min=1)  # the first image has no class 0
    mask[torch.rand(mask.shape, generator=generator) < ignored] = 255
    return logits.requires_grad_(), mask


def without_ignored(logits, mask):
    """The labelled pixels in a row, as one image."""
    valid = mask != 255
    return logits.movedim(1, -1)[valid].T[None], mask[valid][None]


def value_and_gradient(loss, logits, mask):
    value = loss(logits, mask)
    return value, torch.autograd.grad(value, logits)[0]


# -- what all of them promise


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", EVERY)
def test_ignored_pixels_do_not_count(name, shape):
    """The loss, and the gradient of each labelled pixel, are those of the data without the ignored ones."""
    logits, mask = batch(shape)
    loss = EVERY[name]()
    value, gradient = value_and_gradient(loss, logits, mask)
    assert (gradient.movedim(1, -1)[mask == 255] == 0).all()
    if "per_image" in name or name == "tversky_root":  # images of different size: one at a time
        parts = [loss(*without_ignored(logits[i : i + 1], mask[i : i + 1])) for i in range(2)]
        rest = torch.stack(parts).mean()
    else:
        rest = loss(*without_ignored(logits, mask))
    torch.testing.assert_close(value, rest)
    torch.testing.assert_close(gradient, torch.autograd.grad(rest, logits)[0])


@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
@pytest.mark.parametrize("name", EVERY)
def test_what_ignored_pixels_hold_does_not_leak(name, bad):
    logits, mask = batch()
    loss = EVERY[name]()
    value, gradient = value_and_gradient(loss, logits, mask)
    spoilt = torch.where((mask == 255)[:, None], bad, logits.detach()).requires_grad_()
    other, same = value_and_gradient(loss, spoilt, mask)
    assert other == value and torch.equal(same, gradient)


@pytest.mark.parametrize("name", EVERY)
def test_what_is_left_out_where_all_pixels_are_labelled_changes_nothing(monkeypatch, name):
    logits, mask = batch(ignored=0)
    value, gradient = value_and_gradient(EVERY[name](), logits, mask)
    for module in (loss_base, region_losses):
        monkeypatch.setattr(module, "all_labelled", lambda valid: False)  # as on a device
    other, same = value_and_gradient(EVERY[name](), logits, mask)
    torch.testing.assert_close(other, value)
    torch.testing.assert_close(same, gradient)


@pytest.mark.parametrize("name", EVERY)
def test_nan_in_a_labelled_pixel_shows(name):
    logits, mask = batch()
    index = (mask == 1).nonzero()[0]
    with torch.no_grad():
        logits[index[0], :, index[1], index[2]] = NAN
    assert EVERY[name]()(logits, mask).isnan()


@pytest.mark.parametrize("content", [0.0, NAN])
@pytest.mark.parametrize("name", EVERY)
def test_a_crop_without_labels_costs_exactly_nothing(name, content):
    logits = torch.full((2, K, 3, 5), content, requires_grad=True)
    value, gradient = value_and_gradient(EVERY[name](), logits, torch.full((2, 3, 5), 255))
    assert value.item() == 0.0 and gradient.eq(0).all()
    none = torch.zeros(0, K, 3, 5, requires_grad=True)
    assert EVERY[name]()(none, torch.zeros(0, 3, 5, dtype=torch.long)).item() == 0.0


@pytest.mark.parametrize("name", EVERY)
def test_an_image_without_labels_changes_nothing(name):
    logits, mask = batch()
    mask[1] = 255
    loss = EVERY[name]()
    torch.testing.assert_close(loss(logits, mask), loss(logits[:1], mask[:1]))


@pytest.mark.parametrize("name", EVERY)
def test_gradient_equals_finite_differences(name):
    logits, mask = batch((2, 3))
    loss, double = EVERY[name](), logits.detach().double().requires_grad_()
    assert loss(double, mask).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: loss(x, mask), double)


@pytest.mark.parametrize("name", EVERY)
def test_half_precision_is_computed_in_float32(name):
    loss = EVERY[name]()
    logits, mask = batch()
    rounded = logits.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(rounded, mask)
    assert found.dtype == torch.float32 and found == loss(rounded.float(), mask)
    assert loss(logits.detach().half(), mask).dtype == torch.float32


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("name", EVERY)
def test_any_integer_mask_will_do(name, kind):
    logits, mask = batch()
    assert torch.equal(EVERY[name]()(logits, mask.to(kind)), EVERY[name]()(logits, mask))


@pytest.mark.parametrize("name", EVERY)
def test_neither_values_nor_shapes_reach_the_host(name):
    """Meta tensors have no values: reading one, or a shape that depends on some, is an error."""
    logits = torch.empty(2, K, 6, 7, device="meta", requires_grad=True)
    value, gradient = value_and_gradient(EVERY[name](), logits, torch.empty(2, 6, 7, device="meta").byte())
    assert value.shape == () and gradient.shape == logits.shape


@pytest.mark.parametrize("name", EVERY)
def test_saturated_pixels_have_finite_gradients(name):
    """Certain and right everywhere, certain and wrong everywhere: probabilities of exactly 0 and 1."""
    _, mask = batch(ignored=0)
    for shift in (0, 1):
        logits = 1e4 * F.one_hot((mask + shift) % K, K).movedim(-1, 1).float()
        value, gradient = value_and_gradient(EVERY[name](), logits.requires_grad_(), mask)
        assert value.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("name", EVERY)
def test_mask_of_another_size_is_an_error(name):
    with pytest.raises(ValueError, match=r"do not fit: \[2, 4, 6, 7\] and \[2, 6, 6\]"):
        EVERY[name]()(batch()[0], torch.zeros(2, 6, 6, dtype=torch.long))


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
    """Lightning validates in inference mode, also before training; here the type moves, there the device."""
    loss, mask = kind(class_weights=[1.0, 2.0, 3.0]), torch.randint(0, 3, (2, 4, 4))
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
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


# -- weighted sums


def test_terms_are_named_after_their_losses_and_weighted():
    logits, mask = batch()
    parts = [CrossEntropy(), Dice(), OnlineHardExampleMining(), Dice(classes="all"), Lovasz()]
    weights = [1.0, 0.5, 2.0, 3.0, 0.25]
    loss = WeightedSum(parts, weights)
    terms = loss.terms(logits, mask)
    names = ["cross_entropy", "dice", "online_hard_example_mining", "dice_2", "lovasz"]
    assert list(terms) == names
    for part, weight, term in zip(parts, weights, terms.values(), strict=True):
        torch.testing.assert_close(term, weight * part(logits, mask))
    torch.testing.assert_close(loss(logits, mask), sum(terms.values()))
    plain = WeightedSum(parts)
    torch.testing.assert_close(plain(logits, mask), sum(part(logits, mask) for part in parts))
    assert Focal().terms(logits, mask) == {"focal": Focal()(logits, mask)}


def test_sums_of_sums_keep_every_term():
    logits, mask = batch()
    inner = WeightedSum([Dice(), CrossEntropy()], [2.0, 3.0])
    terms = WeightedSum([Dice(), inner], [1.0, 10.0]).terms(logits, mask)
    assert list(terms) == ["dice", "dice_2", "cross_entropy"]
    torch.testing.assert_close(terms["dice_2"], 20 * Dice()(logits, mask))


def test_balance_reaches_the_balanced_losses_of_a_sum():
    fixed, free = CrossEntropy(WEIGHTS), Focal(class_weights="balanced")
    loss = WeightedSum([fixed, Dice(), free, OnlineHardExampleMining(class_weights="balanced")])
    assert loss.balanced and loss.class_weights is None and not WeightedSum([fixed, Dice()]).balanced
    loss.balance([10, 20, 30, 40])
    expected = pytest.approx([2.5, 1.25, 100 / 120, 0.625])
    assert loss.class_weights == free.class_weights == loss.losses[3].class_weights == expected
    assert fixed.class_weights == WEIGHTS
    assert WeightedSum([fixed]).class_weights is None
    loss.set_class_weights([1.0] * K)
    assert free.class_weights == [1.0] * K and fixed.class_weights == WEIGHTS


# -- what is wrong


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossEntropy(label_smoothing=1.0), "label_smoothing must lie in 0 to below 1, got 1.0"),
        (lambda: CrossEntropy([1.0, 0.0]), r"class_weights must be positive numbers"),
        (lambda: Focal(class_weights=[]), "class_weights must be positive numbers"),
        (lambda: Focal(class_weights=[1.0, NAN]), "class_weights must be positive numbers"),
        (lambda: CrossEntropy("balance"), "class_weights is 'balance'; allowed are 'balanced'"),
        (lambda: OnlineHardExampleMining(threshold=1.5), "threshold must lie in 0 to 1, got 1.5"),
        (lambda: OnlineHardExampleMining(min_kept=100000), "min_kept is a share"),
        (lambda: OnlineHardExampleMining(min_kept=0), "min_kept is a share"),
        (lambda: Focal(gamma=-1), "gamma must be a number 0 or more, got -1"),
        (lambda: Dice(smooth=-1), "smooth must be a number 0 or more"),
        (lambda: Dice(smooth=0, classes="all"), "smooth must be a number above 0"),
        (lambda: Dice(classes="some"), "classes is 'some'; allowed are 'present', 'all'"),
        (lambda: Tversky(alpha=0, beta=0), "beta must be a number above 0"),
        (lambda: Tversky(alpha=NAN), "alpha must be a number 0 or more"),
        (lambda: Tversky(gamma=0), "gamma must be a number above 0"),
        (lambda: Tversky(smooth=0, classes="all"), "smooth must be a number above 0"),
        (lambda: Lovasz(classes="none"), "classes is 'none'"),
        (lambda: WeightedSum([]), "losses of a WeightedSum is empty"),
        (lambda: WeightedSum([Dice()], [1.0, 2.0]), "weights has 2 numbers for 1 losses"),
        (lambda: WeightedSum([Dice()], [0.0]), "weights must be a number above 0"),
        (
            lambda: CrossEntropy([1.0, 2.0])(*batch()),
            "class_weights has 2 numbers; give one for each of the 4",
        ),
        (
            lambda: CrossEntropy("balanced").balance([0, 0]),
            "class_weights need the number of training pixels",
        ),
        (lambda: Dice().balance([1, 2]), "Dice has no class_weights"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=r"head\.loss[. ].*" + message):
        make()


def test_a_loss_must_say_how_it_is_computed():
    with pytest.raises(NotImplementedError, match="SegmentationLoss must implement forward"):
        SegmentationLoss()(*batch())
