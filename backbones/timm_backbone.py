"""Trunks of timm (PyTorch Image Models) with the contract of this package.

Letters in shapes: B images, C channels, H W height and width.
"""

from __future__ import annotations

import difflib
import re
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .base import Backbone, FeatureLevel
from .maps import single_value
from .weights.load import load_weights, pretrained_is_skipped, warn_of_frozen

OWN_SETTINGS = ("features_only", "in_chans", "out_indices", "pretrained")  # not for ``options``
# What makes a model take images of any size, tried in this order; few constructors know either.
ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"strict_img_size": False},
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {},
)


class TimmBackbone(Backbone):
    """A network of timm as a trunk: ConvNeXt, EfficientNet, Swin, RegNet, ViT and a thousand others.

    Wraps ``timm.create_model(name, features_only=True)``; the levels are what timm declares. Maps in
    channels-last order (Swin and others) come out as ``[B, C, H, W]`` like all others. Where the model
    allows it, images may have any size. timm is an extra: ``pip install 'trunkline[timm]'``.

    Some of timm's models were trained with another normalisation than ImageNet's mean and deviation. After
    loading published weights ``expected_pixels`` holds theirs (mean, deviation). A task with other values
    raises an error that names them (:func:`.weights.check_pixels`).

    Args:
        name: of a model of timm, with or without the tag of its weights: ``convnext_tiny``,
            ``convnext_tiny.fb_in22k``.
        weights: None for a random start; ``timm`` for the published weights; or a file with parameter names
            of timm or of this trunk, see :func:`.weights.load_weights`. Not loaded inside
            :func:`.weights.skip_pretrained`.
        in_channels: channels of the image. Pretrained weights for three are summed (one channel) or
            repeated and rescaled (any other number).
        frozen_stages: how many stages stay as they are, parameters and running statistics: 0 none, 1 what
            comes before the first level's stage, 2 this and the first level's stage, ... up to the number of
            levels plus one, everything. For networks that timm runs one stage after the other.
        freeze_batch_norm: keep statistics and affine maps of all batch norms, for small batches.
        out_indices: which of timm's levels to return, ascending; negative numbers count from the end. None
            for the last four of different strides: 4, 8, 16 and 32 where there are four or more.
        checkpointing: keep only the stages' inputs for the backward pass and compute the rest again. timm's
            own, which would count every batch twice in batch norms: those have to be frozen.
        options: further arguments of ``timm.create_model``, such as ``{drop_path_rate: 0.1}``.

    Raises:
        ValueError: if timm is missing or does not know the name or an option, if an argument is none of the
            values above or is not possible for this network, or if the weights do not fit.
        OSError: if the weights could not be fetched.
    """

    model: Any  # timm's networks declare no types

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        in_channels: int = 3,
        frozen_stages: int = 0,
        freeze_batch_norm: bool = False,
        out_indices: list[int] | None = None,
        checkpointing: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        options = dict(options or {})
        if in_channels < 1:
            raise ValueError(f"in_channels is {in_channels}; an image has at least one channel")
        for key in OWN_SETTINGS:
            if key in options:
                raise ValueError(f"options holds {key}, which the trunk sets itself; leave it out")
        timm = _import_timm()
        _check_name(timm, name)
        _check_weights(weights, name)
        self.name = name
        blueprint, options = _blueprint(timm, name, options)
        chosen = _choose_levels(blueprint.feature_info.info, out_indices, name)
        settings = {"features_only": True, "in_chans": in_channels, "out_indices": chosen, **options}
        pretrained = weights == "timm" and not pretrained_is_skipped()
        self.model = (
            _create_pretrained(timm, name, settings) if pretrained else timm.create_model(name, **settings)
        )
        if pretrained and in_channels == 3:
            config = self.model.pretrained_cfg
            self.expected_pixels = tuple(config["mean"]), tuple(config["std"])
        info = self.model.feature_info
        self.levels = tuple(
            FeatureLevel(channels, (stride, stride))
            for channels, stride in zip(info.channels(), info.reduction(), strict=True)
        )
        self.channels_come_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        self._accept_any_size(timm, options)
        if weights not in (None, "timm") and not pretrained_is_skipped():
            load_weights(self, weights)
        warn_of_frozen(weights, frozen_stages=frozen_stages, freeze_batch_norm=freeze_batch_norm)
        self._freeze_stages(timm, frozen_stages)
        if freeze_batch_norm:
            self._freeze_batch_norms()
        if checkpointing:
            self._checkpoint()

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute the levels' maps of ``image`` ``[B, in_channels, H, W]``.

        Raises:
            ValueError: if the network cannot take images of this size.
        """
        try:
            maps = self.model(image)
        except (AssertionError, RuntimeError, ValueError) as error:
            self._blame_size(image, error)
            raise
        if self.channels_come_last:
            maps = [x.permute(0, 3, 1, 2) for x in maps]  # [B, H, W, C] -> [B, C, H, W]
        return list(maps)

    def _accept_any_size(self, timm: ModuleType, options: dict[str, Any]) -> None:
        """Pad images whose size is no multiple of the patch; remember the size that the model has."""
        if options.get("strict_img_size") is False:
            for part in self.model.modules():
                if isinstance(part, timm.layers.PatchEmbed):
                    part.dynamic_img_pad = True
        size = options.get("img_size") or self.model.pretrained_cfg["input_size"][1:]
        self.native_size = (size, size) if isinstance(size, int) else tuple(size)

    def _blame_size(self, image: Tensor, error: Exception) -> None:
        """Raise an error that names the size, where the network cannot take an image of it."""
        size = tuple(image.shape[2:])
        about_size = isinstance(error, AssertionError) or re.search(
            r"(?i)^(?!.*channels, but got).*(\bsizes?\b|shape)", str(error)
        )
        single = single_value(str(error), len(image), size)
        if size == self.native_size or single or not about_size or isinstance(error, torch.OutOfMemoryError):
            return
        height, width = self.native_size
        start = f"{self.name} cannot take an image of {size[0]} x {size[1]} ({_first_line(error)}); "
        if not self.model.pretrained_cfg.get("fixed_input_size", False):
            step = max(level.stride[0] for level in self.levels)
            raise ValueError(
                f"{start}give larger images, of sides that are multiples of {step}, or choose another network"
            ) from error
        raise ValueError(
            f"{start}it is built for {height} x {width}: give images of that size, set options: "
            "{img_size: [H, W]} to yours, or choose a network without a fixed size"
        ) from error

    def _freeze_stages(self, timm: ModuleType, count: int) -> None:
        if not 0 <= count <= len(self.levels) + 1:
            raise ValueError(f"frozen_stages is {count}; {self.name} has 0 to {len(self.levels) + 1}")
        if count == 0:
            return
        parts, ends = self._running_order(timm)
        if count == 1:
            parts = parts[: ends[0]]
        elif count <= len(ends):
            parts = parts[: ends[count - 2] + 1]
        if not parts:
            raise ValueError(
                f"frozen_stages 1 is empty: {self.name} has nothing before its first level; use 2"
            )
        self.freeze(*(f"model.{part}" for part in parts))

    def _running_order(self, timm: ModuleType) -> tuple[list[str], list[int]]:
        """Return the submodules in the order in which they run, and the places of those that end a level."""
        net, models = self.model, timm.models
        if isinstance(net, models.FeatureListNet):
            parts, ends = list(net), list(net.return_layers)
        elif isinstance(
            net, (models.efficientnet.EfficientNetFeatures, models.mobilenetv3.MobileNetV3Features)
        ):
            parts = ["conv_stem", "bn1", *(f"blocks.{name}" for name, _ in net.blocks.named_children())]
            ends = net.feature_info.module_name()
        else:
            parts, ends = [], []
        if not ends or not set(ends) <= set(parts):
            raise ValueError(
                f"frozen_stages is unknown for {self.name}, which timm does not run stage by stage; leave "
                "it at 0, or let the trunk learn slowly (optimization.trunk_lr_factor)"
            )
        return parts, [parts.index(end) for end in ends]

    def _freeze_batch_norms(self) -> None:
        norms = [name for name, part in self.named_modules() if isinstance(part, _BatchNorm)]
        if not norms:
            raise ValueError(f"freeze_batch_norm is set, but {self.name} has no batch norm; leave it out")
        self.freeze(*norms)

    def _checkpoint(self) -> None:
        if any(isinstance(part, _BatchNorm) and part.training for part in self.modules()):
            raise ValueError(
                f"checkpointing would count every batch twice in the batch norms of {self.name}; set "
                "freeze_batch_norm: true as well, or leave checkpointing out"
            )
        net: Any = (
            self.model
            if hasattr(self.model, "set_grad_checkpointing")
            else getattr(self.model, "model", None)
        )
        try:
            net.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            raise ValueError(f"timm has no checkpointing for {self.name}; leave it out") from error


def _import_timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            "TimmBackbone needs timm, which is not installed: pip install 'trunkline[timm]'"
        ) from error
    return timm


def _check_name(timm: ModuleType, name: str) -> None:
    """Raise a ValueError with close names, unless timm knows the model and the tag of its weights."""
    if ":" in name:  # hf-hub:owner/model or local-dir:folder
        return
    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        known = timm.list_models()
        close = difflib.get_close_matches(model, known, n=5) or [word for word in known if model in word][:5]
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() names all."
        raise ValueError(f"timm has no model {model!r}; {hint}")
    if tag:
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{model}.*")]
        if tag not in tags:
            raise ValueError(
                f"timm has no weights {tag!r} of {model}; there are: {', '.join(tags) or 'none'}"
            )


def _check_weights(weights: str | None, name: str) -> None:
    """Raise a ValueError for what other trunks call their weights."""
    if weights is not None and re.fullmatch(r"torchvision|DEFAULT|IMAGENET1K_\w+|\w+_Weights\.\w+", weights):
        raise ValueError(
            f"weights {weights} are torchvision's, {name} is a network of timm; use weights: timm for its "
            "own published weights, a file, or null"
        )


def _blueprint(timm: ModuleType, name: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Build the model without memory; return it and the options with what frees it from one image size.

    Raises:
        ValueError: if timm cannot build it with these options.
    """
    for relaxed in ANY_SIZE:
        settings = {**relaxed, **options}
        try:
            with torch.device("meta"):
                return timm.create_model(name, features_only=True, **settings), settings
        except Exception as error:  # constructors of a thousand models raise almost any exception
            ours = relaxed.keys() - options.keys()
            if isinstance(error, TypeError) and any(key in str(error) for key in ours):
                continue
            raise ValueError(
                f"timm cannot build {name} as a trunk (features_only) with options {options}: "
                f"{type(error).__name__}: {error}"
            ) from error
    raise AssertionError("the last entry of ANY_SIZE asks for nothing")


