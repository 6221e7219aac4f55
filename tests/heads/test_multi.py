"""Several heads on the same maps: names, weights, one pass."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from trunkline.backbones.base import FeatureLevel
from trunkline.data.shared.batches import Batch
from trunkline.heads import FCN, Classifier
from trunkline.heads.base import Head
from trunkline.heads.multi import MultiHead

LEVELS = (FeatureLevel(2, (4, 4)), FeatureLevel(3, (8, 8)))


@dataclass
class Targets:
    wanted: torch.Tensor

    def for_head(self, name):
        return self


class Scale(Head):
    """Multiplies the mean of one level by a parameter; two losses."""

    def __init__(self, levels, level=0, start=1.0):
        super().__init__()
        self.level, self.channels = level, levels[level].channels
        self.factor = nn.Parameter(torch.tensor(start))

    def forward(self, features, image_size):
        assert features[self.level].shape[1] == self.channels
        return self.factor * features[self.level].mean(), image_size

    def losses(self, raw, targets):
        return {"one": (raw[0] - targets.wanted).abs(), "two": raw[0] ** 2}

    def predict(self, raw, image_sizes):
        return raw[0].expand(len(image_sizes))


def maps():
    return [torch.full((1, 2, 4, 4), 2.0), torch.full((1, 3, 2, 2), 3.0)]


def two(**arguments):
    heads = {"a": lambda levels: Scale(levels, 0), "b": lambda levels: Scale(levels, 1, 10.0)}
    return MultiHead(LEVELS, heads, **arguments)


def test_every_head_gets_all_levels_and_keeps_its_own_outputs():
    head = two()
    raw = head(maps(), (16, 16))
    assert raw["a"][0] == 2 and raw["b"][0] == 30 and raw["b"][1] == (16, 16)
    found = head.predict(raw, torch.zeros(4, 2))
    assert found["a"].tolist() == [2] * 4 and found["b"].tolist() == [30] * 4
    assert set(head.state_dict()) == {"heads.a.factor", "heads.b.factor"}


def test_losses_are_weighted_by_head_and_carry_its_name():
    head = two(loss_weights={"b": 0.5})
    losses = head.losses(head(maps(), (16, 16)), Targets(torch.tensor(1.0)))
    assert {name: value.item() for name, value in losses.items()} == {
        "a/one": 1.0,
        "a/two": 4.0,
        "b/one": 14.5,
        "b/two": 450.0,
    }


def test_a_weight_of_zero_leaves_that_head_without_gradient():
    head = two(loss_weights={"a": 0.0})
    sum(head.losses(head(maps(), (16, 16)), Targets(torch.tensor(1.0))).values()).backward()
    assert head.heads["a"].factor.grad == 0
    assert head.heads["b"].factor.grad == pytest.approx(3 + 2 * 30 * 3)


@dataclass(kw_only=True)
class PlacesBatch(Batch):
    """Three kinds of labels of the same images."""

    road: torch.Tensor
    sky: torch.Tensor
    weather: torch.Tensor

    def for_head(self, name):
        label = getattr(self, name)
        return SimpleNamespace(label=label) if name == "weather" else SimpleNamespace(mask=label)


def places():
    heads = {
        "road": lambda levels: FCN(levels, 2, channels=4),
        "sky": lambda levels: FCN(levels, 3, channels=4),
        "weather": lambda levels: Classifier(levels, 4),
    }
    torch.manual_seed(0)
    batch = PlacesBatch(
        image=torch.zeros(2, 3, 16, 16),
        image_sizes=torch.tensor([[16, 16]] * 2),
        image_ids=torch.arange(2),
        road=torch.randint(0, 2, (2, 16, 16)),
        sky=torch.randint(0, 3, (2, 16, 16)),
        weather=torch.tensor([3, 1]),
    )
    features = [torch.randn(2, 2, 4, 4), torch.randn(2, 3, 2, 2)]
    return MultiHead(LEVELS, heads).eval(), batch, features


def test_heads_are_named_and_say_which_branch_serves_them():
    head, _, _ = places()
    assert {name: part.branch for name, part in head.named_heads().items()} == {
        "road": "segmentation",
        "sky": "segmentation",
        "weather": "classification",
    }
    assert all(head.named_heads()[name] is part for name, part in head.heads.items())
    alone = Classifier(LEVELS, 4)
    assert alone.named_heads() == {"": alone}


def test_two_segmenters_and_a_classifier_learn_each_from_its_own_labels():
    head, batch, features = places()
    losses = head.losses(head(features, (16, 16)), batch)
    expected = {
        f"{name}/{part}": value
        for name, alone in head.heads.items()
        for part, value in alone.losses(alone(features, (16, 16)), batch.for_head(name)).items()
    }
    assert losses == expected and {name.partition("/")[0] for name in losses} == {"road", "sky", "weather"}
    batch.sky = 2 - batch.sky
    changed = head.losses(head(features, (16, 16)), batch)
    assert {name for name in losses if losses[name] != changed[name]} == {
        name for name in losses if name.startswith("sky/")
    }


@pytest.mark.parametrize("learns", ["road", "sky", "weather"])
def test_the_losses_of_a_head_give_gradients_to_it_alone(learns):
    head, batch, features = places()
    losses = head.losses(head(features, (16, 16)), batch)
    sum(value for name, value in losses.items() if name.startswith(f"{learns}/")).backward()
    for name, part in head.heads.items():
        gradients = [parameter.grad for parameter in part.parameters()]
        assert all((gradient is not None) == (name == learns) for gradient in gradients), name
    assert any(parameter.grad.any() for parameter in head.heads[learns].parameters())


@pytest.mark.parametrize(
    ("heads", "weights", "message"),
    [
        ({}, None, "names no head"),
        ({"a.b": Scale}, None, "'a.b' cannot name a head"),
        ({"a": Scale}, {"b": 1.0}, "there is no head 'b', only a"),
        ({"a": Scale}, {"a": -1.0}, "a must be 0 or more"),
        ({"a": Scale}, {"a": float("nan")}, "a must be 0 or more"),
    ],
)
def test_wrong_names_and_weights_are_errors(heads, weights, message):
    with pytest.raises(ValueError, match=message):
        MultiHead(LEVELS, heads, weights)
