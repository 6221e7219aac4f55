"""Which mask belongs to which image: by name, by a list, or as Cityscapes names them."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Sequence
from typing import Literal, NamedTuple

from ..shared.common import listing, number_of
from ..shared.io import IMAGE_SUFFIXES
from ..shared.labels.lists import read_list
from ..shared.labels.table import MaskError
from ..shared.locate import MASK_ENDINGS, DataNotFoundError, Missing, image_names
from ..shared.storage import Location, joined, stored

logger = logging.getLogger("trunkline")

Unpaired = Missing | Literal["silent"]  # left out without a warning: the caller looks for itself

CITYSCAPES_IMAGE = "_leftImg8bit"
CITYSCAPES_MASKS = ("_labelIds", "_labelTrainIds")


class Pairs(NamedTuple):
    """Images and their masks, in the same order, as names below a folder each."""

    folder: str
    names: list[str]
    mask_folder: str
    mask_names: list[str]


_NAMED = 5  # files that a warning names


def pair_folders(images: Location, masks: Location, missing: Unpaired = "error") -> Pairs:
    """Pair the images of two folders, also in folders inside, by their names without the suffix.

    If no name of a mask is that of an image, a common ending is taken off the masks: ``_mask``, ``_label``,
    ``_L``, ``_gt`` and the like. Cityscapes' ``X_leftImg8bit`` goes with ``X_gtFine_labelIds``, else with
    ``X_gtFine_labelTrainIds``; other files next to those do not matter.

    Args:
        images: folder of the images.
        masks: folder of the masks.
        missing: ``error``, or ``skip`` to leave out images without a mask and masks without an image; with
            ``silent`` there is no warning of that.

    Raises:
        DataNotFoundError: if either folder holds no image.
        MaskError: listing the images without a mask and the masks without an image, or files with
            the same name except the suffix; or if an image would be its own mask.
    """
    _require_two_folders(images, masks)
    pictures, files = _files(images, "images", masks), _files(masks, "masks", images)
    if all(key.endswith(CITYSCAPES_IMAGE) for key in pictures):
        pictures = {key.removesuffix(CITYSCAPES_IMAGE): name for key, name in pictures.items()}
        found = _cityscapes_masks(files)
    else:
        found = _like(pictures, files)
    alone = [f"{images / name}: no mask" for key, name in pictures.items() if key not in found]
    stray = [f"{masks / name}: no image" for key, name in found.items() if key not in pictures]
    _report(alone, stray, len(pictures), f"{images} and {masks}", missing)
    keys = [key for key in pictures if key in found]
    if not keys:
        raise MaskError(
            f"no image in {images} has a mask in {masks}; a mask has the name of its image, except the suffix"
        )
    return _checked(
        Pairs(str(images), [pictures[key] for key in keys], str(masks), [found[key] for key in keys])
    )


def pair_list(source: Location, images: Location, masks: Location, missing: Unpaired = "error") -> Pairs:
    """Pair the images that a text file lists, one a line, with their masks.

    A line names an image below ``images``, with or without its suffix; as in Pascal VOC. What stands after
    a blank in the line (some lists name the mask there) does not matter.

    Args:
        source: the list.
        images: folder of the images.
        masks: folder of the masks, by the same names except the suffix.
        missing: as in ``pair_folders``, for listed images.

    Raises:
        DataNotFoundError: if a folder holds no image.
        MaskError: listing the lines without an image, or the images without a mask; or if an image would
            be its own mask.
    """
    _require_two_folders(images, masks)
    pictures, found = _files(images, "images", masks), _files(masks, "masks", images)
    keys = listed_keys(source, images, pictures)
    found = _like(dict.fromkeys(keys, ""), found)
    alone = [f"{images / pictures[key]}: no mask in {masks}" for key in keys if key not in found]
    _report(alone, [], len(keys), str(source), missing)
    kept = [key for key in keys if key in found]
    if not kept:
        raise MaskError(f"{source}: none of the {number_of(len(keys), 'image')} has a mask in {masks}")
    return _checked(
        Pairs(str(images), [pictures[key] for key in kept], str(masks), [found[key] for key in kept])
    )


def listed_keys(source: Location, images: Location, pictures: dict[str, str] | None = None) -> list[str]:
    """Return the keys of the images below ``images`` that a list names; see ``pair_list``.

    Raises:
        MaskError: listing the lines without an image, or names that are there twice.
    """
    pictures = _files(images, "images") if pictures is None else pictures
    keys: list[str] = []
    problems: list[str] = []
    for number, line in enumerate(read_list(source, "list of images").splitlines(), start=1):
        if not line.strip():
            continue
        # A name may hold blanks; what follows one may also be the mask, or a number.
        found = (_listed(written, pictures) for written in (line.strip(), line.split()[0]))
        key = next((k for k in found if k is not None), None)
        if key is None:
            problems.append(f"line {number}: {line.strip()}")
        else:
            keys.append(key)
    if problems:
        raise MaskError(f"{source}: no such image in {images}:\n{listing(problems)}")
    if not keys:
        raise MaskError(f"{source}: lists no images")
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise MaskError(f"{source}: {twice} is listed twice; remove one of the lines")
    return keys


def _listed(written: str, pictures: dict[str, str]) -> str | None:
    """Return the key that a list means, or None; some lists begin at the folder around the images."""
    name = _key(os.path.normpath(written.lstrip("/")))
    names = (name, name.partition("/")[2])
    return next((k for n in names for k in (n, os.path.splitext(n)[0]) if k in pictures), None)


def pictures_below(folder: Location) -> dict[str, str]:
    """Return the images in a folder and in those inside: name without suffix to name, sorted.

    Raises:
        DataNotFoundError: if there is none.
        MaskError: if two differ only in the suffix.
    """
    return _files(folder, "images")


def _files(folder: Location, what: str, apart: Location | None = None) -> dict[str, str]:
    """Return the images below a folder by key, without those below ``apart`` if that lies inside."""
    names = image_names(folder, inside=True, apart=apart)
    if not names:
        raise DataNotFoundError(f"no {what} in {folder} (looked for {', '.join(IMAGE_SUFFIXES)})")
    found: dict[str, str] = {}
    for name in names:
        if (before := found.setdefault(_key(os.path.splitext(name)[0]), name)) != name:
            raise MaskError(
                f"{folder}: {before} and {name} differ only in the suffix, so it is unclear which is "
                f"meant; rename or remove one, and keep masks in a folder of their own"
            )
    return found


def _key(name: str) -> str:
    """Return a name as it is compared: some systems write an accent as a character of its own."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _require_two_folders(images: Location, masks: Location) -> None:
    apart = stored(images) or stored(masks) or not images.exists() or not masks.exists()
    if images == masks or not apart and os.path.samefile(str(images), str(masks)):
        raise MaskError(
            f"{images}: is the folder of both images and masks, so each image would be its own mask; put "
            "the masks into a folder of their own"
        )


