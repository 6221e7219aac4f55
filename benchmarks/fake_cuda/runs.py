"""Runs Lightning's loops on fake tensors of a CUDA device, and says what happened in each step."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import Checkpoint, LearningRateMonitor
from pytorch_lightning.cli import LightningCLI
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim import optimizer
from torch.utils import _foreach_utils

from trunkline.backbones import optimised
from trunkline.tasks.base.predicting import OptimisedPrediction

from .recorder import Recorder
from .tasks import Canvas, EmptyData, evaluation_batch, training_batch
from .values import HostValues

SWAP = torch.utils.swap_tensors
STAGES = ("fit", "predict")


@dataclass
class Step:
    """What one step did.

    Attributes:
        stage: ``train``, ``validate`` or ``predict``, one batch each; ``start`` (everything before the first
            training step but the sanity check), ``metrics`` (the end of an evaluation), ``optimised``.
        canvas: S of the batch.
        waits: of the host, by what and where.
        operators: that ran on the device, by name; of a training step also by part.
        places: the same by line.
        wide: operators that make float64.
        peak: bytes of tensors on the device at most, if they were followed (live.py); and what ``held`` them.
    """

    stage: str
    canvas: Canvas = ()
    waits: Counter[str] = field(default_factory=Counter)
    operators: Counter[str] = field(default_factory=Counter)
    parts: dict[str, int] = field(default_factory=dict)
    places: Counter[str] = field(default_factory=Counter)
    wide: Counter[str] = field(default_factory=Counter)
    peak: int = 0
    held: Counter[str] = field(default_factory=Counter)


class Watch(Callback):
    """Cuts what the recorder sees into steps, and checks gradients and weights."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.steps: list[Step] = []
        self._parts: dict[str, int] = {}

    def cut(self, stage: str, canvas: Canvas = ()) -> None:
        """End a step here."""
        seen = self.recorder
        counts = (Counter(part) for part in (seen.waits, seen.operators, seen.places, seen.wide))
        waits, operators, places, wide = counts
        self.steps.append(
            Step(stage, canvas, waits, operators, self._parts, places, wide, seen.peak, seen.held)
        )
        self._parts = {}
        seen.clear()

    def _part(self, name: str) -> None:
        done = sum(self._parts.values())
        self._parts[name] = self._parts.get(name, 0) + sum(self.recorder.operators.values()) - done

    def on_sanity_check_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.cut("start")

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        require_device(pl_module)
        self.cut("start")

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Any) -> None:
        if loss.device.type != "cuda" or loss.dtype != torch.float32:
            raise AssertionError(f"the loss is {loss.dtype} on {loss.device}, not float32 on the device")
        self._part("forward")

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        self._part("backward")
        require_gradients(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._part("optimiser")
        self.cut("train", tuple(batch.image.shape[2:]))

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.cut("start")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.cut("sanity" if trainer.sanity_checking else "validate", tuple(batch.image.shape[2:]))

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.cut("metrics")

    def on_predict_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.cut("optimised")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.cut("predict", tuple(batch.image.shape[2:]))


def require_device(module: torch.nn.Module) -> None:
    """Raise an AssertionError if a parameter or buffer is not on the device."""
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.device.type != "cuda":
            raise AssertionError(f"{name} stayed on {value.device}")


def require_gradients(module: torch.nn.Module) -> None:
    """Raise an AssertionError if a trained parameter has no gradient, or one of another device or type."""
    missing = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
    if missing:
        raise AssertionError(f"no gradient: {', '.join(missing)}")
    for name, value in module.named_parameters():
        grad = value.grad
        if grad is not None and (grad.device != value.device or grad.dtype != value.dtype):
            raise AssertionError(f"{name} is {value.dtype} on {value.device}, its gradient {grad.dtype}")


@contextlib.contextmanager
def fake_device(recorder_class: Callable[[FakeTensorMode], Recorder] = Recorder) -> Iterator[Recorder]:
    """Let tensors made or moved here be fake; yields what records them."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    recorder = recorder_class(mode)
    validate = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)  # compares values
    lists = (optimizer._foreach_supported_types, _foreach_utils._foreach_supported_types)
    for kinds in lists:  # what runs as one operator on a device does so here
        kinds.append(FakeTensor)
    try:
        swapping = mock.patch.object(torch.utils, "swap_tensors", swap)
        with mode, recorder, HostValues(recorder), counted_synchronising(recorder), swapping:
            torch._C._set_only_lift_cpu_tensors(True)  # or torch.tensor(..., device="cuda") copies in earnest
            yield recorder
    finally:
        for kinds in lists:
            kinds.remove(FakeTensor)
        torch._C._set_only_lift_cpu_tensors(False)
        torch.distributions.Distribution.set_default_validate_args(validate)


@contextlib.contextmanager
def counted_synchronising(recorder: Recorder) -> Iterator[None]:
    """Count what synchronises an event, a stream or the device by name."""

    def counting(of_torch: Callable[..., Any]) -> Callable[..., Any]:
        def synchronize(*args: Any, **kwargs: Any) -> Any:
            recorder.wait("synchronise")
            return of_torch(*args, **kwargs)

        return synchronize

    with contextlib.ExitStack() as patches:
        for owner in (torch.cuda.Event, torch.cuda.Stream, torch.cuda):
            patches.enter_context(mock.patch.object(owner, "synchronize", counting(owner.synchronize)))
        yield


def swap(one: torch.Tensor, other: torch.Tensor) -> None:
    """Exchange two tensors as ``torch.utils.swap_tensors`` does, also if the mode refers to them weakly."""
    if (one.device, one.dtype, one.stride()) != (other.device, other.dtype, other.stride()):
        with mock.patch.object(torch.utils.weakref, "getweakrefs", return_value=[]):
            SWAP(one, other)


def fit_steps(
    cli: LightningCLI,
    canvases: Sequence[Canvas],
    batch: int = 2,
    rows: int = 16,
    recorder_class: Callable[[FakeTensorMode], Recorder] = Recorder,
) -> list[Step]:
    """Run the sanity check, training steps and a validation of a built command line, as ``fit`` does.

    Training sees every canvas twice, validation once; before them comes the sanity check on the first.

    Args:
        cli: see :func:`.tasks.built`; used up.
        canvases: S of the batches.
        batch: B.
        rows: M of images with boxes.
        recorder_class: what counts.
    """
    task, trainer = cli.model, cli.trainer
    trained = [partial(training_batch, task, size, batch, rows) for size in (*canvases, *canvases)]
    evaluated = [
        partial(evaluation_batch, task, size, batch, rows, number * batch)
        for number, size in enumerate(canvases)
    ]
    data = EmptyData(task, {"train": trained, "val": evaluated})
    task.configure_callbacks = lambda: []  # checkpoints of tensors without data
    task.pictures = 0
    left_out = (Checkpoint, LearningRateMonitor)
    trainer.callbacks = [each for each in trainer.callbacks if not isinstance(each, left_out)]
    trainer.fit_loop.epoch_loop.max_steps = len(trained)
    trainer.fit_loop.max_epochs = 1
    return _watched(trainer, lambda: trainer.fit(task, datamodule=data), recorder_class)


def predict_steps(cli: LightningCLI, canvases: Sequence[Canvas], batch: int = 2) -> list[Step]:
    """Run predictions of a built command line as ``predict`` does: on the optimised copy, if it makes one."""
    task, trainer = cli.model, cli.trainer
    makers = [
        partial(evaluation_batch, task, size, batch, 16, number * batch)
        for number, size in enumerate((*canvases, *canvases))
    ]
    data = EmptyData(task, {"predict": makers})
    trainer.callbacks = [OptimisedPrediction()] if task.predicts_on_copy else []
    with mock.patch.object(optimised, "_require_same"):  # compares values
        return _watched(trainer, lambda: trainer.predict(task, datamodule=data, return_predictions=False))


def _watched(
    trainer: Trainer, run: Callable[[], Any], recorder_class: Callable[[FakeTensorMode], Recorder] = Recorder
) -> list[Step]:
    with fake_device(recorder_class) as recorder:
        watch = Watch(recorder)
        trainer.callbacks.append(watch)
        trainer.strategy.teardown = lambda: None  # would move everything to the host
        run()
    return watch.steps
