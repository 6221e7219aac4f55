"""Augmentation pipelines named in YAML; the only file that knows albumentations.

``Augmentation`` carries boxes along, and masks and keypoints where there are some; ``MaskAugmentation`` is
for images with a mask, ``ImageAugmentation`` for images with class labels only.

Letters in shapes: h w height and width of the image in pixels, m boxes.
"""

from __future__ import annotations

import difflib
import inspect
import os
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it must not ask the network

import albumentations as A  # noqa: E402, N812
import cv2  # noqa: E402

from ....constants import IGNORE_INDEX
from .checks import AugmentationError, check_arguments, check_result, own_transform  # noqa: E402
from .flips import Flips  # noqa: E402
from .instances import Instances, as_targets, from_targets, relative_boxes  # noqa: E402

Entry = Mapping[str, Mapping[str, Any] | None]

_NESTING = (A.OneOf, A.SomeOf, A.OneOrOther, A.RandomOrder, A.Sequential)
_ABSTRACT = (A.BasicTransform, A.DualTransform, A.ImageOnlyTransform, A.Transform3D)
_CHANGE_TYPE = ("Normalize", "ToFloat", "FromFloat", "ToTensorV2", "ToTensor3D")
# The first takes the largest or smallest label around a pixel, the second makes class 0 of what it uncovers.
_CHANGE_LABELS = ("Morphological", "GridElasticDeform")
_NEAREST = (cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT)

# What a call may give in addition to the image: the target of transforms that transform it too, and its name.
_BESIDE = {
    "bboxes": ("bboxes", "boxes"),
    "mask": ("mask", "a mask"),
    "masks": ("mask", "masks"),
    "keypoints": ("keypoints", "keypoints"),
}


class Augmentation:
    """Applies a pipeline of albumentations transforms to an image and its boxes.

    The pipeline runs before the image is resized to the size that the sampler asked for. So crops and
    scales are in pixels of the original image, each image still gets the wanted short side, and colour
    transforms see the original pixels. To train at several scales give the data module several short sides;
    transforms that only resize (such as ``SmallestMaxSize``) are undone by that last resize, unless a crop
    or padding follows.

    All randomness comes from the ``seed`` of each call: the result does not depend on the number of
    workers, on which of them serves the image, or on what it served before.

    Args:
        transforms: one single-key mapping per transform, the name in albumentations (or a class path of your
            own) to its arguments, for example ``{"HorizontalFlip": {"p": 0.5}}``. ``OneOf``, ``SomeOf``,
            ``OneOrOther``, ``RandomOrder`` and ``Sequential`` take such a list as ``transforms``.
        min_visibility: a box of which a transform leaves less than this share of its area is dropped, 0..1.
        min_box_size: a box whose width or height falls below this is dropped, in pixels before the last
            resize.
        carried: what calls give in ``instances``: ``masks``, ``keypoints`` or both.

    Raises:
        AugmentationError: for an unknown transform or argument, a value that albumentations refuses, or a
            transform that cannot carry boxes (or what is ``carried``) along, needs more than one image, or
            changes the pixel type.
    """

    def __init__(
        self,
        transforms: Sequence[Entry],
        min_visibility: float = 0.1,
        min_box_size: float = 1.0,
        carried: Sequence[str] = (),
    ):
        if not 0 <= min_visibility <= 1:
            raise AugmentationError(f"min_visibility is {min_visibility}; it is a share, 0 to 1")
        boxes = A.BboxParams(
            format="albumentations",  # relative, so that no rounding to float32 pixels happens inside
            min_visibility=min(min_visibility, 1 - 1e-6),  # it never finds exactly all of a box visible
            min_width=min_box_size,
            min_height=min_box_size,
        )
        with warnings.catch_warnings():  # only colour transforms: a legal pipeline
            warnings.filterwarnings("ignore", message="Got processor for .*, but no transform")
            points = A.KeypointParams("xy", remove_invisible=False) if "keypoints" in carried else None
            built = _build_all(transforms, frozenset({"bboxes", *carried}))
            self.compose = A.Compose(built, bbox_params=boxes, keypoint_params=points)
        if "masks" in carried:
            _check_labels_kept(self.compose)
        self.flips = _flips_alone(self.compose)
        self.min_box_size = min_box_size

    def __call__(
        self,
        image: np.ndarray,
        boxes: np.ndarray,
        labels: np.ndarray,
        crowd: np.ndarray,
        seed: int,
        mask: np.ndarray | None = None,
        size: tuple[int, int] | None = None,
        instances: Instances | None = None,
    ) -> tuple[Any, ...]:
        """Augment one image.

        Args:
            image: ``[h, w, 3]`` uint8.
            boxes: ``[m, 4]`` float32 x1 y1 x2 y2 in pixels; m may be 0. They are clipped to the image first:
                albumentations stops at a box that is a rounding error outside.
            labels: ``[m]`` int64.
            crowd: ``[m]`` bool.
            seed: non-negative; the same seed gives the same result.
            mask: ``[h, w]`` uint8 labels of the pixels, which follow the image as in ``MaskAugmentation``.
            size: height and width that boxes are in pixels of, for an image that was decoded smaller; only
                flips allow it.
            instances: masks and keypoints of the objects, as ``carried`` says. Pixels that a transform
                uncovers or blanks belong to no object. Points outside the new image count as not labelled.
                Left and right keypoints are exchanged if the image is mirrored.

        Returns:
            The image (its size may differ) and the boxes that remain, clipped to it, with their labels and
            crowd flags. Then the mask if there is one, and the instances of these boxes if there are some.

        Raises:
            AugmentationError: if a transform fails on this image, or returns something else than 8-bit RGB.
        """
        if self.flips is not None:
            flip = self.flips.draw(seed)
            return flip.sample(image, boxes, labels, crowd, mask, self.min_box_size, size, instances)
        data = {"image": image, "bboxes": relative_boxes(boxes, image.shape[:2])}
        if mask is not None:
            _check_labels_kept(self.compose)
            data["mask"] = mask
        if instances is not None:
            data |= as_targets(instances, image.shape[:2])
        result = _apply(self.compose, seed, **data)
        image = result["image"]
        rows = result["bboxes"] if len(result["bboxes"]) else np.zeros((0, 5))  # [m, 5], but [0, 4]
        height, width = image.shape[:2]
        kept = rows[:, 4].astype(np.int64)
        boxes = (rows[:, :4].clip(0, 1) * (width, height, width, height)).astype(np.float32)
        rest: tuple[Any, ...] = () if mask is None else (result["mask"],)
        if instances is not None:
            rest += (from_targets(instances, kept, result),)
        return image, boxes, labels[kept], crowd[kept], *rest


