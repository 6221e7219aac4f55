"""Finds the files of a dataset from the few paths that a user gives."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from .common import number_of
from .io import IMAGE_SUFFIXES
from .storage import Address, Location, joined, located, stored, unlisted

logger = logging.getLogger("trunkline")

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

# Pictures of kinds that are not read: leaving one out is said. Other files in a folder are none.
_OTHER_PICTURES = (
    ".heic", ".heif", ".jxl", ".jpx", ".j2k", ".j2c", ".jpf", ".apng", ".mpo", ".avifs", ".psd", ".exr",
    ".hdr", ".pfm", ".dng", ".cr2", ".nef", ".arw", ".dds", ".ico", ".icns", ".pcx", ".sgi", ".qoi", ".svg",
    ".npy",
)  # fmt: skip
_KIND = "of a kind that is not read; convert them to PNG or JPEG"
_APPLE = "whose names begin with ._, which macOS adds beside the real ones"
_HIDDEN = "whose names begin with a dot"
_FOLDER = "that are folders"
_SPECIAL = "that are pipes, sockets or devices"
_NAMED = 3  # files that the warning names of each kind

CheckImages = Literal["header", "decode", "off"]
Missing = Literal["error", "skip"]  # what to do with images without annotations, and the other way round


class DataNotFoundError(FileNotFoundError):
    """A file or folder that the configuration names, or that is looked for by default, is not there."""


def find(root: str | None, given: str | None, places: Sequence[str], split: str, what: str) -> Location:
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
    base = located(root) if root is not None else Path()
    if given is not None:
        path = base / located(given)
        if not path.exists() and not unlisted(path):
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


def image_names(
    folder: Location,
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES,
    inside: bool = False,
    apart: Location | None = None,
) -> list[str]:
    """Return the names of the images in a folder, sorted; one warning tells what is left out and why.

    Left out are hidden files, folders named like an image, pipes, sockets and devices (opening one might
    wait without end), and pictures of kinds that are not read. Links to nothing stay: reading them is an
    error.

    Args:
        folder: where to look.
        suffixes: ends of names, in lower case, by which images are known.
        inside: whether to look in the folders inside too, but for hidden ones and ``__MACOSX``; names are
            relative to ``folder`` then.
        apart: a folder that is not looked into, if it lies inside.
    """
    left: dict[str, list[str]] = {}
    address = stored(folder)
    if address is not None:
        names = _names_at(address, suffixes, inside, apart, left)
    else:
        beside = None if apart is None or stored(apart) or not apart.exists() else _identity(str(apart))
        here = str(folder)
        names = sorted(_Search(suffixes, inside, beside, left).below(here, "", {_identity(here)}))
    if left:
        kinds = [f"{len(found)} {why} ({_shown(found)})" for why, found in left.items()]
        count = sum(map(len, left.values()))
        logger.warning("%s: left out %s: %s", folder, number_of(count, "file"), "; ".join(kinds))
    return names


class _Search:
    """Looks for images; ``left`` collects what is left out, by the reason."""

    def __init__(
        self,
        suffixes: tuple[str, ...],
        inside: bool,
        apart: tuple[int, int] | None,
        left: dict[str, list[str]],
    ):
        self.suffixes = suffixes
        self.inside = inside
        self.apart = apart
        self.left = left

    def below(self, folder: str, start: str, above: set[tuple[int, int]]) -> Iterator[str]:
        """Yield names; ``above`` keeps links from leading round in a circle."""
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            name = start + entry.name
            if not entry.is_file(follow_symlinks=False) and os.path.isdir(entry.path):
                yield from self._inside(entry, name, above)
            elif (why := self._reason(entry)) is None:
                yield name
            elif why:
                self.left.setdefault(why, []).append(name)

    def _inside(self, entry: os.DirEntry[str], name: str, above: set[tuple[int, int]]) -> Iterator[str]:
        if not self.inside:
            if entry.name.lower().endswith(self.suffixes):
                self.left.setdefault(_FOLDER, []).append(name)
            return
        here = _identity(entry.path)
        if entry.name[0] != "." and entry.name != "__MACOSX" and here not in above and here != self.apart:
            yield from self.below(entry.path, f"{name}/", {*above, here})

    def _reason(self, entry: os.DirEntry[str]) -> str | None:
        """Return why a file is left out, empty if that needs no word; None for an image."""
        if (why := _reason(entry.name, self.suffixes)) is not None:
            return why
        regular = entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path)
        return _SPECIAL if not regular and os.path.exists(entry.path) else None


def _reason(name: str, suffixes: tuple[str, ...]) -> str | None:
    """Return why a file of this name is left out, empty if that needs no word; None for an image."""
    name = name.lower()
    if not name.endswith(suffixes):
        return _KIND if name.endswith(_OTHER_PICTURES) and name[0] != "." else ""
    if name[0] == ".":
        return _APPLE if name[:2] == "._" else _HIDDEN
    return None


def _names_at(
    folder: Address,
    suffixes: tuple[str, ...],
    inside: bool,
    apart: Location | None,
    left: dict[str, list[str]],
) -> list[str]:
    """Return the names of the images at an address or in shards, sorted; fill ``left``."""
    names: list[str] = []
    without = f"{apart}/"
    for name in folder.files(inside):
        *folders, last = name.split("/")
        if any(each[0] == "." or each == "__MACOSX" for each in folders if each):
            continue
        if apart is not None and joined(str(folder), name).startswith(without):
            continue
        if (why := _reason(last, suffixes)) is None:
            names.append(name)
        elif why:
            left.setdefault(why, []).append(name)
    return names


def _shown(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def list_images(given: Sequence[str], suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Location]:
    """Return the given files and, sorted by name, the images directly inside the given folders, each once.

    Args:
        given: files and folders.
        suffixes: ends of names, in lower case, by which the images in a folder are known.

    Raises:
        DataNotFoundError: listing what does not exist, or if no image is left.
    """
    paths = [located(path) for path in given]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise DataNotFoundError(f"data.predict: no such file or folder: {', '.join(missing[:20])}")
    found: list[Location] = []
    for path in paths:
        found += [path / name for name in image_names(path, suffixes)] if path.is_dir() else [path]
    if not found:
        known = ", ".join(suffixes)
        raise DataNotFoundError(
            f"data.predict: no image in {', '.join(map(str, paths))} (looked for {known}, not in the folders "
            "inside)"
        )
    return list(dict.fromkeys(found))
