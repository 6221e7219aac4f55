"""Finds the files of a dataset from the few paths that a user gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from .io import IMAGE_SUFFIXES

ANNOTATION_PLACES = ("annotations/instances_{split}.json", "annotations/instances_{split}2017.json")
IMAGE_PLACES = ("images/{split}", "{split}2017", "images/{split}2017", "images")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations")
MASK_ENDINGS = ("_mask", "_masks", "-mask", "_label", "_labels", "_L", "_gt", "_GT", "_seg", "_segmentation")

CheckImages = Literal["header", "decode", "off"]
Missing = Literal["error", "skip"]  # what to do with images without annotations, and the other way round


class DataNotFoundError(FileNotFoundError):
    """A file or folder that the configuration names, or that is looked for by default, is not there."""


def find(root: str | None, given: str | None, places: Sequence[str], split: str, what: str) -> Path:
    """Return the path a user gave, or the first of the usual places that exists.

    Args:
        root: folder that relative paths are relative to; None for the working directory.
        given: the user's path, or None to look in ``places``.
        places: candidates relative to ``root``, with ``{split}`` for the name of the split.
        split: ``train``, ``val`` or ``test``.
        what: ``annotations`` or ``images``; names the argument to give in the error.

    Raises:
        DataNotFoundError: naming what was looked for.
    """
    base = Path(root).expanduser() if root is not None else Path()
    if given is not None:
        path = base / Path(given).expanduser()
        if not path.exists():
            raise DataNotFoundError(
                f"data.{split}_{what}: {path} does not exist; it is relative to data.root"
            )
        return path
    if root is None:
        raise DataNotFoundError(f"no {split} data: give data.root, or data.{split}_{what}")
    candidates = [base / place.format(split=split) for place in places]
    for path in candidates:
        if path.exists():
            return path
    looked = "\n".join(f"  {path}" for path in candidates)
    hint = f"give data.root or data.{split}_{what}"
    raise DataNotFoundError(f"no {split} {what} found, looked for\n{looked}\n{hint}")


def list_images(given: Sequence[str], suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    """Return the given files and, sorted by name, the images directly inside the given folders, each once.

    Args:
        given: files and folders.
        suffixes: ends of names, in lower case, by which the images in a folder are known.

    Raises:
        DataNotFoundError: listing what does not exist, or if no image is left.
    """
    paths = [Path(path).expanduser() for path in given]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise DataNotFoundError(f"data.predict: no such file or folder: {', '.join(missing[:20])}")
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(entry for entry in path.iterdir() if entry.name.lower().endswith(suffixes))
        else:
            found.append(path)
    if not found:
        known = ", ".join(suffixes)
        raise DataNotFoundError(
            f"data.predict: no image in {', '.join(map(str, paths))} (looked for {known}, not in the folders "
            "inside)"
        )
    return list(dict.fromkeys(found))
