"""Boxes to evaluate against: the finite ones of a file as they stand there, whatever training makes of them.

Letters in shapes: I images, N boxes to train on, G boxes to evaluate against.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..shared.coco.boxes import BoxColumns


class TruthRows(NamedTuple):
    """What evaluation needs of the annotations of a file, by image and then in the order of the file.

    Attributes:
        images: ``[G]`` int64, positions of the images.
        labels: ``[G]`` int64 in 0..K-1.
        boxes: ``[G, 4]`` float64, x y width height in pixels as the file gives them.
        area: ``[G]`` float64, square pixels.
        crowd: ``[G]`` bool.
        rows: ``[G]`` int64, the place of each among the N boxes to train on, -1 for those that are not.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor
    area: Tensor
    crowd: Tensor
    rows: Tensor

    @classmethod
    def of(cls, truth: BoxColumns, trained: BoxColumns) -> TruthRows:
        """Keep what evaluation needs; ``trained`` are some of the same annotations, in any order."""
        truth = truth.take(np.argsort(truth.image, kind="stable"))
        row_of = {record: row for row, record in enumerate(trained.record.tolist())}
        rows = [row_of.get(record, -1) for record in truth.record.tolist()]
        columns = (truth.image, truth.labels, truth.xywh, truth.area, truth.crowd, np.array(rows, np.int64))
        return cls(*(torch.from_numpy(np.ascontiguousarray(column)) for column in columns))

    @classmethod
    def of_rows(
        cls, offsets: Tensor, labels: Tensor, boxes: Tensor, area: Tensor, crowd: Tensor
    ) -> TruthRows:
        """Take the boxes to train on, where these are all that there are; ``offsets`` are by image."""
        images = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
        return cls(images, labels, boxes, area, crowd, torch.arange(len(labels)))
