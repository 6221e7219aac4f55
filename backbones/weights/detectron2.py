"""Networks of detectron2's model zoo: their names, and the settings that their files take for granted.

Names follow detectron2's modules (``detectron2/modeling``, version 0.6) and, for the older trunk files, the
renaming that its ``checkpoint/c2_model_loading.py`` does on loading. Two families of files are read:

- files with detectron2's own names: detectors (``backbone.bottom_up.res2.0.conv1.norm.weight``,
  ``proposal_generator...``, ``roi_heads...``), trunks, and torchvision's trunks as its conversion tool
  writes them;
- trunks with Caffe2's names (``res2_0_branch2a_w``, ``res2_0_branch2a_bn_s``): MSRA's R-50 and R-101, FAIR's
  X-101-32x8d and the older Detectron files, whose norms are only an affine map.

Letters in shapes: F features, C input channels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..base import Backbone, NormalisesPixels, WithExpectations, parts_of
from .parts import HEAD, NECK, TRUNK, Slot

# Part, how much larger their first number is than ours, their name, our name. "#" stands for a number, "*"
# for the last word (weight, bias, running_mean, ...).
_TABLE: tuple[tuple[str, int, str, str], ...] = (
    (TRUNK, 0, "stem.conv1.norm.*", "bn1.*"),
    (TRUNK, 0, "stem.conv1.*", "conv1.*"),
    (TRUNK, 1, "res#.#.shortcut.norm.*", "layer#.#.downsample.1.*"),
    (TRUNK, 1, "res#.#.shortcut.*", "layer#.#.downsample.0.*"),
    (TRUNK, 1, "res#.#.conv#.norm.*", "layer#.#.bn#.*"),
    (TRUNK, 1, "res#.#.conv#.*", "layer#.#.conv#.*"),
    (NECK, 2, "fpn_lateral#.*", "lateral.#.*"),
    (NECK, 2, "fpn_output#.*", "output.#.*"),
    (NECK, 0, "top_block.p#.*", "p#.*"),
    (HEAD, 0, "proposal_generator.rpn_head.conv.*", "rpn.conv.*"),
    (HEAD, 0, "proposal_generator.rpn_head.objectness_logits.*", "rpn.objectness.*"),
    (HEAD, 0, "proposal_generator.rpn_head.anchor_deltas.*", "rpn.deltas.*"),
    (HEAD, -5, "roi_heads.box_head.fc#.*", "roi.fc#.*"),
    (HEAD, 0, "roi_heads.box_predictor.cls_score.*", "roi.classifier.*"),
    (HEAD, 0, "roi_heads.box_predictor.bbox_pred.*", "roi.regressor.*"),
)
_CAFFE2 = re.compile(r"(conv1|res_conv1|res(\d)_(\d+)_branch(1|2a|2b|2c))(?:_(bn|gn))?_(\w+)")
_CAFFE2_LAYERS = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_CAFFE2_WORDS = {
    "w": "weight", "s": "weight", "gamma": "weight", "b": "bias", "beta": "bias",
    "rm": "running_mean", "riv": "running_var",
}  # fmt: skip

# Pixels as detectron2's default configuration normalises them: B, G, R on the scale 0..255.
_MEAN, _STD = (103.53, 116.28, 123.675), (1.0, 1.0, 1.0)
_STD_OF_RESNEXT = (57.375, 57.12, 58.395)  # of its ResNeXt configurations
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # R, G, B on the scale 0..1


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\#", r"(\d+)").replace(r"\*", r"([a-z_]+)"))


def _fill(name: str, values: Iterable[str], shift: int) -> str:
    """Put values in place of the wildcards, the first of them shifted if it is a number."""
    for index, value in enumerate(values):
        shifted = str(int(value) + shift) if index == 0 and value.isdigit() else value
        name = re.sub(r"[#*]", shifted, name, count=1)
    return name


_READ = tuple((_pattern(theirs), part, -shift, ours) for part, shift, theirs, ours in _TABLE)
_WRITE = tuple((_pattern(ours), part, shift, theirs) for part, shift, theirs, ours in _TABLE)


def own_slot(name: str) -> Slot | None:
    """Return part and our name for one of detectron2's names; None if it is none that we have."""
    name = re.sub(r"^(?:backbone\.)?(?:bottom_up\.)?", "", name)
    for pattern, part, shift, ours in _READ:
        match = pattern.fullmatch(name)
        if match:
            return part, _fill(ours, match.groups(), shift)
    return None


def detectron2_name(part: str, name: str) -> str | None:
    """Return detectron2's name, relative to the part, for one of ours; None if it has none."""
    for pattern, of_part, shift, theirs in _WRITE:
        match = pattern.fullmatch(name)
        if match and of_part == part:
            return _fill(theirs, match.groups(), shift)
    return None


def caffe2_name(key: str) -> str | None:
    """Return detectron2's name for a Caffe2 name of a trunk; None for any other (such as ``fc1000_w``)."""
    match = _CAFFE2.fullmatch(key)
    if match is None:
        return None
    layer, stage, block, branch, norm, word = match.groups()
    place = f"res{stage}.{block}.{_CAFFE2_LAYERS[branch]}" if stage else "stem.conv1"
    norm_word = ".norm" if norm else ""
    return f"{place}{norm_word}.{_CAFFE2_WORDS.get(word, word)}"