def _checked(pairs: Pairs) -> Pairs:
    """Refuse images that are their own masks, by whatever links or names."""
    same = []
    for name, mask_name in zip(pairs.names, pairs.mask_names, strict=True):
        image, mask = joined(pairs.folder, name), joined(pairs.mask_folder, mask_name)
        try:
            if image == mask or os.path.samefile(image, mask):
                same.append(f"{image} and {mask}")
        except OSError:
            continue  # a link to nothing, which the check of the images names
    if same:
        raise MaskError(
            f"{len(same)} of {number_of(len(pairs.names), 'image')} are their own masks, by a link or two "
            f"names of one file:\n{listing(same)}\nreplace them by the masks"
        )
    return pairs


def _like(pictures: dict[str, str], masks: dict[str, str]) -> dict[str, str]:
    """Take the ending off the masks that makes most of them fit, if none fits without."""
    if any(key in pictures for key in masks):
        return masks
    best, most = masks, 0
    for ending in MASK_ENDINGS:
        cut = {key.removesuffix(ending): name for key, name in masks.items() if key.endswith(ending)}
        fitting = sum(key in pictures for key in cut)
        if fitting > most:
            best, most = cut, fitting
    return best


def _cityscapes_masks(files: dict[str, str]) -> dict[str, str]:
    for ending in CITYSCAPES_MASKS:
        found = {
            key.removesuffix(ending).rpartition("_")[0]: name
            for key, name in files.items()
            if key.endswith(ending)
        }
        if found:
            return found
    return files


def _report(alone: Sequence[str], stray: Sequence[str], count: int, where: str, missing: Unpaired) -> None:
    if missing == "silent" or not alone and not stray:
        return
    if missing == "skip":
        logger.warning(
            "%s: left out %s without a mask and %s without an image: %s",
            where, number_of(len(alone), "image"), number_of(len(stray), "mask"),
            ", ".join([*alone[:_NAMED], *stray[:_NAMED]]),
        )  # fmt: skip
        return
    raise MaskError(
        f"{where}: {len(alone)} of {number_of(count, 'image')} without a mask, "
        f"{number_of(len(stray), 'mask')} without an image:\n{listing([*alone, *stray])}\n"
        "a mask has the name of its image, except the suffix; add or remove files, or set "
        "data.missing to skip"
    )
