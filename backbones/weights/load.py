"""Loads weights of other networks, files and libraries into ours, and reports on every tensor.

The layout is recognised by the names:

- ResNets, DenseNets, detectors and segmenters of torchvision;
- ResNets of timm (``resnetv2`` for pre-activation) and, for a ``TimmBackbone``, any network of timm;
- detectron2's model zoo (:mod:`.detectron2`);
- 3-D ResNets of MONAI and MedicalNet;
- encoders inside self-supervised networks (:func:`.keymaps.encoder_prefix`);
- files of this package; if they hold averaged weights, those are read.

A classifier on global features (``fc``, ``classifier``) goes into a head that has one, and so do the
classifiers of torchvision's FCN and DeepLabV3.

What differs is made to fit where that is well defined, see :mod:`.adapt`:

- another number of input channels; BGR; 2-D kernels in a 3-D network;
- torchvision's box predictor: its first row is the background, and it may have a row for each COCO id up
  to 90;
- a convolution's bias before a batch norm, and norms that are an affine map;
- the four detectors that torchvision runs with eps = 0 in the trunk's norms, given by name or by a file
  that keeps the published name.

Batch-norm weights for a network with group or instance norm give it their convolutions only: its norms
keep their initial values, because an affine map learned after other statistics does not fit here.
Those tensors are reported as skipped and not counted.

Some properties show in no shape. detectron2's files take settings for granted that are checked here. The
others are the user's to know: MedicalNet trained with ``output_stride: 8``; timm's BiT networks
standardise their kernels, which ours do not.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import get_args

import torch
from torch import Tensor, nn

from ..base import parts_of
from ..layers import Inflation, check_choice
from .adapt import COCO_CATEGORY_IDS
from .checks import require_trained_below, require_values, warn_of_untrained
from .detectron2 import unmet_settings, wrong_pixels
from .files import Source, Weights, read_weights
from .plan import LoadReport, Plan

__all__ = [
    "COCO_CATEGORY_IDS",
    "LoadReport",
    "check_pixels",
    "explain_mismatch",
    "load_weights",
    "pretrained_is_skipped",
    "skip_pretrained",
    "warn_of_frozen",
]

logger = logging.getLogger("trunkline")
# Mean and standard deviation of the images that all of torchvision's published networks were trained on.
TORCHVISION_PIXELS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_skip: ContextVar[str] = ContextVar("skip_pretrained", default="")


@contextlib.contextmanager
def skip_pretrained(only_trunk: bool = False) -> Iterator[None]:
    """Build networks without loading their ``weights``, because others will replace them.

    Args:
        only_trunk: the task still loads its own ``weights``, which bring the trunk; the trunk does not.
    """
    token = _skip.set("trunk" if only_trunk else "all")
    try:
        yield
    finally:
        _skip.reset(token)


def pretrained_is_skipped(task: bool = False) -> bool:
    """Whether the caller is inside :func:`skip_pretrained`, in a way that concerns it.

    Args:
        task: ask for the weights of a whole task rather than those of a trunk.
    """
    return _skip.get() == "all" or (_skip.get() == "trunk" and not task)


def warn_of_frozen(weights: str | None, **frozen: object) -> None:
    """Warn of layers that will keep the random values that they start with.

    Args:
        weights: of the trunk.
        **frozen: options that keep layers from changing, with their values; those without effect are false.
    """
    options = [f"{name}: {str(value).lower()}" for name, value in frozen.items() if value]
    if options and weights is None and not pretrained_is_skipped():
        logger.warning(
            "the trunk has no weights, and %s would keep layers as they are, untrained. Set "
            "model.backbone.weights, or take out %s, unless you load weights yourself afterwards",
            " and ".join(options),
            " and ".join(frozen_name.partition(":")[0] for frozen_name in options),
        )


def load_weights(
    module: nn.Module,
    source: Source,
    minimum: float = 0.9,
    inflation: Inflation = "centre",
    check_settings: bool = True,
) -> LoadReport:
    """Load weights into a trunk, an FPN or a whole task, and report what happened to every tensor.

    A trunk takes only the trunk out of a larger network; a task takes a bare trunk into its trunk. Which
    layouts are known, what is made to fit and what is not checked: see the module.

    Args:
        module: a ``Backbone``, or a module with the submodules ``backbone`` and ``head``. On an error it is
            left as it was.
        source: a file written by ``torch.save`` (a state dict, bare or under a usual key, so also a Lightning
            checkpoint), a ``.safetensors`` file, a ``.pkl`` of detectron2's model zoo, the name of
            torchvision weights such as ``ResNet50_Weights.IMAGENET1K_V2``, or a state dict. No code in a file
            is run.
        minimum: smallest acceptable ``fraction`` of the report, 0 to 1. Above 0 residual networks must also
            be of the same kind: the stem, norms before or after the convolutions, shortcuts with weights or
            without. They differ in few tensors, so the fraction would hardly show it. For the same reason no
            layer of the trunk may then be left untrained under one that gets weights.
        inflation: ``centre`` or ``mean``, how 2-D kernels fill 3-D ones, see :func:`.adapt.inflate`.
        check_settings: whether to refuse detectron2's weights for a module with other settings than theirs.

    Returns:
        The report; it is also logged to ``trunkline`` at level INFO.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the source cannot be read as weights, fits less than ``minimum``, needs other
            settings, holds values that are not finite or no floating-point numbers, or leaves a layer
            untrained under trained ones; or if ``inflation`` is neither.
        OSError: if weights could not be downloaded.
        TypeError: if ``module`` is no backbone and no task.
    """
    trunk, _ = parts_of(module)
    check_choice("inflation", inflation, get_args(Inflation))
    weights = read_weights(source)
    plan = Plan(module, weights, inflation)
    report = plan.report
    if report.fraction < minimum or (plan.other_network and minimum > 0):
        raise ValueError(plan.complaint(minimum))
    if check_settings:
        _require_settings(plan)
    require_values(plan)
    if minimum > 0:
        require_trained_below(plan)
    with torch.no_grad():
        for target, value in plan.copies:
            target.copy_(value)
    if plan.convention is not None:
        trunk.expected_pixels = plan.convention.pixel_mean, plan.convention.pixel_std
    elif weights.published:
        trunk.expected_pixels = TORCHVISION_PIXELS
    logger.info("%s", report)
    warn_of_untrained(plan)
    return report


def _require_settings(plan: Plan) -> None:
    changes = [] if plan.convention is None else unmet_settings(plan.module, plan.convention)
    if changes:
        raise ValueError(
            f"{plan.report.source} was trained with other settings than this model has; nothing was loaded. "
            "Set\n  " + "\n  ".join(changes)
        )


def check_pixels(module: nn.Module, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
    """Check that images will be normalised as the trunk's pretrained weights expect, if that is known.

    Args:
        module: a task, after its trunk has loaded its weights.
        pixel_mean, pixel_std: the task's, per channel on the 0..1 scale.

    Raises:
        ValueError: naming the values to set.
    """
    trunk, _ = parts_of(module)
    expected = trunk.expected_pixels
    if expected is None:
        return
    changes = [
        f"model.{name}: [{', '.join(f'{value:.6g}' for value in wanted)}]"
        for name, own, wanted in zip(
            ("pixel_mean", "pixel_std"), (pixel_mean, pixel_std), expected, strict=True
        )
        if wrong_pixels(trunk, own, wanted)
    ]
    if changes:
        raise ValueError(
            "the trunk's weights were trained on images normalised otherwise. Set\n  " + "\n  ".join(changes)
        )


def explain_mismatch(module: nn.Module, state: Mapping[str, Tensor], label: str) -> str:
    """Say in what a state dict differs from a module that refused it."""
    return Plan(module, Weights(label, dict(state)), "centre").complaint(1.0)
