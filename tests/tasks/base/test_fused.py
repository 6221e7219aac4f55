"""Steps of optimisers in one kernel: where, with the same numbers, and across checkpoints."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from memory_tasks import Everything, single, trainer

from trunkline.tasks.base import fused
from trunkline.tasks.base.fused import fused_where_possible
from trunkline.tasks.base.optimization import OptimizationOptions

SGD = lambda groups, **more: torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True, **more)  # noqa: E731
ADAM = lambda groups, **more: torch.optim.Adam(groups, lr=0.01, weight_decay=0.1, **more)  # noqa: E731
ADAMW = lambda groups, **more: torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9), **more)  # noqa: E731
KINDS = {"sgd": SGD, "adam": ADAM, "adamw": ADAMW}


@pytest.fixture
def here(monkeypatch):
    """The CPU, whose kernels torch has too, in the place of a GPU."""
    monkeypatch.setattr(fused, "DEVICES", ("cpu",))


def on_device(fused_there, monkeypatch):
    monkeypatch.setattr(fused, "DEVICES", ("cpu",) if fused_there else ("cuda",))


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(3, 2, generator=generator).to(dtype)) for _ in range(4)]


def run(precision="32-true", clip=None, shards=False):
    return SimpleNamespace(
        precision=precision,
        gradient_clip_val=clip,
        strategy=SimpleNamespace(restore_checkpoint_after_setup=shards),
    )


def kind_of(optimizer):
    return {group["fused"] for group in optimizer.param_groups}


@pytest.mark.parametrize("name", KINDS)
def test_numbers_groups_and_options_stay(here, name):
    found = []
    for build in (lambda one: one, lambda one: fused_where_possible(one, None)):
        values = parameters()
        groups = [
            {"params": values[:1], "name": "trunk", "lr_factor": 0.1, "lr": 0.001},
            {"params": values[1:], "name": "branches", "weight_decay": 0.0},
        ]
        optimizer = build(KINDS[name](groups))
        for step in range(3):
            for value in values:
                value.grad = torch.full_like(value, step + 0.5) * value.detach()
            optimizer.step()
        found.append((optimizer, values))
    (plain, expected), (optimizer, values) = found
    assert type(optimizer) is type(plain) and kind_of(optimizer) == {True} and kind_of(plain) == {None}
    assert optimizer._step_supports_amp_scaling
    torch.testing.assert_close(values, expected)
    assert [group["name"] for group in optimizer.param_groups] == ["trunk", "branches"]
    for one, other in zip(optimizer.param_groups, plain.param_groups, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - {"params", "fused"}:
            assert one[key] == other[key], key


def test_parameters_of_several_types_are_stepped_together(here):
    values = parameters() + parameters(torch.bfloat16)
    optimizer = fused_where_possible(SGD(values), run())
    before = [value.detach().clone() for value in values]
    for value in values:
        value.grad = torch.ones_like(value)
    optimizer.step()
    assert kind_of(optimizer) == {True}
    assert all(not torch.equal(old, new.detach()) for old, new in zip(before, values, strict=True))


@pytest.mark.parametrize(
    ("build", "trainer", "dtype"),
    [
        (lambda p: SGD(p, foreach=True), run(), torch.float32),
        (lambda p: SGD(p, fused=False), run(), torch.float32),
        (lambda p: torch.optim.RMSprop(p), run(), torch.float32),
        (SGD, run("16-mixed"), torch.float32),
        (ADAMW, run("16-mixed", clip=1.0), torch.float32),
        (SGD, run("bf16-mixed", clip=1.0), torch.float32),  # Lightning refuses to clip for a fused step
        (ADAMW, run(shards=True), torch.float32),
        (SGD, run(), torch.complex64),
    ],
)
def test_where_it_is_not_fused(here, build, trainer, dtype):
    optimizer = build(parameters(dtype))
    assert fused_where_possible(optimizer, trainer) is optimizer


def test_a_gpu_alone_is_fused_and_clipping_in_other_precisions_too(here, monkeypatch):
    assert kind_of(fused_where_possible(SGD(parameters()), run("bf16-true", clip=1.0))) == {True}
    assert kind_of(fused_where_possible(ADAM(parameters()), run("16-mixed"))) == {True}
    plain = torch.optim.SGD(parameters(), lr=0.1)
    assert kind_of(fused_where_possible(plain, run("16-mixed"))) == {True}
    monkeypatch.undo()
    assert kind_of(fused_where_possible(SGD(parameters()), run())) == {None}


def test_a_class_of_the_user_stays(here):
    own = type("Own", (torch.optim.SGD,), {})(parameters(), lr=0.1)
    assert fused_where_possible(own, run()) is own


@pytest.mark.parametrize(("build", "clip"), [(ADAM, 1.0), (SGD, None)])
def test_fused_steps_that_would_go_wrong_in_half_precision_are_refused(here, build, clip):
    with pytest.raises(ValueError, match=r"optimizer.fused true does not go with precision 16-mixed if"):
        fused_where_possible(build(parameters(), fused=True), run("16-mixed", clip=clip))


@pytest.mark.parametrize(("first", "then"), [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_runs_go_on_from_checkpoints_of_the_other_kind(tmp_path, monkeypatch, name, first, then):
    """As from a GPU to a CPU and back."""
    seen = {}

    def fit(folder, fused_there, epochs, path=None):
        on_device(fused_there, monkeypatch)
        task = single("scene", optimizer=KINDS[name], optimization=OptimizationOptions(warmup_steps=3))
        steps = trainer(folder, max_epochs=epochs, enable_checkpointing=True, limit_val_batches=0,
                        gradient_clip_val=0.5)  # fmt: skip
        torch.manual_seed(0)
        steps.fit(task, Everything("scene"), ckpt_path=path)
        seen["kind"] = kind_of(steps.optimizers[0])
        return task.state_dict(), next(folder.rglob("last.ckpt"))

    whole, _ = fit(tmp_path / "whole", False, 2)
    _, path = fit(tmp_path / "half", first, 1)
    resumed, _ = fit(tmp_path / "more", then, 2, path)
    assert seen["kind"] == {True if then else None}
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, msg=key)


class Scaled(pl.plugins.MixedPrecision):
    """Half precision with a scaler, which Lightning has for GPUs alone."""

    def __init__(self, scale):
        super().__init__(
            "16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        )


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("fused_there", [True, False])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_steps_that_overflow_are_left_out_and_end_no_run(tmp_path, monkeypatch, name, fused_there, clip):
    on_device(fused_there, monkeypatch)
    plugin = Scaled(2.0**24)  # times gradients of more than 0.004 is beyond float16
    weights, scales = [], []
    task = single("scene", optimizer=KINDS[name])
    task.on_before_optimizer_step = lambda optimizer: weights.append(task.head.fc.weight.detach().clone())
    task.on_train_batch_end = lambda *_: scales.append(plugin.scaler.get_scale())
    steps = trainer(tmp_path, max_epochs=30, limit_val_batches=0, plugins=[plugin], gradient_clip_val=clip)
    steps.fit(task, Everything("scene"))
    assert kind_of(steps.optimizers[0]) == {True if fused_there and name == "adamw" and not clip else None}
    assert steps.global_step == 60 and scales[0] == 2.0**23  # the first step was one
    kept = [torch.equal(one, other) for one, other in zip(weights, weights[1:], strict=False)]
    overflowed = [after < before for before, after in zip([2.0**24, *scales], scales, strict=False)]
    assert kept == overflowed[: len(kept)] and any(kept) and not all(kept)
    assert all(bool(torch.isfinite(value).all()) for value in task.parameters())
