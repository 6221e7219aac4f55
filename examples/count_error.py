"""A metric of your own: by how many objects a detector is wrong in an image."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trunkline.evaluation import Evaluator, Prediction, Result, gather_objects


class CountError(Evaluator):
    """Mean absolute difference between the number of detections of an image and of its objects.

    Args:
        min_score: detections below this score do not count.
    """

    headline = "count_error"

    def __init__(self, min_score: float = 0.5) -> None:
        self.min_score = min_score
        self.counts: dict[int, tuple[int, int]] = {}  # by image id: detections, objects

    def reset(self) -> None:
        """Forget all predictions."""
        self.counts = {}

    def update(self, predictions: Sequence[Prediction], batch: Any) -> None:
        """Count detections and objects of each image of a batch."""
        objects = ((batch.labels >= 0) & ~batch.crowd).sum(1).tolist()
        for prediction, number in zip(predictions, objects, strict=True):
            detections = int((prediction["scores"] >= self.min_score).sum())
            self.counts[prediction["image_id"]] = detections, number

    def gather(self) -> None:
        """Join the counts of all processes; an image that two of them have seen counts once."""
        self.counts = {key: pair for part in gather_objects(self.counts) for key, pair in part.items()}

    def compute(self) -> Result:
        """Return ``count_error`` and ``count_bias`` (positive where there are too many detections)."""
        if not self.counts:
            return Result({"count_error": float("nan"), "count_bias": float("nan")})
        differences = [detections - objects for detections, objects in self.counts.values()]
        error = float(np.abs(differences).mean())
        return Result({"count_error": error, "count_bias": float(np.mean(differences))})
