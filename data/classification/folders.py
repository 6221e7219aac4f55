"""Class folders: the images in them, on disk or in a zip, what is left out, and what are no classes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ..shared.common import listing, number_of
from ..shared.io import IMAGE_SUFFIXES
from ..shared.locate import SPLIT_NAMES, DataNotFoundError
from ..shared.storage import Address, Location, stored
from .archive import Archive
from .archive_names import hidden_member
from .left_out import LeftOut
from .names import LabelError, is_hidden, require_class_names, unknown_classes
from .scans import SCAN_SUFFIXES

logger = logging.getLogger("trunkline")

SUFFIXES = (*IMAGE_SUFFIXES, *SCAN_SUFFIXES)

_HIDDEN = "hidden, or made by a system"
_OTHER = "of kinds that are not read"
_SPECIAL = "no files, but pipes, sockets or devices"
_LOOP = "links to a folder that holds them"
_SPLITS = frozenset(name for names in SPLIT_NAMES.values() for name in names)
_PARTS = frozenset(("images", "imgs", "jpegimages", "masks", "labels", "annotations"))


class Tree(NamedTuple):
    """Class folders.

    Attributes:
        folders: names of all of them, sorted.
        classes: the folder of each image.
        chosen: of each image the name below the folder, or the position in the archive.
        names: of each image the name below the folder.
        stray: names of images in no class folder.
        left_out: what is not used.
    """

    folders: list[str]
    classes: list[str]
    chosen: list[Any]
    names: list[str]
    stray: list[str]
    left_out: LeftOut


def class_folders(folder: Location) -> list[str]:
    """Return the sorted names of the class folders in a folder; at an address and in shards none is empty."""
    if (address := stored(folder)) is not None:
        return sorted(
            {name.split("/")[0] for name in address.files() if "/" in name and not hidden_member(name)}
        )
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir() and not is_hidden(entry.name))


def tree_of_folder(folder: Location) -> Tree:
    """Find the images in class folders, each with those of the folders inside it, sorted by name.

    Raises:
        LabelError: if a folder may not be read.
    """
    if (address := stored(folder)) is not None:
        return _tree_of_address(address)
    left_out = LeftOut()
    folders = class_folders(folder)
    stray: list[str] = []
    for entry in _entries(folder):
        if is_hidden(entry.name):
            left_out.add(f"{entry.name}/" if entry.is_dir() else entry.name, _HIDDEN)
        elif not entry.is_dir() and _is_image(entry, entry.name, left_out):
            stray.append(entry.name)
    classes: list[str] = []
    names: list[str] = []
    for name in folders:
        found = sorted(_images_below(folder / name, name, left_out))
        names += found
        classes += [name] * len(found)
    return Tree(folders, classes, names, names, stray, left_out)


def tree_of_archive(archive: Archive, inside: str) -> Tree:
    """Find the images in the class folders of a zip, or of the folder ``inside`` it."""
    start = f"{inside}/" if inside else ""
    left_out = _hidden_of(archive, start)
    folders = {name[len(start) :].split("/")[0] for name in archive.folders if name.startswith(start)}
    names = ((name[len(start) :], n) for n, name in enumerate(archive.names) if name.startswith(start))
    return _tree_of_names(names, folders, left_out)


def _tree_of_address(folder: Address) -> Tree:
    left_out = LeftOut()
    names: list[tuple[str, str]] = []
    for name in folder.files():
        if hidden_member(name):
            left_out.add(name, _HIDDEN)
        else:
            names.append((name, name))
    return _tree_of_names(names, set(), left_out)


def _tree_of_names(names: Iterable[tuple[str, Any]], folders: set[str], left_out: LeftOut) -> Tree:
    """Sort names into class folders; ``folders`` are those known to be there, which may be empty."""
    found: list[tuple[str, str, Any]] = []
    stray: list[str] = []
    for below, chosen in names:
        first, slash, _ = below.partition("/")
        if slash:
            folders.add(first)
        if not below.lower().endswith(SUFFIXES):
            left_out.add(below, _OTHER)
        elif slash:
            found.append((first, below, chosen))
        else:
            stray.append(below)
    found.sort()
    folders.discard("")
    classes, named = [row[0] for row in found], [row[1] for row in found]
    return Tree(sorted(folders), classes, [row[2] for row in found], named, stray, left_out)


def images_of_archive(archive: Archive) -> list[int]:
    """Return the positions of all images in a zip, sorted by name, and say what is left out.

    Raises:
        DataNotFoundError: if there is none.
    """
    left_out = _hidden_of(archive, "")
    chosen: list[tuple[str, int]] = []
    for position, name in enumerate(archive.names):
        if name.lower().endswith(SUFFIXES):
            chosen.append((name, position))
        else:
            left_out.add(name, _OTHER)
    if not chosen:
        raise DataNotFoundError(
            f"data.predict: no image in {archive.path} (looked for {', '.join(SUFFIXES)}){_but(left_out)}"
        )
    left_out.tell(archive.path)
    return [position for _, position in sorted(chosen)]


def check_tree(where: str, tree: Tree, class_names: Sequence[str]) -> None:
    """Check class folders against the classes of the training data, and say what is odd about them.

    Raises:
        DataNotFoundError: if there is no image.
        LabelError: if an image lies in no class folder, folders are no classes but splits or parts of a
            dataset, a class is not among ``class_names``, or a name cannot be used.
    """
    if tree.stray:
        raise LabelError(
            f"{where}: {number_of(len(tree.stray), 'image')} in no class folder:\n{listing(tree.stray)}\n"
            "move each into a folder with the name of its class, or list them in a CSV"
        )
    if not tree.classes:
        raise DataNotFoundError(
            f"no images found in class folders in {where} (there are {len(tree.folders)} folders; "
            f"looked for {', '.join(SUFFIXES)} below each){_but(tree.left_out)}"
        )
    tree.left_out.tell(where)
    require_class_names(tree.folders, where)
    _check_meaning(where, tree, class_names)
    filled = set(tree.classes)
    if unknown := sorted(filled - set(class_names)):
        raise LabelError(
            f"{where}: the training data lack the class{'es' if len(unknown) > 1 else ''} "
            f"{', '.join(unknown[:20])}; they have {', '.join(class_names[:20])}"
            f"{unknown_classes(unknown, class_names)}"
        )
    if empty := [name for name in tree.folders if name not in filled]:
        logger.warning("%s: no images in the class folders %s", where, ", ".join(empty[:20]))


def _check_meaning(where: str, tree: Tree, class_names: Sequence[str]) -> None:
    """Look for folders that are no classes: splits, images beside masks, one folder too many."""
    splits = [name for name in tree.folders if name.lower() in _SPLITS]
    parts = [name for name in tree.folders if name.lower() in _PARTS]
    if all(name.lower() in _SPLITS | _PARTS for name in class_names):
        raise LabelError(
            f"{where}: the folders {', '.join(tree.folders)} are splits or parts of a dataset, not classes; "
            "give the folder that holds one folder for each class (data.root holds train and val)"
        )
    if len(splits) > 1 or parts:
        logger.warning(
            "%s: the folders %s are taken for classes, though such names mean splits or parts of a dataset; "
            "move them elsewhere if they are no classes",
            where,
            ", ".join(splits * (len(splits) > 1) + parts),
        )
    if files := [name for name in tree.folders if name.lower().endswith(SUFFIXES)]:
        logger.warning("%s: classes named like images: the folders %s", where, ", ".join(files[:5]))
    inner: dict[str, set[str]] = {}  # folders inside class folders: the classes that have them
    for label, name in zip(tree.classes, tree.names, strict=True):
        path = name.split("/", 2)
        if len(path) < 3:
            return  # an image right inside its class folder
        inner.setdefault(path[1], set()).add(label)
    if len(inner) > 1 and (len(set(tree.classes)) == 1 or all(len(each) > 1 for each in inner.values())):
        logger.warning(
            "%s: the classes are the folders %s, and each image lies in a folder inside them (%s); if those "
            "are the classes, give a folder that holds them",
            where,
            ", ".join(sorted(set(tree.classes))[:5]),
            ", ".join(sorted(inner)[:5]),
        )


def _entries(folder: Location) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(str(folder)) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise LabelError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error


def _images_below(folder: Location, below: str, left_out: LeftOut) -> Iterator[str]:
    """Yield the images in a folder and those inside it, as ``below``/name; hidden ones are left out."""
    for entry in _entries(folder):
        name = f"{below}/{entry.name}"
        if is_hidden(entry.name):
            left_out.add(f"{name}/" if entry.is_dir() else name, _HIDDEN)
        elif entry.is_dir():
            if entry.is_symlink() and _holds(entry.path, folder):
                left_out.add(f"{name}/", _LOOP)
            else:
                yield from _images_below(folder / entry.name, name, left_out)
        elif _is_image(entry, name, left_out):
            yield name


def _holds(link: str, folder: Location) -> bool:
    target, here = os.path.realpath(link), os.path.realpath(str(folder))
    return os.path.commonpath([target, here]) == target


def _is_image(entry: os.DirEntry[str], name: str, left_out: LeftOut) -> bool:
    """Whether a file counts as an image; a broken link does, and is reported when it is opened."""
    if not entry.name.lower().endswith(SUFFIXES):
        left_out.add(name, _OTHER)
        return False
    if entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):
        return True
    left_out.add(name, _SPECIAL)
    return False


def _hidden_of(archive: Archive, start: str) -> LeftOut:
    left_out = LeftOut()
    for name in archive.hidden:
        if name.removeprefix("__MACOSX/").startswith(start):
            left_out.add(name, _HIDDEN)
    return left_out


def _but(left_out: LeftOut) -> str:
    return f"; there are\n{left_out}" if len(left_out) else ""
