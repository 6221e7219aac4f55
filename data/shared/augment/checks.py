"""Augmentation without albumentations: transforms of the user, checks of arguments and of results."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np


class AugmentationError(ValueError):
    """A transform does not exist, is wrongly configured, or cannot be used for the task."""


def own_transform(path: str, base: type) -> type:
    """Return the transform that a class path names, such as ``my_transforms.Haze``.

    Args:
        path: module and class.
        base: what the class has to be derived from.

    Raises:
        AugmentationError: if there is no such class.
    """
    module, _, attribute = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the user's module may raise anything
        raise AugmentationError(
            f"augmentation {path} cannot be imported ({type(error).__name__}: {error}); modules "
            "are looked for among the installed packages, in the working directory and in the folder of the "
            "config"
        ) from error
    if not inspect.isclass(cls) or not issubclass(cls, base):
        raise AugmentationError(
            f"augmentation {path} is no transform of albumentations; derive it from ImageOnlyTransform, "
            "which leaves labels as they are, or from DualTransform"
        )
    return cls


def check_arguments(name: str, cls: type, arguments: Mapping[str, Any]) -> None:
    """Raise AugmentationError for an argument that the constructor of a transform does not take."""
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]  # of just this class
    known = [key for key in parameters if key != "self"]
    for key in arguments:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise AugmentationError(
                f"augmentation {name} has no argument {key!r}{hint} (it takes {', '.join(known)})"
            )


def check_result(result: Mapping[str, Any]) -> None:
    """Raise AugmentationError unless the image is 8-bit RGB and masks still fit it.

    Args:
        result: the ``image``, and the ``mask`` or the ``masks`` if there are some.
    """
    image = result["image"]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise AugmentationError(
            f"the augmentation turned 8-bit RGB into {image.dtype} of shape {image.shape}; remove the "
            "transform that does so (images are normalised on the device, after augmentation)"
        )
    masks = [result["mask"]] if "mask" in result else []
    for mask in (*masks, *result.get("masks", ())):
        if mask.dtype != np.uint8 or mask.shape != image.shape[:2]:
            raise AugmentationError(
                f"the augmentation made a mask of {mask.dtype} and shape {mask.shape} for an image of shape "
                f"{image.shape}; remove the transform that does so"
            )