class MaskAugmentation:
    """Applies a pipeline of albumentations transforms to an image and its mask together.

    As in ``Augmentation``, the randomness of a call comes from its ``seed`` only. Where a transform uncovers
    or blanks pixels (turns, shifts, padding, dropout) their label becomes 255, ignored, unless its
    ``fill_mask`` is given; albumentations would make them class 0 or leave the old label on blanked pixels.
    ``fill_mask: null`` keeps the label beneath a dropout. Labels are never blended.

    Args:
        transforms: as in ``Augmentation``.

    Raises:
        AugmentationError: for an unknown transform or argument, a value that albumentations refuses, or a
            transform that cannot carry a mask along, blends labels, needs boxes or other images, or changes
            the pixel type.
    """

    def __init__(self, transforms: Sequence[Entry]):
        self.compose = A.Compose(_build_all(transforms, frozenset({"mask"})))
        self.flips = _flips_alone(self.compose)
        _check_labels_kept(self.compose)

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Augment one image; the size may differ afterwards.

        Args:
            image: ``[h, w, 3]`` uint8.
            mask: ``[h, w]`` uint8 labels, 255 where ignored.
            seed: non-negative; the same seed gives the same result.

        Raises:
            AugmentationError: if a transform fails on this image, or returns something else than 8-bit RGB.
        """
        if self.flips is not None:
            flip = self.flips.draw(seed)
            return flip.pixels(image), flip.pixels(mask)
        result = _apply(self.compose, seed, image=image, mask=mask)
        return result["image"], result["mask"]


class ImageAugmentation:
    """Applies a pipeline of albumentations transforms to an image without boxes or mask.

    As in ``Augmentation``, the randomness of a call comes from its ``seed`` only. The pipeline sees the
    original pixels; crops and scales are in pixels of the original image.

    Args:
        transforms: as in ``Augmentation``.

    Raises:
        AugmentationError: for an unknown transform or argument, a value that albumentations refuses, or a
            transform that needs boxes, a mask or other images, or changes the pixel type.
    """

    def __init__(self, transforms: Sequence[Entry]):
        self.compose = A.Compose(_build_all(transforms, frozenset()))
        self.flips = _flips_alone(self.compose)

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Return ``[h, w, 3]`` uint8 for ``[h, w, 3]`` uint8; the size may differ.

        Raises:
            AugmentationError: if a transform fails on this image, or returns something else than 8-bit RGB.
        """
        if self.flips is not None:
            return self.flips.draw(seed).pixels(image)
        return _apply(self.compose, seed, image=image)["image"]


def _flips_alone(compose: A.Compose) -> Flips | None:
    """Return the flips of a pipeline without anything else, possibly none at all; else None."""
    axes = {A.VerticalFlip: 0, A.HorizontalFlip: 1}
    if any(type(transform) not in axes for transform in compose.transforms):
        return None
    return Flips([(axes[type(transform)], transform.p) for transform in compose.transforms])


def _apply(compose: A.Compose, seed: int, **data: np.ndarray) -> dict[str, Any]:
    """Run a pipeline with all randomness from ``seed``."""
    # One generator for all transforms: seeding each of them with the same number would make, say, two
    # flips of probability 0.5 always happen together.
    compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
    height, width = data["image"].shape[:2]
    try:
        result = compose(**data)
    except Exception as error:
        raise AugmentationError(
            f"augmentation failed on {height}x{width} pixels (height x width): {error}"
        ) from error
    check_result(result)
    return result


