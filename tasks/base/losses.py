"""Mean losses of a validation over all images of all processes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...evaluation.distributed import gather_objects


class LossMeans:
    """Sums losses batch by batch on their device, and divides once at the end.

    A batch counts by its images, whatever its own mean is over. The losses of segmentation are means over the
    labelled pixels of a batch; so theirs depends somewhat on which images share a batch, as in training, and
    a batch without a labelled pixel counts as 0.

    The sums are exchanged as one object instead of by Lightning's ``sync_dist``: a process without an image
    would otherwise wait for ever.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._sums: dict[str, Tensor] = {}
        self._images: Tensor | int = 0

    def add(self, losses: dict[str, Tensor], images: Tensor | int) -> None:
        """Add the mean losses of a batch over ``images`` images; ``loss`` is added as their sum."""
        for name, value in {**losses, "loss": torch.stack(list(losses.values())).sum()}.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach() * images
        self._images = self._images + images

    def gathered(self) -> dict[str, float]:
        """Return the means over all processes, on each of them; NaN where no image was added.

        Every process must call it, also one that has added nothing.
        """
        mine = ({name: float(value) for name, value in self._sums.items()}, int(self._images))
        parts = gather_objects(mine)
        images = sum(number for _, number in parts)
        names = dict.fromkeys(name for sums, _ in parts for name in sums)
        totals = {name: sum(sums.get(name, 0.0) for sums, _ in parts) for name in names}
        return {name: total / images if images else math.nan for name, total in totals.items()}
