"""Several heads on one trunk in one run: boxes and semantic masks, for example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import nn

from ...backbones.base import FeatureLevel
from ...backbones.weights.files import read_weights
from ...backbones.weights.load import load_weights
from ...heads.base import Head
from ...heads.multi import MultiHead
from ..base.task import Task


class MultiTask(Task):
    """Trains, validates and applies several heads on one trunk and neck, which run once per step.

    Losses and metrics carry the head's name: ``train/stuff/cross_entropy``, ``val/boxes/AP``. Predictions are
    written to a folder of that name each; overlay pictures show all of them.

    Args:
        heads: by a name of your choice: heads of any kind, several of a kind too.
        loss_weights: factor of each head's losses; heads that are not named have 1.
        evaluator: COCO metrics by ``faster`` (arrays) or ``pycocotools``; they agree.
        **task: what every ``Task`` takes, except the head.

    Raises:
        ValueError: if names or weights are wrong.
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
        self.evaluator_options = {"detection": {"backend": evaluator}}
        super().__init__(head=lambda levels: MultiHead(levels, heads, loss_weights), **task)

    def load_pretrained(self, source: str) -> None:
        """Load the weights of such a task, or those of a network with one of the heads into it and the trunk.

        Errors as in :func:`.weights.load_weights`.
        """
        if any(".heads." in key for key in read_weights(source).state):
            load_weights(self, source)
            return
        for head in self.head.named_heads().values():  # another kind of head than the file's stays as it is
            load_weights(nn.ModuleDict({"backbone": self.backbone, "head": head}), source)
