"""What is asked for at resume against the checkpoint: a contradiction is named with both values."""

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.optim import SGD, AdamW
from torch.optim import lr_scheduler as schedules

from trunkline.tasks.base.optimization import OptimizationOptions
from trunkline.tasks.run.checkpoints import CheckpointError


def sgd(**options):
    return lambda groups: SGD(groups, **{"lr": 0.1, "momentum": 0.9, **options})


def steps(at=(1, 3)):
    return lambda optimizer: schedules.MultiStepLR(optimizer, list(at))


USUAL = {"optimizer": sgd(), "lr_scheduler": steps()}


@pytest.fixture
def saved(tiny, tmp_path):
    """A checkpoint after one epoch of SGD with milestones and a warm-up."""
    fit(tiny, tmp_path / "first", **USUAL)
    return tmp_path / "first" / "last.ckpt"


def fit(tiny, folder, epochs=1, ckpt_path=None, head=None, change=None, **options):
    options.setdefault("optimization", OptimizationOptions(warmup_steps=2))
    module = tiny.classifier(head=head, **options)
    if change is not None:
        change(module)
    trainer = tiny.trainer(
        folder, max_epochs=epochs, enable_checkpointing=True, callbacks=[ModelCheckpoint(folder, "best")]
    )
    trainer.fit(module, datamodule=tiny.Memory(), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"optimizer": sgd(lr=0.05)}, "optimizer.lr: 0.05 is asked for, the checkpoint has 0.1"),
        ({"optimizer": sgd(momentum=0.5)}, "optimizer.momentum: 0.5 is asked for, the checkpoint has 0.9"),
        ({"optimizer": sgd(weight_decay=1e-3)}, "optimizer.weight_decay: 0.001 is asked for, .* has 0\n"),
        ({"optimizer": AdamW}, "AdamW is asked for, the checkpoint has the state of torch.optim.sgd.SGD"),
        ({"lr_scheduler": steps((1, 7))}, r"milestones: \[1, 7\] is asked for, the checkpoint has \[1, 3\]"),
        (
            {"lr_scheduler": lambda o: schedules.CosineAnnealingLR(o, 4)},
            "CosineAnnealingLR is asked for, the checkpoint has the state of .*MultiStepLR",
        ),
        ({"lr_scheduler": None}, r"1 schedule\(s\) here, 2 in the checkpoint"),
        (
            {"optimization": OptimizationOptions(warmup_steps=3)},
            "LinearLR.total_iters: 3 is asked for, the checkpoint has 2",
        ),
        (
            {"optimization": OptimizationOptions(warmup_steps=2, trunk_lr_factor=0.5)},
            r"optimizer.lr \(parameters: trunk\): 0.05 is asked for, the checkpoint has 0.1",
        ),
        (
            {"optimization": OptimizationOptions(warmup_steps=2, decay_norms_and_biases=False)},
            r"parameters: 1 \(trunk\) \+ 1 \(trunk, no decay\) .* here, 2 \(trunk\) \+ 2 \(branches\)",
        ),
        (
            {"change": lambda module: module.backbone.requires_grad_(False)},
            r"parameters: 2 \(branches\) tensors here, 2 \(trunk\) \+ 2 \(branches\) .*frozen_stages",
        ),
    ],
)  # fmt: skip
def test_contradiction_is_named_with_both_values(tiny, tmp_path, saved, options, expected):
    with pytest.raises(CheckpointError, match=expected) as raised:
        fit(tiny, tmp_path / "second", 2, saved, **{**USUAL, **options})
    assert "begin anew from the weights with --model.weights FILE" in str(raised.value)


@pytest.mark.parametrize("older", [False, True])
def test_same_settings_go_on(tiny, tmp_path, saved, older):
    if older:  # written before the names of classes were stored
        content = torch.load(saved, weights_only=True)
        del content["optimization_classes"]
        torch.save(content, saved)
    trainer = fit(tiny, tmp_path / "second", 4, saved, **USUAL)
    assert trainer.global_step == 12
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.1 * 0.1)  # both milestones


def test_cycled_momentum_is_no_contradiction(tiny, tmp_path):
    options = {
        "optimizer": sgd(),
        "lr_scheduler": lambda o: schedules.OneCycleLR(o, 0.2, total_steps=12),
        "optimization": OptimizationOptions(interval="step"),
    }
    fit(tiny, tmp_path / "first", **options)
    trainer = fit(tiny, tmp_path / "second", 3, tmp_path / "first" / "last.ckpt", **options)
    assert trainer.global_step == 9


def test_nothing_left_to_train_is_said(tiny, tmp_path, saved, caplog):
    fit(tiny, tmp_path / "second", 1, saved, **USUAL)
    assert "nothing is left to train: the run has done 1 of trainer.max_epochs 1" in caplog.text
