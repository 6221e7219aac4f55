"""Where weights come from: files, torchvision's published weights and state dicts, with a load report."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import get_weight

from .base import Backbone
from .keymaps import (
    COCO_CATEGORY_IDS,
    HEAD,
    OTHER,
    TRUNK,
    Entry,
    absorb_missing_eps,
    block_counts,
    entries,
    fit_channels,
    fit_predictor,
    shape_difference,
)

__all__ = ["COCO_CATEGORY_IDS", "LoadReport", "load_weights", "pretrained_is_skipped", "skip_pretrained"]

Source = str | os.PathLike[str] | Mapping[str, Tensor]

logger = logging.getLogger("trunkline")
_skip: ContextVar[bool] = ContextVar("skip_pretrained", default=False)

# Published before torchvision's frozen batch norm added eps to the variance; its builders therefore set eps
# to 0 for these four (overwrite_eps in torchvision.models.detection).
_WITHOUT_EPS = tuple(
    f"{detector}_ResNet50_FPN_Weights.COCO_V1"
    for detector in ("FasterRCNN", "MaskRCNN", "KeypointRCNN", "RetinaNet")
)
_WRAPPERS = ("state_dict", "model", "model_state")
_OTHER_NORM = "the model has another kind of norm, which starts afresh"
_UNKNOWN = "the model has no such tensor"


@dataclass
class LoadReport:
    """What became of every tensor.

    Attributes:
        source: where the weights came from.
        matched: the model's tensors that were copied as they are.
        adapted: the model's tensors that were made to fit, and how.
        skipped: the source's tensors that were not used, and why.
        missing: the model's tensors, of the parts that the source has, that it has no values for.
        fraction: the smaller of two shares: of the model's tensors that were filled, and of the source's
            that were used. Only parts (trunk, neck, head) that both have are counted.
    """

    source: str
    matched: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    fraction: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"weights from {self.source}: {len(self.matched)} tensors copied, {len(self.adapted)} adapted, "
            f"{len(self.skipped)} skipped, {len(self.missing)} missing ({100 * self.fraction:.0f} % matched)"
        ]
        for verb, notes in (("adapted", self.adapted), ("skipped", self.skipped)):
            for note in dict.fromkeys(notes.values()):
                lines.append(f"  {verb} {_some([name for name in notes if notes[name] == note])}: {note}")
        if self.missing:
            lines.append(f"  missing {_some(self.missing)}: keep their initial values")
        return "\n".join(lines)


@contextlib.contextmanager
def skip_pretrained() -> Iterator[None]:
    """Build networks without loading their ``weights``, because a checkpoint will be loaded afterwards."""
    token = _skip.set(True)
    try:
        yield
    finally:
        _skip.reset(token)


def pretrained_is_skipped() -> bool:
    """Whether the caller is inside :func:`skip_pretrained`."""
    return _skip.get()


def load_weights(module: nn.Module, source: Source, minimum: float = 0.9) -> LoadReport:
    """Load weights into a trunk, an FPN or a whole task, and report what happened to every tensor.

    A trunk takes only the trunk out of a detector; a task takes a bare trunk into its trunk. What differs
    is made to fit where that is well defined: another number of input channels (:func:`.fit_channels`);
    torchvision's box predictor, whose first row is the background and which may have a row for each COCO
    id up to 90 (:func:`.class_rows`); the four detectors that torchvision runs with eps = 0 in the trunk's
    norms, given by name or by a file that keeps the published name (:func:`.absorb_missing_eps`).

    Batch-norm weights for a network with group norm give it their convolutions only: its norms keep their
    initial values, because an affine map learned after other statistics does not carry over. Those
    tensors are reported as skipped and not counted.

    Args:
        module: a ``Backbone``, or a module with the submodules ``backbone`` and ``head``. On an error it is
            left as it was.
        source: a file written by ``torch.save`` (a state dict, bare or under ``state_dict``, ``model`` or
            ``model_state``, so also a Lightning checkpoint), the name of torchvision weights such as
            ``ResNet50_Weights.IMAGENET1K_V2``, or a state dict.
        minimum: smallest acceptable ``fraction`` of the report, 0 to 1.

    Returns:
        The report; it is also logged to ``trunkline`` at level INFO.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the source cannot be read as weights, or fits less than ``minimum``.
        RuntimeError: if weights could not be downloaded.
        TypeError: if ``module`` is no backbone and no task.
    """
    if not (isinstance(module, Backbone) or {"backbone", "head"} <= dict(module.named_children()).keys()):
        raise TypeError(
            f"cannot load weights into {type(module).__name__}: it is no Backbone and lacks the submodules "
            "backbone and head"
        )
    label, state, without_eps = _read(source)
    plan = _Plan(module, label, state, without_eps)
    report = plan.report
    if report.fraction < minimum:
        raise ValueError(plan.complaint(minimum))
    with torch.no_grad():
        for target, value in plan.copies:
            target.copy_(value)
    logger.info("%s", report)
    return report


class _Plan:
    """Decides for every tensor where it goes, without touching the module."""

    def __init__(self, module: nn.Module, label: str, state: dict[str, Tensor], without_eps: bool) -> None:
        self.module = module
        self.without_eps = without_eps
        self.report = LoadReport(label)
        self.copies: list[tuple[Tensor, Tensor]] = []
        self.target = entries(module.state_dict())
        try:
            self.source = entries(state)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from error
        own = {part for part, _ in self.target}
        self.parts = {part for part, _ in self.source if part in own} - {OTHER}
        self.mismatches: list[str] = []
        for place, entry in self.target.items():
            if entry.part in self.parts:
                self._place(entry, self.source.get(place))
        leftover = sum(self._leave(entry) for place, entry in self.source.items() if place not in self.target)
        used = len(self.report.matched) + len(self.report.adapted)
        unused = len(self.mismatches) + max(len(self.report.missing), leftover)
        self.report.fraction = used / max(1, used + unused)

    def _place(self, target: Entry, source: Entry | None) -> None:
        if target.name.endswith("num_batches_tracked"):
            if source is not None:
                self.copies.append((target.tensor, source.tensor))
            return
        if self._other_norm(target):
            if source is not None:
                self.report.skipped[source.key] = _OTHER_NORM
            return
        if source is None:
            self.report.missing.append(target.key)
            return
        value, note = self._fit(source, target)
        if value is None:
            self.report.skipped[source.key] = note
            self.mismatches.append(f"{source.key}: {note}")
            return
        self.copies.append((target.tensor, value))
        if note:
            self.report.adapted[target.key] = note
        else:
            self.report.matched.append(target.key)

    def _other_norm(self, entry: Entry) -> bool:
        """Whether the source has running statistics for this norm and the model has none."""
        norm = entry.name.rpartition(".")[0]
        statistics = (entry.part, f"{norm}.running_mean")
        exists = (entry.part, f"{norm}.weight") in self.target
        return exists and statistics in self.source and statistics not in self.target

    def _fit(self, source: Entry, target: Entry) -> tuple[Tensor | None, str]:
        """Return the value for a tensor, and how it was adapted ("" if not) or why it cannot be used."""
        tensor, wanted = source.tensor, target.tensor
        if source.background_first:
            classifier = self.target.get((HEAD, "roi.classifier.weight"))
            if classifier is not None:
                return fit_predictor(source, wanted, len(classifier.tensor) - 1)
        if (target.part, target.name) == (TRUNK, "conv1.weight") and tensor.ndim == wanted.ndim:
            same = tensor.shape[0] == wanted.shape[0] and tensor.shape[2:] == wanted.shape[2:]
            if same and tensor.shape[1] == 3 != wanted.shape[1]:
                return fit_channels(tensor, wanted.shape[1])
        if tensor.shape != wanted.shape:
            return None, shape_difference(tensor, wanted)
        if self.without_eps and source.part == TRUNK and source.name.endswith(".weight"):
            variance = self.source.get((TRUNK, source.name.removesuffix("weight") + "running_var"))
            if variance is not None:
                eps = self.module.get_submodule(target.key.removesuffix(".weight")).eps
                scaled = absorb_missing_eps(tensor, variance.tensor, eps)
                return scaled, "scaled, because the source's norms add no eps"
        return tensor, ""

    def _leave(self, entry: Entry) -> bool:
        """Note why a tensor of the source has no place; return whether that speaks against the source."""
        if entry.name.endswith("num_batches_tracked"):
            return False
        if entry.part == OTHER:
            reason = "belongs to no trunk, neck or head"
        elif entry.part not in self.parts:
            reason = f"the model has no {entry.part}"
        elif self._other_norm(entry):
            reason = _OTHER_NORM
        else:
            self.report.skipped[entry.key] = _UNKNOWN
            return True
        self.report.skipped[entry.key] = reason
        return False

    def complaint(self, minimum: float) -> str:
        """Say what does not fit, and what to do about it."""
        report = self.report
        filled = len(report.matched) + len(report.adapted)
        lines = [
            f"{report.source} fits {self._describe()} by {100 * report.fraction:.0f} %, at least "
            f"{100 * minimum:.0f} % are needed; nothing was loaded. {filled} tensors match"
        ]
        unknown = [key for key, note in report.skipped.items() if note == _UNKNOWN]
        if self.mismatches:
            lines.append(f"{len(self.mismatches)} have another shape: {_some(self.mismatches, '; ')}")
        if unknown:
            lines.append(f"{len(unknown)} of the source are unknown to the model: {_some(unknown)}")
        if report.missing:
            lines.append(f"{len(report.missing)} of the model are not in the source: {_some(report.missing)}")
        if not self.parts:
            lines.append(f"the source holds none of the model's parts, but {_some([*self.report.skipped])}")
        tables = (self.source, self.target)
        theirs, ours = (block_counts(name for part, name in table if part == TRUNK) for table in tables)
        if theirs and ours and theirs != ours:
            lines.append(f"the source's trunk has {theirs}, the model's {ours}: is it of another depth?")
        lines.append("give weights of this architecture, or build the model (depth, neck, norm) to suit them")
        return "\n  ".join(lines)

    def _describe(self) -> str:
        """Name the model, with the depth of its trunk if it has one: ``FPN on ResNet of depth 50``."""
        names = [type(self.module).__name__]
        trunk = next((part for part in self.module.modules() if hasattr(part, "depth")), None)
        if trunk is not None:
            names[trunk is not self.module :] = [f"{type(trunk).__name__} of depth {trunk.depth}"]
        return " on ".join(names)


def _some(names: list[str], separator: str = ", ", number: int = 4) -> str:
    more = f"{separator}and {len(names) - number} more" if len(names) > number else ""
    return separator.join(names[:number]) + more


def _read(source: Source) -> tuple[str, dict[str, Tensor], bool]:
    """Return a label, the state dict, and whether its norms were trained without eps."""
    if isinstance(source, Mapping):
        return "the state dict", _unwrap(source, "the state dict"), False
    label = os.fspath(source)
    if re.fullmatch(r"\w+_Weights\.\w+", label) and not Path(label).exists():
        return label, *_download(label)
    published = {Path(get_weight(name).url).name for name in _WITHOUT_EPS}
    return label, _unwrap(_open(Path(label)), label), Path(label).name in published


def _download(name: str) -> tuple[dict[str, Tensor], bool]:
    try:
        weights = get_weight(name)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{name} is neither a file nor the name of torchvision weights (as ResNet50_Weights.DEFAULT is)"
        ) from error
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"{name} could not be downloaded from {weights.url} ({error}); download it by other means "
            "and give the path of the file"
        ) from error
    return _unwrap(state, name), str(weights) in _WITHOUT_EPS


def _open(path: Path) -> object:
    if not path.is_file():
        raise FileNotFoundError(f"weights {path}: no such file, and not the name of torchvision weights")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises nearly anything on a file that is not its own
        cause = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise ValueError(
            f"{path} cannot be read as weights ({cause}); a file must be written by torch.save and hold "
            "only tensors and plain values, as one of torch.save(model.state_dict(), path) does"
        ) from error


def _unwrap(content: object, label: str) -> dict[str, Tensor]:
    """Take the state dict out of what a file holds."""
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{label} holds a {type(content).__name__} without tensors; needed is a state dict")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{label}: {key!r} is a {type(value).__name__}, not a tensor; needed is a state dict, bare "
                f"or under one of the keys {', '.join(_WRAPPERS)}"
            )
    return dict(content)
