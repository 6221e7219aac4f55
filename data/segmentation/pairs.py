"""Which mask belongs to which image: by name, by a list, or as Cityscapes names them."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from ..shared.common import listing, number_of
from ..shared.io import IMAGE_SUFFIXES
from ..shared.labels.table import MaskError
from ..shared.locate import MASK_ENDINGS, DataNotFoundError, Missing

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


def pair_folders(images: Path, masks: Path, missing: Unpaired = "error") -> Pairs:
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
            the same name except the suffix.
    """
    pictures = _files(images, "images")
    if all(key.endswith(CITYSCAPES_IMAGE) for key in pictures):
        pictures = {key.removesuffix(CITYSCAPES_IMAGE): name for key, name in pictures.items()}
        found = _cityscapes_masks(_files(masks, "masks"))
    else:
        found = _like(pictures, _files(masks, "masks"))
    alone = [f"{images / name}: no mask" for key, name in pictures.items() if key not in found]
    stray = [f"{masks / name}: no image" for key, name in found.items() if key not in pictures]
    _report(alone, stray, len(pictures), f"{images} and {masks}", missing)
    keys = [key for key in pictures if key in found]
    if not keys:
        raise MaskError(
            f"no image in {images} has a mask in {masks}; a mask has the name of its image, except the suffix"
        )
    return Pairs(str(images), [pictures[key] for key in keys], str(masks), [found[key] for key in keys])


def pair_list(source: Path, images: Path, masks: Path, missing: Unpaired = "error") -> Pairs:
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
        MaskError: listing the lines without an image, or the images without a mask.
    """
    pictures, found = _files(images, "images"), _files(masks, "masks")
    keys = listed_keys(source, images, pictures)
    found = _like(dict.fromkeys(keys, ""), found)
    alone = [f"{images / pictures[key]}: no mask in {masks}" for key in keys if key not in found]
    _report(alone, [], len(keys), str(source), missing)
    kept = [key for key in keys if key in found]
    if not kept:
        raise MaskError(f"{source}: none of the {number_of(len(keys), 'image')} has a mask in {masks}")
    return Pairs(str(images), [pictures[key] for key in kept], str(masks), [found[key] for key in kept])


def listed_keys(source: Path, images: Path, pictures: dict[str, str] | None = None) -> list[str]:
    """Return the keys of the images below ``images`` that a list names; see ``pair_list``.

    Raises:
        MaskError: listing the lines without an image, or names that are there twice.
    """
    pictures = _files(images, "images") if pictures is None else pictures
    keys: list[str] = []
    problems: list[str] = []
    text = source.read_text(encoding="utf-8-sig")
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        name = os.path.normpath(line.split()[0].lstrip("/"))
        names = (name, name.partition("/")[2])  # some lists begin at the folder around images
        key = next((k for n in names for k in (n, os.path.splitext(n)[0]) if k in pictures), None)
        if key is None:
            problems.append(f"line {number}: {name}")
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


def pictures_below(folder: Path) -> dict[str, str]:
    """Return the images in a folder and in those inside: name without suffix to name, sorted.

    Raises:
        DataNotFoundError: if there is none.
        MaskError: if two differ only in the suffix.
    """
    return _files(folder, "images")


def _files(folder: Path, what: str) -> dict[str, str]:
    names: list[str] = []
    for parent, inner, files in os.walk(folder, followlinks=True):
        inner[:] = [name for name in inner if name[0] != "."]
        below = os.path.relpath(parent, folder)
        start = "" if below == "." else f"{below}/"
        names += [start + f for f in files if f.lower().endswith(IMAGE_SUFFIXES) and f[0] != "."]
    if not names:
        raise DataNotFoundError(f"no {what} in {folder} (looked for {', '.join(IMAGE_SUFFIXES)})")
    found: dict[str, str] = {}
    for name in sorted(names):
        if (before := found.setdefault(os.path.splitext(name)[0], name)) != name:
            raise MaskError(
                f"{folder}: {before} and {name} differ only in the suffix, so it is unclear which is "
                "meant; rename or remove one"
            )
    return found


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
            "%s: left out %s without a mask and %s without an image",
            where, number_of(len(alone), "image"), number_of(len(stray), "mask"),
        )  # fmt: skip
        return
    raise MaskError(
        f"{where}: {len(alone)} of {number_of(count, 'image')} without a mask, "
        f"{number_of(len(stray), 'mask')} without an image:\n{listing([*alone, *stray])}\n"
        "a mask has the name of its image, except the suffix; add or remove files, or set "
        "data.missing to skip"
    )
