"""The parser of the commands, with messages of one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import NoReturn

from pytorch_lightning.callbacks import Callback
from pytorch_lightning.cli import LightningArgumentParser
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ...backbones import Backbone
from ...data.shared.module import TrunklineData
from ...evaluation.base import Evaluator
from ...heads.base import Head
from ...heads.segmentation.losses import SegmentationLoss
from ..base.task import Task

# Of classes that configs name.
BASES = (
    Backbone, Head, SegmentationLoss, Task, TrunklineData, Evaluator, Callback, Optimizer, LRScheduler,
)  # fmt: skip


class CommandParser(LightningArgumentParser):
    """A parser that says in one line which class is not known, where jsonargparse lists all that it tried."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Stop with a message.

        Raises:
            ValueError: naming a class that is not known.
        """
        outer = re.search(r'Parser key "([\w.]+)"', message)
        place = outer[1] if outer else "class_path"
        said = re.search(r"- ([\w.]+: no class .*)", message)  # by the parser of a part
        if said is not None:
            raise ValueError(f"{place}.{said[1]}")
        unknown = re.search(r"Expected a dot import path string: (\w+)\s*$", message, re.MULTILINE)
        if unknown is None:
            super().error(message, ex)
        close = difflib.get_close_matches(unknown[1], {name for base in BASES for name in _names(base)}, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(
            f"{place}: no class {unknown[1]} is known{hint}; a class of your "
            f"own needs its module before it, as in my_module.{unknown[1]}"
        )


def _names(base: type) -> Iterator[str]:
    """Yield the names of a class and of all that derive from it."""
    yield base.__name__
    derived: type
    for derived in base.__subclasses__():
        yield from _names(derived)
