"""Losses of training and evaluation: their check, and their means over all images of all processes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...evaluation.distributed import gather_objects
from .draws import fixed_draws
from .transfer import to_main_memory


class LossCheck:
    """Stops a run whose loss is not finite.

    On an accelerator it looks at the previous step, so that it does not synchronise the device with this one.

    Args:
        stops: whether it stops the run; else it only tells, by ``take`` and ``told``.

    Attributes:
        last: the sum of the losses of the last step that was looked at; None before the first.
        told: unless it stops, the losses of steps where they are not finite, as text by step.
    """

    def __init__(self, stops: bool = True) -> None:
        self.stops = stops
        self.last: float | None = None
        self.told: dict[int, str] = {}
        self._bad: Tensor | None = None
        self._unchecked: tuple[Tensor, list[str], Tensor, int, torch.cuda.Event] | None = None

    def total(self, losses: dict[str, Tensor], image_ids: Tensor, step: int) -> Tensor:
        """Return the sum of the named losses of a step.

        Args:
            losses: scalars by name.
            image_ids: ``[B]``, of the images of the step, in main memory.
            step: its number.

        Raises:
            FloatingPointError: if the sum (on an accelerator that of the step before) is not finite.
        """
        names, parts = list(losses), torch.stack([loss.float() for loss in losses.values()])
        total = parts.sum()
        if not self.stops:
            bad = ~torch.isfinite(parts.detach()).all()
            self._bad = bad if self._bad is None else self._bad | bad
        if not parts.is_cuda:
            self._look(names, parts.detach(), image_ids, step)
            return total
        self.finish()
        host = torch.empty(parts.shape, dtype=parts.dtype, pin_memory=True)
        host.copy_(parts.detach(), non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._unchecked = (host, names, image_ids, step, copied)
        return total

    def take(self) -> Tensor:
        """Return ``[]`` bool, on their device: whether a loss since the last call was not finite."""
        bad, self._bad = self._bad, None
        return torch.zeros((), dtype=torch.bool) if bad is None else bad

    def finish(self) -> None:
        """Look at the last step that has not been looked at, if there is one.

        Raises:
            FloatingPointError: if its loss is not finite.
        """
        if self._unchecked is not None:
            host, names, image_ids, step, copied = self._unchecked
            self._unchecked = None
            copied.synchronize()
            self._look(names, host, image_ids, step)

    def _look(self, names: list[str], parts: Tensor, image_ids: Tensor, step: int) -> None:
        if self.stops:
            _require_finite(names, parts, image_ids, step)
        elif not bool(torch.isfinite(parts).all()):
            self.told[step] = _values(names, parts)
        self.last = float(parts.sum())


def _require_finite(names: list[str], parts: Tensor, image_ids: Tensor, step: int) -> None:
    if bool(torch.isfinite(parts).all()):
        return
    raise FloatingPointError(
        f"the loss is not finite at step {step} ({_values(names, parts)}) on the images with ids "
        f"{image_ids.tolist()}. "
        "Look at those images and their annotations; if they are sound, lower the learning rate, "
        "lengthen optimization.warmup_steps, set trainer.gradient_clip_val, or use bf16-mixed rather "
        "than 16-mixed; --model.skip_nonfinite_steps 10 leaves out up to 10 such steps"
    )


def _values(names: list[str], parts: Tensor) -> str:
    return ", ".join(f"{name} = {value:.4g}" for name, value in zip(names, parts.tolist(), strict=True))


class LossMeans:
    """Sums losses batch by batch on their device, and divides once at the end.

    A batch counts by its labelled images, whatever its own mean is over. The losses of segmentation are means
    over the labelled pixels of a batch. So their mean depends a little on which images share a batch, as in
    training. A batch without a labelled pixel counts as 0.

    The sums are exchanged as one object instead of by Lightning's ``sync_dist``, which a process without an
    image would block for ever.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._sums: dict[str, Tensor] = {}
        self._images: Tensor | int = 0

    def take(self, head: Any, raw: Any, batch: Any) -> None:
        """Add the losses of a head's raw outputs; what they draw depends on the images of the batch alone."""
        with fixed_draws(batch.in_main_memory("image_ids"), batch.image.device):
            losses = head.losses(raw, batch)
        self.add(losses, batch.labelled())

    def add(self, losses: dict[str, Tensor], images: Tensor | int) -> None:
        """Add the mean losses of a batch over ``images`` images; ``loss`` is added as their sum."""
        if not losses:
            return
        for name, value in {**losses, "loss": torch.stack(list(losses.values())).sum()}.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach() * images
        self._images = self._images + images

    def gathered(self) -> dict[str, float]:
        """Return the means over all processes, on each of them; NaN where no image was added.

        Every process must call it, also one that has added nothing.
        """
        sums = map(float, to_main_memory(*self._sums.values()))
        mine = (dict(zip(self._sums, sums, strict=True)), int(self._images))
        parts = gather_objects(mine)
        images = sum(number for _, number in parts)
        names = dict.fromkeys(name for sums, _ in parts for name in sums)
        totals = {name: sum(sums.get(name, 0.0) for sums, _ in parts) for name in names}
        return {name: total / images if images else math.nan for name, total in totals.items()}
