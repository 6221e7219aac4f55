"""Prediction by the command line runs on the optimised copy of the network."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, Trainer

from .network import Network


class OptimisedPrediction(Callback):
    """Puts trunk and head of :meth:`.Network.optimised` in the place of the task's own while it predicts."""

    def __init__(self) -> None:
        self._own: dict[str, Any] = {}

    def on_predict_start(  # type: ignore[override]  # only of a Network
        self, trainer: Trainer, pl_module: Network
    ) -> None:
        copy = pl_module.optimised()
        for name in ("backbone", "head", "channels_last"):
            self._own[name] = getattr(pl_module, name)
            setattr(pl_module, name, getattr(copy, name))

    def on_predict_end(  # type: ignore[override]  # only of a Network
        self, trainer: Trainer, pl_module: Network
    ) -> None:
        for name, value in self._own.items():
            setattr(pl_module, name, value)
        self._own = {}
