"""The last state of a run: what ``last.ckpt`` holds, by the step in the file."""

import os
import signal
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException

from trunkline.data.classification import ImageClassification
from trunkline.tasks.base.optimization import OptimizationOptions
from trunkline.tasks.run.checkpoints import AtomicCheckpointIO
from trunkline.tasks.run.found import newest_checkpoint

STEPS = 3  # batches of the data in memory, per epoch


class Metric(Callback):
    """Logs ``val/chosen``, one value for each validation."""

    def __init__(self, values):
        self.values = list(values)

    def on_validation_epoch_end(self, trainer, module):
        if not trainer.sanity_checking:
            module.log("val/chosen", torch.tensor(self.values.pop(0)))


class StopAsked(Callback):
    """Sends this process the signal to stop, after a step or in the validation after one."""

    def __init__(self, step, validating=False):
        self.step, self.validating = step, validating

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step and not self.validating:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_validation_batch_end(self, trainer, *_):
        if trainer.global_step == self.step and self.validating:
            os.kill(os.getpid(), signal.SIGTERM)


def step_in(path):
    return torch.load(path, weights_only=True)["global_step"]


def fit(tiny, folder, checkpoint, *callbacks, module=None, data=None, ckpt_path=None, **options):
    trainer = tiny.trainer(
        folder, enable_checkpointing=True, callbacks=[*callbacks, checkpoint], **{"max_epochs": 4, **options}
    )
    trainer.fit(module or tiny.classifier(), datamodule=data or tiny.Memory(), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("save_last", [None, True])
@pytest.mark.parametrize("values", [[0.9, 0.1, 0.2, 0.3], [float("nan")] * 4, [0.1, 0.2, 0.3, 0.4]])
def test_last_epoch_is_in_last_and_best_in_best(tiny, tmp_path, caplog, values, save_last):
    best = ModelCheckpoint(tmp_path, "best", monitor="val/chosen", mode="max", save_last=save_last)
    fit(tiny, tmp_path, best, Metric(values))
    assert step_in(tmp_path / "last.ckpt") == 4 * STEPS
    assert caplog.text.count("val/chosen is not a number") == (values[0] != values[0])  # said once
    first = values[0] != 0.1
    assert step_in(best.best_model_path) == (STEPS if first else 4 * STEPS)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize(
    "options",
    [
        {"check_val_every_n_epoch": 3},
        {"limit_val_batches": 0},
        {"val_check_interval": 2},
        {"max_epochs": -1, "max_steps": 4 * STEPS, "check_val_every_n_epoch": None, "val_check_interval": 5},
        {"max_epochs": -1, "max_steps": 7},
        {"accumulate_grad_batches": 2},
    ],
)
def test_last_state_whenever_validation_runs(tiny, tmp_path, options):
    trainer = fit(tiny, tmp_path, ModelCheckpoint(tmp_path, "best", monitor="val/loss"), **options)
    assert step_in(tmp_path / "last.ckpt") == trainer.global_step > 0


def test_default_checkpoint_of_a_trainer_has_a_last_one_too(tiny, tmp_path):
    trainer = tiny.trainer(tmp_path, enable_checkpointing=True, max_epochs=2)
    trainer.fit(tiny.classifier(), datamodule=tiny.Memory())
    assert step_in(tmp_path / "checkpoints" / "last.ckpt") == 2 * STEPS


@pytest.mark.parametrize("options", [{}, {"enable_checkpointing": True, "fast_dev_run": True}])
def test_nothing_is_written_where_checkpoints_are_off(tiny, tmp_path, options):
    tiny.trainer(tmp_path, **options).fit(tiny.classifier(), datamodule=tiny.Memory())
    assert not list(tmp_path.rglob("*.ckpt"))


def test_save_last_follows_the_steps_of_its_checkpoint(tiny, tmp_path):
    """A run that dies leaves the state of the last step that was asked for."""
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, *_):
            path = tmp_path / "last.ckpt"
            seen.append(step_in(path) if path.exists() else None)

    steps = ModelCheckpoint(tmp_path, "step-{step}", every_n_train_steps=2, save_last=True)
    fit(tiny, tmp_path, steps, Look(), max_epochs=2)
    assert seen == [None, None, 2, 3, 4, 4]  # before steps 0 to 5; 3 is the end of the first epoch


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_asked_to_stop_after_a_step_its_state_is_kept(tiny, tmp_path, caplog, step):
    with pytest.raises(SIGTERMException) as stopped:
        fit(tiny, tmp_path, ModelCheckpoint(tmp_path, "best", monitor="val/loss"), StopAsked(step))
    assert step_in(tmp_path / "last.ckpt") == step
    assert stopped.value.code == 143, "not a success"
    assert f"to go on: trunkline fit --ckpt_path {tmp_path / 'last.ckpt'}" in caplog.text


