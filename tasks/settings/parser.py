"""The parser of the commands, with messages of one line."""

from __future__ import annotations

import os
import typing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import yaml
from jsonargparse import set_dumper
from jsonargparse._loaders_dumpers import get_yaml_default_loader
from pytorch_lightning import LightningDataModule
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ...backbones import Backbone
from ...data.shared.module import TrunklineData
from ...evaluation.base import Evaluator
from ...heads.base import Head
from ...heads.segmentation.losses import SegmentationLoss
from ..base.task import Task
from .class_paths import options_of
from .messages import Known, explained
from .sources import SettingError, Source

# Of classes that configs name.
BASES = (
    Backbone, Head, SegmentationLoss, Task, TrunklineData, Evaluator, Callback, Logger, Optimizer,
    LRScheduler, LightningDataModule,
)  # fmt: skip


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that jsonargparse, other than PyYAML, would read as a number: a folder ``1e3``."""


_Dumper.yaml_implicit_resolvers = get_yaml_default_loader().yaml_implicit_resolvers | {}
for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items():
    others = _Dumper.yaml_implicit_resolvers.get(first, [])
    _Dumper.yaml_implicit_resolvers[first] = [*resolvers, *others]


def dump_yaml(settings: Any) -> str:
    """Write settings so that jsonargparse reads the same values again."""
    return yaml.dump(settings, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)


set_dumper("yaml", dump_yaml)


class CommandParser(LightningArgumentParser):
    """A parser that says in one line what is wrong, where jsonargparse lists all that it tried.

    Beginnings of options are no options: ``--trainer.max_epoch``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Stop with a message.

        Raises:
            SettingError: naming the setting.
        """
        told = None
        if self.exit_on_error and not os.environ.get("TRUNKLINE_TRACEBACK"):  # else one of a part
            told = explained(
                message, Known(self._known_options, _known_classes, [base.__name__ for base in BASES])
            )
        if told is None:
            super().error(message, ex)
        raise told from ex

    def _known_options(self) -> Iterator[str]:
        """Yield the options of this parser, and of those of its commands."""
        for action in self._actions:
            yield action.dest
            if isinstance(action.choices, dict):
                for parser in action.choices.values():
                    yield from parser._known_options()


def keep_whole_numbers(parser: LightningArgumentParser) -> None:
    """Let 1 stay 1 where numbers with a fraction are allowed too: to Lightning 1 is a batch, 1.0 all.

    ``Optional[Union[int, float]]`` may hold float first, for typing takes it for the same as an earlier
    ``Optional[Union[float, int]]``; jsonargparse takes the first type that fits.

    Args:
        parser: of a command; changed.
    """
    actions: Iterable[Any] = parser._actions
    for action in actions:
        hint = vars(action).get("_typehint")
        types = typing.get_args(hint)
        if typing.get_origin(hint) is typing.Union and {int, float} <= set(types):
            action._typehint = typing.Union[tuple(sorted(types, key=lambda each: each is not int))]  # noqa: UP007


def _known_classes() -> Iterator[str]:
    for base in BASES:
        yield from _names(base)


def _names(base: type) -> Iterator[str]:
    """Yield the names of a class and of all that derive from it."""
    yield base.__name__
    derived: type
    for derived in base.__subclasses__():
        yield from _names(derived)


@contextmanager
def placed(words: list[str], sources: list[Source]) -> Iterator[None]:
    """Add to errors about a setting where it was given: the option, or the config with the line.

    Args:
        words: of the command, as the user gave them.
        sources: the configs among them.
    """
    try:
        yield
    except SettingError as error:
        if not error.key:
            raise
        place, node = _place(error.key, words, sources)
        problem = error.problem
        if isinstance(node, yaml.ScalarNode) and problem.endswith("in quotes") and node.value not in problem:
            problem += f": '{node.value}'"  # YAML takes 0123 for 83
        text = place if place == f"--{error.key}" else f"{place}: {error.key}" if place else error.key
        raise SettingError(f"{text}: {problem}") from error.__cause__


def _place(key: str, words: list[str], sources: list[Source]) -> tuple[str, yaml.Node | None]:
    """Return where a setting was given, and what is written there in a config."""
    given = [option.replace(".init_args", "").removesuffix("+") for option, _ in options_of(words)]
    if key in given:
        return f"--{key}", None
    for source in reversed(sources):
        inside = _inside(key, source.key)
        # For a value that is missing, the section that lacks it.
        for keys in (inside, inside[:-1]) if inside else ():
            node = source.find(keys)
            if node is not None and (keys or source.key):
                return source.place(node), node
    above = [option for option in given if option and key.startswith(f"{option}.")]
    return (f"--{max(above, key=len)}" if above else ""), None


def _inside(key: str, outer: str) -> list[str] | None:
    """Return the parts of a key below another one; None if it is not below."""
    parts, above = key.split("."), outer.split(".") if outer else []
    return parts[len(above) :] if parts[: len(above)] == above else None