def _choose_levels(info: list[dict[str, Any]], wanted: list[int] | None, name: str) -> tuple[int, ...]:
    """Return the numbers of the levels to use: those wanted, or the last four of different strides."""
    strides = [level["reduction"] for level in info]
    if wanted is None:
        return tuple(sorted({stride: index for index, stride in enumerate(strides)}.values())[-4:])
    chosen = [index + len(strides) if index < 0 else index for index in wanted]
    inside = all(0 <= index < len(strides) for index in chosen)
    if not chosen or not inside or chosen != sorted(set(chosen)):
        raise ValueError(
            f"out_indices is {wanted}; {name} has levels 0 to {len(strides) - 1} of strides {strides}, give "
            "some of them in ascending order"
        )
    return tuple(chosen)


def _create_pretrained(timm: ModuleType, name: str, settings: dict[str, Any]) -> nn.Module:
    # "hf-hub:" names are not in timm's list, but always have weights.
    if ":" not in name and not timm.is_model_pretrained(name):
        raise ValueError(f"timm has no published weights for {name}; give a file, or weights: null")
    try:
        return timm.create_model(name, pretrained=True, **settings)
    except Exception as error:  # the model was built, so this is the hub, the network or the cache
        raise OSError(
            f"timm could not fetch the weights of {name} ({_first_line(error)}); check the network, or "
            "download the file by other means and give its path"
        ) from error


def _first_line(error: Exception) -> str:
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
