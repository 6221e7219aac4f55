"""Augmentation of patches with MONAI's transforms, named in YAML; the only file that knows them.

Letters in shapes: C channels, P spatial sizes of a patch.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..shared.augment.checks import AugmentationError

Entry = Mapping[str, Mapping[str, Any] | None]

_ANISOTROPIC = 3.0  # nnU-Net: a patch is turned only in its plane if one side is more than 3 times another
_SET_HERE = ("self", "kwargs", "keys", "allow_missing_keys", "device", "lazy", "keep_size", "dtype")
_AXES = {"Rand2DElastic": 2, "Rand3DElastic": 3}  # number of axes that these transforms need

# What moves voxels, with its arguments for image and mask. A mask takes the label of the nearest voxel, and
# zeros outside the patch, which stand for the ignored label while transforms run.
_RESAMPLED = ({"mode": "bilinear", "padding_mode": "zeros"}, {"mode": "nearest", "padding_mode": "zeros"})
_SPATIAL: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "RandAffine": _RESAMPLED,
    "RandRotate": _RESAMPLED,
    "Rand2DElastic": _RESAMPLED,
    "Rand3DElastic": _RESAMPLED,
    "RandGridDistortion": _RESAMPLED,
    "RandZoom": (
        {"mode": "bilinear", "padding_mode": "constant"},
        {"mode": "nearest-exact", "padding_mode": "constant"},
    ),
    "RandFlip": ({}, {}),
    "RandAxisFlip": ({}, {}),
    "RandRotate90": ({}, {}),
}
_INTENSITY = (
    "RandGaussianNoise", "RandRicianNoise", "RandShiftIntensity", "RandStdShiftIntensity",
    "RandScaleIntensity", "RandScaleIntensityFixedMean", "RandBiasField", "RandAdjustContrast",
    "RandGaussianSmooth", "RandGaussianSharpen", "RandHistogramShift", "RandGibbsNoise",
    "RandKSpaceSpikeNoise", "RandCoarseDropout", "RandCoarseShuffle", "RandSimulateLowResolution",
)  # fmt: skip
USABLE = (*_SPATIAL, *_INTENSITY)


def default_transforms(patch: Sequence[int]) -> list[dict[str, dict[str, Any]]]:
    """Return the recipe of nnU-Net (Isensee et al., Nature Methods 2021, supplement; ranges as in its code).

    Turning by up to 30 degrees and scaling by 0.7 to 1.4 with probability 0.2 each; then noise, smoothing,
    brightness, contrast, lower resolution and gamma (inverted and not); then mirroring along each axis. If
    one side of a patch of three axes is more than 3 times another, the patch is turned only in the plane of
    the two longer sides. It is then scaled only along these two, each by its own factor.

    Args:
        patch: 2 or 3 sizes in voxels.
    """
    turn, zoom = math.radians(30), (1 / 1.4, 1 / 0.7)  # nnU-Net scales coordinates, MONAI the image
    low: list[float] | float = zoom[0]
    high: list[float] | float = zoom[1]
    angles = [turn] * 3 if len(patch) == 3 else [turn]
    if len(patch) == 3 and max(patch) > _ANISOTROPIC * min(patch):
        short = int(np.argmin(patch))
        angles = [turn if axis == short else 0.0 for axis in range(3)]
        low = [1.0 if axis == short else zoom[0] for axis in range(3)]
        high = [1.0 if axis == short else zoom[1] for axis in range(3)]
    sigma = [0.5, 1.0]
    upsample = "trilinear" if len(patch) == 3 else "bilinear"
    gamma = {"gamma": [0.7, 1.5], "retain_stats": True}
    return [
        {"RandAffine": {"prob": 0.2, "rotate_range": angles}},
        {"RandZoom": {"prob": 0.2, "min_zoom": low, "max_zoom": high}},
        {"RandGaussianNoise": {"prob": 0.1, "std": 0.1}},
        {"RandGaussianSmooth": {"prob": 0.2, "sigma_x": sigma, "sigma_y": sigma, "sigma_z": sigma}},
        {"RandScaleIntensity": {"prob": 0.15, "factors": [-0.25, 0.25]}},
        {"RandScaleIntensityFixedMean": {"prob": 0.15, "factors": [-0.25, 0.25], "preserve_range": True}},
        {"RandSimulateLowResolution": {"prob": 0.25, "zoom_range": [0.5, 1.0], "upsample_mode": upsample}},
        {"RandAdjustContrast": {"prob": 0.1, "invert_image": True} | gamma},
        {"RandAdjustContrast": {"prob": 0.3} | gamma},
        *({"RandFlip": {"prob": 0.5, "spatial_axis": axis}} for axis in range(len(patch))),
    ]


class ScanAugmentation:
    """Applies random MONAI transforms to a patch and its mask.

    Transforms that move voxels act on image (interpolated) and mask (nearest voxel) alike, all others only
    on the image. Voxels that come from outside the patch are 0 in the image, unless ``padding_mode`` says
    otherwise, and 255, ignored, in the mask. All randomness comes from the seed of each call.

    Args:
        transforms: one single-key mapping per transform, the name in MONAI (without the d of its dictionary
            version) to its arguments, for example ``{"RandFlip": {"prob": 0.5, "spatial_axis": 0}}``;
            see ``USABLE`` for the names.
        patch: sizes of the patches, 2 or 3 numbers of voxels.

    Raises:
        AugmentationError: for an unknown transform or argument, a value that MONAI refuses, or a transform
            that changes the size of such a patch.
    """

    def __init__(self, transforms: Sequence[Entry], patch: Sequence[int]):
        self.patch = tuple(patch)
        if isinstance(transforms, str | Mapping) or not isinstance(transforms, Sequence):
            raise AugmentationError(
                "data.augment is a list of single-key mappings like RandFlip: {prob: 0.5}, got "
                f"{transforms!r}"
            )
        axes = len(self.patch)
        self.steps = [_build(entry, f"data.augment[{i}]", axes) for i, entry in enumerate(transforms)]
        for place, transform in self.steps:
            self._try(place, transform)

    def __call__(self, image: Tensor, mask: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Augment one patch.

        Args:
            image: ``[C, *P]`` float32.
            mask: ``[*P]`` uint8, 255 where ignored.
            seed: non-negative; the same seed gives the same result.

        Returns:
            Both, of the same shapes and types.

        Raises:
            AugmentationError: if a transform fails on this patch or changes its size.
        """
        if not self.steps:
            return image, mask
        # Ignored becomes 0, which MONAI puts wherever a voxel comes from outside.
        # Some transforms write into what they are given.
        data = {"image": image.clone(), "mask": mask[None].add(1).float()}
        seeds = np.random.default_rng(seed).integers(2**32, size=len(self.steps), dtype=np.uint64).tolist()
        with _plain_tensors():
            for (place, transform), own in zip(self.steps, seeds, strict=True):
                transform.set_random_state(seed=own)
                data = self._apply(place, transform, data)
        return data["image"].contiguous(), data["mask"][0].to(torch.uint8).sub(1)

    def _apply(self, place: str, transform: Any, data: dict[str, Tensor]) -> dict[str, Tensor]:
        shapes = {key: value.shape for key, value in data.items()}
        try:
            data = {key: torch.as_tensor(value) for key, value in transform(data).items()}
        except Exception as error:
            sizes = "x".join(map(str, self.patch))
            raise AugmentationError(f"{place} failed on a patch of {sizes} voxels: {error}") from error
        for key, shape in shapes.items():
            if data[key].shape != shape:
                raise AugmentationError(
                    f"{place} made {list(data[key].shape)} of {key} {list(shape)}; data.patch says how large "
                    "patches are: remove it or change its arguments"
                )
        return data

    def _try(self, place: str, transform: Any) -> None:
        """Run a transform for certain on a made-up patch: many arguments MONAI looks at only then."""
        noise = torch.from_numpy(np.random.default_rng(0).random((1, *self.patch), dtype=np.float32))
        given, transform.prob = transform.prob, 1.0
        with _plain_tensors():
            transform.set_random_state(seed=0)
            self._apply(place, transform, {"image": noise, "mask": torch.ones(1, *self.patch)})
        transform.prob = given


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """Keep MONAI from recording what it does in its own kind of tensor, for as long as this lasts."""
    from monai.data import get_track_meta, set_track_meta

    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


