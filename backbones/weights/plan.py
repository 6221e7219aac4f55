"""Decides, for every tensor of a source, where it goes and how it is made to fit.

Letters in shapes: K classes, C channels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..base import parts_of
from ..layers import Inflation
from .adapt import (
    absorb_missing_eps,
    fit_channels,
    fit_predictor,
    flip_channels,
    inflate,
    inflate_transposed,
    shape_difference,
)
from .detectron2 import convention_of
from .files import Weights
from .keymaps import STEM_CONVOLUTIONS, block_counts, encoder_prefix, entries
from .parts import HEAD, OTHER, TRUNK, Entry

_OTHER_NORM = "the model has another kind of norm, which starts afresh"
_UNKNOWN = "the model has no such tensor"
_AFFINE = {"running_mean": "0: the source's norms are affine maps", "running_var": "1 - eps, to match"}
_ABSORBED = "less the bias of the convolution before it, which has none here"
_INTO_NORM = "went into the norm that follows"


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
            that were used. Only parts (trunk, neck, head, a segmenter's auxiliary classifier and ASPP) that
            both have are counted.
        prefix: what stood in front of the network's names in the source, such as ``module.encoder_q.``.
    """

    source: str
    matched: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    fraction: float = 0.0
    prefix: str = ""

    def __str__(self) -> str:
        under = f", under {self.prefix!r}" if self.prefix else ""
        lines = [
            f"weights from {self.source}{under}: {len(self.matched)} tensors copied, {len(self.adapted)} "
            f"adapted, {len(self.skipped)} skipped, {len(self.missing)} missing "
            f"({100 * self.fraction:.0f} % matched)"
        ]
        for verb, notes in (("adapted", self.adapted), ("skipped", self.skipped)):
            for note in dict.fromkeys(notes.values()):
                lines.append(
                    f"  {verb} {first_names([name for name in notes if notes[name] == note])}: {note}"
                )
        if self.missing:
            lines.append(f"  missing {first_names(self.missing)}: keep their initial values")
        return "\n".join(lines)


def first_names(names: list[str], separator: str = ", ", number: int = 4) -> str:
    """Join the first few names, and say how many there are more."""
    more = f"{separator}and {len(names) - number} more" if len(names) > number else ""
    return separator.join(names[:number]) + more


