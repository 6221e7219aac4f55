"""Gradients of the classifier's losses are those of finite differences in float64.

Covered: cross-entropy and binary cross-entropy; one label, several, soft ones; class weights; smoothing;
images without label; a batch without any; each pooling, down to the feature map; saturated logits.
"""

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import gradcheck

from trunkline.backbones.base import FeatureLevel
from trunkline.heads import Classifier
from trunkline.heads.base import RawClassification

K = 3
WEIGHTS = [0.5, 2.0, 1.5]
LABELS = {
    "one": torch.tensor([0, 2, -1, 1]),
    "soft": torch.tensor([[0.25, 0.75, 0], [0, 0, 1], [-1, -1, -1], [0.5, 0, 0.5]]),
    "none": torch.full((4,), -1),
}
SOME = torch.tensor([[1.0, 1, 0], [0, 0, 0], [-1, -1, -1], [0, 0, 1]])
OPTIONS = {
    "cross_entropy": {"loss": "cross_entropy"},
    "binary": {"loss": "binary_cross_entropy"},
    "several": {"multi_label": True},
}


def classifier(name, weights, smoothing, **options):
    options = OPTIONS[name] | options
    return Classifier(
        [FeatureLevel(2, (8, 8))], K, class_weights=weights, label_smoothing=smoothing, **options
    )


def cases():
    for name in OPTIONS:
        for labels in LABELS if name != "several" else ("some", "none"):
            yield name, labels


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize(("name", "labels"), list(cases()))
def test_losses_of_logits(name, labels, weights, smoothing):
    torch.manual_seed(0)
    head = classifier(name, weights, smoothing)
    label = SOME if labels == "some" else LABELS[labels]
    if name == "several" and labels == "none":
        label = torch.full((4, K), -1.0)
    targets = SimpleNamespace(label=label)
    logits = torch.randn(4, K, dtype=torch.float64, requires_grad=True)

    def loss(x):
        return head.losses(RawClassification(x), targets)["classification"]

    assert loss(logits).dtype == torch.float64
    assert gradcheck(loss, logits)
    torch.testing.assert_close(loss(logits.float()).double(), loss(logits), rtol=1e-5, atol=1e-6)
    saturated = (1e30 * logits.detach().float().sign()).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(saturated), saturated)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ["cross_entropy", "several"])
def test_an_image_without_label_may_have_any_logits(name):
    head, label = classifier(name, WEIGHTS, 0.1), LABELS["soft"] if name == "cross_entropy" else SOME
    logits = torch.randn(4, K, requires_grad=True)
    known = label[:, 0] >= 0
    broken = torch.where(known[:, None], logits.detach(), torch.nan).requires_grad_()
    pairs = []
    for x in (logits, broken):
        loss = head.losses(RawClassification(x), SimpleNamespace(label=label))["classification"]
        pairs.append((loss, torch.autograd.grad(loss, x)[0]))
    torch.testing.assert_close(pairs[0], pairs[1], rtol=0, atol=0)
    assert pairs[1][1][2].eq(0).all()


@pytest.mark.parametrize("pool", ["average", "max", "average_max"])
def test_losses_down_to_the_map(pool):
    torch.manual_seed(0)
    head = classifier("cross_entropy", WEIGHTS, 0.1, pool=pool).double()
    feature = torch.randn(4, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    targets = SimpleNamespace(label=LABELS["one"])
    assert gradcheck(lambda x: head.losses(head([x], (16, 24)), targets)["classification"], feature)
