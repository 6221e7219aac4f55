"""Parameter groups, warm-up and schedules against rates worked out by hand."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from trunkline.tasks.base.optimization import (
    OptimizationOptions,
    build_optimizer,
    build_schedulers,
    parameter_groups,
)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
        self.branch = nn.Linear(4, 2)


def names_in(group, model):
    wanted = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in wanted}


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.1, weight_decay=0.01)


def test_every_trainable_parameter_is_in_exactly_one_group():
    model = Model()
    model.trunk[0].weight.requires_grad_(False)
    groups = parameter_groups(model, model.trunk, OptimizationOptions(decay_norms_and_biases=False))
    members = [name for group in groups for name in names_in(group, model)]
    assert sorted(members) == sorted(name for name, p in model.named_parameters() if p.requires_grad)


def test_norms_and_biases_are_decayed_only_when_asked():
    model = Model()
    optimizer = build_optimizer(sgd, model, model.trunk, OptimizationOptions(decay_norms_and_biases=False))
    decay = {name: g["weight_decay"] for g in optimizer.param_groups for name in names_in(g, model)}
    assert {name for name, value in decay.items() if value == 0.01} == {"trunk.0.weight", "branch.weight"}
    assert {name for name, value in decay.items() if value == 0.0} == set(decay) - {
        "trunk.0.weight",
        "branch.weight",
    }
    optimizer = build_optimizer(sgd, model, model.trunk, OptimizationOptions())
    assert all(group["weight_decay"] == 0.01 for group in optimizer.param_groups)


def test_trunk_lr_factor_scales_the_trunk_alone():
    model = Model()
    optimizer = build_optimizer(sgd, model, model.trunk, OptimizationOptions(trunk_lr_factor=0.1))
    rates = {name: g["lr"] for g in optimizer.param_groups for name in names_in(g, model)}
    assert rates["branch.weight"] == rates["branch.bias"] == 0.1
    assert all(rate == pytest.approx(0.01) for name, rate in rates.items() if name.startswith("trunk"))


def test_warmup_and_milestones_multiply():
    """Rate 0.1, warm-up from a quarter over 3 steps, milestone (x 0.1) after 2 epochs of 4 steps."""
    model = Model()
    options = OptimizationOptions(warmup_steps=3, warmup_factor=0.25)
    optimizer = build_optimizer(sgd, model, model.trunk, options)
    main, warmup = build_schedulers(
        optimizer, lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2], gamma=0.1), options
    )
    assert (main["interval"], warmup["interval"]) == ("epoch", "step")
    rates = []
    for _ in range(3):
        for _ in range(4):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            warmup["scheduler"].step()
        main["scheduler"].step()
    expected = [0.025, 0.05, 0.075, 0.1] + [0.1] * 4 + [0.01] * 4
    assert rates == pytest.approx(expected)


def test_interval_is_passed_on():
    model = Model()
    options = OptimizationOptions(interval="step")
    optimizer = build_optimizer(sgd, model, model.trunk, options)
    (main,) = build_schedulers(optimizer, lambda o: torch.optim.lr_scheduler.StepLR(o, 1), options)
    assert main["interval"] == "step"


def test_nothing_to_train_is_an_error():
    model = Model().requires_grad_(False)
    with pytest.raises(ValueError, match="frozen_stages"):
        build_optimizer(sgd, model, model.trunk, OptimizationOptions())


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"warmup_factor": 0.0}, "warmup_factor"),
        ({"trunk_lr_factor": 0.0}, "trunk_lr_factor"),
    ],
)
def test_bad_options_name_their_key(bad, key):
    with pytest.raises(ValueError, match=key):
        OptimizationOptions(**bad)


def test_lr_factors_go_by_the_longest_beginning_and_before_the_trunks():
    model = Model()
    factors = {"trunk": 0.5, "trunk.1": 3.0, "branch.bias": 10.0}
    options = OptimizationOptions(trunk_lr_factor=0.1, lr_factors=factors, decay_norms_and_biases=False)
    optimizer = build_optimizer(sgd, model, model.trunk, options)
    rates = {name: g["lr"] for g in optimizer.param_groups for name in names_in(g, model)}
    expected = {
        "trunk.0.weight": 0.05,
        "trunk.0.bias": 0.05,
        "trunk.1.weight": 0.3,
        "trunk.1.bias": 0.3,
        "trunk.2.weight": 0.05,
        "trunk.2.bias": 0.05,
        "branch.weight": 0.1,
        "branch.bias": 1.0,
    }
    assert rates == pytest.approx(expected)
    decay = {name: g["weight_decay"] for g in optimizer.param_groups for name in names_in(g, model)}
    assert {name for name, value in decay.items() if value} == {"trunk.0.weight", "branch.weight"}


def test_lr_factors_without_a_parameter_or_not_positive_are_errors():
    model = Model()
    with pytest.raises(ValueError, match=r"no trainable parameter begins with bran; there are .*branch"):
        build_optimizer(sgd, model, model.trunk, OptimizationOptions(lr_factors={"bran": 2.0}))
    with pytest.raises(ValueError, match="lr_factors: branch must be positive, not 0"):
        OptimizationOptions(lr_factors={"branch": 0.0})


def test_a_copy_of_a_model_does_not_copy_what_made_its_optimiser(tiny):
    """The command's recipe holds the command with its processes, and weight averaging copies the model."""

    class Command:
        def __deepcopy__(self, memo):
            raise TypeError("cannot be copied")

    def sgd(command, parameters):
        return torch.optim.SGD(parameters, lr=0.1)

    def steps(command, optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, 3)

    made = partial(sgd, Command()), partial(steps, Command())
    task = tiny.classifier(optimizer=made[0], lr_scheduler=made[1])
    (optimizer,), (schedule,) = copy.deepcopy(task).configure_optimizers()
    assert optimizer.param_groups[0]["lr"] == 0.1 and schedule["scheduler"].step_size == 3


def test_options_that_torch_refuses_name_the_section():
    model = Model()
    both = partial(torch.optim.SGD, lr=0.1, fused=True, foreach=True)
    with pytest.raises(ValueError, match=r"model.optimizer cannot be used: .*fused.*foreach"):
        build_optimizer(both, model, model.trunk, OptimizationOptions())
