"""What the command line sets that Lightning's does not."""

from types import SimpleNamespace

import pytest
from pytorch_lightning.accelerators import CPUAccelerator, CUDAAccelerator
from pytorch_lightning.callbacks import ProgressBar, TQDMProgressBar

from trunkline.tasks.command import refresh_seldom


@pytest.mark.parametrize(
    ("accelerator", "rate", "expected"),
    [(CUDAAccelerator(), 1, 20), (CUDAAccelerator(), 5, 5), (CPUAccelerator(), 1, 1)],
)
def test_on_a_device_the_bar_makes_the_host_wait_every_20th_step_only(accelerator, rate, expected):
    bar = TQDMProgressBar(refresh_rate=rate)
    refresh_seldom(SimpleNamespace(progress_bar_callback=bar, accelerator=accelerator))
    assert bar.refresh_rate == expected
    shown = [step for step in range(1, 41) if bar._should_update(step, 40)]
    assert shown == list(range(expected, 41, expected))


@pytest.mark.parametrize("bar", [None, ProgressBar()])
def test_other_bars_stay_as_they_are(bar):
    before = None if bar is None else dict(vars(bar))
    refresh_seldom(SimpleNamespace(progress_bar_callback=bar, accelerator=CUDAAccelerator()))
    assert bar is None or vars(bar) == before
