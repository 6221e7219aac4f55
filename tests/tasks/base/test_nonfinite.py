"""A loss or gradient that is not finite ends the run, or the step is left out as if it had not been."""

import copy
import logging
import multiprocessing
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from trunkline.tasks.base.losses import LossCheck
from trunkline.tasks.base.nonfinite import SkipNonFinite, skips_on_device

BAD = 5  # id of the image that makes trouble; it is in the second batch


def spoiled(task, how):
    """Let the losses of the batch with the image BAD be NaN, or only their gradients."""
    losses = task.head.losses

    def new(raw, batch):
        found = losses(raw, batch)
        if BAD not in batch.image_ids.tolist():
            return found
        if how == "loss":
            return {name: loss * float("nan") for name, loss in found.items()}
        weight = next(task.parameters())
        zero = (weight * 0).sum().abs().sqrt()  # 0, whose gradient is not finite
        return {name: loss + zero for name, loss in found.items()}

    task.head.losses = new
    return task


def normed(tiny, optimizer, **options):
    task = tiny.classifier(optimizer=optimizer, **options)
    task.backbone.conv = nn.Sequential(task.backbone.conv, nn.BatchNorm2d(6))
    return task


def state(task, run):
    optimizer = run.optimizers[0].state_dict()["state"]
    return copy.deepcopy((task.state_dict(), optimizer))


OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, 0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda groups: torch.optim.AdamW(groups, 0.1),
    "fused": lambda groups: torch.optim.AdamW(groups, 0.1, fused=True),
}


@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_is_left_out_changes_nothing(tiny, tmp_path, name, how, caplog):
    ends = []
    for kept in (False, True):  # the second run never has the batch at all
        task = normed(tiny, OPTIMIZERS[name], skip_nonfinite_steps=1)
        data = tiny.Memory()
        if kept:
            data.batches = [batch for batch in data.batches if BAD not in batch.image_ids.tolist()]
        run = tiny.trainer(tmp_path, limit_val_batches=0)
        with caplog.at_level(logging.WARNING, "trunkline"):
            run.fit(task if kept else spoiled(task, how), data)
        ends.append(state(task, run))
    assert skips_on_device(run.optimizers[0]) is (name == "fused")
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)
    (said,) = [each.getMessage() for each in caplog.records if "not finite" in each.getMessage()]
    assert "step 1" in said and "ids [4, 5, 6, 7]" in said and "(1 of at most 1" in said
    assert ("nan" in said) is (how == "loss")


def test_one_step_too_many_ends_the_run_and_the_count_is_kept(tiny, tmp_path):
    task = spoiled(normed(tiny, OPTIMIZERS["adam"], skip_nonfinite_steps=1), "loss")
    run = tiny.trainer(tmp_path, limit_val_batches=0, max_epochs=2)
    with pytest.raises(FloatingPointError, match=r"step 4: .*nan.*ids \[4, 5, 6, 7\].*\(2 of at most 1"):
        run.fit(task, tiny.Memory())
    first, second = SkipNonFinite(3), SkipNonFinite(3)
    first.skipped = 2
    second.load_state_dict(first.state_dict())
    assert second.skipped == 2


def test_without_the_option_a_loss_that_is_not_finite_stops_and_names_it(tiny, tmp_path):
    task = spoiled(tiny.classifier(), "loss")
    with pytest.raises(FloatingPointError, match=r"ids \[4, 5, 6, 7\].*--model.skip_nonfinite_steps 10"):
        tiny.trainer(tmp_path, limit_val_batches=0).fit(task, tiny.Memory())


def test_weights_that_are_not_finite_replace_no_checkpoint(tiny, tmp_path):
    task = spoiled(tiny.classifier(), "gradient")
    data = tiny.Memory()
    data.batches = [data.batches[0], data.batches[2], data.batches[1]]  # so that no step follows
    run = tiny.trainer(tmp_path, limit_val_batches=0, enable_checkpointing=True)
    with pytest.raises(FloatingPointError, match="weights .* are not finite at step 3, so no checkpoint"):
        run.fit(task, data)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_accumulated_gradients_are_left_out_together(tiny, tmp_path):
    task = spoiled(normed(tiny, OPTIMIZERS["sgd"], skip_nonfinite_steps=1), "loss")
    before = copy.deepcopy(task.state_dict())
    data = tiny.Memory()
    data.batches = data.batches[:2]
    tiny.trainer(tmp_path, limit_val_batches=0, accumulate_grad_batches=2).fit(task, data)
    torch.testing.assert_close(task.state_dict(), before, rtol=0, atol=0)


def _decide(rank, folder, results):
    """One of two processes; only the loss of the second is not finite, in the second step."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", world_size=2, rank=rank)
    module = nn.Linear(2, 1)
    nn.init.zeros_(module.weight)
    module.loss_check, module.global_step = LossCheck(stops=False), 0
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace())
    callback, optimizer = SkipNonFinite(3), torch.optim.SGD(module.parameters(), 1.0)
    weights = []
    for step in range(3):
        ids = torch.tensor([10 * rank + step])
        batch = SimpleNamespace(in_main_memory=lambda name, ids=ids: ids)
        module.global_step = step
        callback.on_train_batch_start(trainer, module, batch, step)
        loss = torch.tensor(float("nan") if (rank, step) == (1, 1) else 1.0)
        module.loss_check.total({"loss": loss}, ids, step)
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        callback.on_before_optimizer_step(trainer, module, optimizer)
        optimizer.step()
        weights.append(module.weight[0, 0].item())
    results.put((rank, weights, callback.skipped))


def test_two_processes_leave_out_the_same_steps(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=_decide, args=(rank, tmp_path, results)) for rank in range(2)]
    for each in ranks:
        each.start()
    found = sorted(results.get(timeout=120) for _ in ranks)
    for each in ranks:
        each.join()
    assert found == [(rank, [-1.0, -1.0, -2.0], 1) for rank in range(2)]
