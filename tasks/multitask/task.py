"""Several heads on one trunk in one run: boxes and semantic masks, for example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import nn

from ...backbones.base import FeatureLevel
from ...backbones.weights.files import read_weights
from ...backbones.weights.load import load_weights
from ...heads.base import Head
from ...heads.detection.faster_rcnn import FasterRCNN
from ...heads.multi import MultiHead
from ...heads.segmentation.base import SegmentationHead
from ..base.branch import Branch
from ..base.task import BranchedTask
from ..detection.branch import DetectionBranch
from ..segmentation.branch import SegmentationBranch


class MultiTask(BranchedTask):
    """Trains, validates and applies several heads on one trunk and neck, which run once per step.

    Losses and figures carry the head's name: ``train/stuff/cross_entropy``, ``val/boxes/AP``. Predictions are
    written to a folder of that name each; overlay pictures show all of them.

    Args:
        heads: by a name of your choice: detection heads (``FasterRCNN``) and segmentation heads.
        loss_weights: factor of each head's losses; heads that are not named have 1.
        evaluator: COCO figures by ``faster`` (arrays) or ``pycocotools``; they agree.
        **task: what every ``BranchedTask`` takes, but for the head.

    Raises:
        ValueError: if a head is of another kind, or names or weights are wrong.
    """

    def __init__(
        self,
        heads: dict[str, Callable[[Sequence[FeatureLevel]], Head]],
        loss_weights: dict[str, float] | None = None,
        evaluator: Literal["faster", "pycocotools"] = "faster",
        **task: Any,
    ) -> None:
        taken = next((name for name in heads if hasattr(nn.ModuleDict(), name)), None)
        if taken is not None:
            raise ValueError(f"heads: {taken!r} cannot name a head, PyTorch uses the word; choose another")
        self.evaluator_backend = evaluator
        super().__init__(head=lambda levels: MultiHead(levels, heads, loss_weights), **task)

    def load_pretrained(self, source: str) -> None:
        """Load the weights of such a task, or those of a network with one of the heads into it and the trunk.

        Errors as in :func:`.weights.load_weights`.
        """
        if any(".heads." in key for key in read_weights(source).state):
            load_weights(self, source)
            return
        for head in self.head.heads.values():  # another kind of head than the file's stays as it is
            load_weights(nn.ModuleDict({"backbone": self.backbone, "head": head}), source)

    def make_branches(self) -> dict[str, Branch]:
        return {name: self._branch(name, head) for name, head in self.head.heads.items()}

    def _branch(self, name: str, head: Head) -> Branch:
        option = f"model.heads.{name}"
        if isinstance(head, FasterRCNN):
            return DetectionBranch(head, self.evaluator_backend, option)
        if isinstance(head, SegmentationHead):
            return SegmentationBranch(head, option)
        raise ValueError(
            f"{option} is a {type(head).__name__}; MultiTask takes FasterRCNN and segmentation heads"
        )
