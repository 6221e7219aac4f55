"""Which tensor of a foreign state dict is which of ours, and how those that differ are made to fit.

Letters in shapes: K classes, N classes of the source, C input channels, F features.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

TRUNK, NECK, HEAD, OTHER = "trunk", "neck", "head", "other"

# The ids of the 80 categories that the COCO instances files use, ascending. Detectors of torchvision have a
# row for each id up to 90; ours number the categories without gaps in this order.
COCO_CATEGORY_IDS = tuple(
    number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
)
COCO_ROWS = 91

# First match wins. The names on the right are ours, relative to the part.
_RULES: tuple[tuple[str, str, str], ...] = (
    (r"(?:backbone\.)?(?:body|bottom_up)\.(.+)", TRUNK, r"\1"),
    (r"(?:backbone\.)?(?:fpn\.)?inner_blocks\.(\d+)\.(?:0\.)?(weight|bias)", NECK, r"lateral.\1.\2"),
    (r"(?:backbone\.)?(?:fpn\.)?layer_blocks\.(\d+)\.(?:0\.)?(weight|bias)", NECK, r"output.\1.\2"),
    (r"(?:backbone\.)?(?:fpn\.)?extra_blocks\.(.+)", NECK, r"\1"),
    (r"(?:backbone\.)?fpn\.(.+)", NECK, r"\1"),
    (r"(?:backbone\.)?((?:lateral|output|p6|p7)\..+)", NECK, r"\1"),
    (r"rpn\.head\.conv\.(?:0\.0\.)?(weight|bias)", HEAD, r"rpn.conv.\1"),
    (r"rpn\.head\.cls_logits\.(.+)", HEAD, r"rpn.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(.+)", HEAD, r"rpn.deltas.\1"),
    (r"roi_heads\.box_head\.(.+)", HEAD, r"roi.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(.+)", HEAD, r"roi.classifier.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(.+)", HEAD, r"roi.regressor.\1"),
    (r"rpn\.(.+)", HEAD, r"rpn.\1"),
    (r"head\.(.+)", HEAD, r"\1"),
    (r"((?:fc|classifier|aux_classifier|roi_heads)\..+)", OTHER, r"\1"),
    (r"backbone\.(.+)", TRUNK, r"\1"),
)


@dataclass(frozen=True)
class Entry:
    """One tensor of a state dict under our name for it.

    Attributes:
        key: its name in the state dict.
        part: ``trunk``, ``neck``, ``head`` or ``other`` (what belongs to none of the three).
        name: our name for it, relative to the part.
        tensor: the tensor itself.
    """

    key: str
    part: str
    name: str
    tensor: Tensor

    @property
    def background_first(self) -> bool:
        """Whether rows stand for classes as in torchvision: background 0, then the category ids."""
        return "roi_heads.box_predictor." in self.key


def classify(key: str, whole: bool) -> tuple[str, str]:
    """Return part and own name of a key; ``whole`` says that the state dict holds more than a trunk."""
    for pattern, part, name in _RULES:
        found = re.fullmatch(pattern, key)
        if found:
            return part, found.expand(name)
    return (OTHER if whole else TRUNK), key


def entries(state: dict[str, Tensor]) -> dict[tuple[str, str], Entry]:
    """Sort a state dict by part and own name.

    Recognised are ResNets of torchvision, its detectors (also those saved before 0.13) and segmenters, and
    the trunks, necks and tasks of this package, each also when wrapped for distribution or compilation.

    Raises:
        ValueError: if two tensors have the same place.
    """
    plain = {key: key.removeprefix("module.").replace("_orig_mod.", "") for key in state}
    whole = any(key.startswith("backbone.") for key in plain.values())
    table: dict[tuple[str, str], Entry] = {}
    for key, tensor in state.items():
        part, name = classify(plain[key], whole)
        if (part, name) in table:
            first = table[part, name].key
            raise ValueError(f"{first} and {key} are both the {part}'s {name}; remove one of them")
        table[part, name] = Entry(key, part, name, tensor)
    return table


def class_rows(rows: int, classes: int) -> list[int] | None:
    """Rows of a background-first predictor in our order: foreground 0..K-1, then background.

    Args:
        rows: rows of the source, background included.
        classes: K, our number of foreground classes.

    Returns:
        K + 1 row numbers, or None if it is not known which row is which class.
    """
    if rows == classes + 1:
        return [*range(1, rows), 0]
    if rows == COCO_ROWS and classes == len(COCO_CATEGORY_IDS):
        return [*COCO_CATEGORY_IDS, 0]
    return None


def fit_predictor(entry: Entry, target: Tensor, classes: int) -> tuple[Tensor | None, str]:
    """Reorder a background-first box predictor.

    Args:
        entry: classifier ``[N + 1, F]`` or regressor ``[4 * (N + 1), F]`` of the source (or its bias).
        target: ours, ``[K + 1, F]``, ``[4 * K, F]`` or, for class-agnostic boxes, ``[4, F]``.
        classes: K.

    Returns:
        The tensor and how it was made, or None and why there is none.
    """
    boxes = entry.name.startswith("roi.regressor")
    rows = len(entry.tensor) // 4 if boxes else len(entry.tensor)
    order = class_rows(rows, classes)
    if order is None:
        return None, f"it has {rows - 1} classes and background, the model {classes}"
    if boxes:
        # [4 * (N + 1), F] -> [N + 1, 4, F] -> [K, 4, F] -> [4 * K, F]; the background has no box
        per_class = entry.tensor.unflatten(0, (rows, 4))
        chosen = per_class[order[:-1]].flatten(0, 1)
    else:
        chosen = entry.tensor[order]  # [N + 1, F] -> [K + 1, F]
    if chosen.shape != target.shape:
        return None, shape_difference(entry.tensor, target)
    return chosen, f"rows of {rows - 1} classes chosen for {classes}, background moved to the end"


def fit_channels(weight: Tensor, channels: int) -> tuple[Tensor, str]:
    """Make a first convolution for RGB read another number of channels.

    One channel gets the sum, so that a grey image gives what its three equal channels would; any other
    number repeats R, G, B cyclically and scales by 3 / C, which keeps the size of the response.

    Args:
        weight: ``[F, 3, kh, kw]``.
        channels: C.
    """
    if channels == 1:
        return weight.sum(1, keepdim=True), "summed over its 3 input channels"
    # [F, 3, kh, kw] -> [F, C, kh, kw]
    repeated = weight[:, torch.arange(channels) % 3] * (3 / channels)
    return repeated, f"3 input channels repeated for {channels}, times 3/{channels}"


def absorb_missing_eps(weight: Tensor, variance: Tensor, eps: float) -> Tensor:
    """Scale a norm's weight so that dividing by ``sqrt(variance + eps)`` gives what eps = 0 gave.

    Lowering the variance instead would round away those that are smaller than eps.
    """
    variance = variance.double()
    factor = ((variance + eps) / variance).sqrt()
    return (weight.double() * torch.where(variance > 0, factor, 1.0)).to(weight.dtype)


def shape_difference(tensor: Tensor, target: Tensor) -> str:
    """Say how two shapes differ."""
    return f"its shape is {list(tensor.shape)}, the model's {list(target.shape)}"


def block_counts(names: Iterable[str]) -> str:
    """Describe a residual trunk by its names: ``3+4+6+3 bottleneck blocks``; empty if it is none."""
    names = set(names)
    found = {match.groups() for name in names if (match := re.match(r"layer(\d)\.(\d+)\.", name))}
    counts = [sum(layer == str(index) for layer, _ in found) for index in range(1, 5)]
    if not all(counts):
        return ""
    kind = "bottleneck" if "layer1.0.conv3.weight" in names else "basic"
    return "+".join(map(str, counts)) + f" {kind} blocks"
