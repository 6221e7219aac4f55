"""Which file has which targets; each is imported only where it is needed."""

from __future__ import annotations

import importlib

from .target import Target

GROUPS = {
    "texts": (
        "coco_boxes",
        "coco_drop",
        "coco_instances",
        "coco_images",
        "coco_masks",
        "dataset_json",
        "folds",
        "image_table",
        "case_table",
        "class_table",
        "class_list",
        "image_list",
    ),
    "images": (
        "image_png",
        "image_jpeg",
        "image_tiff",
        "image_other",
        "mask_png",
        "mask_tiff",
        "mask_values",
        "picture_png",
        "picture_tiff",
    ),
    "scans": (
        "nifti",
        "nifti_gz",
        "nrrd",
        "nhdr",
        "mha",
        "mhd",
        "dicom",
        "dicom_series",
        "scan_nifti",
        "scan_nifti_gz",
        "scan_npy",
    ),
    "archives": (
        "zip",
        "weights_torch",
        "weights_old_torch",
        "weights_pickle",
        "weights_safetensors",
    ),
    "runs": ("config", "option", "checkpoint", "checkpoint_best"),
}
NAMES = tuple(name for names in GROUPS.values() for name in names)


def group_of(name: str) -> Target:
    """Return a target by its name."""
    group = next(group for group, names in GROUPS.items() if name in names)
    targets = importlib.import_module(f"{__package__}.{group}").TARGETS
    return next(target for target in targets if target.name == name)
