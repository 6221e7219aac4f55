"""WeightEMA averages as Lightning's callback does, on the model's device, also after a resume."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trunkline.tasks.run.averaging import ListAverage, WeightEMA, warn_of_slow_average

OURS, THEIRS = WeightEMA, pl.callbacks.EMAWeightAveraging


class Normed(nn.Module):
    """A norm with running statistics and a counter, and a half-precision weight."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.fc = nn.Linear(3, 2)
        self.low = nn.Parameter(torch.ones(4, dtype=torch.float16))


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


def changed(model, step):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(step)
        model.norm.running_mean.fill_(10 * step)
        model.norm.num_batches_tracked.fill_(step)


def test_numbers_worked_out_by_hand():
    model = Normed()
    average = ListAverage(Normed(), decay=0.75, use_buffers=True)
    for step in (1, 2, 4):
        changed(model, step)
        average.update_parameters(model)
    # The first update copies: 1, then 0.75 * 1 + 0.25 * 2, then 0.75 * 1.25 + 0.25 * 4.
    assert average.module.fc.weight.unique().tolist() == [1.9375]
    assert average.module.low.dtype == torch.float16 and average.module.low.unique().tolist() == [1.9375]
    assert average.module.norm.running_mean.unique().tolist() == [19.375]
    assert int(average.module.norm.num_batches_tracked) == 4  # a count, not an average of counts
    assert int(average.n_averaged) == 3


def test_without_buffers_the_average_keeps_those_of_the_beginning():
    model = Normed()
    average = ListAverage(Normed(), decay=0.5, use_buffers=False)
    changed(model, 3)
    average.update_parameters(model)
    assert average.module.norm.running_mean.unique().tolist() == [0] and average.module.fc.bias[0] == 3


def test_the_average_stays_single_precision_while_the_model_is_half():
    model = Normed().bfloat16()
    average = ListAverage(Normed(), decay=0.999, use_buffers=True)
    for step in (1, 2):
        changed(model, step)
        average.update_parameters(model)
    assert average.module.fc.weight.dtype == torch.float32
    torch.testing.assert_close(average.module.fc.bias.detach(), torch.full((2,), 1.001))


def test_an_update_is_a_few_operators_on_lists():
    model = nn.Sequential(*(nn.BatchNorm2d(4) for _ in range(30)))
    average = ListAverage(nn.Sequential(*(nn.BatchNorm2d(4) for _ in range(30))), 0.9, True)
    average.update_parameters(model)
    with Operators() as seen:
        average.update_parameters(model)
    counted = [name for name in seen.names if name not in ("_local_scalar_dense", "detach")]
    assert sorted(counted) == ["_foreach_copy_", "_foreach_lerp_", "add_"]  # the last counts on the host
    assert seen.names.count("_local_scalar_dense") == 1  # of that count


def test_the_average_follows_the_model_and_its_count_stays_on_the_host():
    """Lightning calls ``setup`` before the strategy moves the model, and ``on_fit_start`` after that."""
    run = SimpleNamespace(strategy=pl.strategies.SingleDeviceStrategy("cpu"))
    module, ema = pl.LightningModule(), WeightEMA()
    module.part = Normed()
    ema.setup(run, module, "fit")
    module.to("meta")
    ema.on_fit_start(run, module)
    assert {tensor.device.type for tensor in ema._average_model.module.state_dict().values()} == {"meta"}
    assert ema._average_model.n_averaged.device.type == "cpu"
    ema._average_model.update_parameters(module)
    ema._average_model.update_parameters(module)  # nothing reads a value of a tensor without data
    assert int(ema._average_model.n_averaged) == 2


def test_the_average_moves_after_the_model_in_a_run(tiny, tmp_path):
    order, task = [], tiny.classifier()

    class Moved(WeightEMA):
        def on_fit_start(self, trainer, pl_module):
            order.append("average")
            super().on_fit_start(trainer, pl_module)

    class Strategy(pl.strategies.SingleDeviceStrategy):
        def model_to_device(self):
            order.append("model")
            super().model_to_device()

    tiny.trainer(tmp_path, limit_train_batches=1, callbacks=[Moved()], strategy=Strategy("cpu")).fit(
        task, tiny.Memory()
    )
    assert order == ["model", "average"]