def has_detectron2_names(keys: Iterable[str]) -> bool:
    """Whether a trunk among these names is one of detectron2's (Caffe2's names included)."""
    return any(re.search(r"(?:^|\.)res2\.0\.conv1\.|^res2_0_branch2a_w$", key) for key in keys)


@dataclass(frozen=True)
class Convention:
    """What the numbers in a file take for granted and no shape shows.

    Attributes:
        bgr: whether its first convolution reads B, G, R.
        pixel_mean, pixel_std: how to normalise pixels, for R, G, B on our scale 0..1.
        stride_in_1x1: where its bottlenecks have their stride; None if it has none.
        affine_norms: whether its norms are only an affine map (batch norm folded by Caffe2).
        detector: whether it holds a whole detector.
    """

    bgr: bool
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    stride_in_1x1: bool | None
    affine_norms: bool
    detector: bool


def _numbers(values: Tensor) -> Sequence[float]:
    return [float(value) for value in values.flatten()]


def _scaled(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (value / 255 for value in values)
    return red, green, blue


def convention_of(state: Mapping[str, Tensor], author: str | None) -> Convention | None:
    """Work out the conventions of a state dict; None if it has none of detectron2's names.

    ``pixel_mean`` and ``pixel_std`` in the file decide if they are there: a mean that grows from the first
    channel to the last is B, G, R. Otherwise the file is taken for what detectron2's configurations train:
    B, G, R with deviation 1 (ResNeXt: that of ImageNet), the stride in the first 1x1 convolution (ResNeXt,
    networks with group norm and R, G, B ones: in the 3x3). Files that its tool made from torchvision's, which
    say so under ``__author__``, are torchvision's networks.
    """
    if not has_detectron2_names(state):
        return None
    names = {caffe2_name(key) or re.sub(r"^.*?(?=(?:stem|res\d)\.)", "", key): key for key in state}
    means = next((_numbers(t) for key, t in state.items() if key.endswith("pixel_mean")), [])
    deviations = next((_numbers(t) for key, t in state.items() if key.endswith("pixel_std")), [])
    rgb = means[0] > means[-1] if means else author == "torchvision"
    middle = state.get(names.get("res2.0.conv2.weight", ""))
    # [F, C, 3, 3]: the middle of a bottleneck keeps its width, so a group reads F / groups channels.
    groups = 1 if middle is None else middle.shape[0] // middle.shape[1]
    std = _STD_OF_RESNEXT if groups > 1 else _STD
    if author == "torchvision" and not means:
        pixel_mean, pixel_std = _IMAGENET
    else:
        order = slice(None) if rgb else slice(None, None, -1)
        pixel_mean = _scaled((means or _MEAN)[order])
        pixel_std = _scaled((deviations or std)[order])
    normed = any(name.startswith("res2.0.conv1.norm.weight") for name in names)
    statistics = "res2.0.conv1.norm.running_mean" in names
    caffe2 = "res2_0_branch2a_w" in state
    grouped = normed and not statistics and not (caffe2 and "res2_0_branch2a_gn_s" not in state)
    in_1x1 = not rgb and groups == 1 and not grouped if "res2.0.conv3.weight" in names else None
    affine = caffe2 and normed and not statistics and not grouped
    detector = any(key.startswith("roi_heads.") for key in state)
    return Convention(not rgb, pixel_mean, pixel_std, in_1x1, affine, detector)


def wrong_pixels(trunk: Backbone, own: Sequence[float], wanted: Sequence[float]) -> bool:
    """Whether a task's values differ from those wanted; never for a trunk of other than three channels."""
    if trunk.image_channels != len(wanted):
        return False
    values = list(own) * (len(wanted) if len(own) == 1 else 1)
    return any(abs(a - b) > 1e-3 * b for a, b in zip(values, wanted, strict=True))


def unmet_settings(module: nn.Module, convention: Convention) -> list[str]:
    """Say which settings of a module differ from what a file takes for granted, as lines for YAML.

    Settings live in the configuration, from which checkpoints are rebuilt; loading weights does not change
    them.

    Args:
        module: a trunk, an FPN or a task.
        convention: of the file.
    """
    trunk, head = parts_of(module)
    facts = {} if convention.stride_in_1x1 is None else {"stride_in_1x1": convention.stride_in_1x1}
    changes = _unmet_expectations("backbone", trunk, facts)
    if isinstance(module, NormalisesPixels):
        scales = (("pixel_mean", module.pixel_mean), ("pixel_std", module.pixel_std))
        for (name, own), values in zip(scales, (convention.pixel_mean, convention.pixel_std), strict=True):
            if wrong_pixels(trunk, own.flatten().tolist(), values):
                changes.append(f"model.{name}: [{', '.join(f'{value:.6g}' for value in values)}]")
    if convention.detector and isinstance(head, WithExpectations):
        changes += _unmet_expectations("head", head, facts)
    return changes


def _unmet_expectations(name: str, part: WithExpectations, facts: Mapping[str, Any]) -> list[str]:
    wanted = part.expectations("detectron2", **facts)
    return [f"model.{name}.init_args.{option}: {_yaml(value)}" for option, value in wanted.items()]


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
