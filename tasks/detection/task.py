"""Object detection: boxes and classes from images."""

from __future__ import annotations

from typing import Any, Literal

from ..base.task import Task


class Detection(Task):
    """Trains, validates and applies a detector.

    Args:
        evaluator: COCO metrics by ``faster`` (arrays) or ``pycocotools``; they agree.
        **task: what every ``Task`` takes; the head is a detection head (``FasterRCNN``).
    """

    kind = "detection"

    def __init__(self, evaluator: Literal["faster", "pycocotools"] = "faster", **task: Any) -> None:
        self.evaluator_options = {"detection": {"backend": evaluator}}
        super().__init__(**task)