def test_another_device_is_kept_if_it_is_asked_for():
    run = SimpleNamespace(strategy=pl.strategies.SingleDeviceStrategy("cpu"))
    module, ema = pl.LightningModule(), WeightEMA(device="cpu")
    module.part = Normed()
    ema.setup(run, module, "fit")
    module.to(torch.device("meta"))
    ema.on_fit_start(run, module)
    assert ema._average_model.module.part.fc.weight.device.type == "cpu"


def fit(tiny, folder, kind, epochs=1, ckpt_path=None):
    pl.seed_everything(0)
    task = tiny.classifier(optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    ema = kind(decay=0.5, update_every_n_steps=2)
    seen, validate = [], task.on_validation_epoch_end
    task.on_validation_epoch_end = lambda: (seen.append(task.head.fc.weight.detach().clone()), validate())
    run = tiny.trainer(folder, max_epochs=epochs, enable_checkpointing=True, callbacks=[ema])
    run.fit(task, tiny.Memory(), ckpt_path=ckpt_path)
    path = folder / "last.ckpt"
    saved = torch.load(path if path.is_file() else next(folder.rglob("last.ckpt")), weights_only=True)
    return task, seen, saved


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], msg=name)


def test_runs_checkpoints_and_validation_equal_those_of_lightning(tiny, tmp_path):
    (ours, seen, saved), (theirs, expected, known) = (
        fit(tiny, tmp_path / kind.__name__, kind, epochs=2) for kind in (OURS, THEIRS)
    )
    same(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(seen, expected)
    assert saved.keys() == known.keys() and len(seen) == 2
    for part in ("state_dict", "current_model_state", "averaging_state"):
        same(saved[part], known[part])
    assert saved["callbacks"].keys() == known["callbacks"].keys()
    assert saved["callbacks"]["EMAWeightAveraging"] == known["callbacks"]["EMAWeightAveraging"]
    moved = (saved["state_dict"][name] - saved["current_model_state"][name] for name in saved["state_dict"])
    assert max(difference.abs().max() for difference in moved) > 1e-4


@pytest.mark.parametrize(("first", "then"), [(THEIRS, OURS), (OURS, THEIRS), (OURS, OURS)])
def test_each_goes_on_from_the_other_s_checkpoint(tiny, tmp_path, first, then, caplog):
    whole, _, _ = fit(tiny, tmp_path / "whole", first, epochs=2)
    fit(tiny, tmp_path / "half", first)
    resumed, _, _ = fit(tiny, tmp_path / "half", then, 2, next((tmp_path / "half").rglob("last.ckpt")))
    same(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize(
    ("options", "words"),
    [({"decay": 1.5}, r"decay must lie in \[0, 1\], not 1.5"), ({"update_every_n_steps": 0}, "at least 1")],
)
def test_options_out_of_range_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        WeightEMA(**options)


def test_sharded_weights_are_refused():
    run = SimpleNamespace(strategy=pl.strategies.FSDPStrategy())
    module, ema = pl.LightningModule(), WeightEMA()
    module.part = Normed()
    ema.setup(run, module, "fit")
    with pytest.raises(ValueError, match=r"FSDPStrategy divides among processes.*strategy ddp"):
        ema.on_fit_start(run, module)


@pytest.mark.parametrize(
    ("kind", "device", "warned"), [(THEIRS, "cuda", 1), (OURS, "cuda", 0), (THEIRS, "cpu", 0)]
)
def test_the_slow_callback_is_named_where_it_is_slow(kind, device, warned, caplog):
    strategy = SimpleNamespace(root_device=torch.device(device))
    warn_of_slow_average(SimpleNamespace(callbacks=[kind()], strategy=strategy, is_global_zero=True))
    assert caplog.text.count("name WeightEMA in trainer.callbacks instead") == warned
