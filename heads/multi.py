"""Several heads on the same feature maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..backbones.base import FeatureLevel
from .base import Head, SharedTargets


class MultiHead(Head):
    """Runs named heads on one set of feature maps; each keeps its own raw outputs, losses and predictions.

    Heads may be of any kind, several of one kind too. The batch says which labels are whose.

    Args:
        levels: what the trunk or neck declares; every head gets all of them.
        heads: builds each head, by name.
        loss_weights: factor of each head's losses; heads that are not named have 1.

    Raises:
        ValueError: if there is no head, a name is no identifier, or a weight is negative or of no head.
    """

    def __init__(
        self,
        levels: Sequence[FeatureLevel],
        heads: Mapping[str, Callable[[Sequence[FeatureLevel]], Head]],
        loss_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        if not heads:
            raise ValueError("heads names no head; give at least one, such as boxes: FasterRCNN")
        wrong = [name for name in heads if not name.isidentifier()]
        if wrong:
            raise ValueError(f"heads: {wrong[0]!r} cannot name a head; use letters, digits and _")
        weights = dict(loss_weights or {})
        unknown = sorted(set(weights) - set(heads))
        if unknown:
            raise ValueError(f"loss_weights: there is no head {unknown[0]!r}, only {', '.join(heads)}")
        for name, weight in weights.items():
            if not weight >= 0:
                raise ValueError(f"loss_weights: {name} must be 0 or more, not {weight}")
        self.loss_weights = {name: float(weights.get(name, 1.0)) for name in heads}
        self.heads: Any = nn.ModuleDict({name: build(levels) for name, build in heads.items()})

    def named_heads(self) -> dict[str, Head]:
        return dict(self.heads.items())

    def forward(self, features: list[Tensor], image_size: tuple[int, ...]) -> dict[str, Any]:
        """Return the raw outputs of each head by its name."""
        return {name: head(features, image_size) for name, head in self.heads.items()}

    def losses(self, raw: dict[str, Any], targets: SharedTargets) -> dict[str, Tensor]:
        """Return every head's weighted losses on its own labels, named ``head/loss``."""
        return {
            f"{name}/{part}": self.loss_weights[name] * value
            for name, head in self.heads.items()
            for part, value in head.losses(raw[name], targets.for_head(name)).items()
        }

    def predict(self, raw: dict[str, Any], image_sizes: Tensor) -> dict[str, Any]:
        """Return each head's predictions by its name."""
        return {name: head.predict(raw[name], image_sizes) for name, head in self.heads.items()}