class Plan:
    """Decides for every tensor where it goes, without touching the module.

    Args:
        module: what the weights are for.
        weights: what was read.
        inflation: how 2-D kernels become 3-D ones, see :func:`.adapt.inflate`.

    Attributes:
        report: what will become of every tensor.
        copies: pairs of a tensor of the module and its value.
        untrained: the module's tensors, of the parts that the source has, that it has no fitting values for.
        convention: of a detectron2 file, else None.
        other_network: why the source is another residual network than the model, though most tensors may
            fit; "" if it is not.

    Raises:
        ValueError: naming the source, if its names are ambiguous.
    """

    def __init__(self, module: nn.Module, weights: Weights, inflation: Inflation) -> None:
        self.module = module
        self.without_eps = weights.without_eps
        self.inflation = inflation
        self.report = LoadReport(weights.label)
        self.copies: list[tuple[Tensor, Tensor]] = []
        own = module.state_dict()
        self.target = entries(own)
        self.wrapped = any(re.match(r"(?:backbone\.)?(?:bottom_up\.)?model\.", key) for key in own)
        self.convention = convention_of(weights.state, weights.author)
        try:
            self.source = entries(weights.state, self.target)
            self.report.prefix = encoder_prefix(weights.state)
        except ValueError as error:
            raise ValueError(f"{weights.label}: {error}") from error
        # A head (or neck) without a single tensor of ours is of another kind: skipped, like a missing one.
        shared = {slot[0] for slot in self.source if slot in self.target} | {TRUNK}
        parts = {part for part, _ in self.target}
        self.parts = {part for part, _ in self.source if part in parts & shared} - {OTHER}
        self.mismatches: list[str] = []
        self.untrained: set[str] = set()
        self.absorbed: set[str] = set()
        for slot, entry in self.target.items():
            if entry.part in self.parts:
                self._place(entry, self.source.get(slot))
        leftover = sum(self._leave(entry) for slot, entry in self.source.items() if slot not in self.target)
        used = len(self.report.matched) + len(self.report.adapted)
        unused = len(self.mismatches) + max(len(self.report.missing), leftover)
        self.report.fraction = used / max(1, used + unused)
        self.other_network = self._other_network()

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
            value, note = self._affine(target)
            if value is None:
                self.report.missing.append(target.key)
                self.untrained.add(target.key)
                return
        else:
            value, note = self._fit(source, target)
            if value is None:
                self.report.skipped[source.key] = note
                self.mismatches.append(f"{source.key}: {note}")
                self.untrained.add(target.key)
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

    def _affine(self, target: Entry) -> tuple[Tensor | None, str]:
        """Return the statistics that make a batch norm the affine map that the source has in its place."""
        norm, _, word = target.name.rpartition(".")
        known = self.convention is not None and self.convention.affine_norms and target.part == TRUNK
        if not known or word not in _AFFINE or (TRUNK, f"{norm}.weight") not in self.source:
            return None, ""
        if word == "running_mean":
            return torch.zeros_like(target.tensor), _AFFINE[word]
        return torch.full_like(target.tensor, 1 - self._eps(target)), _AFFINE[word]

    def _eps(self, target: Entry) -> float:
        return self._layer(target).eps

    def _layer(self, target: Entry) -> Any:
        return self.module.get_submodule(target.key.rpartition(".")[0])

    def _fit(self, source: Entry, target: Entry) -> tuple[Tensor | None, str]:
        """Return the value for a tensor, and how it was adapted ("" if not) or why it cannot be used."""
        tensor, wanted = source.tensor, target.tensor
        if source.background_first:
            classifier = self.target.get((HEAD, "roi.classifier.weight"))
            if classifier is not None:
                return fit_predictor(source, wanted, len(classifier.tensor) - 1)
        if target.part == HEAD and tensor.ndim == 4 and tensor.shape == (*wanted.shape, 1, 1):
            return tensor.flatten(1), "1x1 convolution made linear"  # [K, C, 1, 1] -> [K, C]
        notes: list[str] = []
        if target.part == TRUNK and tensor.ndim >= 4 and self._is_stem(target, tensor):
            tensor, notes = self._fit_stem(tensor, wanted)
        if tensor.ndim == 4 and wanted.ndim == 5:
            if isinstance(self._layer(target), nn.ConvTranspose3d):
                tensor, note = inflate_transposed(tensor, wanted.shape[2])
            else:
                tensor, note = inflate(tensor, wanted.shape[2], self.inflation)
            notes.append(note)
        if tensor.shape != wanted.shape:
            return None, shape_difference(source.tensor, wanted)
        tensor, more = self._fit_norm(source, target, tensor)
        return tensor, "; ".join([*notes, *more])

    def _is_stem(self, target: Entry, tensor: Tensor) -> bool:
        if target.name in STEM_CONVOLUTIONS:
            return True
        # A wrapped network's stem may have any name; no other layer reads three channels.
        return self.wrapped and tensor.shape[1] == 3 != target.tensor.shape[1]

    def _fit_stem(self, tensor: Tensor, wanted: Tensor) -> tuple[Tensor, list[str]]:
        notes = []
        if self.convention is not None and self.convention.bgr and tensor.shape[1] == 3:
            tensor, note = flip_channels(tensor)
            notes.append(note)
        if tensor.shape[1] in (1, 3) and tensor.shape[1] != wanted.shape[1]:
            tensor, note = fit_channels(tensor, wanted.shape[1])
            notes.append(note)
        return tensor, notes

    def _fit_norm(self, source: Entry, target: Entry, tensor: Tensor) -> tuple[Tensor, list[str]]:
        """Bring into a norm what the source has elsewhere: no eps, or a bias before it."""
        norm, _, word = source.name.rpartition(".")
        if source.part == TRUNK and self.without_eps and word == "weight":
            variance = self.source.get((TRUNK, f"{norm}.running_var"))
            if variance is not None:
                scaled = absorb_missing_eps(tensor, variance.tensor, self._eps(target))
                return scaled, ["scaled, because the source's norms add no eps"]
        if source.part == TRUNK and word == "running_mean":
            slot = TRUNK, f"{self._convolution_before(norm)}.bias"
            if slot in self.source and slot not in self.target:
                self.absorbed.add(self.source[slot].key)
                return tensor - self.source[slot].tensor, [_ABSORBED]
        return tensor, []

    def _convolution_before(self, norm: str) -> str:
        """Name the convolution whose output a norm normalises, "" if there is none."""
        numbered = re.fullmatch(r"(.*(?:downsample|conv1)\.)(\d+)", norm)
        if numbered:
            return f"{numbered[1]}{int(numbered[2]) - 1}"
        trunk, _ = parts_of(self.module)
        return "" if trunk.pre_activation else re.sub(r"(^|\.)bn(\d)$", r"\1conv\2", norm)

    def _leave(self, entry: Entry) -> bool:
        """Note why a tensor of the source is not used; return whether the source then fits less well."""
        if entry.name.endswith("num_batches_tracked"):
            return False
        if entry.part == OTHER:
            reason = "belongs to no trunk, neck or head"
        elif entry.part not in self.parts:
            other = any(part == entry.part for part, _ in self.target)
            reason = f"the model has {'another kind of' if other else 'no'} {entry.part}"
        elif self._other_norm(entry):
            reason = _OTHER_NORM
        elif entry.key in self.absorbed:
            reason = _INTO_NORM
        elif entry.part == TRUNK and self.wrapped:
            reason = "comes after the features that the model extracts"
        else:
            self.report.skipped[entry.key] = _UNKNOWN
            return True
        self.report.skipped[entry.key] = reason
        return False

    def _other_network(self) -> str:
        tables = (self.source, self.target)
        theirs, ours = ({name for part, name in table if part == TRUNK} for table in tables)
        if not all("layer1.0.conv1.weight" in names for names in (theirs, ours)):
            return ""
        for names, first in ((theirs, "source"), (ours, "model")):
            if "bn1.weight" not in names and "bn1.weight" in theirs | ours:
                value = str(first == "source").lower()
                return f"only the {first}'s norms stand before their convolutions: pre_activation: {value}"
        stems = ("conv1.0.weight", "deep"), ("conv1.weight", "7x7")
        theirs_is, ours_is = (
            next((stem for key, stem in stems if key in names), "") for names in (theirs, ours)
        )
        if theirs_is and ours_is and theirs_is != ours_is:
            return f"the source has another stem: stem: {theirs_is}"
        has, needs = (any(".downsample." in name for name in names) for names in (theirs, ours))
        if needs and not has:
            return "the source's shortcuts have no weights, the model's have: shortcut: pad or none"
        if has and not needs:
            return "the source's shortcuts have weights, the model's have none: shortcut: projection"
        return ""

    def complaint(self, minimum: float) -> str:
        """Say what does not fit, and what to do about it.

        Args:
            minimum: smallest acceptable fraction; 1 if every tensor is needed.
        """
        report = self.report
        filled = len(report.matched) + len(report.adapted)
        lines = [
            f"{report.source} fits {self._describe()} by {100 * report.fraction:.0f} %, at least "
            f"{100 * minimum:.0f} % are needed; nothing was loaded. {filled} tensors match"
        ]
        if self.other_network:
            start = f"{report.source} is of another network than {self._describe()}; nothing was loaded"
            lines = [start, self.other_network]
        elif minimum == 1:
            start = f"{report.source} fits {self._describe()} only in part; nothing was loaded"
            lines = [f"{start}. {filled} tensors match"]
            absent = {part for part, _ in self.target} - self.parts - {OTHER}
            lines += [f"the source has no {part} of this kind" for part in sorted(absent)]
        if self.mismatches:
            lines.append(f"{len(self.mismatches)} have another shape: {first_names(self.mismatches, '; ')}")
        unknown = [key for key, note in report.skipped.items() if note == _UNKNOWN]
        if unknown:
            lines.append(f"{len(unknown)} of the source are unknown to the model: {first_names(unknown)}")
        if report.missing:
            lines.append(
                f"{len(report.missing)} of the model are not in the source: {first_names(report.missing)}"
            )
        if not self.parts and minimum < 1:
            lines.append(
                f"the source holds none of the model's parts, but {first_names([*self.report.skipped])}"
            )
        tables = (self.source, self.target)
        theirs, ours = (block_counts(name for part, name in table if part == TRUNK) for table in tables)
        if theirs and ours and theirs != ours:
            lines.append(f"the source's trunk has {theirs}, the model's {ours}: is it of another depth?")
        if any("the source is 3-D" in line for line in self.mismatches):
            lines.append("the source is a network for volumes: build the model with ndim: 3")
        lines.append("give weights of this architecture, or build the model (depth, neck, norm) to suit them")
        return "\n  ".join(lines)

    def _describe(self) -> str:
        """Name the model, with the depth of its trunk if it has one: ``FPN on ResNet of depth 50``."""
        names = [type(self.module).__name__]
        trunk, _ = parts_of(self.module)
        if trunk.depth is not None:
            names[trunk is not self.module :] = [f"{type(trunk).__name__} of depth {trunk.depth}"]
        return " on ".join(names)
