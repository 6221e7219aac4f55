"""Which tensor of a foreign state dict is which of ours."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from .detectron2 import caffe2_name, has_detectron2_names, own_slot
from .parts import ASPP, AUXILIARY, HEAD, NECK, OTHER, TRUNK, Entry, Slot

# The first match is used. The names on the right are ours, relative to the part.
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
    (r"(?:head\.fc|head|fc|classifier)\.(weight|bias)", HEAD, r"fc.\1"),
    (r"(head\.(?:mlp|last_layer|proj\w*)\..+)", OTHER, r"\1"),
    (r"(?:head\.)?aux_classifier\.(\d\..+)", AUXILIARY, r"\1"),
    (r"(?:head\.)?(classifier\.\d\..+)", HEAD, r"\1"),
    (r"head\.aspp\.(.+)", ASPP, r"\1"),
    (r"head\.(.+)", HEAD, r"\1"),
    (r"((?:fc|classifier|aux_classifier|roi_heads|conv_seg|projection_head|prototypes)\..+)", OTHER, r"\1"),
    (r"((?:queue|queue_ptr|n_averaged|pixel_mean|pixel_std))", OTHER, r"\1"),
    (r"backbone\.(.+)", TRUNK, r"\1"),
)
# Names of a trunk's layers that differ from ours: DenseNets of torchvision, pre-activation ResNets of timm.
_LAYERS: tuple[tuple[str, str], ...] = (
    (r"features\.(.+)", r"\1"),
    (r"stem\.conv\.(.+)", r"conv1.\1"),
    *((rf"stem\.conv{i + 1}\.(.+)", rf"conv1.{3 * i}.\1") for i in range(3)),
    *((rf"stem\.norm{i + 1}\.(.+)", rf"conv1.{3 * i + 1}.\1") for i in range(2)),
    (r"stages[._](\d)\.blocks\.(\d+)\.norm(\d)\.(.+)", r"layer{}.\2.bn\3.\4"),
    (r"stages[._](\d)\.blocks\.(\d+)\.downsample\.conv\.(.+)", r"layer{}.\2.downsample.0.\3"),
    (r"stages[._](\d)\.blocks\.(\d+)\.(.+)", r"layer{}.\2.\3"),
)
# A trunk begins where a first convolution and a first stage have one prefix.
_STEMS: tuple[tuple[str, str], ...] = (
    (r"conv1\.(?:0\.)?weight", "layer1."),
    (r"conv0\.weight", "denseblock1."),
    (r"stem\.conv\d?\.weight", "stages.0."),
    (r"stem\.conv1\.weight", "res2."),
)
# What our own rules expect in front of a trunk, the longest first.
_INNER = (
    "backbone.bottom_up.",
    "backbone.body.",
    "backbone.features.",
    "bottom_up.",
    "body.",
    "backbone.",
    "features.",
)
_SECOND = re.compile(r"student|encoder_k|momentum|target")  # a copy that follows, or learns from, another
_NEUTRAL = re.compile(r"(?:(?:module|model|net|network)\.)*")
# The classifiers of torchvision's segmenters, and those of them that begin with ASPP.
_SEGMENTER = re.compile(r"(?:aux_)?classifier\.\d\.")
_ASPP = re.compile(r"(?:.*\.)?classifier\.0\.convs\.")
STEM_CONVOLUTIONS = ("conv1.weight", "conv1.0.weight", "conv0.weight")


def entries(state: Mapping[str, Tensor], wanted: Collection[Slot] = ()) -> dict[Slot, Entry]:
    """Sort a state dict by part and own name.

    Recognised are ResNets and DenseNets of torchvision, its detectors (also those saved before 0.13) and
    segmenters (the classifiers of FCN and DeepLabV3 go into heads of the same kind). So are timm's ResNets,
    detectron2's networks, 3-D ResNets with these names, and the trunks, necks and tasks of this package. Each
    is also recognised when wrapped for distribution or compilation, or as the encoder inside a larger
    (self-supervised) network, see :func:`encoder_prefix`.

    Args:
        state: the state dict.
        wanted: slots of the module that it is for; empty for the module's own state dict. They tell where a
            classifier can go (:func:`load_weights <.weights.load_weights>`), and which names a wrapped
            timm network uses.

    Raises:
        ValueError: if two tensors have the same slot, or it is not clear which of several encoders to take.
    """
    plain = {key: _plain(key) for key in state}
    prefix = encoder_prefix(state)
    foreign = has_detectron2_names(plain.values())
    whole = any(key.startswith("backbone.") for key in plain.values())
    inside = {key for key in state if re.match(r"(?:module\.)*model\.", key)}
    segmenter = _segmenter(plain.values(), prefix, wanted)
    aspp = any(_ASPP.match(key) for key in plain.values())
    names = {name for part, name in wanted if part == TRUNK}
    rename = not any(re.match(r"(?:stages[._]\d|features_)", name) for name in names) and bool(wanted)
    table: dict[Slot, Entry] = {}
    for key, tensor in state.items():
        part, name = OTHER, plain[key]
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            if foreign:
                part, name = _detectron2(name)
            elif segmenter or not _SEGMENTER.match(name):
                part, name = classify(name, whole or bool(inside) and key not in inside)
            if part == HEAD and aspp:
                part, name = _of_deeplab(name)
        if part == TRUNK:
            name = _own_layer(name, names, rename)
        if part == HEAD and name in ("fc.weight", "fc.bias") and wanted:
            projection = _NEUTRAL.fullmatch(prefix) is None
            part = OTHER if projection or (HEAD, name) not in wanted else HEAD
        if part == OTHER:
            name = key
        if (part, name) in table:
            first = table[part, name].key
            raise ValueError(f"{first} and {key} are both the {part}'s {name}; remove one of them")
        background_first = not foreign and "roi_heads.box_predictor." in key
        table[part, name] = Entry(key, part, name, tensor, background_first=background_first)
    return table


def classify(key: str, whole: bool) -> Slot:
    """Return part and own name of a key; with ``whole``, what no rule knows is no part of the trunk."""
    for pattern, part, name in _RULES:
        match = re.fullmatch(pattern, key)
        if match:
            return part, match.expand(name)
    return (OTHER if whole else TRUNK), key


def _segmenter(keys: Iterable[str], prefix: str, wanted: Collection[Slot]) -> bool:
    """Whether numbered layers called ``classifier`` are a segmenter's, and the module has some to fill."""
    trunk = any(key.startswith(f"{prefix}backbone.") for key in keys)
    own = any(part in (AUXILIARY, ASPP) or name.startswith("classifier.") for part, name in wanted)
    return trunk and (own or not wanted)


