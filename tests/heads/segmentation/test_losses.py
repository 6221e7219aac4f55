"""What all losses of segmentation promise, their sums, and wrong arguments."""

import pytest
import torch
import torch.nn.functional as F
from loss_cases import NAN, SHAPES, WEIGHTS, K, batch, value_and_gradient

from trunkline.heads.segmentation import pixels
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


def without_ignored(logits, mask):
    """The labelled pixels in a row, as one image."""
    valid = mask != 255
    return logits.movedim(1, -1)[valid].T[None], mask[valid][None]


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
    monkeypatch.setattr(pixels, "all_labelled", lambda valid: False)  # as on a device
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
    loss = EVERY[name]().to("meta")
    value, gradient = value_and_gradient(loss, logits, torch.empty(2, 6, 7, device="meta").byte())
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
