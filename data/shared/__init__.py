"""What data modules of several kinds use: images, batches, augmentation, checks, loaders.

The names below are public. Each is imported when it is first asked for, so that writing a sample dataset,
which needs only the classes of labels, does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .augment.checks import AugmentationError
    from .augment.transforms import Augmentation, ImageAugmentation, MaskAugmentation
    from .batches import Batch, padded
    from .canvas import CanvasBatchSampler, Request, default_canvases, scaled_size
    from .failed import CollateReadable, FailedBatch, FailedImage, SkipUnreadable
    from .io import ImageError, image_size, read_image, read_mask, resize, resize_mask
    from .labels.classes import LabelClass
    from .loading import ImageBatchSampler, ImageRequest, batch_loader
    from .locate import DataNotFoundError, list_images
    from .module import DataContractError, SplitData, TrunklineData, VolumeSettings

__all__ = [
    "Augmentation",
    "AugmentationError",
    "Batch",
    "CanvasBatchSampler",
    "CollateReadable",
    "DataContractError",
    "DataNotFoundError",
    "FailedBatch",
    "FailedImage",
    "ImageAugmentation",
    "ImageBatchSampler",
    "ImageError",
    "ImageRequest",
    "LabelClass",
    "MaskAugmentation",
    "Request",
    "SkipUnreadable",
    "SplitData",
    "TrunklineData",
    "VolumeSettings",
    "batch_loader",
    "default_canvases",
    "image_size",
    "list_images",
    "padded",
    "read_image",
    "read_mask",
    "resize",
    "resize_mask",
    "scaled_size",
]

_FILES = {
    "augment.transforms": ("Augmentation", "ImageAugmentation", "MaskAugmentation"),
    "batches": ("Batch", "padded"),
    "canvas": ("CanvasBatchSampler", "Request", "default_canvases", "scaled_size"),
    "failed": ("CollateReadable", "FailedBatch", "FailedImage", "SkipUnreadable"),
    "io": ("ImageError", "image_size", "read_image", "read_mask", "resize", "resize_mask"),
    "labels.classes": ("LabelClass",),
    "loading": ("ImageBatchSampler", "ImageRequest", "batch_loader"),
    "locate": ("DataNotFoundError", "list_images"),
    "module": ("DataContractError", "SplitData", "TrunklineData", "VolumeSettings"),
    "augment.checks": ("AugmentationError",),
}
_FILE_OF = {name: file for file, names in _FILES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_FILE_OF[name]}", __name__), name)