def _build(entry: Entry, place: str, axes: int) -> tuple[str, Any]:
    """Return where a transform comes from, for errors, and the transform."""
    import monai.transforms

    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise AugmentationError(f"{place} is a mapping of one name to its arguments, got {entry!r}")
    ((name, given),) = entry.items()
    place = f"{place} {name}"
    if not isinstance(given, Mapping | None):
        raise AugmentationError(f"{place} needs its arguments as a mapping like {{prob: 0.5}}, got {given!r}")
    _check_name(place, name, monai.transforms)
    cls = getattr(monai.transforms, f"{name}d")
    arguments = dict(given or {})
    _check_arguments(place, cls, arguments)
    if _AXES.get(name, axes) != axes:
        raise AugmentationError(f"{place} needs patches of {_AXES[name]} axes; data.patch has {axes}")
    if name in _SPATIAL:
        ours, masks = _SPATIAL[name]
        arguments |= {key: (arguments.get(key, ours[key]), masks[key]) for key in ours}
    probability = arguments.get("prob", 0.1)
    if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0 <= probability <= 1:
        raise AugmentationError(f"{place}: prob is {probability!r}; it is a probability, 0 to 1")
    try:
        return place, cls(keys=["image", "mask"] if name in _SPATIAL else ["image"], **arguments)
    except Exception as error:
        raise AugmentationError(f"{place}: {error}") from error


def _check_name(place: str, name: Any, library: Any) -> None:
    if name in USABLE:
        return
    if hasattr(library, f"{name}d"):
        raise AugmentationError(
            f"{place}: this transform of MONAI cannot be used here; there are {', '.join(USABLE)}"
        )
    lower = {other.lower(): other for other in USABLE}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1)
    hint = f"did you mean {lower[near[0]]}?" if near else f"there are {', '.join(USABLE)}"
    raise AugmentationError(f"{place}: MONAI has no such transform; {hint}")


def _check_arguments(place: str, cls: type, arguments: Mapping[str, Any]) -> None:
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]  # of just this class
    ours = (*_SET_HERE, "spatial_size") if cls.__name__[:-1] in _SPATIAL else _SET_HERE
    known = [key for key in parameters if key not in ours]
    for key in arguments:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise AugmentationError(f"{place} has no argument {key!r}{hint} (it takes {', '.join(known)})")