def _build_all(entries: Iterable[Entry], beside: frozenset[str]) -> list[Any]:
    """Build transforms for calls that give the image and what ``beside`` names (see ``_BESIDE``)."""
    if isinstance(entries, str | Mapping) or not isinstance(entries, Iterable):
        raise AugmentationError(
            f"transforms are a list of single-key mappings like HorizontalFlip: {{p: 0.5}}, got {entries!r}"
        )
    return [_build(entry, beside) for entry in entries]


def _build(entry: Entry, beside: frozenset[str]) -> Any:
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise AugmentationError(f"a transform is a mapping of one name to its arguments, got {entry!r}")
    ((name, given),) = entry.items()
    arguments = dict(given or {})
    cls = _find(name)
    check_arguments(name, cls, arguments)
    if issubclass(cls, _NESTING):
        arguments["transforms"] = _build_all(arguments.get("transforms", ()), beside)
    else:
        for key, value in _mask_defaults(cls).items():
            arguments.setdefault(key, value)
    try:
        transform = cls(**arguments)
    except (TypeError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        raise AugmentationError(f"augmentation {name}: {error}") from error
    if "fill_mask" not in arguments and hasattr(transform, "fill_mask"):  # set, but not offered
        transform.fill_mask = IGNORE_INDEX
    if not issubclass(cls, _NESTING):
        _check_usable(name, transform, beside)
    return transform


def _mask_defaults(cls: type) -> dict[str, int]:
    """Return what we choose otherwise than albumentations: the label of uncovered pixels, and the rounding.

    OpenCV's ``INTER_NEAREST`` resizes from the corners of pixels where its linear interpolation goes by their
    centres, so that labels would be half a pixel off. ``INTER_NEAREST_EXACT`` goes by centres;
    transforms that turn or bend images do so anyway, and do not take it.
    """
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]  # of just this class
    defaults = {"fill_mask": IGNORE_INDEX} if "fill_mask" in parameters else {}
    if "mask_interpolation" in parameters:
        allowed = str(parameters["mask_interpolation"].annotation)
        if "INTER_NEAREST_EXACT" in allowed:
            defaults["mask_interpolation"] = cv2.INTER_NEAREST_EXACT
    return defaults


def _check_labels_kept(compose: A.BaseCompose) -> None:
    """Refuse what makes labels out of other labels."""
    for transform in compose.transforms:
        name = type(transform).__name__
        if isinstance(transform, A.BaseCompose):
            _check_labels_kept(transform)
        elif name in _CHANGE_LABELS:
            raise AugmentationError(f"augmentation {name} would change the labels in a mask; remove it")
        elif getattr(transform, "mask_interpolation", cv2.INTER_NEAREST) not in _NEAREST:
            raise AugmentationError(
                f"augmentation {name}: mask_interpolation {transform.mask_interpolation} would blend labels; "
                "remove it (nearest is the default)"
            )
        elif getattr(transform, "area_for_downscale", None) == "image_mask":
            raise AugmentationError(
                f"augmentation {name}: area_for_downscale image_mask would blend labels; take image"
            )


def _find(name: str) -> type:
    if "." in name:
        return own_transform(name, A.BasicTransform)
    cls = getattr(A, name, None)
    if inspect.isclass(cls) and issubclass(cls, (A.BasicTransform, *_NESTING)) and cls not in _ABSTRACT:
        return cls
    known = [
        other
        for other, value in vars(A).items()
        if inspect.isclass(value) and issubclass(value, (A.ImageOnlyTransform, A.DualTransform, *_NESTING))
    ]
    lower = {other.lower(): other for other in known}
    near = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)]
    hint = f"; did you mean {' or '.join(near)}?" if near else "; see the list at albumentations.ai/docs"
    raise AugmentationError(f"albumentations {A.__version__} has no transform {name!r}{hint}")


def _check_usable(name: str, transform: A.BasicTransform, beside: frozenset[str]) -> None:
    if name in _CHANGE_TYPE:
        raise AugmentationError(
            f"augmentation {name} changes the pixel type; remove it, images are normalised on the device"
        )
    targets = transform._targets if isinstance(transform._targets, tuple) else (transform._targets,)
    carried = {target.value.lower() for target in targets}
    for what in beside:
        target, noun = _BESIDE[what]
        if not isinstance(transform, A.ImageOnlyTransform) and target not in carried:
            raise AugmentationError(f"augmentation {name} cannot carry {noun} along; remove it")
    lacking = "detection" if "bboxes" in beside else "segmentation" if "mask" in beside else "classification"
    if "bboxes" not in beside and "BBox" in name:  # these fail on the first image only
        raise AugmentationError(f"augmentation {name} needs boxes, which {lacking} data lacks; remove it")
    extra = set(transform.targets_as_params) - {"image", *beside}
    if extra:
        needed = ", ".join(sorted(extra))
        raise AugmentationError(f"augmentation {name} needs {needed}, which {lacking} data lacks; remove it")
