"""Several heads on the same maps: names, weights, one pass."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from trunkline.backbones.base import FeatureLevel
from trunkline.heads.base import Head
from trunkline.heads.multi import MultiHead

LEVELS = (FeatureLevel(2, (4, 4)), FeatureLevel(3, (8, 8)))


@dataclass
class Targets:
    wanted: torch.Tensor


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
