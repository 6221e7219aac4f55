"""Flips without the machinery of general pipelines: most detectors are trained with nothing else.

Letters in shapes: h w height and width of the image in pixels, m boxes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from .instances import Instances

_ROUNDING = 1e-4  # pixels; of float32 coordinates of a large image


class Flip(NamedTuple):
    """Whether an image is mirrored top to bottom, and left to right."""

    vertical: bool
    horizontal: bool

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """Mirror ``[h, w, ...]`` uint8; the same array if there is nothing to do."""
        if not any(self):
            return image
        return cv2.flip(image, -1 if all(self) else int(self.horizontal))

    def boxes(self, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Mirror ``[m, 4]`` boxes x1 y1 x2 y2 in pixels of an image of this height and width."""
        height, width = size
        left, top, right, bottom = boxes.T
        if self.horizontal:
            left, right = width - right, width - left
        if self.vertical:
            top, bottom = height - bottom, height - top
        return np.stack([left, top, right, bottom], axis=1)

    def instances(self, instances: Instances, size: tuple[int, int]) -> Instances:
        """Mirror masks and keypoints in pixels of an image of this height and width."""
        height, width = size
        masks, keypoints = instances.masks, instances.keypoints
        if masks is not None:
            steps = (-1 if self.vertical else 1, -1 if self.horizontal else 1)
            instances = instances._replace(masks=masks[:, :: steps[0], :: steps[1]])
        if keypoints is None:
            return instances
        x, y = keypoints[:, :, 0], keypoints[:, :, 1]
        x, y = width - x if self.horizontal else x, height - y if self.vertical else y
        # Mirrored twice, the image is turned by half: what was left stays left.
        return instances.moved(np.stack([x, y], axis=2), self.vertical != self.horizontal, size)

    def sample(
        self,
        image: np.ndarray,
        boxes: np.ndarray,
        labels: np.ndarray,
        crowd: np.ndarray,
        mask: np.ndarray | None,
        min_box_size: float,
        size: tuple[int, int] | None = None,
        instances: Instances | None = None,
    ) -> tuple[Any, ...]:
        """Do what ``Augmentation`` promises: clip boxes, mirror everything, drop boxes that are too small.

        Boxes and instances are in pixels of an image of ``size``, by default that of ``image``.
        """
        height, width = image.shape[:2] if size is None else size
        boxes = self.boxes(boxes.clip(0, (width, height, width, height)), (height, width))
        sides = boxes[:, 2:] - boxes[:, :2]
        kept = ((sides > 0) & (sides >= min_box_size - _ROUNDING)).all(axis=1)
        rest: tuple[Any, ...] = () if mask is None else (self.pixels(mask),)
        if instances is not None:
            rest += (self.instances(instances.take(kept), (height, width)),)
        return self.pixels(image), boxes[kept].astype(np.float32), labels[kept], crowd[kept], *rest


class Flips:
    """Draws flips as albumentations does, so that a seed gives what its ``Compose`` gives.

    Args:
        steps: for each flip of the pipeline, its axis (0 mirrors top to bottom, 1 left to right) and its
            probability.
    """

    def __init__(self, steps: Sequence[tuple[int, float]]):
        self.steps = tuple(steps)

    def draw(self, seed: int) -> Flip:
        """Draw from a generator of this seed."""
        rng = random.Random(seed)
        rng.random()  # Compose draws once, for its own probability
        flipped = [False, False]
        for axis, probability in self.steps:
            # Nothing is drawn for what is certain.
            if probability >= 1 or (probability > 0 and rng.random() < probability):
                flipped[axis] = not flipped[axis]
        return Flip(*flipped)
