"""What losses share: one softmax for all, memory orders, compiled graphs, and losses of one's own."""

import pytest
import torch
from loss_cases import K, batch, value_and_gradient

from trunkline.heads.segmentation import (
    CrossEntropy,
    Dice,
    SegmentationLoss,
    Tversky,
    WeightedSum,
    labelled,
    pixels,
)
from trunkline.heads.segmentation.pixels import Pixels, sums_by_label

SUMS = {
    "plain": lambda: WeightedSum([CrossEntropy(), Dice(include_background=False, classes="all")]),
    "squared": lambda: WeightedSum([Dice(squared_denominator=True), CrossEntropy([1.0, 2.0, 3.0, 4.0])]),
    "both": lambda: WeightedSum([Dice(squared_denominator=True), Tversky(), CrossEntropy()]),
}


def kept(loss, logits, mask):
    """How many tensors as large as the logits, other than these, the backward pass keeps."""
    storages = set()

    def note(x):
        if x.numel() == logits.numel() and x.is_floating_point():
            storages.add(x.untyped_storage().data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        loss(logits, mask)
    return len(storages - {logits.untyped_storage().data_ptr()})


@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_a_sum_of_losses_keeps_one_tensor_of_probabilities(ignored):
    logits, mask = batch((16, 16), ignored)
    for loss in (CrossEntropy(), Dice(), SUMS["plain"](), SUMS["squared"]()):
        assert kept(loss, logits, mask) == 1
    assert kept(SUMS["both"](), logits, mask) == 2


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_large_logits_are_taken_image_by_image_with_the_same_results(monkeypatch, name, ignored):
    logits, mask = batch((8, 9), ignored, images=3)
    expected = value_and_gradient(SUMS[name](), logits, mask)
    assert kept(SUMS["plain"](), logits, mask) == 1
    monkeypatch.setattr(pixels, "LARGE", logits.numel() - 1)
    torch.testing.assert_close(value_and_gradient(SUMS[name](), logits, mask), expected)
    assert kept(SUMS["plain"](), logits, mask) == 0  # only the logits themselves


@pytest.mark.slow
@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_large_logits_compile_to_one_graph(monkeypatch, name, ignored):
    logits, mask = batch((8, 9), ignored, images=3)
    expected = value_and_gradient(SUMS[name](), logits, mask)
    monkeypatch.setattr(pixels, "LARGE", logits.numel() - 1)
    compiled = torch.compile(SUMS[name](), fullgraph=True, backend="aot_eager", dynamic=False)
    torch.testing.assert_close(value_and_gradient(compiled, logits, mask), expected)


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("shape", [(6, 7), (3, 4, 5)])
def test_gradients_keep_the_memory_order_of_the_logits(name, shape):
    logits, mask = batch(shape)
    order = torch.channels_last if len(shape) == 2 else torch.channels_last_3d
    last = logits.detach().to(memory_format=order).requires_grad_()
    expected = value_and_gradient(SUMS[name](), logits, mask)
    found = value_and_gradient(SUMS[name](), last, mask)
    torch.testing.assert_close(found, expected, check_stride=False)
    assert found[1].stride() == last.stride()


@pytest.mark.parametrize(
    "name", ["plain", *(pytest.param(x, marks=pytest.mark.slow) for x in ("squared", "both"))]
)
def test_sums_of_losses_compile_to_one_graph(name):
    logits, mask = batch()
    expected = value_and_gradient(SUMS[name](), logits, mask)
    compiled = torch.compile(SUMS[name](), fullgraph=True, backend="aot_eager", dynamic=False)
    torch.testing.assert_close(value_and_gradient(compiled, logits, mask), expected)


def test_sums_by_label_lose_nothing_where_there_are_many_pixels():
    """One value after the other, float32 would stop at 2**24."""
    ones = torch.ones(1, 1).expand(1, 2**24 + 64)
    labels = torch.zeros(1, 1, dtype=torch.long).expand_as(ones)
    sums, pixels = sums_by_label(ones, labels, None, 1)
    assert sums.item() == pixels.item() == 2**24 + 64


def test_a_loss_of_ones_own_may_be_part_of_a_sum():
    class Mine(SegmentationLoss):
        def forward(self, logits, mask):
            return labelled(logits, mask)[0].square().mean()

    class Twice(Dice):
        def forward(self, logits, mask):
            return 2 * super().forward(logits, mask)

    logits, mask = batch(ignored=0)
    terms = WeightedSum([Mine(), Twice(), CrossEntropy()]).terms(logits, mask)
    torch.testing.assert_close(terms["mine"], logits.square().mean())
    torch.testing.assert_close(terms["twice"], 2 * Dice()(logits, mask))


def test_rows_of_ignored_pixels_are_zero_without_gradient():
    logits, mask = batch()
    rows = Pixels(logits, mask).rows
    assert rows[mask == 255].eq(0).all() and rows[mask != 255].gt(0).all()
    (gradient,) = torch.autograd.grad(rows.sum(), logits)
    expected = logits.softmax(1) - torch.nn.functional.one_hot(mask.clamp(max=K - 1), K).movedim(-1, 1)
    torch.testing.assert_close(gradient, torch.where((mask == 255)[:, None], 0, expected.detach()))