@pytest.mark.parametrize(("epoch", "kept"), [(0, None), (1, STEPS)])
def test_failed_run_says_how_to_go_on_if_there_is_a_state(tiny, tmp_path, caplog, epoch, kept):
    class Fail(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == epoch:
                raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="the device is gone"):
        fit(tiny, tmp_path, ModelCheckpoint(tmp_path, "best"), Fail())
    last = tmp_path / "last.ckpt"
    assert (step_in(last) if last.exists() else None) == kept
    assert ("to go on: trunkline fit --ckpt_path" in caplog.text) == (kept is not None)


def test_asked_to_stop_in_validation_its_state_is_kept(tiny, tmp_path):
    with pytest.raises(SIGTERMException):
        fit(
            tiny, tmp_path, ModelCheckpoint(tmp_path, "best", monitor="val/loss"), StopAsked(2, True),
            val_check_interval=2,
        )  # fmt: skip
    assert step_in(tmp_path / "last.ckpt") == 2


class Seen(Callback):
    """The ids of the images of each training batch."""

    def __init__(self):
        self.ids = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.ids.append((trainer.current_epoch, batch.image_ids.tolist()))


@pytest.mark.parametrize("stop", [None, 4, 5, 6])
def test_resumed_run_ends_as_one_that_was_not_stopped(tiny, tmp_path, class_folders, stop):
    """Every batch and every weight is equal, with a schedule that counts epochs and one that counts steps."""

    def run(folder, *callbacks, **options):
        seen = Seen()
        module = tiny.classifier(
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
            optimization=OptimizationOptions(warmup_steps=5),
        )
        data = ImageClassification(class_folders, size=16, batch_size=2, workers=0, seed=3)
        best = ModelCheckpoint(folder, "best")
        try:
            trainer = fit(tiny, folder, best, seen, *callbacks, module=module, data=data, **options)
        except SIGTERMException:
            trainer = None
        return module.state_dict(), seen.ids, trainer

    weights, ids, trainer = run(tmp_path / "whole")
    steps = trainer.global_step // 4
    assert steps == 3 and len(ids) == 12
    part = tmp_path / "part"
    options = {"max_epochs": 2} if stop is None else {}
    _, first_ids, _ = run(part, *([] if stop is None else [StopAsked(stop)]), **options)
    assert step_in(part / "last.ckpt") == len(first_ids) == (stop or 6)
    resumed, rest_ids, _ = run(tmp_path / "rest", ckpt_path=part / "last.ckpt")
    assert first_ids + rest_ids == ids
    for name, value in weights.items():
        assert torch.equal(resumed[name], value), name


