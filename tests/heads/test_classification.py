"""The classifier against torch's own losses, torchvision's and timm's pooling, and numbers by hand."""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from torchvision.models import resnet18

from trunkline.backbones.base import FeatureLevel
from trunkline.heads import Classifier
from trunkline.heads.classification import RawClassification, one_hot

LEVELS = (FeatureLevel(5, (8, 8)), FeatureLevel(6, (16, 16)))
K = 4
SOFT = torch.tensor([[0.7, 0.3, 0, 0], [0, 0, 0.5, 0.5], [1.0, 0, 0, 0]])
HARD = torch.tensor([2, 0, 3])
WEIGHTS = [0.5, 2.0, 1.0, 3.0]


@dataclass
class Targets:
    label: torch.Tensor


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(3, K, generator=generator)).requires_grad_()


def loss_of(logits, label, **options):
    head = Classifier(LEVELS, logits.shape[1], **options)
    (loss,) = head.losses(RawClassification(logits), Targets(label)).values()
    return loss


def test_equals_torchvisions_classifier_on_its_weights():
    """Pooling and fc of torchvision's ResNet; only the last level is read."""
    torch.manual_seed(0)
    peer = resnet18(num_classes=7).eval()
    head = Classifier((FeatureLevel(64, (4, 4)), FeatureLevel(512, (32, 32))), 7).eval()
    head.load_state_dict({name: value for name, value in peer.state_dict().items() if name.startswith("fc.")})
    features = torch.randn(2, 512, 3, 5)
    expected = peer.fc(torch.flatten(peer.avgpool(features), 1))
    raw = head([torch.full((2, 64, 9, 9), float("nan")), features], (96, 160))
    torch.testing.assert_close(raw.logits, expected)
    assert sorted(head.state_dict()) == ["fc.bias", "fc.weight"]


@pytest.mark.parametrize(("pool", "peer"), [("average", "avg"), ("max", "max"), ("average_max", "avgmax")])
def test_pooling_equals_timms(pool, peer):
    head = Classifier(LEVELS, K, pool=pool)
    x = torch.randn(2, 6, 3, 5)
    expected = head.fc(SelectAdaptivePool2d(pool_type=peer, flatten=True)(x))
    torch.testing.assert_close(head([x], (48, 80)).logits, expected)


@pytest.mark.parametrize("pool", ["average", "max", "average_max"])
def test_a_volume_that_is_constant_along_an_axis_scores_like_its_slice(pool):
    head = Classifier(LEVELS, K, pool=pool)
    x = torch.randn(2, 6, 3, 5)
    volume = x[:, :, None].expand(-1, -1, 4, -1, -1)
    torch.testing.assert_close(head([volume], (64, 48, 80)).logits, head([x], (48, 80)).logits)


def test_dropout_zeroes_and_rescales_pooled_features_in_training_only():
    head = Classifier((FeatureLevel(1000, (8, 8)),), 2, dropout=0.25)
    torch.nn.init.eye_(head.fc.weight)
    torch.nn.init.ones_(head.fc.weight)
    torch.nn.init.zeros_(head.fc.bias)
    x = torch.ones(1, 1000, 2, 2)
    torch.manual_seed(0)
    kept = head([x], (16, 16)).logits[0, 0].item() * 0.75  # survivors are divided by 0.75
    assert kept == pytest.approx(round(kept), abs=1e-2) and 690 < kept < 810
    assert head.eval()([x], (16, 16)).logits.tolist() == [[1000.0, 1000.0]]


# -- cross-entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_hard_labels_cost_what_torch_says(logits, smoothing, weights):
    expected = F.cross_entropy(
        logits, HARD, None if weights is None else torch.tensor(weights), label_smoothing=smoothing
    )
    torch.testing.assert_close(
        loss_of(logits, HARD, label_smoothing=smoothing, class_weights=weights), expected
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_labels_cost_what_torch_says(logits, smoothing):
    expected = F.cross_entropy(logits, SOFT, label_smoothing=smoothing)
    torch.testing.assert_close(loss_of(logits, SOFT, label_smoothing=smoothing), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_soft_labels_with_weights_and_smoothing_by_hand(logits, smoothing):
    total, weight = 0.0, 0.0
    log_probabilities = logits.detach().double().log_softmax(1)
    for row in range(3):
        for k in range(K):
            share = SOFT[row, k].item() * (1 - smoothing) + smoothing / K
            total -= WEIGHTS[k] * share * log_probabilities[row, k].item()
            weight += WEIGHTS[k] * SOFT[row, k].item()
    loss = loss_of(logits, SOFT, label_smoothing=smoothing, class_weights=WEIGHTS)
    assert loss.item() == pytest.approx(total / weight, rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.1, "class_weights": WEIGHTS},
        {"loss": "binary_cross_entropy", "label_smoothing": 0.1, "class_weights": WEIGHTS},
    ],
)
def test_a_hard_label_costs_the_same_written_as_a_soft_one(logits, options):
    torch.testing.assert_close(loss_of(logits, one_hot(HARD, K), **options), loss_of(logits, HARD, **options))


# -- binary cross-entropy


def test_binary_cross_entropy_of_a_single_label(logits):
    """timm's way of smoothing (off value s / K); the mean over images and classes."""
    for smoothing in (0.0, 0.2):
        target = torch.full((3, K), smoothing / K)
        target[range(3), HARD] = 1 - smoothing + smoothing / K
        expected = F.binary_cross_entropy_with_logits(logits, target)
        found = loss_of(logits, HARD, loss="binary_cross_entropy", label_smoothing=smoothing)
        torch.testing.assert_close(found, expected)


