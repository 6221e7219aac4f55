"""Object detection: boxes and classes from images."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from ...evaluation.detection.evaluator import CocoResult
from ..base.branch import Branch, Found
from ..base.task import BranchedTask
from .branch import DetectionBranch


class Detection(BranchedTask):
    """Trains, validates and applies a detector.

    Args:
        evaluator: COCO figures by ``faster`` (arrays) or ``pycocotools``; they agree.
        **task: what every ``BranchedTask`` takes; the head is a detection head (``FasterRCNN``).
    """

    def __init__(self, evaluator: Literal["faster", "pycocotools"] = "faster", **task: Any) -> None:
        self.evaluator_backend = evaluator
        super().__init__(**task)

    def make_branches(self) -> dict[str, Branch]:
        return {"": DetectionBranch(self.head, self.evaluator_backend)}

    @property
    def branch(self) -> DetectionBranch:
        """The only branch."""
        return self.branches[""]

    @property
    def categories(self) -> list[dict[str, Any]]:
        """Class k is ``categories[k]``: id and name in the annotation file."""
        return self.branch.classes

    @property
    def result(self) -> CocoResult | None:
        """The COCO figures of the last validation or test."""
        return self.branch.result

    def adopt_categories(self, categories: list[dict[str, Any]]) -> None:
        """Take over the data's categories, see :meth:`.branches.Branch.adopt`."""
        self.branch.adopt(categories)

    def category_ids(self, labels: Tensor) -> Tensor:
        """Turn class indices into the annotation file's category ids."""
        return self.branch.category_ids(labels)

    def class_names(self) -> list[str]:
        """Return one name per class of the head."""
        return self.branch.class_names()

    def to_original(self, detections: Any, batch: Any) -> list[Found]:
        """Scale boxes to the original images' pixels, see :meth:`.DetectionBranch.to_original`."""
        return self.branch.to_original(detections, batch)
