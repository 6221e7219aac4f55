"""What is said about a precision that does not suit the device."""

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator

from trunkline.tasks.settings.precision import warn_of_precision


def said(caplog, precision, accelerator, first=True):
    strategy = SimpleNamespace(root_device=torch.device("cuda:0"))
    warn_of_precision(
        SimpleNamespace(precision=precision, accelerator=accelerator, strategy=strategy, is_global_zero=first)
    )
    return caplog.text


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_on_a_cpu_names_the_option(caplog, precision):
    assert "--trainer.precision 32-true" in said(caplog, precision, CPUAccelerator())


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "64-true"])
def test_a_cpu_without_autocast_says_nothing(caplog, precision):
    assert not said(caplog, precision, CPUAccelerator())


@pytest.mark.parametrize(
    ("precision", "capability", "warned"),
    [("bf16-mixed", (7, 5), True), ("bf16-mixed", (8, 0), False), ("16-mixed", (7, 5), False)],
)
def test_bfloat16_on_gpus_before_ampere_names_the_option(caplog, monkeypatch, precision, capability, warned):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    text = said(caplog, precision, CUDAAccelerator())
    assert ("the Tesla T4" in text and "--trainer.precision 16-mixed" in text) == warned
    assert bool(text) == warned


def test_other_accelerators_and_other_processes_say_nothing(caplog):
    assert not said(caplog, "bf16-mixed", MPSAccelerator())
    assert not said(caplog, "bf16-mixed", CPUAccelerator(), first=False)