def test_another_runs_last_checkpoint_is_not_replaced(tiny, tmp_path):
    fit(tiny, tmp_path, ModelCheckpoint(tmp_path, "a"), max_epochs=1)
    fit(tiny, tmp_path, ModelCheckpoint(tmp_path, "b"), max_epochs=2)
    assert step_in(tmp_path / "last.ckpt") == STEPS and step_in(tmp_path / "last-v1.ckpt") == 2 * STEPS
    fit(tiny, tmp_path, ModelCheckpoint(tmp_path, "c"), max_epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert step_in(tmp_path / "last.ckpt") == 3 * STEPS, "a run that goes on in its folder replaces its own"


def test_another_runs_best_checkpoint_is_not_replaced(tiny, tmp_path):
    """Also where the config counts no versions: so does every shipped one."""

    def best():
        options = {"monitor": "val/chosen", "mode": "max", "enable_version_counter": False}
        return ModelCheckpoint(tmp_path, "best", **options)

    fit(tiny, tmp_path, best(), Metric([0.9, 0.8]), max_epochs=2)
    second = best()
    fit(tiny, tmp_path, second, Metric([0.1, 0.2, 0.3]), max_epochs=3)
    assert step_in(tmp_path / "best.ckpt") == STEPS
    assert (
        second.best_model_path == str(tmp_path / "best-v1.ckpt")
        and step_in(second.best_model_path) == 3 * STEPS
    )
    resumed = best()
    fit(tiny, tmp_path, resumed, Metric([0.95]), max_epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert resumed.best_model_path == str(tmp_path / "best.ckpt"), "its own best may be replaced"


def test_best_of_before_counts_in_a_new_folder(tiny, tmp_path):
    def best(folder):
        return ModelCheckpoint(folder, "best", monitor="val/chosen", mode="max")

    first, second = tmp_path / "first", tmp_path / "second"
    fit(tiny, first, best(first), Metric([0.9, 0.3]), max_epochs=2)
    again = best(second)
    fit(tiny, second, again, Metric([0.5, 0.6]), ckpt_path=first / "last.ckpt")
    assert again.best_model_score == pytest.approx(0.9) and again.best_model_path == str(first / "best.ckpt")
    third = best(tmp_path / "third")
    fit(tiny, tmp_path / "third", third, Metric([0.5, 0.95]), ckpt_path=first / "last.ckpt")
    assert third.best_model_path == str(tmp_path / "third" / "best.ckpt")
    assert (first / "best.ckpt").is_file()


def test_checkpoints_are_written_whole(tiny, tmp_path):
    trainer = fit(tiny, tmp_path, ModelCheckpoint(tmp_path, "best"), max_epochs=1)
    assert type(trainer.strategy.checkpoint_io) is AtomicCheckpointIO
    assert not [path for path in tmp_path.rglob("*") if "part" in path.name]


def test_newest_that_can_be_read_is_found(tmp_path, caplog):
    for number, step in enumerate((10, 20, 30)):
        path = tmp_path / f"version_{number}" / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        torch.save({"state_dict": {}, "global_step": step}, path)
        os.utime(path, (1_000_000 + number, 1_000_000 + number))
    newest = tmp_path / "version_2" / "checkpoints" / "last.ckpt"
    assert newest_checkpoint([tmp_path], "last") == newest
    newest.write_bytes(newest.read_bytes()[:200])
    os.utime(newest, (2_000_000, 2_000_000))
    assert newest_checkpoint([tmp_path], "last") == tmp_path / "version_1" / "checkpoints" / "last.ckpt"
    assert f"{newest} cannot be read as a checkpoint" in caplog.text
    with pytest.raises(ValueError, match="no checkpoint that can be read in .*nothing"):
        newest_checkpoint([tmp_path / "nothing"], "last")
    with pytest.raises(ValueError, match="has no best checkpoint"):
        newest_checkpoint([tmp_path], "best")


def test_best_of_the_newest_run_is_found_also_after_a_move(tiny, tmp_path):
    run = tmp_path / "run"
    best = ModelCheckpoint(run, "best", monitor="val/chosen", mode="max")
    fit(tiny, run, best, Metric([0.9, 0.1]), max_epochs=2)
    assert newest_checkpoint([tmp_path], "best") == run / "best.ckpt"
    run.rename(tmp_path / "moved")
    assert newest_checkpoint([tmp_path], "best") == tmp_path / "moved" / "best.ckpt"


def test_best_is_that_of_the_run_and_not_of_another_one_of_the_same_path(tmp_path, monkeypatch):
    """Paths in a checkpoint start from the folder that its command was started in."""

    def write(root, state):
        for name in ("best", "last"):
            path = root / "runs" / "version_0" / f"{name}.ckpt"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"state_dict": {}, "callbacks": {"ModelCheckpoint": state}}, path)
        return root / "runs" / "version_0"

    folder = Path("runs", "version_0")
    state = {"best_model_path": str(folder / "best.ckpt"), "best_model_score": 1.0, "dirpath": str(folder)}
    here, there = (write(tmp_path / name, state) for name in ("here", "there"))
    monkeypatch.chdir(tmp_path / "here")
    assert newest_checkpoint([Path("runs")], "best") == here / "best.ckpt"
    assert newest_checkpoint([tmp_path / "there" / "runs"], "best") == there / "best.ckpt"
    # Of a run that went on from it, in another folder, the way between the two counts.
    resumed = there.with_name("version_1")
    resumed.mkdir()
    later = state | {"dirpath": str(folder.with_name("version_1"))}
    torch.save({"state_dict": {}, "callbacks": {"ModelCheckpoint": later}}, resumed / "last.ckpt")
    os.utime(resumed / "last.ckpt", (4_000_000_000, 4_000_000_000))
    assert newest_checkpoint([tmp_path / "there" / "runs"], "best") == there / "best.ckpt"


def test_best_is_by_a_metric_if_another_checkpoint_has_none(tiny, tmp_path):
    callbacks = ModelCheckpoint(tmp_path, "each"), ModelCheckpoint(tmp_path, "best", "val/chosen", mode="max")
    fit(tiny, tmp_path, *callbacks, Metric([0.9, 0.1]), max_epochs=2)
    assert newest_checkpoint([tmp_path], "best") == tmp_path / "best.ckpt"
