"""``num_classes: auto``: the number of classes of a head, taken from the data before the model is built."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from jsonargparse._util import import_object
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torchvision.models import get_weight

from ...data.shared.labels.classes import LabelClass
from ...data.shared.module import TrunklineData
from ..base.branch import branch_class
from ..run.checkpoints import read_checkpoint

logger = logging.getLogger("trunkline")

AUTO = "auto"
NO_CLASSES = ("__background__", "N/A")  # in torchvision's lists of the classes that detectors know


@dataclass(frozen=True)
class AutoHead:
    """A head of a parsed config whose number of classes has to be found.

    Attributes:
        keys: where the head is, below the arguments of the task: ``("heads", "boxes")``.
        settings: its class path and arguments.
    """

    keys: tuple[str, ...]
    settings: Namespace

    @property
    def option(self) -> str:
        """The option of its number of classes, for messages."""
        return ".".join(("model", *self.keys, "num_classes"))

    @property
    def name(self) -> str:
        """Its name among several heads, else empty."""
        return self.keys[-1] if len(self.keys) > 1 else ""


def auto_heads(model: Namespace) -> list[AutoHead]:
    """Return the heads of a parsed ``model`` section that say ``num_classes: auto``."""
    return list(_found(model.get("init_args"), ()))


def _found(settings: Any, keys: tuple[str, ...]) -> Iterator[AutoHead]:
    if isinstance(settings, Namespace) and "class_path" in settings:
        arguments = settings.get("init_args") or Namespace()
        if arguments.get("num_classes") == AUTO:
            yield AutoHead(keys, settings)
    elif isinstance(settings, (Namespace, dict)):
        # Not vars(): a Namespace of jsonargparse lists the keys of all levels in items().
        inside = vars(settings) if isinstance(settings, Namespace) else settings
        for key, value in inside.items():
            yield from _found(value, (*keys, key))


def fill_in(
    config: Namespace, command: str, build_data: Callable[[], LightningDataModule]
) -> LightningDataModule | None:
    """Replace every ``num_classes: auto`` in a parsed config by a number.

    The number of a checkpoint counts. Where nothing is trained, so does that of the weights of the whole
    model. Else the data are read as far as their classes need, in every process; nothing is written.

    Args:
        config: of the command; changed.
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        build_data: builds the data module of the config.

    Returns:
        The data module if it was built, so that it need not be built and read again.

    Raises:
        ValueError: if data and checkpoint name no classes, or the data module is none of this package's kind.
    """
    data = None
    for head in auto_heads(config.model):
        number = _stored_number(config, command, head)
        if number is None:
            if data is None:
                data = _with_classes(build_data(), command, head.option)
            number = len(_classes(data, config.model, head, command))
        head.settings.init_args.num_classes = number
    return data


def _with_classes(data: LightningDataModule, command: str, option: str) -> TrunklineData:
    if not isinstance(data, TrunklineData):
        raise ValueError(
            f"--{option} is auto, but {type(data).__name__} is no TrunklineData that could be asked for its "
            f"classes; give the number: --{option} 3"
        )
    data.read_classes(command)
    return data


def _classes(data: TrunklineData, model: Namespace, head: AutoHead, command: str) -> Sequence[LabelClass]:
    task, kind = import_object(model.class_path), import_object(head.settings.class_path)
    option = head.option.removesuffix(".num_classes")
    branch = branch_class(task.branch_names.get(kind.branch, kind.branch), kind, option)
    # Labels of another kind, or none, are told apart when the task looks at its data.
    classes = data.label_classes(branch.kind, head.name)
    if not classes:
        source = "--model.weights or --ckpt_path" if command == "predict" else "the data"
        raise ValueError(
            f"--{head.option} is auto, but {type(data).__name__} names no classes of {branch.kind} labels, "
            f"and no checkpoint was given; give the number of classes of {source}: --{head.option} 3"
        )
    _say(f"{head.option}: {len(classes)}, the classes of the data: {', '.join(_shown(classes))}")
    return classes


def _shown(classes: Sequence[LabelClass], most: int = 12) -> list[str]:
    names = [known.name for known in classes]
    return names if len(names) <= most else [*names[:most], f"and {len(names) - most} more"]


@rank_zero_only
def _say(text: str) -> None:
    logger.info("%s", text)


def _stored_number(config: Namespace, command: str, head: AutoHead) -> int | None:
    """Return the number that the checkpoint has for a head, or the weights that are used as they are."""
    checkpoint = config.get("ckpt_path")
    if checkpoint and Path(checkpoint).is_file():
        return _number_in(read_checkpoint(checkpoint, "--ckpt_path"), head.keys)
    weights = config.model.init_args.get("weights")
    if not weights or command == "fit":
        return None
    if Path(weights).suffix in (".ckpt", ".pt", ".pth") and Path(weights).is_file():
        return _number_in(read_checkpoint(weights, "--model.weights"), head.keys)
    return _published_number(weights)


def _number_in(checkpoint: Any, keys: tuple[str, ...]) -> int | None:
    """Return the number of classes of a head in the arguments that a checkpoint holds; None without any."""
    settings = checkpoint.get("hyper_parameters") if isinstance(checkpoint, Mapping) else None
    for key in (*keys, "init_args", "num_classes"):
        settings = settings.get(key) if isinstance(settings, Mapping) else None
    return settings if isinstance(settings, int) else None


def _published_number(weights: str) -> int | None:
    """Return the number of classes of weights that torchvision publishes, as our heads count them."""
    try:
        names = get_weight(weights).meta["categories"]
    except (KeyError, ValueError):
        return None
    # A segmenter's background is a class of its own, a detector's is not.
    detector = "N/A" in names
    return sum(name not in NO_CLASSES for name in names) if detector else len(names)