def test_binary_cross_entropy_of_several_labels_by_hand(logits):
    label = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    for smoothing in (0.0, 0.2):
        total = 0.0
        for row in range(3):
            for k in range(K):
                p = 1 / (1 + math.exp(-logits[row, k].item()))
                share = label[row, k].item() * (1 - smoothing) + smoothing / 2
                total -= WEIGHTS[k] * share * math.log(p) + (1 - share) * math.log(1 - p)
        found = loss_of(logits, label, multi_label=True, label_smoothing=smoothing, class_weights=WEIGHTS)
        assert found.item() == pytest.approx(total / 12, rel=1e-5)


# -- rows without label


CASES = [
    ({}, HARD),
    ({"class_weights": WEIGHTS, "label_smoothing": 0.1}, HARD),
    ({"class_weights": WEIGHTS, "label_smoothing": 0.1}, SOFT),
    ({"loss": "binary_cross_entropy"}, HARD),
    ({"multi_label": True, "class_weights": WEIGHTS}, SOFT),
]


@pytest.mark.parametrize(("options", "label"), CASES)
def test_rows_without_label_count_for_nothing(logits, options, label):
    more = torch.cat([logits, torch.full((1, K), float("nan")), torch.randn(1, K)])
    unknown = torch.full((2, *label.shape[1:]), -1, dtype=label.dtype)
    found = loss_of(more, torch.cat([label, unknown]), **options)
    torch.testing.assert_close(found, loss_of(logits, label, **options))


@pytest.mark.parametrize(("options", "label"), CASES)
def test_a_batch_without_any_label_costs_nothing_and_teaches_nothing(logits, options, label):
    loss = loss_of(logits, torch.full_like(label, -1), **options)
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().sum().item() == 0


def test_one_hot_by_hand():
    rows = one_hot(torch.tensor([2, -1, 0]), 3)
    assert rows.tolist() == [[0, 0, 1], [-1, -1, -1], [1, 0, 0]] and rows.dtype == torch.float32


def test_losses_are_float32_whatever_the_logits_are(logits):
    loss = loss_of(logits.bfloat16(), HARD)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.bfloat16().float(), HARD))


# -- class weights


def test_balanced_weights_by_hand():
    """Six images of classes 0 and 2: 4 and 2. Class 1 has none and class 3 is not in the data."""
    head = Classifier(LEVELS, K, class_weights="balanced")
    assert head.balanced and head.class_weights is None
    head.balance([4, 0, 2])
    assert head.class_weights == pytest.approx([6 / (2 * 4), 1, 6 / (2 * 2), 1])
    assert sum(weight * count for weight, count in zip(head.class_weights, [4, 0, 2, 0], strict=True)) == 6


def test_balanced_weights_that_are_not_known_are_an_error(logits):
    with pytest.raises(ValueError, match=r"balanced.*label_counts"):
        loss_of(logits, HARD, class_weights="balanced")


@pytest.mark.parametrize("counts", [[0, 0], [1] * 5, []])
def test_counts_that_do_not_fit_are_an_error(counts):
    with pytest.raises(ValueError, match="balanced class_weights need"):
        Classifier(LEVELS, K, class_weights="balanced").balance(counts)


def test_class_weights_are_no_part_of_the_state():
    """They come from the settings or the task; weight averaging would blur them."""
    assert sorted(Classifier(LEVELS, K, class_weights=WEIGHTS).state_dict()) == ["fc.bias", "fc.weight"]


# -- predictions


def test_probabilities_by_hand():
    raw = RawClassification(torch.tensor([[0.0, math.log(3)]], dtype=torch.bfloat16))
    sizes = torch.tensor([[8, 8]])
    softmax = Classifier(LEVELS, 2).predict(raw, sizes).probabilities
    assert softmax.dtype == torch.float32 and softmax[0].tolist() == pytest.approx([0.25, 0.75], abs=3e-3)
    for options in ({"multi_label": True}, {"loss": "binary_cross_entropy"}):
        sigmoid = Classifier(LEVELS, 2, **options).predict(raw, sizes).probabilities
        assert sigmoid[0].tolist() == pytest.approx([0.5, 0.75], abs=3e-3)


# -- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"num_classes": 0, "multi_label": True}, "num_classes must be at least 1"),
        ({"dropout": 1.0}, "dropout"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"pool": "median"}, "pool is 'median'; allowed are 'average', 'max', 'average_max'"),
        ({"loss": "focal"}, "loss is 'focal'"),
        ({"loss": "cross_entropy", "multi_label": True}, "multi_label true use binary_cross_entropy"),
        ({"class_weights": [1.0, 2.0]}, r"4 positive numbers .*got \[1.0, 2.0\]"),
        ({"class_weights": [1.0, 2.0, 0.0, 1.0]}, "4 positive numbers"),
        ({"class_weights": [1.0, 2.0, math.nan, 1.0]}, "4 positive numbers"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Classifier(LEVELS, **{"num_classes": K, **options})


def test_labels_of_another_shape_are_an_error(logits):
    with pytest.raises(ValueError, match=r"labels must be \[3\] or \[3, 4\]"):
        loss_of(logits, torch.zeros(3, 2))
