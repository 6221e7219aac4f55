"""Semantic segmentation: a class for every pixel.

Letters in shapes: B images, C channels, K classes, S spatial axes (H, W or D, H, W).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...evaluation.base import Prediction
from ...heads.segmentation.base import RawSegmentation, Segmentation
from ..base.task import Task
from .inference import InferenceOptions, probabilities


class SemanticSegmentation(Task):
    """Trains, validates and applies a segmenter.

    Without an ``optimizer`` it trains by SGD with rate 0.01, momentum 0.9 and weight decay 1e-4.

    Args:
        inference: sliding window, flips and scales of validation, test and prediction; by default the
            network runs once on the whole image.
        **task: what every ``Task`` takes; the head is a segmentation head (``FCN``, ``DeepLabV3``,
            ``DeepLabV3Plus``, ``SemanticFPN``, ``UNet``).
    """

    kind = "segmentation"

    def __init__(self, inference: InferenceOptions = InferenceOptions(), **task: Any) -> None:
        self.inference = inference
        super().__init__(**task)

    @staticmethod
    def default_optimizer(parameters: Any) -> torch.optim.Optimizer:
        """SGD with rate 0.01 for 16 images, momentum 0.9 and weight decay 1e-4."""
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4)

    def forward(self, image: Tensor, image_sizes: Tensor) -> Segmentation:
        """Segment images.

        Args:
            image: ``[B, C, *S]`` uint8, or floating point that is normalised already.
            image_sizes: ``[B, n]`` int64, the size of each image inside the canvas.
        """
        return self.head.predict(self.inferred(image, image_sizes), image_sizes)

    def infer(
        self, batch: Any, use: Callable[[Any], None] | None = None
    ) -> tuple[RawSegmentation, dict[str, list[Prediction]]]:
        raw = self.inferred(batch.image, batch.image_sizes)
        if use is not None:
            use(raw)
        return raw, self.predictions(raw, batch)

    def inferred(self, image: Tensor, image_sizes: Tensor) -> RawSegmentation:
        """Run the network as the ``inference`` options say.

        Returns:
            Raw outputs. Where several runs were averaged, the logarithms of the mean probabilities, which
            give the same losses and predictions as logits would; then, and where the image has to be padded,
            without auxiliary ones.
        """
        plain = self.inference.plain
        if plain and not any(self._border(image)):
            return self.raw(image, image_sizes)
        normalised = self.normalise(image, image_sizes)
        if plain:
            return RawSegmentation(self._logits(normalised), ())
        mean = probabilities(self._logits, normalised, self.inference)
        return RawSegmentation(mean.clamp(min=torch.finfo(mean.dtype).tiny).log(), ())

    def _border(self, image: Tensor) -> list[int]:
        """Return by how much each side of ``[B, C, *S]`` misses a multiple of the trunk's coarsest stride.

        Without that border cells would stand for fewer pixels than they do in training, and their scores be
        out of place.
        """
        stride = self.trunk.levels[-1].stride
        return [-length % step for length, step in zip(image.shape[2:], stride, strict=True)]

    def _logits(self, normalised: Tensor) -> Tensor:
        """Run on ``[B, C, *S]`` with that border of zeros, and cut it off: ``[B, K, *S]``."""
        # F.pad wants the last axis first, and for each what goes before it.
        sides = [side for more in reversed(self._border(normalised)) for side in (0, more)]
        padded = F.pad(normalised, sides)
        logits = self.run(padded).logits
        return logits[(..., *(slice(0, length) for length in normalised.shape[2:]))]
