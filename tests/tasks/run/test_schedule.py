"""Schedules that do not fit a run are found, and their curve is told; schedules that fit are not."""

import math

import pytest
import torch
from torch.optim import SGD
from torch.optim import lr_scheduler as schedules

from trunkline.tasks.base.optimization import OptimizationOptions, build_schedulers
from trunkline.tasks.run.schedule import Run, curve, schedule_problems


def problems(make, run, **options):
    options = OptimizationOptions(**options)
    return schedule_problems(
        lambda groups: SGD(groups, lr=1.0),
        lambda optimizer: build_schedulers(optimizer, make, options),
        0.2,
        run,
    )


def cosine(length):
    return lambda optimizer: schedules.CosineAnnealingLR(optimizer, length)


def polynomial(length):
    return lambda optimizer: schedules.PolynomialLR(optimizer, length, power=0.9)


def milestones(*at):
    return lambda optimizer: schedules.MultiStepLR(optimizer, list(at))


def cosine_after_constant(length, begin=2):
    def make(optimizer):
        parts = [schedules.ConstantLR(optimizer, 1.0, total_iters=2), cosine(length)(optimizer)]
        return schedules.SequentialLR(optimizer, parts, [begin])

    return make


RUN = Run(steps=1200, epoch_steps=100)  # 12 epochs


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (None, {}),
        (None, {"warmup_steps": 500}),
        (cosine(12), {}),
        (cosine(11), {}),
        (cosine(1200), {"interval": "step", "warmup_steps": 100}),
        (cosine_after_constant(10), {}),
        (cosine_after_constant(1000, begin=200), {"interval": "step"}),
        (polynomial(12), {}),
        (polynomial(1200), {"interval": "step"}),
        (milestones(8, 11), {"warmup_steps": 500}),
        (milestones(800, 1100), {"interval": "step"}),
        (lambda optimizer: schedules.StepLR(optimizer, 4), {}),
        (lambda optimizer: schedules.OneCycleLR(optimizer, 0.2, total_steps=1200), {"interval": "step"}),
        (lambda optimizer: schedules.CosineAnnealingWarmRestarts(optimizer, 4), {}),
        (lambda optimizer: schedules.ReduceLROnPlateau(optimizer), {}),
    ],
)
def test_schedules_that_fit_are_not_mentioned(make, options):
    assert problems(make, RUN, **options) == ""


@pytest.mark.parametrize(
    ("make", "options", "expected"),
    [
        (cosine(6), {}, "it rises again after step 600"),
        (cosine(12), {"interval": "step"}, "it rises again after step 12: CosineAnnealingLR counts steps"),
        (cosine(24), {}, "T_max 24 is longer than the run, so the rate stays high; it is counted in epochs"),
        (cosine(1200), {}, "T_max 1200 is longer than the run"),
        (cosine_after_constant(5), {}, "it rises again after step 700: CosineAnnealingLR counts epochs"),
        (
            cosine_after_constant(5, begin=12),
            {},
            "milestones 12 are never reached; they are counted in epochs",
        ),
        (polynomial(6), {}, "it is below a thousandth of its highest value for 50% of the steps"),
        (
            polynomial(12),
            {"interval": "step"},
            "below a thousandth of its highest value for 99% of the steps",
        ),
        (milestones(8, 11), {"interval": "step"}, "all its drops are in the first 12 steps"),
        (milestones(8, 16), {}, "milestones 16 are never reached; they are counted in epochs"),
        (milestones(800), {}, "milestones 800 are never reached"),
        (lambda optimizer: schedules.StepLR(optimizer, 12), {}, "step_size 12 is never reached"),
        (None, {"warmup_steps": 1200}, "the warm-up takes 1200 steps, so the full rate is never reached"),
    ],
)
def test_schedules_that_do_not_fit_are_told(make, options, expected):
    said = problems(make, RUN, **options)
    assert expected in said
    assert said.startswith("the learning rate does not fit this run of 1200 steps (12 epochs): ")
    first = "2e-04" if "warmup_steps" in options else "0.2"
    assert f"step        0 (epoch 0.0): {first}" in said.replace("0.0002", "2e-04")
    assert "step     1199 (epoch 12.0): " in said


def test_turning_points_of_a_curve_are_told():
    lines = problems(cosine(3), RUN).splitlines()[1:]
    assert lines == [
        "learning rate:",
        "  step        0 (epoch 0.0): 0.2",
        "  step      300 (epoch 3.0): 0",
        "  step      600 (epoch 6.0): 0.2",
        "  step      900 (epoch 9.0): 0",
        "  step     1199 (epoch 12.0): 0.15",
    ]


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_curve_is_what_an_optimiser_sees(interval):
    """A slow loop that trains for nothing, step by step, as Lightning moves the schedulers."""
    run = Run(steps=60, epoch_steps=7)
    options = OptimizationOptions(warmup_steps=10, interval=interval)

    def built():
        optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
        return optimizer, build_schedulers(optimizer, milestones(3, 5, 20), options)

    optimizer, configurations = built()
    expected = []
    for step in range(run.steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for each in configurations:
            if each["interval"] == "step" or (step + 1) % run.epoch_steps == 0:
                each["scheduler"].step()
    optimizer, configurations = built()
    points = dict(curve(configurations, optimizer, run))
    rate, seen = math.nan, []
    for step in range(run.steps):
        rate = points.get(step, rate)
        seen.append(rate)
    assert seen == expected


def test_fit_warns_before_the_first_step(tiny, tmp_path, caplog):
    module = tiny.classifier(lr_scheduler=cosine(1))
    tiny.trainer(tmp_path, max_epochs=4).fit(module, datamodule=tiny.Memory())
    assert "does not fit this run of 12 steps (4 epochs): it rises again after step 3" in caplog.text


def test_a_schedule_that_cannot_go_on_is_refused_before_the_first_step():
    with pytest.raises(ValueError, match=r"ends before this run of 100 steps \(10 epochs\).*total_steps"):
        schedule_problems(
            lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
            lambda optimizer: build_schedulers(
                optimizer,
                lambda each: torch.optim.lr_scheduler.OneCycleLR(each, 0.1, total_steps=50),
                OptimizationOptions(interval="step"),
            ),
            0.1,
            Run(100, 10),
        )
