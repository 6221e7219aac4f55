"""Evaluators, a head and a branch of a user, for the tests of what can be replaced in YAML."""

import numpy as np
import torch

from trunkline.evaluation import gather_objects
from trunkline.evaluation.base import Evaluator, Result
from trunkline.heads import FCN
from trunkline.tasks.segmentation.branch import SegmentationBranch


class CountResult(Result):
    rows = ()

    def class_rows(self):
        return [dict(row) for row in self.rows]


class PixelCount(Evaluator):
    """The predicted share of the first class, and the pixels of each class.

    Args:
        metric: its name.
        column: the name of the metric of classes.
    """

    def __init__(self, metric="first_share", column="predicted"):
        self.metric, self.column = metric, column
        self.names, self.context = (), None

    def prepare(self, context):
        self.context, self.names = context, tuple(context.class_names)

    def reset(self):
        self.counts = {}

    def update(self, predictions, batch):
        assert len(predictions) == len(batch)
        for prediction in predictions:
            pixels = np.bincount(prediction["mask"].flatten(), minlength=len(self.names))
            self.counts[prediction["image_id"]] = pixels

    def gather(self):
        self.counts = {i: row for part in gather_objects(self.counts) for i, row in part.items()}

    def compute(self):
        total = np.sum(list(self.counts.values()), axis=0)
        result = CountResult({self.metric: float(total[0] / total.sum())})
        shares = (total / total.sum()).tolist()
        rows = [{"name": n, self.column: share} for n, share in zip(self.names, shares, strict=True)]
        object.__setattr__(result, "rows", rows)
        return result

    def pictures(self, result):
        return {"shares": np.full((4, 6, 3), 7, dtype=np.uint8)}


class BoxCount(Evaluator):
    """How many boxes there are per image."""

    def reset(self):
        self.counts = {}

    def update(self, predictions, batch):
        self.counts |= {p["image_id"]: len(p["boxes"]) for p in predictions}

    def gather(self):
        self.counts = {i: n for part in gather_objects(self.counts) for i, n in part.items()}

    def compute(self):
        return Result({"boxes_per_image": sum(self.counts.values()) / max(1, len(self.counts))})


class UpsideDownBranch(SegmentationBranch):
    """Serves masks, and turns the predicted ones upside down."""

    def predictions(self, raw, batch):
        return [{**each, "mask": each["mask"].flip(0)} for each in super().predictions(raw, batch)]


class UpsideDown(FCN):
    branch = "own_parts.UpsideDownBranch"


class Rough(torch.nn.Module):
    """No branch at all."""
