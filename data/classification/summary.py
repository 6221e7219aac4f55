"""What there is to learn in images with classes, and what is odd about the splits as a whole.

Letters in shapes: I images, K classes.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence

import torch

from ..shared.common import LISTED, in_threads, listing, number_of
from ..shared.summary import SplitSummary
from .index import ClassIndex
from .names import shown

logger = logging.getLogger("trunkline")

_COMPARED = 20_000  # images up to which the sizes of files are compared
_HASHED = 2_000  # files of equal size up to which contents are compared
_BLOCK = 1 << 20


def summarise(index: ClassIndex) -> SplitSummary:
    """Count images and classes; an image without any class is nothing to learn from by itself."""
    counts = index.counts()
    seen = counts[counts > 0]
    with_class = int((index.labels > 0).any(1).sum() if index.multi_label else (index.labels >= 0).sum())
    return SplitSummary(
        {
            "images": len(index),
            "classes": len(index.class_names),
            "fewest images of a class": int(seen.min()) if len(seen) else 0,
            "most images of a class": int(seen.max()) if len(seen) else 0,
            "classes without images": len(counts) - len(seen),
            "images without a class": len(index) - with_class,
        },
        learnable=with_class,
        remedy="no image has a class; look at the folders, or the columns of the CSV",
    )


def tell(indices: Mapping[str, ClassIndex]) -> None:
    """Log what is odd about splits: classes without images, and the same files in two of them."""
    for split, index in indices.items():
        unused = _unused(index)
        if unused and split != "predict":
            logger.info(
                "the %s data have no image of %d of %d classes, which the metrics leave out: %s",
                split,
                len(unused),
                len(index.class_names),
                _named(unused),
            )
    if "train" in indices and "val" in indices:
        _tell_both(indices["train"], indices["val"])


def _tell_both(train: ClassIndex, val: ClassIndex) -> None:
    absent = set(_unused(val))
    if never := [name for name in _unused(train) if name not in absent]:
        logger.warning(
            "the val data have images of %s without any in the train data, so none can be learned: %s",
            number_of(len(never), "class") if len(never) == 1 else f"{len(never)} classes",
            _named(never),
        )
    if not train.table and not val.table and not _nested(train.folder, val.folder):
        return  # files of different folders
    inside = set(map(_place, _paths(val)))
    both = sorted(inside.intersection(map(_place, _paths(train))))
    if both:
        logger.warning(
            "%s in the train data and in the val data, so metrics say nothing about new images:\n%s\n"
            "give other images for one of them",
            f"{len(both)} images are" if len(both) > 1 else "1 image is",
            listing(both),
        )


def tell_copies(indices: Mapping[str, ClassIndex]) -> None:
    """Warn of equal files under different classes of a split, or in the training and the validation data.

    In a zip the checksums that it lists are compared. Other files are read where their sizes are equal: up
    to 2,000 of them, in data of up to 20,000 images; larger data are not looked at.
    """
    known = [(split, indices[split]) for split in ("train", "val") if split in indices]
    images = [(split, index, position) for split, index in known for position in range(len(index))]
    alike: dict[object, list[tuple[str, ClassIndex, int]]] = {}
    for image, key in zip(images, _contents(images), strict=True):
        if key is not None:
            alike.setdefault(key, []).append(image)
    several = [group for group in alike.values() if len(group) > 1]
    for split, _ in known:
        pairs = [pair for group in several if (pair := _contradicting([i for i in group if i[0] == split]))]
        if pairs:
            logger.warning(
                "the %s data hold the same image under different classes:\n%s\nremove those that are wrong",
                split,
                listing(pairs),
            )
    shared = [group for group in several if len({_place(i[1].path(i[2])) for i in group}) > 1]
    leaks = [
        f"{_path(group, 'train')} is {_path(group, 'val')}"
        for group in shared
        if len({i[0] for i in group}) > 1
    ]
    if leaks:
        logger.warning(
            "%s of the val data are copies of train data, so metrics say less about new images:\n%s",
            number_of(len(leaks), "image"),
            listing(leaks),
        )


def _contents(images: Sequence[tuple[str, ClassIndex, int]]) -> list[object]:
    """Return for each image what is equal for equal files; None for those that equal no other."""
    splits = {id(index): index for _, index, _ in images}.items()
    rows = {key: index.members[:, 3:].tolist() for key, index in splits if index.members is not None}
    listed = [tuple(rows[id(index)][n]) if id(index) in rows else None for _, index, n in images]
    if None not in listed:
        return list(listed)
    if len(images) > _COMPARED or any(listed):
        return [None] * len(images)
    sizes = in_threads(lambda image: _size(image[1].path(image[2])), images, "comparing images")
    count: dict[int | None, int] = {}
    for size in sizes:
        count[size] = count.get(size, 0) + 1
    chosen = [n for n, size in enumerate(sizes) if size is not None and count[size] > 1]
    keys: list[object] = [None] * len(images)
    if len(chosen) <= _HASHED:
        found = in_threads(
            lambda n: _digest(images[n][1].path(images[n][2])), chosen, "comparing images of equal size"
        )
        for n, digest in zip(chosen, found, strict=True):
            keys[n] = digest
    return keys


def _contradicting(group: Sequence[tuple[str, ClassIndex, int]]) -> str:
    """Return two images of a group whose labels differ, as a text; empty if there are none."""
    for _, index, position in group[1:]:
        first = group[0]
        if not torch.equal(index.labels[position], first[1].labels[first[2]]):
            return f"{first[1].path(first[2])} is {index.path(position)}"
    return ""


def _path(group: Sequence[tuple[str, ClassIndex, int]], split: str) -> str:
    return next(index.path(position) for own, index, position in group if own == split)


def _size(path: str) -> int | None:
    try:
        return os.path.getsize(path)
    except OSError:
        return None  # reported by the check of the images


def _digest(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return None


def _paths(index: ClassIndex) -> Iterator[str]:
    return (os.path.join(index.folder, name) for name in index.names)


def _place(path: str) -> str:
    return os.path.abspath(path)


def _nested(one: str, other: str) -> bool:
    one, other = os.path.realpath(one), os.path.realpath(other)
    return os.path.commonpath([one, other]) in (one, other)


def _unused(index: ClassIndex) -> list[str]:
    counts = index.counts().tolist()
    return [name for name, count in zip(index.class_names, counts, strict=True) if not count]


def _named(names: Sequence[str]) -> str:
    text = ", ".join(shown(name)[1:-1] for name in names[:LISTED])
    return text + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