def _of_deeplab(name: str) -> Slot:
    """Tell DeepLabV3's ASPP, which DeepLabV3+ has too, and its other layers from FCN's of the same names."""
    if name.startswith("classifier.0."):
        return ASPP, name.removeprefix("classifier.0.")
    return HEAD, name.replace("classifier.", "deeplab.", 1) if name.startswith("classifier.") else name


def encoder_prefix(keys: Iterable[str]) -> str:
    """Return what stands in front of the network to take, ``""`` for nothing.

    Self-supervised methods store their encoder under a name of their own (``encoder_q.``, ``base_encoder.``,
    ``online_encoder.net.``), often next to a second copy. So the rule is by structure: a trunk begins where a
    first convolution and a first stage have one prefix. The prefix is what comes in front of it, up to the
    words that our detectors and segmenters use themselves (``backbone.``, ``body.``, ...). Copies named
    student, key, momentum or target are used only if there is no other.

    Raises:
        ValueError: if several networks are left.
    """
    keys = {_plain(key) for key in keys}
    roots = set()
    for key in keys:
        for stem, stage in _STEMS:
            match = re.fullmatch(rf"((?:.*\.)?){stem}", key)
            if match and any(other.startswith(match[1] + stage) for other in keys):
                roots.add(match[1])
    roots = {root for root in roots if not _SECOND.search(root)} or roots
    prefixes = {root.removesuffix(next((i for i in _INNER if root.endswith(i)), "")) for root in roots}
    if len(prefixes) > 1:
        raise ValueError(
            f"holds several networks, under {', '.join(map(repr, sorted(prefixes)))}; keep the tensors of one"
        )
    return next(iter(prefixes), "")


def _plain(key: str) -> str:
    """Take away what wrappers put into a name, and bring the names of old files up to date."""
    key = re.sub(r"^(?:module\.)+", "", key.replace("_orig_mod.", ""))
    # The network inside a TimmBackbone, and whole networks inside a Lightning module.
    key = re.sub(r"^((?:backbone\.)?(?:bottom_up\.)?)(?:model\.)+", r"\1", key)
    # DenseNets published before dots were forbidden in the names of modules.
    key = re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", key)
    return caffe2_name(key) or key


def _detectron2(name: str) -> Slot:
    return own_slot(name) or (OTHER, name)


def _own_layer(name: str, names: Collection[str], rename: bool) -> str:
    """Bring a trunk's layer to the name that the module has for it."""
    if name in names:
        return name
    if rename:
        for pattern, ours in _LAYERS:
            match = re.fullmatch(pattern, name)
            if match:
                number = str(int(match[1]) + 1) if "{}" in ours else ""
                name = match.expand(ours.replace("{}", number))
                pooled = name.replace(
                    ".downsample.0.", ".downsample.1."
                )  # our average shortcut's pool is first
                return pooled if name not in names and pooled in names else name
    joined = name.replace(".", "_", 1)  # as timm names stages in its feature extractors
    return joined if joined in names else name


def block_counts(names: Iterable[str]) -> str:
    """Describe a residual trunk by its names: ``3+4+6+3 bottleneck blocks``; empty if it is none."""
    names = set(names)
    blocks = {match.groups() for name in names if (match := re.match(r"layer(\d)\.(\d+)\.", name))}
    counts = [sum(layer == str(index) for layer, _ in blocks) for index in range(1, 5)]
    if not all(counts):
        return ""
    kind = "bottleneck" if "layer1.0.conv3.weight" in names else "basic"
    return "+".join(map(str, counts)) + f" {kind} blocks"
